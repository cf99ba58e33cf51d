"""A plugin for ``llm``, the command line tool: ``llm -m onellm/GPT-5-Mini "What is a prime?"``.

It works as soon as both packages are installed. Each command is a process of its own, so set ``ONELLM_QUOTA=host`` to
let them share the rate limit. Every ``llm`` command loads this module, so it imports the catalog alone.
"""

from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

import llm
from pydantic import Field

from onellm_async.catalog import entries

if TYPE_CHECKING:
    from onellm_async import ChatResponse, Message

__all__ = ["AsyncOneLLMModel", "OneLLMModel", "register_models"]


class _Options(llm.Options):  # type: ignore[misc]  # llm has no type stubs
    """What ``-o NAME VALUE`` sets."""

    temperature: float | None = Field(default=None, ge=0, le=2, description="0 to 2; higher is more random")
    max_tokens: int | None = Field(default=None, ge=1, description="Maximum number of tokens to generate")
    top_p: float | None = Field(default=None, ge=0, le=1, description="0 to 1")
    top_k: int | None = Field(default=None, ge=1, description="At least 1")
    seed: int | None = Field(default=None, description="For repeatable sampling, where the provider has it")


class _Shared:
    needs_key = "onellm"
    key_env_var = "ONELLM_API_KEY"
    can_stream = False
    supports_schema = True

    Options = _Options

    def __init__(self, name: str) -> None:
        self.model_id = f"onellm/{name}"
        self.name = name

    def _call(self, prompt: Any, conversation: Any) -> dict[str, Any]:
        """The arguments of a chat."""
        given = {name: value for name, value in prompt.options if value is not None}
        if prompt.system:
            given["system"] = prompt.system
        if prompt.schema:
            given["response_model"] = prompt.schema
        return {"prompt": _turns(prompt, conversation), "model": self.name, "lane": "interactive", **given}


class OneLLMModel(_Shared, llm.KeyModel):  # type: ignore[misc]
    """A model for synchronous use."""

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any, key: str | None) -> Iterator[str]:
        """Yields the answer in one piece."""
        from onellm_async import OneLLM  # noqa: PLC0415  # every llm command loads this module

        with OneLLM(key) as client:
            reply = client.chat(**self._call(prompt, conversation))
        yield _text(reply, response)


class AsyncOneLLMModel(_Shared, llm.AsyncKeyModel):  # type: ignore[misc]
    """A model for asyncio."""

    async def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any, key: str | None
    ) -> AsyncGenerator[str, None]:
        """Yields the answer in one piece."""
        from onellm_async import AsyncOneLLM  # noqa: PLC0415  # every llm command loads this module

        async with AsyncOneLLM(key) as client:
            reply = await client.chat(**self._call(prompt, conversation))
        yield _text(reply, response)


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Any) -> None:
    """Registers each model of the catalog as ``onellm/NAME``."""
    for entry in entries():
        register(OneLLMModel(entry.name), AsyncOneLLMModel(entry.name))


def _turns(prompt: Any, conversation: Any) -> "list[Message]":
    from onellm_async import Message  # noqa: PLC0415  # every llm command loads this module

    if prompt.attachments:
        raise llm.ModelError("OneLLM takes text, and no attachments.")
    turns = []
    for earlier in conversation.responses if conversation is not None else ():
        turns += [Message.user(earlier.prompt.prompt), Message.assistant(earlier.text_or_raise())]
    return [*turns, Message.user(prompt.prompt)]


def _text(reply: "ChatResponse[Any]", response: Any) -> str:
    if reply.usage is not None:
        response.set_usage(input=reply.usage.input_tokens, output=reply.usage.output_tokens)
    if reply.model is not None:
        response.set_resolved_model(reply.model)
    response.response_json = {
        "provider": reply.provider,
        "finish_reason": reply.finish_reason,
        "cost": reply.cost,
        "attempts": reply.attempts,
        "possibly_billed": reply.possibly_billed,
        "corrections": reply.corrections,
    }
    if reply.parsed is not None:
        from onellm_async.structured_output import json_in  # noqa: PLC0415

        return json_in(reply.content)
    return reply.content
