"""Success and error replies of each dialect. Pure."""

from collections.abc import Sequence
from email.utils import formatdate
from math import ceil, inf

from onellm_async import catalog
from onellm_async.chat import JSON
from onellm_async.server.jobs import Completion, Job
from onellm_async.server.service_limits import Quota
from onellm_async.server.settings import RateHeaders, RetryAfterForm
from onellm_async.transport import RawReply
from onellm_async.wire import Dialect, dump_json

NO_KEY = "No Authorization header provided."
NO_BEARER = "Invalid authorization scheme. Expected Bearer token."
UNKNOWN_KEY = "Custom error: No such user was found"
RATE_LIMITED = "Rate limit exceeded."
OVERLOADED = "Overloaded"
BALANCE_RESERVED = "Requests in flight have reserved the balance. Retry when one of them has ended."
NO_BALANCE = "Insufficient balance, please topup your balance to continue using OneLLM"

_JSON = {"Content-Type": "application/json"}
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
_HTML = {"Content-Type": "text/html"}
_GATEWAY_PAGE = (
    b"<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>"
)

_PROVIDERS = {
    "openai": "OpenAI",
    "anthropic": "Claude",
    "google": "Gemini",
    "deepseek": "DeepSeek",
    "mistral": "Mistral",
}
"""From the catalog's providers to their names in replies."""


def success_reply(dialect: Dialect, job: Job, completion: Completion) -> RawReply:
    """Returns a success: flat as documented, or in the backend's envelope.

    If the completion names no model, the reply has the requested name in small letters and the provider of the
    catalog. If it does, the reply has the completion's provider and no other.
    """
    usage, model, provider = completion.usage, completion.model, completion.provider
    if model is None:
        entry = catalog.lookup(job.request.model)
        model, provider = job.request.model.lower(), _PROVIDERS[entry.provider] if entry is not None else provider
    counts: dict[str, JSON] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    flat: dict[str, JSON] = {
        "provider": provider,
        "model": model,
        "role": completion.role,
        "content": completion.content,
        "usage": {**counts, **{name: it for name, it in completion.usage_details.items() if name not in counts}},
        "finish_reason": completion.finish_reason,
    }
    flat |= {name: value for name, value in completion.extra.items() if name not in flat}
    return RawReply(200, _JSON, dump_json(flat if dialect is Dialect.DOCUMENTED else {"code": 200, "output": flat}))


def retry_headers(seconds: float | None, *, exact: bool = False) -> dict[str, str]:
    """Returns the headers that say after how many seconds a retry makes sense; none for None.

    Args:
        seconds: Seconds from now. ``Retry-After`` keeps a fraction, as gateways send it.
        exact: Whether to send ``retry-after-ms``, too. Some clients read fractions only there.
    """
    if seconds is None:
        return {}
    milliseconds = ceil(seconds * 1000 - 1e-6)
    headers = {"Retry-After": f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".")}
    return headers | {"retry-after-ms": str(milliseconds)} if exact else headers


def retry_headers_in_form(form: RetryAfterForm, wait: float | None, unix_time: float) -> dict[str, str]:
    """Returns the headers that say when the limit has room again; none if that is not known.

    Args:
        form: How they say it.
        wait: Seconds until the limit has room; None if that is not known.
        unix_time: Time of the reply.
    """
    if wait is None:
        return {}
    match form:
        case "seconds":
            return {"Retry-After": str(max(1, ceil(wait - 1e-6)))}
        case "fraction":
            return retry_headers(wait)
        case "milliseconds":
            return {"retry-after-ms": str(ceil(wait * 1000 - 1e-6))}
        case "date":
            return {"Retry-After": formatdate(ceil(unix_time + wait), usegmt=True)}


def rate_headers(dialect: RateHeaders, quotas: Sequence[Quota], unix_time: float) -> dict[str, str]:
    """Returns the headers that say what is left of the scarcest limit, in OpenAI's dialect of each unit.

    Args:
        dialect: Names of the headers, and how they write a reset.
        quotas: What is left of each limit, the scarcest first.
        unix_time: Time of the reply.
    """
    if dialect == "openai":
        scarcest = {quota.unit: quota for quota in reversed(quotas)}
        return {
            f"x-ratelimit-{name}-{unit}": text
            for unit, quota in scarcest.items()
            for name, text in _quota_texts(quota, _go_duration(quota.reset)).items()
        }
    quota = next((quota for quota in quotas if quota.unit == "requests"), None)
    if quota is None:
        return {}
    reset = ceil(quota.reset - 1e-6) if quota.reset < inf else None
    if reset is not None and dialect == "epoch":
        reset = ceil(unix_time + quota.reset)
    return {f"x-ratelimit-{name}": text for name, text in _quota_texts(quota, reset).items()}


def _quota_texts(quota: Quota, reset: str | int | None) -> dict[str, str]:
    texts = {"limit": str(quota.limit), "remaining": str(quota.remaining)}
    return texts if reset is None else texts | {"reset": str(reset)}


def _go_duration(seconds: float) -> str | None:
    """A duration as Go writes it, like ``1m26.4s`` or ``120ms``; None if it is infinite."""
    if seconds == inf:
        return None
    milliseconds = ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    last = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + last


def error_reply(dialect: Dialect, status: int, text: str, headers: dict[str, str] | None = None) -> RawReply:
    """Returns an error of the service itself.

    The documentation gives statuses and leaves the body open. The published backend answers HTTP 200 around an
    envelope, with the text under ``error``, or under ``output`` for its catch-all 500.
    """
    if dialect is Dialect.DOCUMENTED:
        return RawReply(status, _JSON | (headers or {}), dump_json({"error": text}))
    output = {"output": text} if status == 500 else {"error": text}
    return RawReply(200, _JSON | (headers or {}), dump_json({"code": status, "output": output}))


def framework_error(dialect: Dialect, status: int, text: str = "", headers: dict[str, str] | None = None) -> RawReply:
    """Returns an error of the web framework in front of the service, with a real HTTP status in both dialects.

    The body is plain text in the backend dialect.
    """
    if dialect is Dialect.DOCUMENTED:
        return error_reply(dialect, status, text, headers)
    return RawReply(status, (_TEXT if text else {}) | (headers or {}), text.encode("utf-8", "backslashreplace"))


def gateway_error() -> RawReply:
    """Returns the 502 page of a reverse proxy that cannot reach the service."""
    return RawReply(502, _HTML, _GATEWAY_PAGE)
