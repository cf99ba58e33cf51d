"""From (status, headers, bytes) to a `ChatResponse` or an error, by the shape of the reply.

The documented API answers flat and with HTTP statuses; the published backend answers HTTP 200 around an envelope
``{"code": N, "output": …}``; OpenAI-compatible endpoints answer with ``choices``. All are recognized by
their shape.

A complete 2xx reply is one of three things:

- A *chat reply*: an object with ``content``, ``tool_calls``, ``refusal`` or ``choices[0].message``. It is an answer,
  even without text: it was billed, and a retry would be billed again.
- An error that arrived with a status of success. It is raised as that error, with the text of the service.
- Anything else, which is a `ResponseDecodeError`.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import NoReturn, TypeGuard

import attrs

from onellm_async import catalog
from onellm_async.chat import JSON, ChatResponse, Usage
from onellm_async.errors import FailureKind, InsufficientBalanceError, ResponseDecodeError
from onellm_async.wire.error_replies import (
    CHECK_BASE_URL,
    error_for,
    error_text,
    excerpt,
    object_with_error,
    status_within,
)
from onellm_async.wire.json_codec import parse_json

OPENAI_SHAPE = (
    "The replies have the shape of OpenAI's API, not of OneLLM's. They are read, but requests are still written as "
    "OneLLM documents them. `onellm-async serve --upstream URL` translates both ways."
)
"""Warning for a client whose ``base_url`` is an OpenAI-compatible endpoint."""

_MAX_COUNT = 2**53
"""Largest integer that every JSON parser reads exactly. A larger count would overflow the cost."""

_TEXTS = ("provider", "model", "role", "finish_reason")
_REPLY_FIELDS = frozenset({"content", *_TEXTS, "usage"})
_USAGE_FIELDS = tuple(field.name for field in attrs.fields(Usage))
_OPENAI_USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens")
_ANSWERING_FIELDS = ("content", "tool_calls", "refusal")
"""One of them makes an object a chat reply."""
_reply_fields = itemgetter("content", "provider", "model", "role", "usage", "finish_reason")
_usage_fields = itemgetter(*_USAGE_FIELDS)


def decode_reply(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    model: str,
    now: float,
    asked: bytes = b"",
    warn: Callable[[str], None] | None = None,
) -> ChatResponse:
    """Returns the answer in an HTTP reply.

    Args:
        status: HTTP status.
        headers: HTTP headers. Only ``Retry-After``, ``Retry-After-Ms`` and ``Location`` are read.
        body: The whole body, decompressed.
        model: The model that was asked, which decides the price.
        now: Wall-clock time in seconds since 1970, for a ``Retry-After`` that is a date.
        asked: The body of the request. Words that an error text repeats from it say nothing about the cause.
        warn: Called with `OPENAI_SHAPE` if the reply has that shape.

    Raises:
        ResponseDecodeError: If a success is no chat reply.
        APIStatusError: One of its subclasses, if the service says that it failed.
    """
    try:
        payload = outer = parse_json(body)
    except ValueError:
        payload = outer = None
    if type(payload) is dict and "output" in payload:
        code = _envelope_code(payload.get("code"))
        if code is not None:
            status, payload = code, payload["output"]
        elif type(payload["output"]) is dict and "content" not in payload:
            payload = payload["output"]  # an envelope without a usable code: the status is that of HTTP
        if not payload:
            payload = outer  # an empty envelope: the fields beside it are the reply
    if not 200 <= status < 300:
        raise error_for(status, headers, payload, body, model=model, now=now, asked=asked)
    response = _as_documented(payload, model)
    if response is not None:
        return response
    reply = _chat_reply(payload) or _chat_reply(outer)
    error = None if reply is not None and _is_answer(reply) else object_with_error(payload) or object_with_error(outer)
    if reply is None or error is not None:
        _raise_for(status, headers, payload, error, body, model=model, now=now, asked=asked)
    if warn is not None and reply is not payload and reply is not outer:  # it had to be flattened
        warn(OPENAI_SHAPE)
    return _response(reply, model)


def _raise_for(
    status: int,
    headers: Mapping[str, str],
    payload: JSON,
    error: dict[str, JSON] | None,
    body: bytes,
    *,
    model: str,
    now: float,
    asked: bytes,
) -> NoReturn:
    """Raises the error that a 2xx reply is, or the one that it holds."""
    place = error if error is not None else payload
    inner_status = status_within(place)
    found = error_for(
        inner_status if inner_status is not None else status,
        headers,
        place,
        body,
        model=model,
        now=now,
        asked=asked,
    )
    if inner_status is not None or isinstance(found, InsufficientBalanceError):
        raise found
    text = error_text(place, b"")
    if error is not None:
        message = f"The service answered {status}, but its reply holds an error: {text or 'without a text'}"
    else:
        message = f"The service answered {status}, but its reply holds no answer: {_describe_body(payload, body)}"
        message += f". It says: {text}" if text and type(payload) is dict else ""
    raise ResponseDecodeError(
        message if message.endswith((".", "!", "?")) else f"{message}.",
        status_code=status,
        body=excerpt(body),
        kind=FailureKind.NOT_JSON if payload is None and not _is_json(body) else FailureKind.NOT_A_CHAT_REPLY,
        advice=f"The request may have been billed. {CHECK_BASE_URL}",
    )


def _as_documented(payload: JSON, model: str) -> ChatResponse | None:
    """The response if the reply has exactly the documented fields, as nearly all have; `_response` is slower."""
    try:
        content, provider, answered_by, role, used, finish_reason = _reply_fields(payload)
        counts = incoming, outgoing, total = _usage_fields(used)
    except (KeyError, TypeError):
        return None
    if not (
        len(payload) == len(_REPLY_FIELDS)
        and len(used) == len(_USAGE_FIELDS)
        and type(content) is type(provider) is type(answered_by) is type(role) is type(finish_reason) is str
        and type(incoming) is type(outgoing) is type(total) is int
        and min(counts) >= 0
        and max(counts) <= _MAX_COUNT
    ):
        return None
    usage = Usage(incoming, outgoing, total)
    return ChatResponse(content, answered_by, provider, role, usage, finish_reason, catalog.cost(model, usage))


def _envelope_code(code: object) -> int | None:
    if type(code) is int:
        return code
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) <= 3:
        return int(code)
    return None


def _chat_reply(payload: JSON) -> dict[str, JSON] | None:
    """`payload` with the fields of a documented reply; None if it is no chat reply."""
    if type(payload) is not dict:
        return None
    if any(payload.get(name) is not None for name in _ANSWERING_FIELDS):
        return payload
    choices = payload.get("choices")
    first = choices[0] if type(choices) is list and choices else None
    if type(first) is dict and type(first.get("message")) is dict:
        return _flatten(payload, first)
    return payload if any(name in payload for name in _ANSWERING_FIELDS) else None


def _flatten(payload: dict[str, JSON], choice: dict[str, JSON]) -> dict[str, JSON]:
    """OpenAI's shape as the documented one. Fields of three levels become one; ``choices`` stays where one is lost."""
    outer = {name: value for name, value in payload.items() if name != "choices"}
    flat = {name: value for name, value in outer.items() if value is not None}
    nested = {name: value for name, value in choice.items() if name not in {"message", "index"}} | choice["message"]
    hidden = any(nested[name] != flat[name] for name in nested.keys() & flat.keys())
    if hidden or len(payload["choices"]) > 1 or choice.keys() & choice["message"].keys() or choice.get("index"):
        flat["choices"] = payload["choices"]
    flattened: dict[str, JSON] = outer | nested | flat
    return flattened


