"""One rate limit for all processes of a key: quotas on one host, in Redis, and of one's own.

Give one to `onellm_async.AsyncOneLLM`: ``quota="host"``, ``quota="redis://…"``, or a value from here.
"""

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand, Grant, Quota, QuotaMember, RateLimitReport
from onellm_async.limits.shared_limiter import check_shareable
from onellm_async.quota.board import Board
from onellm_async.quota.host_quota import HostQuota
from onellm_async.quota.memory_quota import MemoryQuota
from onellm_async.quota.names import board_name
from onellm_async.quota.redis_quota import RedisQuota

__all__ = [
    "Board",
    "Declaration",
    "Demand",
    "Grant",
    "HostQuota",
    "MemoryQuota",
    "Quota",
    "QuotaMember",
    "RateLimitReport",
    "RedisQuota",
    "board_name",
    "quota_from",
    "quota_of_text",
]


def quota_from(quota: str | Quota, limits: Limits, *, explicit: bool) -> Quota | None:
    """The quota that a client uses; None for none.

    Args:
        quota: What the user gave: a word, a URL of Redis, or a quota.
        limits: Of the client.
        explicit: Whether it was given to this client, and not by ``ONELLM_QUOTA``.

    Raises:
        ConfigurationError: If it is no quota, cannot be used here, or `limits` have no rate.
    """
    found = quota_of_text(quota) if isinstance(quota, str) else quota
    if found is None:
        return None
    if not (callable(getattr(found, "join", None)) and callable(getattr(found, "check", None))):
        raise ConfigurationError(
            f"quota is a {type(found).__name__}; it must be 'host', 'redis://HOST:PORT', 'off' or a Quota."
        )
    if limits.mode == "unlimited" and not explicit:
        return None
    check_shareable(limits)
    found.check()
    return found


def quota_of_text(text: str) -> Quota | None:
    """The quota that a word or a URL stands for; None for ``"off"``.

    Raises:
        ConfigurationError: If it stands for none. The message shows no password.
    """
    match text.partition("://"):
        case ("off", "", ""):
            return None
        case ("host", "", ""):
            return HostQuota()
        case ("redis" | "rediss" | "unix", "://", _):
            return RedisQuota(text)
        case (word, separator, _):
            shown = f"{word}{separator}…" if separator else word.rpartition("@")[2]
            raise ConfigurationError(
                f"quota is {shown!r}; it must be 'host', 'redis://HOST:PORT' or 'off'.",
                advice="Correct quota= (--quota) or ONELLM_QUOTA.",
            )
