"""Requests and responses as frozen values.

A value that exists is valid: an invalid argument raises an error when the request is made, before anything is sent. The
message has the value.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypedDict

import attrs
from attrs import field, frozen

from onellm_async import serialization
from onellm_async.errors import InvalidRequestError, OneLLMError
from onellm_async.serialization import JSON as JSON  # noqa: PLC0414  # other modules take it from here
from onellm_async.validation import Checks, Validator, truncated_repr

ROLES = ("system", "user", "assistant")
_TOOL_HISTORY = (
    'A history with tool calls and their results goes into extra={"messages": […]}, which is sent as it is, in place '
    "of the messages."
)
_ADVICE_ON_ROLES = {
    "developer": "Did you mean system?",
    "model": "Did you mean assistant?",
    "tool": _TOOL_HISTORY,
    "function": _TOOL_HISTORY,
}

OPENAI_NAMES = {"max_completion_tokens": "max_tokens", "stop": "stop_sequences"}
"""What OpenAI calls two of OneLLM's fields."""

_MEANT = OPENAI_NAMES | {
    "max_output_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "timeout": "deadline",
    "request_timeout": "deadline",
    "system_prompt": "system",
    "system_instruction": "system",
    "instructions": "system",
    "functions": "tools",
    "function_call": "tool_choice",
    "candidate_count": "n",
    "num_return_sequences": "n",
    "extra_body": "extra",
    "priority": "lane",
}
"""What other services and clients call the arguments of this one."""

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Parsed = TypeVar("Parsed", default=None)
    Parsed_co = TypeVar("Parsed_co", default=None, covariant=True)
else:  # a default is only for type checkers: before Python 3.13 it takes typing_extensions
    from typing import TypeVar

    Parsed = TypeVar("Parsed")
    Parsed_co = TypeVar("Parsed_co", covariant=True)


_check = Checks(InvalidRequestError)


def _role(_: object, attribute: object, value: Any) -> None:
    if value not in ROLES:
        advice = _ADVICE_ON_ROLES.get(value, "") if isinstance(value, str) else ""
        raise _check.error("A message's role", value, f"it must be one of {', '.join(ROLES)}", advice=advice)


def _content(_: object, attribute: object, value: Any) -> None:
    if type(value) is not str and not isinstance(value, str):
        raise _check.error("A message's content", value, "it must be a string")


@frozen
class Message:
    """One turn of a chat.

    Attributes:
        role: ``"system"``, ``"user"`` or ``"assistant"``.
        content: The text.

    Raises:
        InvalidRequestError: If the role is unknown or the content is not a string.
    """

    role: str = field(validator=_role)
    content: str = field(validator=_content)

    @classmethod
    def system(cls, content: str) -> "Message":
        """Returns an instruction to the model."""
        return cls("system", content)

    @classmethod
    def user(cls, content: str) -> "Message":
        """Returns a message of the user."""
        return cls("user", content)

    @classmethod
    def assistant(cls, content: str) -> "Message":
        """Returns a message of the model."""
        return cls("assistant", content)

    @classmethod
    def of(cls, value: "Message | Mapping[str, str]") -> "Message":
        """`value` itself, or the message that a mapping with ``role`` and ``content`` describes.

        The content may be a list of text parts; the role ``developer`` is ``system``; what is None is not there.
        """
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise _check.error("A message", value, "it must be a Message or a mapping with role and content")
        unknown = sorted(str(key) for key in value if key not in {"role", "content"} and value[key] is not None)
        if unknown:
            advice = _advice_on_keys(unknown)
            raise _check.error("A message", dict(value), f"it has unknown keys: {', '.join(unknown)}", advice=advice)
        role, content = value.get("role", ""), value.get("content", None)
        if isinstance(content, list | tuple):
            content = join_text_parts(content)
        # OpenAI's newer name of the role, by which its files and its own client have it.
        return cls("system" if role == "developer" else role, content)  # type: ignore[arg-type]  # refused if not a text


def _advice_on_keys(unknown: Sequence[str]) -> str:
    if any(name.startswith("tool") for name in unknown):
        return _TOOL_HISTORY
    if {"from", "value"} <= set(unknown):
        return "Rename from to role (human: user, gpt: assistant) and value to content."
    return ""


def join_text_parts(parts: Iterable[object]) -> str:
    """The text of content that is a list of parts.

    Raises:
        InvalidRequestError: If one of them is no text.
    """
    return "".join(map(_text_of_part, parts))