def _is_answer(reply: dict[str, JSON]) -> bool:
    """Whether the model said or did anything. It is then an answer, even with an error beside it."""
    return any(reply.get(name) for name in (*_ANSWERING_FIELDS, "function_call"))


def _response(reply: dict[str, JSON], model: str) -> ChatResponse:
    # "provider": null says that the model only borrows its name, as behind `serve --upstream`: it has no list price.
    strange = {name: value for name, value in reply.items() if name not in _REPLY_FIELDS}
    texts: dict[str, str | None] = dict.fromkeys(_TEXTS)
    for name in _TEXTS:
        value = reply.get(name)
        if value is None or type(value) is str:
            texts[name] = value
        else:
            strange[name] = value
    content, complete = _text(reply.get("content"))
    if not complete:
        strange["content"] = reply["content"]
    usage, complete = _usage(reply.get("usage"))
    if not complete:
        strange["usage"] = reply["usage"]
    return ChatResponse(
        content=content,
        model=texts["model"],
        provider=texts["provider"],
        role=texts["role"],
        usage=usage,
        finish_reason=texts["finish_reason"],
        cost=None if reply.get("provider", "") is None else catalog.cost(model, usage),
        extra=strange,
    )


def _text(content: JSON) -> tuple[str, bool]:
    """The text in `content`, and whether that is all that `content` holds."""
    if type(content) is str:
        return content, True
    if content is None:
        return "", True
    parts = [_text_of_part(part) for part in content] if type(content) is list else [_text_of_part(content)]
    return "".join(text for text, _ in parts), all(complete for _, complete in parts)


def _text_of_part(part: JSON) -> tuple[str, bool]:
    if type(part) is str:
        return part, True
    if type(part) is not dict or part.get("type", "text") not in ("text", "output_text"):
        return "", False
    text = part.get("text")
    return (text, part.keys() <= {"type", "text"}) if type(text) is str else ("", False)


def _usage(used: JSON) -> tuple[Usage | None, bool]:
    """The counts in `used`, and whether they are all that `used` holds. A count is never invented."""
    if used is None:
        return None, True
    if type(used) is not dict:
        return None, False
    names = _USAGE_FIELDS
    if used.keys().isdisjoint(_USAGE_FIELDS[:2]) and not used.keys().isdisjoint(_OPENAI_USAGE_FIELDS):
        names = _OPENAI_USAGE_FIELDS
    counts = [used.get(name) for name in names]
    usage = Usage(*(count if _is_count(count) else None for count in counts))
    return usage, used.keys() <= set(names) and all(count is None or _is_count(count) for count in counts)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _describe_body(payload: JSON, body: bytes) -> str:
    if not body:
        return "the body is empty"
    if payload is None:
        return "null" if _is_json(body) else "the body is not JSON"
    if not isinstance(payload, dict):
        return f"a JSON {type(payload).__name__} instead of an object"
    return "there is no content, no tool_calls, no refusal and no choices[0].message"


def _is_json(body: bytes) -> bool:
    try:
        parse_json(body)
    except ValueError:
        return False
    return True
