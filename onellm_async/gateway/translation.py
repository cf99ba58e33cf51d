"""From the body of a chat completion request to a `ChatRequest`. Pure.

What a OneLLM cannot do is refused and named: tools, images, several choices. Other fields that it does not know are
ignored and listed, so that a client with more options than the service still works.
"""

from collections.abc import Mapping
from itertools import islice
from typing import NoReturn

from attrs import frozen

from onellm_async import catalog
from onellm_async.chat import JSON, ChatRequest, Message
from onellm_async.errors import InvalidRequestError
from onellm_async.gateway.error_replies import ErrorReply, RequestRejectedError
from onellm_async.validation import truncated_repr
from onellm_async.wire import dump_json

_SAME_NAME = (
    "temperature",
    "top_p",
    "seed",
    "user",
    "frequency_penalty",
    "presence_penalty",
    "logprobs",
    "top_logprobs",
    "top_k",
)
"""Fields that both APIs call the same."""
_HANDLED = {
    *_SAME_NAME,
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "response_format",
    "stream",
    "stream_options",
    "n",
    "tools",
    "functions",
    "tool_choice",
    "function_call",
    "parallel_tool_calls",
    "modalities",
    "audio",
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of content parts that are text, and the field that has it."""
_MESSAGE_FIELDS = {"role", "content", "refusal", "tool_calls", "function_call", "tool_call_id"}
_MAX_PARTS = 10_000
"""Messages and content parts of one request: translating more would hold up the requests of others."""
_MAX_IGNORED = 100
"""Names of ignored fields that are collected."""
_PARTS_SEPARATOR = "\n"
"""Between the parts of one message, so that the last word of one and the first of the next stay two."""


@frozen
class InboundChat:
    """One chat completion request, translated.

    Attributes:
        request: What is asked of OneLLM.
        stream: Whether the client wants a stream.
        include_usage: Whether the stream ends with the usage.
        ignored: Fields without effect.
    """

    request: ChatRequest
    stream: bool = False
    include_usage: bool = False
    ignored: tuple[str, ...] = ()


def to_chat_request(body: JSON, *, max_tokens: int | None = None) -> InboundChat:
    """Translates the body of ``POST /v1/chat/completions``.

    Args:
        body: The decoded JSON.
        max_tokens: For requests that do not limit their answer; None sends them without a limit.

    Raises:
        RequestRejectedError: If something in it is unusable or not supported; the reply names the field.
    """
    if not isinstance(body, Mapping):
        _reject(f"The body is {_kind(body)}; it must be a JSON object.", None)
    given = {name: value for name, value in body.items() if value is not None}
    _refuse_unsupported(given)
    ignored = list(islice((name for name in given if name not in _HANDLED), _MAX_IGNORED))
    messages = _messages(given.get("messages"), ignored)
    fields: dict[str, JSON] = {name: given[name] for name in _SAME_NAME if name in given}
    fields["max_tokens"] = _length(given, max_tokens)
    if "stop" in given:
        stop = given["stop"]
        fields["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    model = given.get("model")
    if not isinstance(model, str) or not model.strip():
        _reject(f"model is {truncated_repr(model)}; it must be the id of a model.", "model", code="model_missing")
    if "response_format" in given:
        messages, fields["response_format"] = _structured(given["response_format"], messages, model)
    try:
        request = ChatRequest(model, messages, **fields)
    except InvalidRequestError as error:
        name = error.message.split(" ", 1)[0]
        _reject(str(error), "stop" if name == "stop_sequences" else name if name in _HANDLED else None)
    return InboundChat(request, *_streaming(given), tuple(dict.fromkeys(ignored)))


def _reject(message: str, param: str | None, *, code: str = "invalid_value") -> NoReturn:
    raise RequestRejectedError(ErrorReply(status=400, message=message, param=param, code=code))


def _unsupported(param: str, why: str) -> NoReturn:
    _reject(f"{param} is not supported: {why}", param, code="unsupported_parameter")


def _refuse_unsupported(given: Mapping[str, JSON]) -> None:
    for name in ("tools", "functions"):
        if given.get(name) not in (None, []):
            _unsupported(name, "OneLLM does not return tool calls. Ask for JSON with response_format instead.")
    for name in ("tool_choice", "function_call"):
        if given.get(name) not in (None, "none", "auto"):
            _unsupported(name, "OneLLM does not return tool calls.")
    n = given.get("n", 1)
    if isinstance(n, bool) or n != 1:
        _unsupported(
            "n",
            f"it is {truncated_repr(n)}, and a reply of OneLLM holds one choice. Send {truncated_repr(n)} requests.",
        )
    modalities = given.get("modalities", ["text"])
    if modalities != ["text"] or "audio" in given:
        _unsupported("audio" if "audio" in given else "modalities", "OneLLM answers with text.")


def _length(given: Mapping[str, JSON], default: int | None) -> JSON:
    newer, older = given.get("max_completion_tokens"), given.get("max_tokens")
    if newer is not None and older is not None and newer != older:
        _reject(
            f"max_completion_tokens is {truncated_repr(newer)} and max_tokens is {truncated_repr(older)}; "
            "send one of them.",
            "max_completion_tokens",
        )
    return newer if newer is not None else older if older is not None else default


def _streaming(given: Mapping[str, JSON]) -> tuple[bool, bool]:
    stream, options = given.get("stream", False), given.get("stream_options", {})
    if not isinstance(stream, bool):
        _reject(f"stream is {truncated_repr(stream)}; it must be true or false.", "stream")
    if not isinstance(options, Mapping):
        _reject(f"stream_options is {truncated_repr(options)}; it must be an object.", "stream_options")
    return stream, stream and options.get("include_usage") is True


def _messages(given: JSON, ignored: list[str]) -> list[Message]:
    if not isinstance(given, list) or not given:
        _reject(f"messages is {_kind(given)}; it must be an array with at least one message.", "messages")
    contents = (turn.get("content") for turn in given if isinstance(turn, Mapping))
    parts = len(given) + sum(len(content) for content in contents if isinstance(content, list))
    if parts > _MAX_PARTS:
        _reject(f"messages has {parts:,} messages and parts; at most {_MAX_PARTS:,} are read.", "messages")
    return [_message(turn, f"messages[{index}]", ignored) for index, turn in enumerate(given)]


def _message(turn: JSON, place: str, ignored: list[str]) -> Message:
    if not isinstance(turn, Mapping):
        _reject(f"{place} is {_kind(turn)}; it must be an object with role and content.", place)
    role = turn.get("role")
    if role in ("tool", "function") or turn.get("tool_calls") or turn.get("function_call"):
        _unsupported(f"{place}.role" if role in ("tool", "function") else f"{place}.tool_calls", "OneLLM has no tools.")
    if not isinstance(role, str) or role not in _ROLES:
        _reject(f"{place}.role is {truncated_repr(role)}; it must be one of {', '.join(_ROLES)}.", f"{place}.role")
    if len(ignored) < _MAX_IGNORED:
        unknown = (name for name, value in turn.items() if name not in _MESSAGE_FIELDS and value is not None)
        ignored += [f"messages[].{name}" for name in islice(unknown, _MAX_IGNORED)]
    content = turn.get("content")
    if content is None and role == "assistant":
        content = turn.get("refusal") or ""
    return Message(_ROLES[role], _text(content, f"{place}.content"))


def _text(content: JSON, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        _reject(f"{place} is {_kind(content)}; it must be a string or an array of text parts.", place)
    texts = []
    for index, part in enumerate(content):
        where = f"{place}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or not isinstance(kind, str):
            _reject(f"{where} is {_kind(part)}; it must be a content part with a type.", where)
        if kind not in _TEXT_PARTS:
            _unsupported(where, f"a part of type {truncated_repr(kind)}. OneLLM reads text only.")
        text = part.get(_TEXT_PARTS[kind])
        if not isinstance(text, str):
            _reject(f"{where}.text is {_kind(text)}; it must be a string.", where)
        texts.append(text)
    return _PARTS_SEPARATOR.join(texts)


def _structured(wanted: JSON, messages: list[Message], model: str) -> tuple[list[Message], JSON]:
    """The messages and the response format that ask for `wanted`.

    The service forwards only the type of a response format, and only to OpenAI. So a schema goes into the instruction.
    """
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return messages, None
    if kind == "json_object":
        return messages, {"type": "json_object"}
    if kind != "json_schema":
        _reject(
            f"response_format is {truncated_repr(wanted)}; its type must be text, json_object or json_schema.",
            "response_format",
        )
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(schema, Mapping):
        _reject("response_format.json_schema.schema is missing; it must be a JSON Schema.", "response_format")
    instruction = (
        "Answer with one JSON object and nothing else: no explanation, no code fence. "
        f"It must be valid against this JSON Schema:\n{dump_json(schema).decode()}"
    )
    if messages[0].role == "system":
        first = Message.system(f"{messages[0].content}\n\n{instruction}")
        messages = [first, *messages[1:]]
    else:
        messages = [Message.system(instruction), *messages]
    entry = catalog.lookup(model)
    return messages, {"type": "json_object"} if entry is not None and entry.provider == "openai" else None


def _kind(value: JSON) -> str:
    """What a JSON value is, for a message: never its text, which may be long or private."""
    names: dict[type, str] = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "missing" if value is None else names.get(type(value), "a number")
