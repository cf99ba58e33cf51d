"""Who may ask: keys, balances and one bucket for each key. Pure."""

from hashlib import sha256

from onellm_async.limits.bucket import TokenBucket
from onellm_async.server.settings import ServerSettings

__all__ = ["MINIMUM_BALANCE", "Account", "Accounts"]

MINIMUM_BALANCE = 0.10
"""USD; with less, requests are refused (OneLLM documentation)."""

_MOST_ACCOUNTS = 10_000


class Account:
    """One key's standing.

    Attributes:
        label: Tells accounts apart without showing the key.
        known: Whether the key exists.
        blocked: Whether it has no access.
        balance: USD left.
        bucket: Its rate limit.
    """

    __slots__ = ("balance", "blocked", "bucket", "known", "label")

    def __init__(self, label: str, *, known: bool, blocked: bool, balance: float, bucket: TokenBucket) -> None:
        self.label = label
        self.known = known
        self.blocked = blocked
        self.balance = balance
        self.bucket = bucket


class Accounts:
    """All keys that have been seen. Unknown ones have a bucket, too; the oldest are forgotten beyond 10,000."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._accounts: dict[str, Account] = {}

    def of(self, key: str, now: float) -> Account:
        """The account of `key`, opened on first sight."""
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= _MOST_ACCOUNTS:
                del self._accounts[next(iter(self._accounts))]
            account = self._accounts[key] = self._opened(key, now)
        return account

    def _opened(self, key: str, now: float) -> Account:
        settings = self._settings
        balance = settings.balance if settings.keys is None else settings.keys.get(key)
        return Account(
            sha256(key.encode("utf-8", "replace")).hexdigest()[:8],
            known=balance is not None,
            blocked=key in settings.blocked,
            balance=balance or 0.0,
            bucket=TokenBucket(settings.requests_per_minute / 60, settings.burst, settings.initial_level, now),
        )
