"""What a run asks of every prompt, and what it leaves to each line."""

from collections.abc import Mapping

import attrs
from attrs import frozen

from onellm_async.chat import JSON, ChatRequest, Prompt
from onellm_async.wire import request_from_body

__all__ = ["DEFAULT_MODEL", "RequestDefaults"]

DEFAULT_MODEL = "GPT-5-Nano"
"""The model asked when nobody names one: the cheapest of OpenAI's in the catalogue."""

_OPENAI_NAMES = {"max_completion_tokens": "max_tokens", "stop": "stop_sequences"}
"""What OpenAI calls two of OneLLM's fields."""


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

    def request(self, prompt: Prompt) -> ChatRequest:
        """`prompt` as a complete request.

        Raises:
            InvalidRequestError: If the prompt is unusable.
        """
        return ChatRequest(
            self.model if self.model is not None else self.fallback_model,
            prompt,
            system=self.system,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )

    def over(self, body: Mapping[str, JSON]) -> ChatRequest:
        """The request that `body` describes, with the set values on top.

        Raises:
            InvalidRequestError: If a field is missing or refused.
        """
        renamed = {_OPENAI_NAMES.get(name, name): value for name, value in body.items()}
        stop = renamed.get("stop_sequences")
        if isinstance(stop, str):
            renamed["stop_sequences"] = [stop]
        mine = attrs.asdict(self)
        del mine["fallback_model"]
        renamed.setdefault("model", self.fallback_model)
        return request_from_body(renamed | {name: value for name, value in mine.items() if value is not None})
