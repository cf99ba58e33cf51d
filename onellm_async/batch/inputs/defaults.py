"""What a run asks of every prompt, and what it leaves to each line."""

from collections.abc import Mapping

import attrs
from attrs import frozen

from onellm_async.chat import JSON, OPENAI_NAMES, ChatRequest, Prompt
from onellm_async.errors import InvalidRequestError
from onellm_async.validation import truncated_repr
from onellm_async.wire import request_from_body

__all__ = ["DEFAULT_MODEL", "RequestDefaults"]

DEFAULT_MODEL = "GPT-5-Nano"
"""The model asked if none is named: the cheapest of OpenAI's in the catalogue."""


def _message(value: JSON) -> JSON:
    """OpenAI's two other ways of writing a message: text in parts, and the role that ``system`` is called lately."""
    if not isinstance(value, dict):
        return value
    role, parts = value.get("role"), value.get("content")
    if role == "developer":
        value = value | {"role": "system"}
    if isinstance(parts, list):
        value = value | {"content": "".join(map(_text_of, parts))}
    return value


def _text_of(part: JSON) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    kind = part.get("type") if isinstance(part, dict) else part
    raise InvalidRequestError(f"A message holds a part of type {truncated_repr(kind)}; OneLLM takes text only.")


@frozen
class RequestDefaults:
    """What is asked of every prompt of a run.

    What is set here wins over an OpenAI-batch line's own value; what is None is left to the line.

    Attributes:
        model: The model; where neither this nor the line names one, `DEFAULT_MODEL` is asked.
        fallback_model: Asked where neither ``model`` nor the line names one.
        system: An instruction beside each prompt.
        max_tokens: Most tokens to generate per prompt.
        temperature: 0 to 2.

    Raises:
        InvalidRequestError: If a value is out of range, once and for all prompts.
    """

    model: str | None = None
    fallback_model: str = DEFAULT_MODEL
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None

    def __attrs_post_init__(self) -> None:
        self.request("A probe: the values are refused here, not on every line.")

    def request(self, prompt: Prompt, *, system: str | None = None) -> ChatRequest:
        """`prompt` as a complete request.

        Args:
            prompt: A text or messages; a `ChatRequest` is returned as it is.
            system: The line's own instruction, for where none is set here.

        Raises:
            InvalidRequestError: If the prompt is unusable.
        """
        if isinstance(prompt, ChatRequest):
            return prompt
        return ChatRequest(
            self.model if self.model is not None else self.fallback_model,
            prompt,
            system=self.system if self.system is not None else system,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )

    def merge_into(self, body: Mapping[str, JSON]) -> ChatRequest:
        """The request that `body` describes, with the set values on top.

        Raises:
            InvalidRequestError: If a field is missing or refused.
        """
        renamed = {OPENAI_NAMES.get(name, name): value for name, value in body.items() if value is not None}
        if isinstance(messages := renamed.get("messages"), list):
            renamed["messages"] = [_message(message) for message in messages]
        stop = renamed.get("stop_sequences")
        if isinstance(stop, str):
            renamed["stop_sequences"] = [stop]
        mine = attrs.asdict(self)
        del mine["fallback_model"]
        renamed.setdefault("model", self.fallback_model)
        return request_from_body(renamed | {name: value for name, value in mine.items() if value is not None})
