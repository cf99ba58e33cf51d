"""LangChain: `ChatOneLLM`, a chat model over one client for the process.

::

    llm = ChatOneLLM(model="GPT-5-Mini", lane="interactive")
    llm.invoke("What is a prime?")
    llm.with_structured_output(Order).invoke("Two teas, please.")

It needs the extra ``langchain``. Calls from threads (``batch``), from event loops (``abatch``) and from several models
share the rate limit of their key. The client has retried already, so leave LangChain's own retries off, and
``rate_limiter`` at None: LangChain's limiter knows neither concurrency nor 429s.

The backend cannot return tool calls, so ``bind_tools`` is not implemented and tool messages are refused.
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils import from_env, secret_from_env
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from onellm_async import ChatResponse, InvalidRequestError, Limits, Message, OneLLM, RetryPolicy
from onellm_async.integrations.shared_client import shared_client
from onellm_async.limits import Lane
from onellm_async.structured_output import json_in

__all__ = ["ChatOneLLM"]

_ROLES: Mapping[type[BaseMessage], str] = {HumanMessage: "user", AIMessage: "assistant", SystemMessage: "system"}


class ChatOneLLM(BaseChatModel):
    """A chat model of LangChain that asks OneLLM.

    Attributes:
        model_name: Any model id; given as ``model``.
        api_key: Default ``ONELLM_API_KEY``.
        base_url: Default ``ONELLM_BASE_URL``.
        temperature: 0 to 2.
        max_tokens: Maximum number of tokens to generate.
        top_p: 0 to 1.
        stop: Texts at which the model stops.
        timeout: Seconds for a call, its time in the queue included; it becomes the deadline. None waits.
        max_retries: Retries after a failure, by the client. Default: as `RetryPolicy` says.
        lane: ``"interactive"`` for what a user waits for, ``"batch"`` for evaluations.
        limits: What is known of the service's limits; default the published ones.
        dialect: ``"documented"`` or ``"backend"``.
        corrections: Corrective turns of ``with_structured_output``; each is one more paid request.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(populate_by_name=True, arbitrary_types_allowed=True)

    model_name: str = Field(alias="model")
    api_key: SecretStr | None = Field(default_factory=secret_from_env("ONELLM_API_KEY", default=None))
    base_url: str | None = Field(default_factory=from_env("ONELLM_BASE_URL", default=None))
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    timeout: float | None = None
    max_retries: int | None = None
    streaming: bool = False
    lane: Lane = "default"
    limits: Limits | None = None
    dialect: str = "documented"
    corrections: int = 1

    @property
    def _llm_type(self) -> str:
        return "onellm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**self._sampling(), "model": self.model_name, "base_url": self.base_url, "dialect": self.dialect}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "onellm"
        params["ls_model_name"] = kwargs.get("model", self.model_name)
        return params

    def client(self) -> OneLLM:
        """Returns the client of this model, which all models with the same key, URL and limits share."""
        key = None if self.api_key is None else self.api_key.get_secret_value()
        limits = self.limits if self.limits is not None else Limits()
        retry = RetryPolicy() if self.max_retries is None else RetryPolicy(max_attempts=self.max_retries + 1)
        return shared_client(
            (key, self.base_url, self.dialect, limits, retry),
            lambda: OneLLM(key, base_url=self.base_url, limits=limits, dialect=self.dialect, retry=retry),
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, kwargs)
        return _result(self.client().chat(**call), call["model"])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, kwargs)
        return _result(await self.client().achat(**call), call["model"])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunk = _chunk(self._generate(messages, stop, **kwargs))
        if run_manager is not None:
            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunk = _chunk(await self._agenerate(messages, stop, **kwargs))
        if run_manager is not None:
            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Returns a model whose answers are values of `schema`; those that do not fit are sent back once.

        Args:
            schema: A pydantic model, a TypedDict, or a JSON Schema.
            include_raw: Return ``{"raw", "parsed", "parsing_error"}`` instead of the value alone.
            method: ``"json_schema"``, ``"function_calling"`` or ``"json_mode"``: all are done by the prompt.
            strict: Answers always have to conform.
            **kwargs: None.

        Raises:
            ValueError: If there are other arguments, or the method is unknown.
        """
        if kwargs:
            raise ValueError(f"Received unsupported arguments {sorted(kwargs)}.")
        if method not in {"json_schema", "function_calling", "json_mode"}:
            raise ValueError(f"method is {method!r}; it must be json_schema, function_calling or json_mode.")
        json_schema = convert_to_json_schema(schema)
        model = self.bind(
            onellm_schema=json_schema,
            ls_structured_output_format={"kwargs": {"method": method, "strict": strict}, "schema": json_schema},
        )
        parse = RunnableLambda(lambda message: _parsed(message, schema))
        if not include_raw:
            return model | parse
        parsed = RunnablePassthrough.assign(
            parsed=lambda found: _parsed(found["raw"], schema), parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    def _sampling(self) -> dict[str, Any]:
        given = {"temperature": self.temperature, "max_tokens": self.max_tokens, "top_p": self.top_p}
        return {name: value for name, value in given.items() if value is not None} | (
            {"stop_sequences": list(self.stop)} if self.stop else {}
        )

    def _call(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The arguments of `OneLLM.chat`."""
        options = dict(given)
        options.pop("ls_structured_output_format", None)
        for name in ("tools", "functions"):
            if options.get(name):
                raise InvalidRequestError("Tools are given, and OneLLM cannot return the calls of tools.")
        schema = options.pop("onellm_schema", None)
        found: dict[str, Any] = {
            "prompt": [_message(each) for each in messages],
            "model": self.model_name,
            "lane": self.lane,
            "deadline": self.timeout,
            **self._sampling(),
            **({"stop_sequences": stop} if stop else {}),
            **{name: value for name, value in options.items() if value is not None},
        }
        if schema is not None:
            found |= {"response_model": schema, "corrections": self.corrections}
        return found


