"""Keys, balances and one token bucket per key. Pure."""

from hashlib import sha256
from math import inf

from onellm_async.limits.bucket import TokenBucket
from onellm_async.server.settings import ServerSettings

MIN_BALANCE = 0.10
"""USD below which the documented service rejects requests (OneLLM documentation)."""

EMPTY_BALANCE = 0.01
"""USD up to which the published backend rejects requests: 1,000,000 of its units."""

DEFAULT_ANSWER_TOKENS = 1024
"""Tokens reserved for the answer to a request without ``max_tokens``, or the tokens of the request if these are more:
an echo is never longer than its request."""

MAX_UNLISTED_KEYS = 10_000
"""Accounts kept for keys that the settings do not list. Beyond it, the least recently used account is dropped."""

_TOLERANCE = 1e-9
"""USD. Sums of reservations have rounding errors, and the last part of a balance must stay usable."""


class Account:
    """The state of one key. Tests may change it at any time, for example top it up.

    Attributes:
        label: Identifies the account without showing the key: the first 8 hex digits of its SHA-256.
        known: Whether the key exists.
        blocked: Whether the key has no access.
        balance: USD left, including what requests in flight have reserved.
        reserved: USD that requests in flight may cost.
        in_flight: Number of requests with a reservation.
        bucket: Token bucket of the key's rate limit.
    """

    __slots__ = ("balance", "blocked", "bucket", "in_flight", "known", "label", "reserved")

    def __init__(self, label: str, *, known: bool, blocked: bool, balance: float, bucket: TokenBucket) -> None:
        self.label: str = label
        self.known: bool = known
        self.blocked: bool = blocked
        self.balance: float = balance
        self.reserved: float = 0.0
        self.in_flight: int = 0
        self.bucket: TokenBucket = bucket

    def reserve(self, cost: float) -> bool:
        """Reserves `cost` USD if the balance has that much unreserved. Returns whether it did."""
        if cost > self.balance - self.reserved + _TOLERANCE:
            return False
        self.reserved += cost
        self.in_flight += 1
        return True

    def settle(self, reserved: float, cost: float) -> None:
        """Releases `reserved` USD and charges `cost` USD instead."""
        self.in_flight -= 1
        # A sum of floats rarely returns to exactly zero.
        self.reserved = max(0.0, self.reserved - reserved) if self.in_flight else 0.0
        self.balance -= cost


def _bucket_parameters(requests_per_minute: float | None, burst: float) -> tuple[float, float]:
    """Refill per second and capacity. No limit is an infinite capacity, which needs no refill."""
    return (0.0, inf) if requests_per_minute is None else (requests_per_minute / 60, burst)


class Accounts:
    """The accounts of all keys seen. Unknown keys have a bucket, too.

    Accounts of listed keys are kept for good. The table of all others is bounded by `MAX_UNLISTED_KEYS`, so that
    invented keys do not fill the memory.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._rate, self._burst = _bucket_parameters(settings.requests_per_minute, settings.burst)
        self._listed: dict[str, Account] = {}
        self._unlisted: dict[str, Account] = {}  # least recently used first
        self._revoked: set[str] = set()

    def find_or_open(self, key: str, now: float) -> Account:
        """Returns the account of `key`. Opens it at the first request."""
        account = self._listed.get(key)
        if account is not None:
            return account
        account = self._unlisted.pop(key, None) or self._open(key, now)
        if key in self._settings.blocked or (self._settings.keys is not None and key in self._settings.keys):
            self._listed[key] = account
            return account
        if len(self._unlisted) >= MAX_UNLISTED_KEYS:
            del self._unlisted[next(iter(self._unlisted))]
        self._unlisted[key] = account
        return account

    def revoke(self, key: str) -> None:
        """Makes `key` unknown from now on."""
        self._revoked.add(key)
        account = self._listed.get(key) or self._unlisted.get(key)
        if account is not None:
            account.known = False

    def retune(self, requests_per_minute: float | None, now: float) -> None:
        """Changes the refill of every bucket, also for keys not seen yet. None means no limit."""
        self._rate, self._burst = _bucket_parameters(requests_per_minute, self._settings.burst)
        for account in [*self._listed.values(), *self._unlisted.values()]:
            account.bucket.retune(now, rate=self._rate, capacity=self._burst)
            if requests_per_minute is None:
                account.bucket.give_back(inf, now)

    def _open(self, key: str, now: float) -> Account:
        settings = self._settings
        balance = settings.balance if settings.keys is None else settings.keys.get(key)
        return Account(
            sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8],
            known=(balance is not None or key in settings.blocked) and key not in self._revoked,
            blocked=key in settings.blocked,
            balance=balance or 0.0,
            bucket=TokenBucket(self._rate, self._burst, settings.initial_level if self._burst < inf else None, now),
        )
