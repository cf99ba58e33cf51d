"""What each dialect accepts as a request body. Pure."""

import zlib
from collections.abc import Callable, Mapping
from functools import cache

from attrs import frozen

from onellm_async import catalog
from onellm_async.chat import JSON, ChatRequest
from onellm_async.errors import InvalidRequestError
from onellm_async.validation import truncated_repr
from onellm_async.wire import Dialect, request_from_body
from onellm_async.wire.requests import forwarded_by_backend

MAX_BODY_BYTES = 32 * 1024 * 1024
"""Longer bodies are rejected with 413, before and after decompression."""

_INTEGERS = ("max_tokens", "seed", "n", "top_logprobs", "top_k")
_MAX_U32 = 2**32 - 1
_MAX_NAME_LENGTH = 100
"""Characters. The search for names similar to a longer one takes seconds and blocks every other request."""

_GZIP = 16 + zlib.MAX_WBITS
"""Window size that makes zlib read gzip's header."""

_ROLES = {"google": frozenset({"user", "model"}), "anthropic": frozenset({"user", "assistant"})}
"""Roles that a provider accepts, by provider of the catalog."""
_DEFAULT_ROLES = frozenset({"system", "user", "assistant"})
"""Roles that all other providers accept."""


class ValidationError(Exception):
    """The body is not a chat request. The text is the service's error text. The service translates it to a reply.

    Attributes:
        status: HTTP status of the reply.
    """

    def __init__(self, text: str, status: int = 422) -> None:
        super().__init__(text)
        self.status: int = status


def decompress(body: bytes, encoding: str) -> bytes:
    """Returns `body` without its ``Content-Encoding``. Never produces more than `MAX_BODY_BYTES` + 1 bytes.

    Args:
        body: The body as it was sent.
        encoding: Value of the header; "" if it is missing.

    Raises:
        ValidationError: If the encoding is unknown or broken, or the body is too long.
    """
    for name in reversed(encoding.casefold().split(",")):  # the last encoding was applied last
        name = name.strip()  # noqa: PLW2901
        if name in {"gzip", "x-gzip"}:
            body = _inflate(body, _GZIP)
        elif name == "deflate":  # The standard asks for zlib's header, whose low four bits are 8. Many clients omit it.
            body = _inflate(body, zlib.MAX_WBITS if body[:1] and body[0] & 0xF == 8 else -zlib.MAX_WBITS)
        elif name not in {"", "identity"}:
            raise ValidationError(
                f"Content-Encoding is {truncated_repr(name)}; send gzip, deflate or no encoding.", 415
            )
    return body


def _inflate(body: bytes, window: int) -> bytes:
    stream = zlib.decompressobj(window)
    try:
        body = stream.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        body = b""
    if len(body) > MAX_BODY_BYTES:
        raise ValidationError("Failed to buffer the request body: length limit exceeded", 413)
    if not stream.eof or stream.unused_data:
        raise ValidationError("Failed to buffer the request body: it is not what Content-Encoding says", 400)
    return body


@frozen
class ValidatedRequest:
    """A valid request body.

    Attributes:
        request: The request that reaches the model.
        provider_error: Text of the backend's 500 if the model's provider rejects the request; otherwise None.
    """

    request: ChatRequest
    provider_error: str | None = None


def validate_request(dialect: Dialect, body: JSON, size: int, *, any_model: bool = False) -> ValidatedRequest:
    """Validates a request body.

    Args:
        dialect: Dialect whose rules apply.
        body: The parsed JSON.
        size: Length of the body in bytes, for the backend's message.
        any_model: Whether models beyond the catalog are accepted, too. The backend dialect then drops no field:
            the model belongs to no provider that the published backend knows.

    Raises:
        ValidationError: If the body breaks a rule of the dialect.
    """
    problem = _problem(dialect, body, any_model=any_model)
    if problem is None:
        try:
            if dialect is Dialect.DOCUMENTED:
                return ValidatedRequest(request_from_body(body | _whole_numbers(body)))
            request = request_from_body(_with_known_roles(body))
            if any_model:
                return ValidatedRequest(request)
            return ValidatedRequest(forwarded_by_backend(request), _provider_error(body))
        except InvalidRequestError as error:
            problem = f"{error.message} {error.advice}".rstrip()
    if dialect is Dialect.DOCUMENTED:
        raise ValidationError(problem)
    # The published backend leaves values out of range to its provider and hides the error. This names the value.
    raise ValidationError(
        f"Failed to deserialize the JSON body into the target type: {problem} at line 1 column {size}"
    )


