"""What a quota is to the limiter: the protocols and the values that pass between them. Pure.

A key has one limit, and several processes may use it. A *quota* is where they meet: it holds a *board*, a small table
with the bucket of the key and one row for each *participant*. A participant is one client in one process. It does one
thing with the board, a *visit*: it reports its demand and what became of its requests, and gets permits for now and the
time of its next visit.

The holders of a board are in `onellm_async.quota`; the limiter's side is ``shared_limiter.py``.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from attrs import evolve, frozen

from onellm_async.limits.policy import LANES, Limits
from onellm_async.limits.rate_state import RateState

__all__ = ["LANE_NAMES", "Declaration", "Demand", "Grant", "Quota", "QuotaMember", "RateLimitReport"]

LANE_NAMES: tuple[str, ...] = tuple(LANES)
"""Lanes in the order in which a board counts them."""
_DEFAULT = Limits()


@frozen
class Declaration:
    """The limits that a participant brings to the board.

    Attributes:
        limits: What the client was told.
        explicit: Whether they were meant as a declaration of the rate. Limits whose rate is the published default are
            not, so that a command with default flags does not change the rate of a service that declared another.
        state: What an earlier client learned about the rate; used by the participant that makes the board.
    """

    limits: Limits
    explicit: bool
    state: RateState | None = None

    @classmethod
    def of(cls, limits: Limits, state: RateState | None = None, *, retuned: bool = False) -> "Declaration":
        """The declaration that `limits` make.

        Args:
            limits: What the client was told.
            state: What an earlier client learned about the rate.
            retuned: Whether a running client was given these limits, which is always meant as a declaration.
        """
        return cls(limits, retuned or _rate_fields(limits) != _rate_fields(_DEFAULT), state)


def _rate_fields(limits: Limits) -> tuple[object, ...]:
    return (limits.mode, limits.requests_per_minute, limits.burst, limits.tokens_per_minute, limits.probe_every)


@frozen
class RateLimitReport:
    """A 429 that a participant got.

    Attributes:
        sent: Seconds since its request was sent.
        received: Seconds since the 429 was there.
        retry_after: Seconds that the service asked to wait, counted from then; None when it did not say.
    """

    sent: float
    received: float = 0.0
    retry_after: float | None = None


@frozen
class Demand:
    """What a participant reports in a visit. Ages, never times: the board has a clock of its own.

    Attributes:
        waiting: Requests that could be sent now, by lane; in total no more than the client has free slots.
        ages: Seconds that the longest-waiting of them has waited, by lane.
        tokens: Mean estimate of tokens of the next requests, by lane; zeros without a limit of tokens.
        given_back: Permits of earlier visits that are not needed.
        settled_tokens: Tokens charged by earlier visits and not used; negative if more were used than charged.
        answered: Of each request accepted since the last visit: seconds since it was sent, and since its answer.
        rate_limited: The 429s since the last visit.
        sent_alone: Requests sent since the board was last reached, without its permits.
        alone_for: Seconds since the participant began to send without it.
        leaving: Whether the participant leaves for good.
    """

    waiting: tuple[int, int, int] = (0, 0, 0)
    ages: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tokens: tuple[float, float, float] = (0.0, 0.0, 0.0)
    given_back: int = 0
    settled_tokens: float = 0.0
    answered: Sequence[tuple[float, float]] = ()
    rate_limited: Sequence[RateLimitReport] = ()
    sent_alone: int = 0
    alone_for: float = 0.0
    leaving: bool = False

    def aged(self, seconds: float) -> "Demand":
        """The same report, made `seconds` later."""
        interactive, default, batch = self.ages
        return evolve(
            self,
            ages=(interactive + seconds, default + seconds, batch + seconds),
            answered=[(sent + seconds, received + seconds) for sent, received in self.answered],
            rate_limited=[
                evolve(report, sent=report.sent + seconds, received=report.received + seconds)
                for report in self.rate_limited
            ],
            alone_for=self.alone_for + seconds if self.sent_alone else 0.0,
        )


@frozen
class Grant:
    """What the board returns from a visit.

    Attributes:
        permits: Requests that may be sent now.
        again_in: Seconds until the next visit, unless something happens before; None: when there is new demand.
        ahead: Requests of other participants that are sent before the next one of this participant.
        rate: Requests per second of the whole key.
        burst: Requests that the service accepts at once after a pause.
        level: Requests that could be sent at once by all participants together.
        confidence: How sure the board is of its rate, from 0 to 1.
        participants: Clients on the board, the visitor included.
        share: Of the requests granted in the last minute, those of the visitor; None when there were none.
        wants_answers: Whether the board learns from answers now, so that they have to be reported.
        answers_at_once: Whether they are to be reported at once, because nothing is known of the rate yet.
        retry_in: Seconds until the service accepts requests again, as it said by Retry-After; None when it did not.
        charged_tokens: Tokens that were taken from the board for these permits.
        tokens_level: Tokens that could be used at once; None without a limit.
        low: Requests per second that the service certainly allows; 0 when that is not known.
        high: Requests per second that it certainly does not exceed; None when that is not known.
    """

    permits: int
    again_in: float | None
    ahead: int
    rate: float
    burst: float
    level: float
    confidence: float
    participants: int
    share: float | None
    wants_answers: bool
    retry_in: float | None
    charged_tokens: float = 0.0
    tokens_level: float | None = None
    low: float = 0.0
    high: float | None = None
    answers_at_once: bool = False


class QuotaMember(Protocol):
    """One client's access to a board. Used in one event loop."""

    def visit(self, demand: Demand, then: Callable[[Grant], None], failed: Callable[[Exception], None]) -> None:
        """Visits the board.

        Exactly one of `then` and `failed` is called, once: before this returns, or later from the event loop. There is
        never more than one visit at a time.

        Args:
            demand: What the participant reports.
            then: Called with what the board returns.
            failed: Called when the board is out of reach; a `ConfigurationError` means that it will stay so.
        """
        ...

    def redeclare(self, declaration: Declaration) -> None:
        """Brings other limits to the board, with the next visit."""
        ...

    def abandon(self) -> None:
        """Frees what can be freed without an event loop. The row on the board expires."""
        ...

    async def aclose(self, demand: Demand) -> None:
        """Returns permits, removes the row from the board and closes the connection; takes 0.5 s at most."""
        ...


class Quota(Protocol):
    """Where a board is, as a value: `HostQuota`, `RedisQuota`, or one of your own."""

    @property
    def kind(self) -> str:
        """One word for `Snapshot.quota`, for example ``"host"``."""
        ...

    @property
    def place(self) -> str:
        """Where the board is, for messages. Without passwords."""
        ...

    def check(self) -> None:
        """Tells early that the board cannot be used.

        Raises:
            ConfigurationError: If the place is unusable; the message names it and the cure.
        """
        ...

    def join(self, name: str, declaration: Declaration, random: Random) -> QuotaMember:
        """Access for one client.

        Args:
            name: Name of the board: a hash of URL and key.
            declaration: The limits of the client.
            random: Source of jitter.
        """
        ...