def _message(message: BaseMessage) -> Message:
    role = message.role if isinstance(message, ChatMessage) else None
    role = role or next((name for kind, name in _ROLES.items() if isinstance(message, kind)), None)
    if role is None:
        raise InvalidRequestError(f"A message is a {type(message).__name__}; OneLLM takes no tools and no functions.")
    if isinstance(message.content, str):
        return Message(role, message.content)
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in message.content]
    return Message.of({"role": role, "content": parts})  # type: ignore[dict-item]  # it joins the parts, or refuses one


def _result(response: ChatResponse[Any], model: str) -> ChatResult:
    usage = response.usage
    counted = None
    if usage is not None and usage.input_tokens is not None and usage.output_tokens is not None:
        total = usage.total_tokens or usage.input_tokens + usage.output_tokens
        counted = UsageMetadata(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, total_tokens=total)
    details = {
        "model_name": model,
        "model_provider": "onellm",
        "provider": response.provider,
        "provider_model": response.model,
        "finish_reason": response.finish_kind,
        "cost": response.cost,
        "attempts": response.attempts,
        "possibly_billed": response.possibly_billed,
        "corrections": response.corrections,
    }
    message = AIMessage(response.content, response_metadata=details, usage_metadata=counted)
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunk(result: ChatResult) -> ChatGenerationChunk:
    message = result.generations[0].message
    assert isinstance(message, AIMessage)  # noqa: S101  # made above
    return ChatGenerationChunk(
        message=AIMessageChunk(
            content=message.content,
            response_metadata=message.response_metadata,
            usage_metadata=message.usage_metadata,
            chunk_position="last",
        )
    )


def _parsed(message: BaseMessage, schema: dict[str, Any] | type) -> Any:
    text = json_in(str(message.content))
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_validate_json(text)
    if hasattr(schema, "parse_raw"):  # a model of pydantic.v1
        return schema.parse_raw(text)
    return json.loads(text)
