"""What a run asks of every prompt, and what it leaves to each line."""

from collections.abc import Mapping

from attrs import field, fields, frozen

from onellm_async.batch.inputs.request_fields import RECORD_FIELDS, request_fields
from onellm_async.chat import JSON, ChatRequest, Prompt
from onellm_async.structured_output import Shape
from onellm_async.wire import request_from_body

DEFAULT_MODEL = "GPT-5-Nano"
"""The model asked if none is named: the cheapest of OpenAI's in the catalogue."""

_IN_EXTRA = ("safety_settings", "generation_config")
"""Fields of the API that a `ChatRequest` has no name for."""
_BODY_ONLY = frozenset({"extra", *_IN_EXTRA})
"""Fields that a body of an OpenAI batch sends as they are."""
_BODY_FIELDS = {name: field for name, field in RECORD_FIELDS.items() if name not in _BODY_ONLY}
_FLAGS = ("model", "system", "max_tokens", "temperature")
_REQUEST_FIELDS = frozenset(each.name for each in fields(ChatRequest))


@frozen
class RequestDefaults:
    """What is asked of every prompt of a run.

    A value that is set here goes before that of a line; one that is None is left to the line.

    Attributes:
        model: The model; where neither this nor the line names one, `fallback_model` is asked.
        fallback_model: Asked where neither ``model`` nor the line names one.
        system: An instruction beside each prompt.
        max_tokens: Maximum number of tokens to generate per prompt.
        temperature: 0 to 2.
        more: Further request fields, such as ``top_p``; what a `ChatRequest` has no name for goes into ``extra``.
        least_max_tokens: Whether of two limits, here and in the line, the smaller one counts, as under a cost cap.
        shape: What each answer has to be: its schema goes into every request, and replaces the ``response_format`` of a
            line, but not that of a complete request or of ``more``.

    Raises:
        InvalidRequestError: If a value is out of range, once and for all prompts.
    """

    model: str | None = None
    fallback_model: str = DEFAULT_MODEL
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    more: Mapping[str, JSON] = field(factory=dict, hash=False)
    least_max_tokens: bool = False
    shape: Shape[object] | None = field(default=None, eq=False)

    def __attrs_post_init__(self) -> None:
        self.request("A probe: the values are refused here, not on every line.")

    def request(self, prompt: Prompt, fields: Mapping[str, JSON] | None = None) -> ChatRequest:
        """`prompt` as a complete request.

        Args:
            prompt: A text or messages; a `ChatRequest` is returned as it is.
            fields: What the line sets, as `request_fields` gives it.

        Raises:
            InvalidRequestError: If the prompt or a field is unusable.
        """
        request = self._plain_request(prompt, fields)
        return request if self.shape is None else self.shape.asked_in(request)

    def _plain_request(self, prompt: Prompt, fields: Mapping[str, JSON] | None) -> ChatRequest:
        if isinstance(prompt, ChatRequest):
            return prompt
        if fields or self.more:
            merged = self._merged(fields or {})
            if extra := {name: merged.pop(name) for name in sorted(merged.keys() - _REQUEST_FIELDS)}:
                merged["extra"] = extra | dict(merged.get("extra") or {})
            return ChatRequest(merged.pop("model"), prompt, **merged)
        return ChatRequest(
            self.model if self.model is not None else self.fallback_model,
            prompt,
            system=self.system,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )

    def merge_into(self, body: Mapping[str, JSON]) -> ChatRequest:
        """The request that `body` describes, with the set values on top.

        Raises:
            InvalidRequestError: If a field is missing or refused.
        """
        own = request_fields(body, _BODY_FIELDS)
        others = {name: value for name, value in body.items() if value is not None and name not in _BODY_FIELDS}
        request = request_from_body(others | self._merged(own))
        return request if self.shape is None else self.shape.asked_in(request)

    @property
    def sets_anything(self) -> bool:
        """Whether any value of a line may be replaced."""
        return self.shape is not None or bool(self.more) or any(getattr(self, name) is not None for name in _FLAGS)

    def replaced(self, fields: Mapping[str, JSON]) -> list[str]:
        """The fields of a line whose values are replaced by those that are set here; ``"schema"`` if that does it."""
        merged = self._merged(fields)
        found = [name for name in (*_FLAGS, *self.more) if name in fields and merged[name] != fields[name]]
        return [*found, "schema"] if "response_format" in fields and "response_format" not in merged else found

    def _merged(self, fields: Mapping[str, JSON]) -> dict[str, JSON]:
        merged = {"model": self.fallback_model, **fields}
        for name in _FLAGS:
            value = getattr(self, name)
            if value is None:
                continue
            own = fields.get(name)
            if name == "max_tokens" and self.least_max_tokens and isinstance(own, int) and own < value:
                continue
            merged[name] = value
        if self.shape is not None:
            merged.pop("response_format", None)
        merged.update(self.more)
        return merged