def _provider_error(body: dict[str, JSON]) -> str | None:
    """Returns the backend's text if the provider rejects a role of `body`; otherwise None.

    The provider answers 400 to an unknown role. The published backend tries to read an answer from that 400.
    """
    entry = catalog.lookup(body["model"])
    provider = entry.provider if entry is not None else ""
    if all(message["role"] in _ROLES.get(provider, _DEFAULT_ROLES) for message in body["messages"]):
        return None
    return f"missing field `{'candidates' if provider == 'google' else 'id'}` at line 1 column 70"


def _whole_numbers(body: dict[str, JSON]) -> dict[str, JSON]:
    """Returns the fields that are whole numbers written as floats, as integers.

    JSON and the documentation do not distinguish 10.0 from 10. The published backend does.
    """
    found = {name: body[name] for name in _INTEGERS if isinstance(body.get(name), float)}
    return {name: int(value) for name, value in found.items() if value.is_integer()}


def _with_known_roles(body: dict[str, JSON]) -> dict[str, JSON]:
    """Returns `body` with Gemini's role ``model`` as ``assistant``. The backend accepts any role."""
    messages = [
        message | {"role": "assistant"} if isinstance(message, dict) and message.get("role") == "model" else message
        for message in body["messages"]
    ]
    return body | {"messages": messages}


def _problem(dialect: Dialect, body: JSON, *, any_model: bool) -> str | None:
    if not isinstance(body, dict):
        return f"invalid type: {_type(body)}, expected struct ChatRequest"
    if body.get("stream") is not None and body["stream"] is not False:
        return "stream is not supported: answers come in one piece. Leave it out."
    if dialect is Dialect.BACKEND:
        return _backend_problem(body, any_model=any_model)
    if not isinstance(body.get("messages", []), list):
        return f"messages is {truncated_repr(body['messages'])}; it must be an array of messages."
    return None if any_model else _model_problem(body.get("model"))


def _model_problem(model: JSON) -> str | None:
    if not isinstance(model, str) or model in _model_names(Dialect.DOCUMENTED):
        return None
    near = catalog.closest_name(model) if len(model) <= _MAX_NAME_LENGTH else None
    return f"Unknown model {truncated_repr(model)}." + (f" Did you mean {near!r}?" if near else "")


def _backend_problem(body: dict[str, JSON], *, any_model: bool) -> str | None:
    rules = _BACKEND_RULES | {"model": _text} if any_model else _BACKEND_RULES
    for name, value in body.items():
        rule = rules.get(name)
        problem = rule(value) if rule is not None else None
        if problem is not None:
            return f"{name}: {problem}"
    return next((f"missing field `{name}`" for name in _BACKEND_RULES if name not in body), None)


@cache
def _model_names(dialect: Dialect) -> Mapping[str, None]:
    """Returns the model names of `dialect`, in the catalog's order."""
    backend = dialect is Dialect.BACKEND
    names = [entry.backend_name if backend else entry.name for entry in catalog.entries()]
    return dict.fromkeys(name for name in names if name is not None)


def _type(value: JSON) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{truncated_repr(value)}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f'string "{value[:80]}"'
    return "sequence" if isinstance(value, list) else "map"


def _text(value: JSON) -> str | None:
    return None if isinstance(value, str) else f"invalid type: {_type(value)}, expected a string"


def _variant(value: JSON) -> str | None:
    names = _model_names(Dialect.BACKEND)
    if not isinstance(value, str):
        return f"invalid type: {_type(value)}, expected variant identifier"
    if value in names:
        return None
    return f"unknown variant `{value[:80]}`, expected one of " + ", ".join(f"`{name}`" for name in names)


def _sequence(value: JSON) -> str | None:
    return None if isinstance(value, list) else f"invalid type: {_type(value)}, expected a sequence"


def _u32(value: JSON) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return None if 0 <= value <= _MAX_U32 else f"invalid value: {_type(value)}, expected u32"
    return f"invalid type: {_type(value)}, expected u32"


def _float(value: JSON) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None
    return f"invalid type: {_type(value)}, expected f64"


_BACKEND_RULES: dict[str, Callable[[JSON], str | None]] = {
    "endpoint": _text,
    "model": _variant,
    "messages": _sequence,
    "max_tokens": _u32,
    "top_p": _float,
}
"""The fields that the published backend requires, with the check of each."""