def _text_of_part(part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    kind = part.get("type") if isinstance(part, Mapping) else part
    raise InvalidRequestError(f"A message holds a part of type {truncated_repr(kind)}; OneLLM takes text only.")


Messages: TypeAlias = Sequence[Message | Mapping[str, str]]


def _messages_from(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    if isinstance(value, Message):
        return (value,)
    if not isinstance(value, Iterable) or isinstance(value, Mapping | bytes):
        raise _check.error("messages", value, "it must be a string or a sequence of messages")
    return tuple(map(Message.of, value))


def _some_messages(_: object, attribute: object, value: tuple[Message, ...]) -> None:
    if not value:
        raise _check.error("messages", list(value), "at least one message is needed")


def _model(_: object, attribute: object, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _check.error("model", value, "it must be the name of a model")


def _tuple_from(value: Any) -> Any:
    if value is None or isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return value
    return tuple(value)


def _own_mapping(value: Any) -> Any:
    return dict(value) if value is not None and isinstance(value, Mapping) else value


def _extra(_: object, attribute: object, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise _check.error("extra", value, "it must be a mapping of further request fields")
    if "stream" in value:
        raise _no_stream(f"extra sets stream to {truncated_repr(value['stream'])}")
    _check.json("extra", value)


def _no_stream(what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{what}; OneLLM answers in one piece and cannot stream.",
        advice="Leave stream out; the API's prose says that it does not work, although its OpenAPI file lists it.",
    )


_text = _check.kind(str, "it must be a string")


def _if_set(check: Validator) -> dict[str, Validator]:
    # attrs would call each field's validator, set or not, which takes longer than all the rest of making a request.
    return {"check": check}


@frozen
class ChatRequest:
    """One complete and valid chat request.

    Fields that are None are not sent. Ranges are those of the OneLLM documentation.

    Attributes:
        model: Any model id; `onellm_async.catalog` lists the documented ones.
        messages: The turns so far. A string stands for one user message; mappings are converted.
        temperature: 0 to 2 (the service's default is 1).
        max_tokens: Maximum number of tokens to generate, at least 1; the service lowers it to what the balance allows.
        top_p: 0 to 1.
        stop_sequences: Texts at which the model stops.
        system: An instruction to the model, beside the messages.
        tools: ``{"type": "function", "function": {"name", "description", "parameters"}}`` objects.
        tool_choice: Which tool to use.
        response_format: For example ``{"type": "json_object"}``.
        seed: For repeatable sampling, where the provider has it.
        n: Number of completions, at least 1. The reply of the API holds one, and all are billed.
        user: Your own id of the end user.
        frequency_penalty: -2 to 2.
        presence_penalty: -2 to 2.
        logprobs: Whether to return log probabilities.
        top_logprobs: How many of them, at least 0.
        top_k: At least 1.
        extra: Any other field (``contents``, ``safety_settings``, ``generation_config``, ``endpoint``, …),
            merged last, so that it wins over all of the above. ``{"messages": […]}`` sends a history with tool calls.

    Raises:
        InvalidRequestError: If a value is out of range or of the wrong type; the message shows it.

    Example:
        >>> ChatRequest("GPT-5-Mini", "Hello").messages
        (Message(role='user', content='Hello'),)
    """

    model: str = field(validator=_model)
    messages: tuple[Message, ...] = field(converter=_messages_from, validator=_some_messages)
    temperature: float | None = field(default=None, kw_only=True, metadata=_if_set(_check.number(0, 2)))
    max_tokens: int | None = field(default=None, kw_only=True, metadata=_if_set(_check.integer(1)))
    top_p: float | None = field(default=None, kw_only=True, metadata=_if_set(_check.number(0, 1)))
    stop_sequences: tuple[str, ...] | None = field(
        default=None, kw_only=True, converter=_tuple_from, metadata=_if_set(_check.sequence(str, "it must be strings"))
    )
    system: str | None = field(default=None, kw_only=True, metadata=_if_set(_text))
    tools: tuple[Mapping[str, JSON], ...] | None = field(
        default=None,
        kw_only=True,
        hash=False,
        converter=_tuple_from,
        metadata=_if_set(_check.sequence(Mapping, "it must be tool objects")),
    )
    tool_choice: str | None = field(default=None, kw_only=True, metadata=_if_set(_text))
    response_format: Mapping[str, JSON] | None = field(
        default=None,
        kw_only=True,
        hash=False,
        converter=_own_mapping,
        metadata=_if_set(_check.json_object('it must be an object such as {"type": "json_object"}')),
    )
    seed: int | None = field(default=None, kw_only=True, metadata=_if_set(_check.integer()))
    n: int | None = field(default=None, kw_only=True, metadata=_if_set(_check.integer(1)))
    user: str | None = field(default=None, kw_only=True, metadata=_if_set(_text))
    frequency_penalty: float | None = field(default=None, kw_only=True, metadata=_if_set(_check.number(-2, 2)))
    presence_penalty: float | None = field(default=None, kw_only=True, metadata=_if_set(_check.number(-2, 2)))
    logprobs: bool | None = field(
        default=None, kw_only=True, metadata=_if_set(_check.kind(bool, "it must be True or False"))
    )
    top_logprobs: int | None = field(default=None, kw_only=True, metadata=_if_set(_check.integer(0)))
    top_k: int | None = field(default=None, kw_only=True, metadata=_if_set(_check.integer(1)))
    extra: Mapping[str, JSON] | None = field(
        default=None, kw_only=True, hash=False, converter=_own_mapping, metadata=_if_set(_extra)
    )

    def __attrs_post_init__(self) -> None:
        for value in _options_of(self):
            if value is not None:
                _check_options(self)
                return


def _check_options(request: ChatRequest) -> None:
    for value, (attribute, check) in zip(_options_of(request), _OPTION_CHECKS, strict=True):
        if value is not None:
            check(request, attribute, value)


_OPTION_CHECKS = [(each, each.metadata["check"]) for each in attrs.fields(ChatRequest) if "check" in each.metadata]
_options_of = attrgetter(*(each.name for each, _ in _OPTION_CHECKS))


Prompt: TypeAlias = str | Messages | ChatRequest
"""What can be asked: a text, a history, or a complete request."""


class RequestOptions(TypedDict, total=False):
    """The optional fields of `ChatRequest`, as keyword arguments of the client's methods."""

    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    stop_sequences: Sequence[str] | None
    system: str | None
    tools: Sequence[Mapping[str, JSON]] | None
    tool_choice: str | None
    response_format: Mapping[str, JSON] | None
    seed: int | None
    n: int | None
    user: str | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logprobs: bool | None
    top_logprobs: int | None
    top_k: int | None
    extra: Mapping[str, JSON] | None


def build_request(prompt: Prompt, model: str | None, options: RequestOptions) -> ChatRequest:
    """The request that asks `prompt`; one that is complete already is returned as it is.

    Raises:
        InvalidRequestError: If the prompt, the model or an option is refused.
    """
    if isinstance(prompt, ChatRequest):
        return prompt
    if model is None:
        raise InvalidRequestError("model is missing; every prompt that is not a ChatRequest needs one.")
    if isinstance(prompt, str) and not prompt.strip() and not options.get("extra"):
        raise InvalidRequestError(
            f"The prompt is empty ({truncated_repr(prompt)}), and its answer would be paid for.",
            advice="Leave it out. ChatRequest(model, prompt) is sent as it is, whatever its text.",
        )
    if not options:
        return ChatRequest(model, prompt)
    unknown = options.keys() - RequestOptions.__annotations__.keys()
    if unknown:
        raise _unknown_options(options, sorted(unknown))
    return ChatRequest(model, prompt, **options)


def _unknown_options(options: Mapping[str, object], unknown: list[str]) -> InvalidRequestError:
    if "stream" in unknown:
        return _no_stream(f"stream is {truncated_repr(options['stream'])}")
    return InvalidRequestError(
        " ".join(
            f"{name} is an option of run: use client.run."
            if name in _OPTIONS_OF_RUN
            else f"There is no request field called {name}; {_instead_of(name)}"
            for name in unknown
        )
    )


_OPTIONS_OF_RUN = frozenset(
    {
        *("fallback_model", "field", "template", "id_field", "keep", "input_format", "output_format", "strict"),
        *("limit", "journal", "force", "max_cost", "max_tokens_total", "ambiguous", "retry_failed", "deduplicate"),
        *("accept_removed", "cache", "max_failure_share", "stall_after", "on_bad_line", "on_message"),
        *("lane", "max_time", "samples"),
    }
)
"""What only `AsyncOneLLM.run` has; as a request field the service would ignore it, a cost cap included."""


def _instead_of(name: str) -> str:
    if name in {"messages", "prompt", "input"}:
        return "messages are given as the prompt."
    if name in {"response_model", "corrections"}:
        return "it is an argument of chat, gather_chats, iter_chats and run."
    close = difflib.get_close_matches(name, RequestOptions.__annotations__, n=1, cutoff=0.8)
    meant = _MEANT.get(name) or (close[0] if close else None)
    if meant is not None:
        return f"did you mean {meant}?"
    return f'use extra for it: extra={{"{name}": …}} is sent as it is.'


FinishKind: TypeAlias = Literal["stop", "length", "content_filter", "tool_calls"]
"""Why a model stopped, in OpenAI's words."""

_FINISH_KINDS: Mapping[str, FinishKind] = {
    "stop": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "finish_reason_unspecified": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "max_output_tokens": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "refusal": "content_filter",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
}
"""The words of the providers, in lower case."""


def finish_kind(word: str | None) -> FinishKind:
    """Returns a provider's finish reason in OpenAI's words.

    Args:
        word: The provider's word; None and unknown words are ``"stop"``.

    Example:
        >>> [finish_kind(word) for word in ("end_turn", "MAX_TOKENS", "SAFETY", None)]
        ['stop', 'length', 'content_filter', 'stop']
    """
    return _FINISH_KINDS.get((word or "stop").lower(), "stop")


@frozen
class Usage:
    """Tokens counted by the provider. Each count is None when the reply did not hold it."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None

    def to_dict(self) -> dict[str, JSON]:
        """Returns the usage as a dict that JSON can hold, without what is not set."""
        return serialization.to_dict(self)


@frozen
class ChatResponse(Generic[Parsed_co]):
    """One answer.

    Attributes:
        content: The text, parts of it joined; "" where the reply holds none, as with tool calls, a filter or a spent
            ``max_tokens``. ``finish_reason`` and ``extra`` then have the reason.
        model: The provider's own name of the model that answered.
        provider: The provider that answered, as the service names it.
        role: Normally ``"assistant"``.
        usage: Tokens counted, None when the reply did not say.
        finish_reason: Why the model stopped, in the provider's words.
        cost: USD by OneLLM's list prices; None when the price, the usage or the provider is unknown.
        extra: All other fields of the reply (``tool_calls``, ``refusal``, ``reasoning``, …), and known ones of an
            unexpected type or with more in them than a field here can hold.
        attempts: How many times the request was sent and not refused by the rate limit.
        rate_limited: How many times it was answered 429 (not billed).
        possibly_billed: How many earlier attempts may have been billed without an answer.
        parsed: The value of ``response_model``; None without one.
        corrections: How many corrective turns it took to fit. Attempts, tokens and cost are those of all turns.
    """

    content: str
    model: str | None = None
    provider: str | None = None
    role: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    cost: float | None = None
    extra: Mapping[str, JSON] = field(factory=dict, hash=False)
    attempts: int = 1
    rate_limited: int = 0
    possibly_billed: int = 0
    parsed: Parsed_co | None = field(default=None, hash=False, metadata={"serialized": False})
    corrections: int = 0

    @property
    def finish_kind(self) -> FinishKind:
        """Why the model stopped, in OpenAI's words: each provider has words of its own for `finish_reason`."""
        return finish_kind(self.finish_reason)

    def to_dict(self) -> dict[str, JSON]:
        """Returns the answer as a dict that JSON can hold, without what is not set and without `parsed`."""
        return serialization.to_dict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, JSON]) -> "ChatResponse":
        """Returns the answer that `to_dict` wrote.

        Args:
            saved: The dict, perhaps read from JSON.

        Raises:
            InvalidRequestError: If a field is missing, unknown or of the wrong type; the message names it.
        """
        return serialization.from_dict(ChatResponse[None], saved, name="response", error=InvalidRequestError)


@frozen
class ChatOutcome(Generic[Parsed_co]):
    """The outcome of one prompt of a fan-out: a response or an error, never both.

    Attributes:
        index: Position of the prompt in the source, from 0.
        prompt: The prompt as it was given.
        response: The answer, or None.
        error: The error, or None.
    """

    index: int
    prompt: Prompt = field(hash=False)
    response: ChatResponse[Parsed_co] | None = None
    error: OneLLMError | None = None

    @property
    def ok(self) -> bool:
        """Whether the prompt was answered."""
        return self.response is not None

    def to_dict(self) -> dict[str, JSON]:
        """Returns the outcome as a dict that JSON can hold, without what is not set."""
        return serialization.to_dict(self)

    def unwrap(self) -> ChatResponse[Parsed_co]:
        """Returns the answer.

        Raises:
            OneLLMError: The error, if there is no answer.
        """
        if self.response is None:
            raise self.error or OneLLMError("This outcome is empty.")
        return self.response
