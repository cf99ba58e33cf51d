"""Who may ask: keys, balances and one bucket for each key. Pure."""

from hashlib import sha256
from math import inf

from onellm_async.limits.bucket import TokenBucket
from onellm_async.server.settings import ServerSettings

MIN_BALANCE = 0.10
"""USD; with less, requests are refused (OneLLM documentation)."""
EMPTY_BALANCE = 0.01
"""USD; the published backend takes so much, or less, for nothing: 1,000,000 of its units."""

DEFAULT_ANSWER_TOKENS = 1024
"""Tokens reserved for the answer to a request without ``max_tokens``. Where the request has more, as many as it has are
reserved: the echo is never longer."""

MAX_UNLISTED_KEYS = 10_000
"""Accounts of keys that the settings do not list; beyond it the one unused for longest is forgotten."""

_TOLERANCE = 1e-9
"""USD; sums of reservations are rounded, and the last part of a balance must stay usable."""


class Account:
    """One key's standing. Tests may change it at any time, for example top it up.

    Attributes:
        label: Tells accounts apart without showing the key: the first 8 hex digits of its SHA-256.
        known: Whether the key exists.
        blocked: Whether it has no access.
        balance: USD left, of which requests in flight have reserved a part.
        reserved: USD that requests in flight may cost.
        held: How many requests in flight have reserved something.
        bucket: Its rate limit.
    """

    __slots__ = ("balance", "blocked", "bucket", "held", "known", "label", "reserved")

    def __init__(self, label: str, *, known: bool, blocked: bool, balance: float, bucket: TokenBucket) -> None:
        self.label: str = label
        self.known: bool = known
        self.blocked: bool = blocked
        self.balance: float = balance
        self.reserved: float = 0.0
        self.held: int = 0
        self.bucket: TokenBucket = bucket

    def reserve(self, cost: float) -> bool:
        """Sets `cost` aside if the balance has that much unreserved; returns whether it was set aside."""
        if cost > self.balance - self.reserved + _TOLERANCE:
            return False
        self.reserved += cost
        self.held += 1
        return True

    def settle(self, reserved: float, cost: float) -> None:
        """Charges `cost` in place of what was reserved for it."""
        self.held -= 1
        self.reserved = max(0.0, self.reserved - reserved) if self.held else 0.0  # sums of floats leave a rest
        self.balance -= cost


def _bucket_of(requests_per_minute: float | None, burst: float) -> tuple[float, float]:
    """Refill per second and capacity: what never runs empty needs no refill."""
    return (0.0, inf) if requests_per_minute is None else (requests_per_minute / 60, burst)


class Accounts:
    """All keys that have been seen, the unknown ones too: they have a bucket like all others.

    Accounts of listed keys are kept for good. The table of all others is bounded, so that invented keys do not fill
    the memory.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._rate, self._burst = _bucket_of(settings.requests_per_minute, settings.burst)
        self._listed: dict[str, Account] = {}
        self._unlisted: dict[str, Account] = {}
        self._revoked: set[str] = set()

    def of(self, key: str, now: float) -> Account:
        """The account of `key`, opened on first sight."""
        account = self._listed.get(key)
        if account is not None:
            return account
        account = self._unlisted.pop(key, None) or self._opened(key, now)
        if key in self._settings.blocked or (self._settings.keys is not None and key in self._settings.keys):
            self._listed[key] = account
            return account
        if len(self._unlisted) >= MAX_UNLISTED_KEYS:
            del self._unlisted[next(iter(self._unlisted))]
        self._unlisted[key] = account  # last, as the one used latest
        return account

    def revoke(self, key: str) -> None:
        """Makes `key` unknown from now on."""
        self._revoked.add(key)
        account = self._listed.get(key) or self._unlisted.get(key)
        if account is not None:
            account.known = False

    def retune(self, requests_per_minute: float | None, now: float) -> None:
        """Changes the refill of every bucket, those of keys not seen yet included; None: there is no limit."""
        self._rate, self._burst = _bucket_of(requests_per_minute, self._settings.burst)
        for account in [*self._listed.values(), *self._unlisted.values()]:
            account.bucket.retune(now, rate=self._rate, capacity=self._burst)
            if requests_per_minute is None:
                account.bucket.give_back(inf, now)

    def _opened(self, key: str, now: float) -> Account:
        settings = self._settings
        balance = settings.balance if settings.keys is None else settings.keys.get(key)
        return Account(
            sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8],
            known=(balance is not None or key in settings.blocked) and key not in self._revoked,
            blocked=key in settings.blocked,
            balance=balance or 0.0,
            bucket=TokenBucket(self._rate, self._burst, settings.initial_level if self._burst < inf else None, now),
        )
