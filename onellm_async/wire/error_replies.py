"""Error replies: their exception, text and ``Retry-After``."""

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from html import unescape
from http import HTTPStatus
from urllib.parse import urlsplit

from onellm_async import catalog
from onellm_async.chat import JSON
from onellm_async.errors import (
    APIError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    FailureKind,
    InsufficientBalanceError,
    InternalServerError,
    MethodNotAllowedError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    UnprocessableEntityError,
)
from onellm_async.validation import truncated_repr

EXCERPT_CHARACTERS = 500
MAX_RETRY_AFTER = 300.0
"""Seconds; a longer ``Retry-After`` is honored for this long."""

_BASE_URL = "base_url (--base-url or ONELLM_BASE_URL)"
CHECK_BASE_URL = f"Check that {_BASE_URL} is the URL of a OneLLM API."
_EXACT_ADDRESS = f"Check {_BASE_URL}: requests are posted to exactly that URL."
_USE_BACKEND = 'set dialect="backend" (on the command line --dialect backend or ONELLM_DIALECT=backend).'
_USE_DOCUMENTED = 'set dialect="documented" (on the command line --dialect documented).'

_OVERLOADED_ADVICE = "Fewer requests at once help: lower Limits.max_concurrency (--concurrency)."

_CLASSES: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: MethodNotAllowedError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}
_ADVICE = {
    400: "Check the parameters of the request.",
    401: "Check the key in api_key=… or ONELLM_API_KEY.",
    403: "The key is valid, but has no access: check its account.",
    404: _EXACT_ADDRESS,
    405: _EXACT_ADDRESS,
    408: "The service, or a proxy before it, did not wait for the whole request.",
    413: "Send fewer or shorter messages.",
    415: "Something between here and the service changes the content type.",
    429: "The limit is lower than declared in Limits (--rpm and --tpm), or another client uses the same key.",
    529: _OVERLOADED_ADVICE,
}
_BALANCE_ADVICE = "Top up the balance of this key; at least $0.10 is needed."
_QUOTA_ADVICE = "Check the plan and the billing of the account that pays. Retries do not help."

_MAX_TEXT_DEPTH = 6
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_UNKNOWN_VARIANT = re.compile(r"unknown variant `([^`]*)`")
_UNKNOWN_MODEL = re.compile(r"unknown model ['\"`]([^'\"`]+)['\"`]", re.IGNORECASE)
_ENDPOINT_MISSING = re.compile(
    r"missing field `endpoint`|\bendpoint\b.{0,60}(?:field required|is required|is missing)", re.IGNORECASE | re.DOTALL
)
_ENDPOINT_REFUSED = re.compile(
    r"(?:unknown|unrecogni[sz]ed|unexpected|unsupported|extra|additional)\b.{0,80}\bendpoint\b"
    r"|\bendpoint\b.{0,80}(?:unknown|unrecogni[sz]ed|unexpected|unsupported|extra|not permitted|not allowed|forbidden)",
    re.IGNORECASE | re.DOTALL,
)

# How services say that money, a database or capacity is missing. Longer forms come first: what the request holds, too,
# may be an echo of it and does not count, so the longest form that a service uses decides best.
_BALANCE = re.compile(
    r"insufficient (?:account )?balance, please top ?up your balance to continue using onellm"
    r"|insufficient[ _](?:account[ _])?(?:balance|funds|credits?)"
    r"|credit balance is too low|(?:not enough|out of) credits?"
)
_QUOTA = re.compile(
    r"you exceeded your current quota, please check your plan and billing details"
    r"|insufficient[ _]quota|exceed(?:ed|s)? (?:your|the) current quota|billing[ _]hard[ _]limit|spend(?:ing)?[ _]limit"
)
_QUOTA_NAMES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "insufficient_balance"})
_PASSING_QUOTA = re.compile(
    r"per[ _-]?(?:second|minute|hour|day)|rate[ _-]?limit|requests? per|retry (?:in|after)|again in|\b[rt]p[smhd]\b"
    r"|too many requests"
)
"""A quota that comes back by itself, of which some services speak in the same words as of one that is used up."""
_DATABASE_FAULT = re.compile(
    r"pool timed out(?: while waiting for an open connection)?"
    r"|error (?:communicating with|returned from) database"
    r"|too many (?:clients|connections)(?: already)?"
    r"|remaining connection slots|connection pool"
)
_DATABASE = re.compile(r"\bdatabase\b")
_NO_SUCH_KEY = re.compile(r"no such|not found|unknown|invalid|(?:does not|doesn't|n't) exist|no (?:user|key)\b")
_OVERLOAD = re.compile(
    r"\b(?:model|engine|server|service|system|api|provider|backend|upstream|cluster)s?\b[^.]{0,30}\boverloaded\b"
    r"|\boverloaded[_ ]error\b|\b(?:currently|temporarily) overloaded\b|^overloaded\b"
)

_STATUS_NAMES = ("code", "status", "status_code", "statusCode", "http_status")
_STATUS_OF_NAME = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "overloaded_error": 529,
}
"""Statuses that go with the names of errors, for replies that hold an error without a number."""


