"""pydantic-ai: `OneLLMModel`, for agents whose requests share the rate limit of their key.

::

    client = OneLLM()  # for run, run_sync and run_stream, from any thread and any event loop
    agent = Agent(OneLLMModel("GPT-5-Mini", client=client, lane="interactive"), output_type=Order)
    result = agent.run_sync("Two teas, please.")

It needs the extra ``pydantic-ai``. The backend cannot return tool calls, so an agent has no tools, and the prompt asks
for the ``output_type``.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UserError
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    UserPromptPart,
)
from pydantic_ai.models import (
    CompletedStreamedResponse,
    Model,
    ModelRequestParameters,
    StreamedResponse,
    check_allow_model_requests,
)
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettingName, ModelSettings
from pydantic_ai.usage import RequestUsage

from onellm_async import APIStatusError, AsyncOneLLM, ChatResponse, Message, OneLLM, OneLLMError
from onellm_async.catalog import lookup
from onellm_async.limits import Lane

__all__ = ["OneLLMModel"]

_SETTINGS = ("max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "stop_sequences")
_WITH_INLINE_SYSTEM = frozenset({"openai", "deepseek", "mistral"})
"""Providers that take a system message in the middle of a conversation."""


class OneLLMModel(Model[Any]):
    """A model of pydantic-ai that asks OneLLM.

    Args:
        model_name: Any model id.
        client: A `OneLLM`, which serves every thread and event loop, or an `AsyncOneLLM`, which serves its own loop.
        lane: ``"interactive"`` for what a user waits for, ``"batch"`` for evaluations.
        settings: Settings of all requests. ``timeout`` in seconds becomes the deadline, time in the queue included.
        profile: Replaces parts of the profile.
    """

    unsupported_settings: ClassVar[frozenset[ModelSettingName]] = frozenset(
        ["parallel_tool_calls", "logit_bias", "extra_headers", "extra_body"]
    )

    def __init__(
        self,
        model_name: str,
        *,
        client: OneLLM | AsyncOneLLM,
        lane: Lane = "default",
        settings: ModelSettings | None = None,
        profile: ModelProfile | None = None,
    ) -> None:
        entry = lookup(model_name)
        own: ModelProfile = {
            "supports_tools": False,
            "supports_json_schema_output": False,
            "supports_json_object_output": True,
            "default_structured_output_mode": "prompted",
            "supports_inline_system_prompts": entry is None or entry.provider in _WITH_INLINE_SYSTEM,
        }
        super().__init__(settings=settings, profile={**own, **(profile or {})})
        self._model_name = model_name
        self._client = client
        self._lane: Lane = lane

    @property
    def model_name(self) -> str:
        """The model id."""
        return self._model_name

    @property
    def system(self) -> str:
        """The provider's name in telemetry."""
        return "onellm"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Sends one request.

        Raises:
            UserError: If it has tools, files or tool results; nothing was sent.
            ModelHTTPError: If the service answered with an error status, so that a ``FallbackModel`` goes on.
            ModelAPIError: If there was no answer.
        """
        check_allow_model_requests()
        model_settings, model_request_parameters = self.prepare_request(model_settings, model_request_parameters)
        if model_request_parameters.function_tools or model_request_parameters.output_tools:
            raise UserError("OneLLM cannot return the calls of tools: leave the tools of this agent out.")
        settings = dict(model_settings or {})
        options: dict[str, Any] = {name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
        instructions = self._get_instruction_parts(messages, model_request_parameters)
        if instructions:
            options["system"] = "\n\n".join(part.content for part in instructions)
        entry = lookup(self._model_name)
        if model_request_parameters.output_mode == "prompted" and entry is not None and entry.provider == "openai":
            options["response_format"] = {"type": "json_object"}
        timeout = settings.get("timeout")
        chat = self._client.achat if isinstance(self._client, OneLLM) else self._client.chat
        try:
            response = await chat(
                list(_turns(messages)),
                model=self._model_name,
                lane=self._lane,
                deadline=timeout if isinstance(timeout, int | float) else None,
                **options,
            )
        except APIStatusError as error:
            raise ModelHTTPError(
                error.status_code, self._model_name, error.message, retry_after=error.retry_after
            ) from error
        except OneLLMError as error:
            raise ModelAPIError(self._model_name, str(error)) from error
        return _response(response, self._model_name)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Sends one request. OneLLM does not stream, so the answer comes in one piece."""
        response = await self.request(messages, model_settings, model_request_parameters)
        yield CompletedStreamedResponse(response, model_request_parameters=model_request_parameters, replay_events=True)


def _turns(messages: Sequence[ModelMessage]) -> Iterator[Message]:
    for message in messages:
        for part in message.parts:
            if isinstance(part, SystemPromptPart):
                yield Message.system(part.content)
            elif isinstance(part, UserPromptPart):
                yield Message.user(_text_of(part))
            elif isinstance(part, TextPart):
                yield Message.assistant(part.content)
            else:
                raise UserError(f"A message has a {type(part).__name__}; OneLLM takes text, and no tools.")


def _text_of(part: UserPromptPart) -> str:
    if isinstance(part.content, str):
        return part.content
    texts = []
    for piece in part.content:
        text = piece if isinstance(piece, str) else getattr(piece, "content", None)
        if not isinstance(text, str):
            raise UserError(f"A prompt has a {type(piece).__name__}; OneLLM takes text.")
        texts.append(text)
    return "\n\n".join(texts)


def _response(response: ChatResponse, model: str) -> ModelResponse:
    usage = response.usage
    return ModelResponse(
        [TextPart(response.content)],
        usage=RequestUsage(
            input_tokens=0 if usage is None else usage.input_tokens or 0,
            output_tokens=0 if usage is None else usage.output_tokens or 0,
        ),
        model_name=model,
        provider_name="onellm",
        provider_details={
            "provider": response.provider,
            "model": response.model,
            "cost": response.cost,
            "attempts": response.attempts,
            "possibly_billed": response.possibly_billed,
        },
        finish_reason="tool_call" if response.finish_kind == "tool_calls" else response.finish_kind,
    )
