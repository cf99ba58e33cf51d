"""What each dialect accepts as a request body. Pure."""

from onellm_async import catalog
from onellm_async.chat import JSON, ChatRequest
from onellm_async.errors import InvalidRequestError
from onellm_async.wire import Dialect, request_from_body

__all__ = ["Malformed", "checked"]

_MOST_U32 = 2**32 - 1
_BACKEND_FIELDS = ("endpoint", "model", "messages", "max_tokens", "top_p")


class Malformed(Exception):  # noqa: N818  # a verdict on a body, never seen outside
    """The body is not a chat request; the text is what the service says."""


def checked(dialect: Dialect, body: JSON, size: int) -> ChatRequest:
    """The request that `body` describes.

    Args:
        dialect: Whose rules apply.
        body: The parsed JSON.
        size: Its length in bytes, for the backend's message.

    Raises:
        Malformed: If it breaks a rule.
    """
    if not isinstance(body, dict):
        raise Malformed("The request must be a JSON object.")
    if dialect is Dialect.BACKEND:
        _check_as_the_backend_does(body, size)
    try:
        request = request_from_body(body)
    except InvalidRequestError as error:
        raise Malformed(f"{error.message} {error.advice}".rstrip()) from None
    if dialect is Dialect.DOCUMENTED and _index().get(request.model) is None:
        near = catalog.nearest(request.model)
        raise Malformed(f"Unknown model {request.model!r}." + (f" Did you mean {near!r}?" if near else ""))
    return request


def _index() -> dict[str, catalog.CatalogEntry]:
    return {entry.name: entry for entry in catalog.entries()}


def _check_as_the_backend_does(body: dict[str, JSON], size: int) -> None:
    rules = {"endpoint": _text, "model": _variant, "messages": _sequence, "max_tokens": _u32, "top_p": _float}
    problem = next((text for name, value in body.items() if name in rules and (text := rules[name](value))), None)
    problem = problem or next((f"missing field `{name}`" for name in _BACKEND_FIELDS if name not in body), None)
    if problem:
        raise Malformed(f"Failed to deserialize the JSON body into the target type: {problem} at line 1 column {size}")


def _type(value: JSON) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f'string "{value[:80]}"'
    return "sequence" if isinstance(value, list) else "map"


def _text(value: JSON) -> str | None:
    return None if isinstance(value, str) else f"invalid type: {_type(value)}, expected a string"


def _variant(value: JSON) -> str | None:
    names = [entry.backend_name for entry in catalog.entries() if entry.backend_name]
    if value in names:
        return None
    if not isinstance(value, str):
        return f"invalid type: {_type(value)}, expected variant identifier"
    return f"unknown variant `{value[:80]}`, expected one of " + ", ".join(f"`{name}`" for name in names)


def _sequence(value: JSON) -> str | None:
    return None if isinstance(value, list) else f"invalid type: {_type(value)}, expected a sequence"


def _u32(value: JSON) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return None if 0 <= value <= _MOST_U32 else f"invalid value: {_type(value)}, expected u32"
    return f"invalid type: {_type(value)}, expected u32"


def _float(value: JSON) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None
    return f"invalid type: {_type(value)}, expected f64"
