"""From (status, headers, bytes) to a `ChatResponse` or an error, by the shape of what came.

The documented API answers flat and with HTTP statuses; the published backend answers HTTP 200 around an envelope
``{"code": N, "output": …}``. Both are understood without being told which one it is.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import TypeGuard

import attrs
from attrs import frozen
from cattrs.preconf.orjson import make_converter

from onellm_async import catalog
from onellm_async.chat import JSON, ChatResponse, Usage
from onellm_async.errors import FailureKind, InsufficientBalanceError, ResponseDecodeError
from onellm_async.wire.failures import excerpt, failure
from onellm_async.wire.json_text import parse_json

__all__ = ["decode_reply", "response_to_body"]


@frozen
class _Reply:
    """The documented reply. Only the text is indispensable; everything else may be null or absent."""

    content: str
    provider: str | None = None
    model: str | None = None
    role: str | None = None
    usage: Usage | None = None
    finish_reason: str | None = None


_LARGEST_COUNT = 2**53
"""What JSON's numbers carry exactly; a larger count is nonsense and would overflow the cost."""


def _strict_text(value: object, _: object) -> str:
    if type(value) is not str:
        raise TypeError("not a string")
    return value


def _strict_count(value: object, _: object) -> int:
    if not _is_count(value):
        raise TypeError("not a count")
    return value


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _LARGEST_COUNT


def _strict_usage(value: object, _: object) -> Usage:
    if type(value) is not dict:  # the generated hook takes an empty list for an empty object
        raise TypeError("not an object")
    usage: Usage = _structure_usage(value, Usage)
    return usage


def _or_none(strict: Callable[[JSON, JSON], JSON]) -> Callable[[JSON, JSON], JSON]:
    return lambda value, kind: None if value is None else strict(value, kind)


# Plain cattrs would turn null into "None" and "0" into 0, and asks about null once more for each field.
_converter = make_converter(detailed_validation=False)
_converter.register_structure_hook(str, _strict_text)
_converter.register_structure_hook(str | None, _or_none(_strict_text))
_converter.register_structure_hook(int | None, _or_none(_strict_count))
_structure_usage = _converter.get_structure_hook(Usage)
_converter.register_structure_hook(Usage | None, _or_none(_strict_usage))
_structure_reply = _converter.get_structure_hook(_Reply)
_REPLY_FIELDS = frozenset(field.name for field in attrs.fields(_Reply))
_USAGE_FIELDS = frozenset(field.name for field in attrs.fields(Usage))
_reply_fields = itemgetter("content", "provider", "model", "role", "usage", "finish_reason")
_usage_fields = itemgetter("input_tokens", "output_tokens", "total_tokens")
_structure: dict[str, Callable[[JSON, JSON], JSON]] = dict.fromkeys(_REPLY_FIELDS, _strict_text)
_structure["usage"] = _strict_usage


def decode_reply(status: int, headers: Mapping[str, str], body: bytes, *, model: str, now: float) -> ChatResponse:
    """The answer in an HTTP reply.

    Args:
        status: HTTP status.
        headers: HTTP headers; only ``Retry-After`` is looked at.
        body: The whole body, decompressed.
        model: The model that was asked, which decides the price.
        now: Wall-clock time in seconds since 1970, for a ``Retry-After`` that is a date.

    Raises:
        ResponseDecodeError: If a success holds no text.
        APIStatusError: One of its subclasses, if the service says that it failed.
    """
    try:
        payload = parse_json(body)
    except ValueError:
        payload = None
    if type(payload) is dict and "output" in payload:
        code = _envelope_code(payload.get("code"))
        if code is not None:
            status, payload = code, payload["output"]
        elif type(payload["output"]) is dict and "content" not in payload:
            payload = payload["output"]  # an envelope without a usable code: HTTP tells the status
    if 200 <= status < 300:
        return _as_documented(payload, model) or _response(status, payload, body, model)
    raise failure(status, headers, payload, body, model=model, now=now)


def _as_documented(payload: JSON, model: str) -> ChatResponse | None:
    """The response if the reply holds exactly what is documented, as nearly all do; `_response` takes twice as long."""
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
        and max(counts) <= _LARGEST_COUNT
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


def _response(status: int, payload: JSON, body: bytes, model: str) -> ChatResponse:
    if type(payload) is not dict or type(payload.get("content")) is not str:
        error = failure(status, {}, payload, body, model=model, now=0.0)
        if isinstance(error, InsufficientBalanceError):
            raise error
        raise ResponseDecodeError(
            f"The service answered {status}, but its reply holds no content: {_what_came(payload, body)}.",
            status_code=status,
            body=excerpt(body),
            kind=FailureKind.NOT_JSON if payload is None and not _is_json(body) else FailureKind.NOT_A_CHAT_REPLY,
            advice="The request may have been billed. Check that base_url points at a OneLLM API.",
        )
    try:
        reply: _Reply = _structure_reply(payload, _Reply)
        strange: dict[str, JSON] = {}
    except Exception:  # whatever cattrs objects to, the text is there and paid for
        reply, strange = _salvaged(payload)
    if len(payload) > len(_REPLY_FIELDS) or not payload.keys() <= _REPLY_FIELDS:
        strange |= {name: value for name, value in payload.items() if name not in _REPLY_FIELDS}
    if reply.usage is not None and not payload["usage"].keys() <= _USAGE_FIELDS:
        strange["usage"] = payload["usage"]
    return ChatResponse(
        content=reply.content,
        model=reply.model,
        provider=reply.provider,
        role=reply.role,
        usage=reply.usage,
        finish_reason=reply.finish_reason,
        cost=catalog.cost(model, reply.usage),
        extra=strange,
    )


def _salvaged(payload: dict[str, JSON]) -> tuple[_Reply, dict[str, JSON]]:
    """The reply field by field: one of an unexpected type becomes None, and its raw value is kept."""
    fields: dict[str, JSON] = {"content": payload["content"]}
    strange: dict[str, JSON] = {}
    for name in _REPLY_FIELDS & payload.keys() - {"content"}:
        value = payload[name]
        try:
            fields[name] = None if value is None else _structure[name](value, None)
        except Exception:  # see _response
            strange[name] = value
    if isinstance(strange.get("usage"), dict):
        counts = {name: strange["usage"].get(name) for name in _USAGE_FIELDS}
        fields["usage"] = Usage(**{name: count for name, count in counts.items() if _is_count(count)})
    return _Reply(**fields), strange


def _what_came(payload: JSON, body: bytes) -> str:
    if not body:
        return "the body is empty"
    if payload is None:
        return "null" if _is_json(body) else "the body is not JSON"
    if not isinstance(payload, dict):
        return f"a JSON {type(payload).__name__} instead of an object"
    if "content" not in payload:
        return "there is no such field"
    return f"content is {type(payload['content']).__name__}, not a string"


def _is_json(body: bytes) -> bool:
    try:
        parse_json(body)
    except ValueError:
        return False
    return True


def response_to_body(response: ChatResponse) -> dict[str, JSON]:
    """`response` as JSON-ready values: the reply's own fields and what the client adds, without the unset ones."""
    return {name: value for name, value in attrs.asdict(response).items() if name != "extra" or value}
