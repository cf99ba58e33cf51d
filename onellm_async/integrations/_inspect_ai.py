"""A provider for inspect_ai: ``inspect eval task.py --model onellm/GPT-5-Mini``.

It works as soon as both packages are installed. Requests wait in the lane ``batch`` and share the rate limit of their
key; the client has retried already, so inspect_ai does not. Arguments for ``-M``: ``requests_per_minute``,
``max_concurrency``, ``dialect``. It needs the asyncio backend of inspect_ai, not that of trio.
"""

from typing import Any, Literal

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from onellm_async import AsyncOneLLM, AuthenticationError, ChatResponse, InvalidRequestError, Limits, Message

__all__ = ["OneLLMAPI"]

_OPTIONS = {
    "max_tokens": "max_tokens",
    "top_p": "top_p",
    "temperature": "temperature",
    "stop_seqs": "stop_sequences",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "top_k": "top_k",
}
"""inspect_ai's names of what a request can have, and ours."""
_STOP_REASONS: dict[str, Literal["stop", "max_tokens", "content_filter", "tool_calls"]] = {
    "stop": "stop",
    "length": "max_tokens",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
}


@modelapi(name="onellm")
class OneLLMAPI(ModelAPI):
    """A model of OneLLM.

    Args:
        model_name: Any model id.
        base_url: Default ``ONELLM_BASE_URL``.
        api_key: Default ``ONELLM_API_KEY``.
        config: Settings of all requests.
        requests_per_minute: As in `Limits`, ``"auto"`` included; default the published limit.
        max_concurrency: As in `Limits`.
        dialect: ``"documented"`` or ``"backend"``.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # as inspect_ai has it
        *,
        requests_per_minute: float | Literal["auto"] | None = 40.0,
        max_concurrency: int | Literal["auto"] = 48,
        dialect: str = "documented",
    ) -> None:
        super().__init__(model_name, base_url, api_key, ["ONELLM_API_KEY"], config)
        self._limits = Limits(requests_per_minute=requests_per_minute, max_concurrency=max_concurrency)
        self._dialect = dialect
        self._max_connections = 512 if max_concurrency == "auto" else max_concurrency
        self._client: AsyncOneLLM | None = None

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002  # as inspect_ai has it
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Sends one request.

        Raises:
            InvalidRequestError: If it has tools or files; nothing was sent.
            OneLLMError: As `AsyncOneLLM.chat`.
        """
        if tools:
            raise InvalidRequestError("Tools are given, and OneLLM cannot return the calls of tools.")
        if self._client is None:
            self._client = AsyncOneLLM(self.api_key, base_url=self.base_url, limits=self._limits, dialect=self._dialect)
        options: dict[str, Any] = {
            ours: value for theirs, ours in _OPTIONS.items() if (value := getattr(config, theirs)) is not None
        }
        response = await self._client.chat(
            [_message(each) for each in input],
            model=self.model_name,
            lane="batch",
            deadline=config.timeout,
            **options,
        )
        return _output(response, self.model_name)

    async def aclose(self) -> None:
        """Closes the client."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def max_connections(self) -> int:
        """Returns how many requests may be in flight or queued: the client itself bounds what is in flight."""
        return self._max_connections

    def connection_key(self) -> str:
        """Returns what requests that share `max_connections` have in common."""
        return self.initial_api_key or "ONELLM_API_KEY"

    def should_retry(self, ex: BaseException) -> bool:
        """Returns False: the client has retried already."""
        return False

    def is_auth_failure(self, ex: Exception) -> bool:
        """Returns whether the key is wrong."""
        return isinstance(ex, AuthenticationError)


def _message(message: ChatMessage) -> Message:
    if isinstance(message, ChatMessageTool):
        raise InvalidRequestError("A message is the result of a tool; OneLLM takes no tools.")
    if not isinstance(message.content, str) and any(part.type != "text" for part in message.content):
        raise InvalidRequestError("A message has a part that is no text; OneLLM takes text only.")
    return Message(message.role, message.text)


def _output(response: ChatResponse, model: str) -> ModelOutput:
    usage = response.usage
    counted = None
    if usage is not None:
        sent, received = usage.input_tokens or 0, usage.output_tokens or 0
        counted = ModelUsage(
            input_tokens=sent, output_tokens=received, total_tokens=usage.total_tokens or sent + received
        )
    answer = ChatMessageAssistant(content=response.content, model=model, source="generate")
    return ModelOutput(
        model=response.model or model,
        choices=[ChatCompletionChoice(message=answer, stop_reason=_STOP_REASONS[response.finish_kind])],
        usage=counted,
        metadata={
            "provider": response.provider,
            "cost": response.cost,
            "attempts": response.attempts,
            "possibly_billed": response.possibly_billed,
        },
    )
