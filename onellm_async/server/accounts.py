"""Keys, balances, and the limits of each key. Pure."""

from collections.abc import Sequence
from hashlib import sha256
from random import Random

from onellm_async.server.service_limits import AccountLimits, ServiceLimit
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
        limits: Limits of the key, and what they count.
    """

    __slots__ = ("balance", "blocked", "in_flight", "known", "label", "limits", "reserved")

    def __init__(self, label: str, *, known: bool, blocked: bool, balance: float, limits: AccountLimits) -> None:
        self.label: str = label
        self.known: bool = known
        self.blocked: bool = blocked
        self.balance: float = balance
        self.reserved: float = 0.0
        self.in_flight: int = 0
        self.limits: AccountLimits = limits

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


class Accounts:
    """The accounts of all keys seen. Unknown keys have limits, too.

    Accounts of listed keys are kept for good. The table of all others is bounded by `MAX_UNLISTED_KEYS`, so that
    invented keys do not fill the memory.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._limits: Sequence[ServiceLimit] = settings.all_limits
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

    def change_limits(self, limits: Sequence[ServiceLimit], now: float) -> None:
        """Replaces the limits of every key, also of keys not seen yet."""
        self._limits = tuple(limits)
        for account in [*self._listed.values(), *self._unlisted.values()]:
            account.limits.change(self._limits, now)

    def _open(self, key: str, now: float) -> Account:
        settings = self._settings
        balance = settings.balance if settings.keys is None else settings.keys.get(key)
        label = sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return Account(
            label,
            known=(balance is not None or key in settings.blocked) and key not in self._revoked,
            blocked=key in settings.blocked,
            balance=balance or 0.0,
            limits=AccountLimits(
                self._limits,
                now,
                background_rate=settings.background_rate,
                random=Random(f"limits of {settings.faults.seed}, {label}"),
            ),
        )