def excerpt(body: bytes) -> str:
    """The first 500 characters of a body."""
    return body[: EXCERPT_CHARACTERS * 4].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]


def error_for(
    status: int,
    headers: Mapping[str, str],
    payload: JSON,
    body: bytes,
    *,
    model: str,
    now: float,
    asked: bytes = b"",
) -> APIError:
    """Returns the error for a reply that is no success.

    Args:
        status: Of the envelope if there is one, of the error inside a success, else of HTTP.
        headers: HTTP headers.
        payload: The parsed body or the envelope's output; None if it is not JSON.
        body: The raw body.
        model: The model asked, for advice.
        now: Wall-clock seconds since 1970.
        asked: The body of the request: what an error text may only repeat.
    """
    text = error_text(payload, body)
    wait = _retry_after(headers, now)
    kind = None
    error_class = _CLASSES.get(status, InternalServerError if status >= 500 else APIStatusError)
    advice = _ADVICE.get(status, "")
    folded, names = text.casefold(), _names_in(payload)
    if _says(_BALANCE, folded, asked):
        error_class, advice = InsufficientBalanceError, _BALANCE_ADVICE
    elif _is_quota_used_up(folded, names, asked, wait):
        error_class, advice = InsufficientBalanceError, _QUOTA_ADVICE
    elif not 300 <= status < 600:
        return ResponseDecodeError(
            f"The service answered with status {truncated_repr(status)}, which means nothing.",
            status_code=status,
            body=excerpt(body),
        )
    elif _is_overload(status, folded, names, asked):
        # A 401 from the fault of a database is no AuthenticationError, for which programs give up a key.
        kind, error_class, advice = FailureKind.OVERLOADED, InternalServerError, _OVERLOADED_ADVICE
    elif status in (400, 422):
        advice = _advice_on_rejection(text, body, asked) or advice
    elif status < 400:
        text = f"Redirected to {_place(_header(headers, 'Location'))}"
        advice = "Redirects are not followed with a paid request: set base_url to the final address."
    error = error_class(_sentence(status, text), status_code=status, body=excerpt(body), advice=advice, kind=kind)
    error.retry_after = wait
    return error


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait: a non-negative decimal number or an HTTP date, at most 300; None for anything else.

    Example:
        >>> [parse_retry_after(text, now=0.0) for text in ("7", "1.5", "1e9", "-1", "120junk", "999999")]
        [7.0, 1.5, None, None, None, 300.0]
    """
    if value is None:
        return None
    value = value.strip()
    if _DECIMAL.fullmatch(value):
        return min(float(value), MAX_RETRY_AFTER)
    if not _DATE.match(value):
        return None
    try:
        date = parsedate_to_datetime(value)
        moment = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, moment - now), MAX_RETRY_AFTER)


_DECIMAL = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
_DATE = re.compile(r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6}[, ]")
"""How each of the three forms of an HTTP date begins."""


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    milliseconds = (_header(headers, "Retry-After-Ms") or "").strip()
    if _DECIMAL.fullmatch(milliseconds):
        return min(float(milliseconds) / 1000, MAX_RETRY_AFTER)
    return parse_retry_after(_header(headers, "Retry-After"), now)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    folded = name.casefold()
    return next((value for key, value in headers.items() if key.casefold() == folded), None)


def _place(location: str | None) -> str:
    """`location` without what may be secret in it: user name, password and query."""
    try:
        parts = urlsplit(location or "")
        place = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:
        place = ""
    return place[:EXCERPT_CHARACTERS] or "somewhere else"


def _sentence(status: int, text: str) -> str:
    if not text:
        text = HTTPStatus(status).phrase if status in _PHRASES else ""
    if not re.match(rf"{status}\b", text):  # many services repeat it
        text = f"{status} {text}".rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


_PHRASES = frozenset(HTTPStatus)


# What the text of an error adds to its status.


def _says(pattern: re.Pattern[str], folded: str, asked: bytes) -> bool:
    """Whether `folded` matches `pattern`, and not only because the service repeats the request."""
    found = [match.group() for match in pattern.finditer(folded)]
    if not found or not asked:
        return bool(found)
    request = asked.decode("utf-8", "replace").casefold()
    return any(words not in request for words in found)


def _is_quota_used_up(folded: str, names: frozenset[str], asked: bytes, wait: float | None) -> bool:
    if names & _QUOTA_NAMES:
        return True
    return wait is None and _says(_QUOTA, folded, asked) and not _PASSING_QUOTA.search(folded)


def _is_overload(status: int, folded: str, names: frozenset[str], asked: bytes) -> bool:
    if status in (401, 500) and _says(_DATABASE_FAULT, folded, asked):
        return True
    if status in (401, 500) and _says(_DATABASE, folded, asked):
        return status == 500 or not _NO_SUCH_KEY.search(folded)
    return status in (500, 503) and ("overloaded_error" in names or _says(_OVERLOAD, folded, asked))


def _advice_on_rejection(text: str, body: bytes, asked: bytes) -> str:
    whole = excerpt(body)  # the name of the field may stand beside the text
    in_backend_dialect = b'"endpoint"' in asked
    if _ENDPOINT_MISSING.search(text) or (not in_backend_dialect and _ENDPOINT_MISSING.search(whole)):
        return f"This is a self-hosted backend: {_USE_BACKEND}"
    if in_backend_dialect and _ENDPOINT_REFUSED.search(whole):
        return f"The service does not know the field `endpoint` of the backend dialect: {_USE_DOCUMENTED}"
    unknown = _UNKNOWN_MODEL.search(text)
    entry = catalog.lookup(unknown.group(1)) if unknown is not None else None
    if in_backend_dialect and entry is not None and entry.name != (unknown and unknown.group(1)):
        return f"The service calls it {entry.name!r}, as the documentation does: {_USE_DOCUMENTED}"
    unknown = _UNKNOWN_VARIANT.search(text)
    return _advice_on_variant(unknown.group(1)) if unknown is not None else ""


def _advice_on_variant(asked: str) -> str:
    near = catalog.closest_name(asked)
    entry = catalog.lookup(asked) or (catalog.lookup(near) if near is not None else None)
    if entry is None:
        return "`onellm-async models` lists the known ones."
    if entry.backend_name is None:
        return f"The self-hosted backend does not know {entry.name!r}."
    if asked == entry.name:
        return f"This is a self-hosted backend, which spells it {entry.backend_name!r}: {_USE_BACKEND}"
    return f"Did you mean {entry.backend_name!r}?"


# Where a reply holds its error.


def object_with_error(payload: JSON) -> dict[str, JSON] | None:
    """The object in `payload` with an ``error`` that is not empty: `payload` itself, or its first choice."""
    if type(payload) is not dict:
        return None
    if _is_error(payload.get("error")):
        return payload
    choices = payload.get("choices")
    first = choices[0] if type(choices) is list and choices else None
    return first if type(first) is dict and _is_error(first.get("error")) else None


def _is_error(value: JSON) -> bool:
    return value is True or (isinstance(value, str | dict | list) and bool(value))


def status_within(payload: JSON) -> int | None:
    """The error status that a reply with a status of success holds: a number, or the name of an error."""
    if type(payload) is not dict:
        return None
    error = payload.get("error")
    places = [error, payload] if type(error) is dict else [payload]
    for place in places:
        for name in _STATUS_NAMES:
            status = _error_status(place.get(name))
            if status is not None:
                return status
    names = _names_in(payload) if error else frozenset()
    return next((status for name, status in _STATUS_OF_NAME.items() if name in names), None)


def _error_status(value: JSON) -> int | None:
    if type(value) is str and value.isascii() and value.isdigit() and len(value) == 3:
        value = int(value)
    return value if type(value) is int and 400 <= value < 600 else None


def _names_in(payload: JSON) -> frozenset[str]:
    """Names of the error for programs: its ``type``, its ``code`` and similar fields."""
    if type(payload) is not dict:
        return frozenset()
    error = payload.get("error")
    found = [error] + [place.get(name) for place in (payload, error) if type(place) is dict for name in _NAME_FIELDS]
    return frozenset(value.casefold() for value in found if type(value) is str and len(value) <= _MAX_NAME_LENGTH)


_NAME_FIELDS = ("type", "code", "status")
_MAX_NAME_LENGTH = 60


def error_text(payload: JSON, body: bytes) -> str:
    """The text of an error: in a field of JSON, as plain text, or as the title of a page."""
    text = _text_in(payload)
    if not text and payload is None:
        text = body[: EXCERPT_CHARACTERS * 4].decode("utf-8", "replace")
        title = _TITLE.search(text)
        if title:
            text = unescape(title.group(1))
        elif "<html" in text.casefold():
            text = ""
    return " ".join(text.split())[:EXCERPT_CHARACTERS]


def _text_in(value: JSON, depth: int = 0) -> str:
    """The first text in the places where services put one."""
    if isinstance(value, str):
        return value
    if depth == _MAX_TEXT_DEPTH:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_text_in(item, depth + 1) for item in value[:5])))
    if isinstance(value, dict):
        for name in ("error", "errors", "detail", "message", "msg", "output"):
            text = _text_in(value.get(name), depth + 1)
            if text:
                return f"{_field_named(value)}{text}"
        if depth:  # the name of an error is better than nothing
            return next((value[name] for name in _NAME_FIELDS if isinstance(value.get(name), str)), "")
    return ""


def _field_named(problem: dict[str, JSON]) -> str:
    """Which field of the request FastAPI's ``{"loc": ["body", "top_p"], "msg": …}`` complains of."""
    place = problem.get("loc")
    if type(place) is not list or not 2 <= len(place) <= _MAX_TEXT_DEPTH:
        return ""
    return ".".join(str(part) for part in place[1:] if isinstance(part, str | int)) + ": "
