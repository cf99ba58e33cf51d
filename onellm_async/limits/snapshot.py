"""The state of a limiter at one moment, as a value."""

from bisect import bisect_right
from collections.abc import Mapping

from attrs import field, frozen

from onellm_async import serialization
from onellm_async.limits.admission import Admission
from onellm_async.limits.bottleneck import Bottleneck
from onellm_async.limits.overload import FIRST_SIZE
from onellm_async.limits.policy import AUTO, LANES, Limits, Mode
from onellm_async.limits.rate_control import window_wait
from onellm_async.serialization import JSON

_MAX_SENDABLE = 1_000_000
"""Maximum of `Snapshot.level`."""


@frozen(kw_only=True)
class Snapshot:
    """One client at one moment.

    Attributes:
        at: Seconds on the event loop's clock; 0 before the client was used in one.
        paused: Whether the client was paused.
        queued: Number of queued chats in each lane.
        pending: Number of queued chats that count toward `Limits.max_pending`: those of fan-outs and runs do not.
        waiting_for: The bottleneck of the first chat in each lane; ``"idle"`` for an empty lane.
        longest_wait: Seconds that the longest-waiting chat in each lane has waited. A 429 or a retry restarts the wait.
        bottleneck: The bottleneck of the next chat of all.
        next_in: Seconds until the next chat is sent; None if nothing is queued or it depends on an event.
        in_flight: Number of requests in flight.
        max_concurrency: Maximum number of requests in flight, as declared; 512 with ``"auto"``.
        concurrency: Maximum number of requests in flight now: fewer than declared while the service is overloaded, and
            the number found so far with ``max_concurrency="auto"``.
        mode: What 429s may change, as `Limits.mode`.
        declared_rate: Declared requests per minute; None if the rate is discovered or not limited.
        rate: Requests per minute that the limiter keeps up now, declared or discovered; None without a limit.
        confidence: How certain that is, from 0 to 1; None without a limit.
        burst: Requests that the service accepts at once after a pause; None if not known.
        limit_found: What 429s have shown of the limit, in words, like ``"40 requests in any 60 s, kept 3 times"``; None
            if nothing is certain yet, or the limit is declared.
        level: Requests that the rate allows to send at once; None without a limit.
        tokens_per_minute: As declared; None without a limit.
        tokens_level: Tokens available at once, negative if overdrawn; None without a limit.
        window_wait: Seconds until a declared window that is used up has room again; None if none is used up.
        advertised_limit: Requests that the service allows in a window, or at once, as its headers last said; None if
            they do not say. It is a hint, and not what the client keeps to.
        advertised_remaining: Of these, the number that remained then.
        retry_after: Remaining seconds of the service's Retry-After; None if there is none.
        trial_in: Seconds until the next trial request while the circuit is open, 0 while one is in flight; None when it
            is closed.
        answered: Requests that the service replied to so far, 429s not counted.
        rate_limited: Requests that were answered 429 so far; they cost nothing.
        unanswered: Requests without a reply so far: they timed out, were cancelled, or never arrived.
        retried: Of all these, retries after a failure; a 429 is none.
        backing_off: Chats that wait to be retried after a failure.
        last_error: The last failure or 429 since the last answer, with the text of the service; None after an answer.
        timer_set: Whether the limiter has set its timer.
        quota: Where the rate is shared with other processes: ``"off"``, ``"host"``, ``"redis"``, or ``"alone"`` while
            the board is out of reach and the client keeps to its fair share.
        participants: Clients that share the rate; None without a quota.
        quota_share: Of the requests granted to all of them in the last minute, those of this client; None when there
            were none.
    """

    at: float = 0.0
    paused: bool = False
    queued: Mapping[str, int] = field(factory=lambda: dict.fromkeys(LANES, 0), hash=False)
    pending: int = 0
    waiting_for: Mapping[str, Bottleneck] = field(factory=lambda: dict.fromkeys(LANES, "idle"), hash=False)
    longest_wait: Mapping[str, float] = field(factory=lambda: dict.fromkeys(LANES, 0.0), hash=False)
    bottleneck: Bottleneck = "idle"
    next_in: float | None = None
    in_flight: int = 0
    max_concurrency: int
    concurrency: int = 0
    mode: Mode = "correct"
    declared_rate: float | None = None
    rate: float | None = None
    confidence: float | None = None
    burst: float | None = None
    limit_found: str | None = None
    level: int | None = None
    tokens_per_minute: float | None = None
    tokens_level: float | None = None
    window_wait: float | None = None
    advertised_limit: float | None = None
    advertised_remaining: float | None = None
    retry_after: float | None = None
    trial_in: float | None = None
    answered: int = 0
    rate_limited: int = 0
    unanswered: int = 0
    retried: int = 0
    backing_off: int = 0
    last_error: str | None = None
    timer_set: bool = False
    quota: str = "off"
    participants: int | None = None
    quota_share: float | None = None

    def to_dict(self) -> dict[str, JSON]:
        """Returns the snapshot as a dict that JSON can hold, without what is not set."""
        return serialization.to_dict(self)

    @property
    def sent(self) -> int:
        """Requests sent so far."""
        return self.answered + self.rate_limited + self.unanswered + self.in_flight

    @property
    def at_rest(self) -> bool:
        """Whether nothing is in flight or queued, and no timer is set."""
        return not self.in_flight and not any(self.queued.values()) and not self.timer_set


@frozen
class Retries:
    """What a limiter does not know of the requests that it admits.

    Attributes:
        retried: As `Snapshot.retried`.
        backing_off: As `Snapshot.backing_off`.
        last_error: As `Snapshot.last_error`.
    """

    retried: int = 0
    backing_off: int = 0
    last_error: str | None = None


NO_RETRIES = Retries()


def empty_snapshot(limits: Limits, retries: Retries = NO_RETRIES, *, paused: bool = False) -> Snapshot:
    """Returns the snapshot of a limiter that was not used in an event loop yet."""
    return Snapshot(
        max_concurrency=limits.max_in_flight,
        concurrency=FIRST_SIZE if limits.max_concurrency == AUTO else limits.max_concurrency,
        mode=limits.mode,
        declared_rate=limits.declared_rate,
        tokens_per_minute=limits.tokens_per_minute,
        paused=paused,
        retried=retries.retried,
        backing_off=retries.backing_off,
        last_error=retries.last_error,
    )


def snapshot_of(core: Admission, now: float, retries: Retries = NO_RETRIES, *, timer_set: bool) -> Snapshot:
    """Returns the state of `core` at `now`. Takes the same time for any number of queued requests."""
    limits, gate, rate = core.limits, core.gate, core.rate
    limited = limits.mode != "unlimited"
    state = rate.state
    declared = limits.declared_rate
    declared_burst = limits.burst if declared is not None else None
    wake, head = core.next_wake(now), core.queue.head()
    waiting_for: dict[str, Bottleneck] = {**dict.fromkeys(LANES, "idle"), **core.bottlenecks(now)}
    no_wait = dict.fromkeys(LANES, 0.0)
    return Snapshot(
        at=now,
        paused=gate.paused,
        queued=core.queue.lengths(),
        pending=core.pending,
        waiting_for=waiting_for,
        longest_wait={**no_wait, **{lane: now - since for lane, since in core.queue.waiting_since().items()}},
        bottleneck="idle" if head is None else waiting_for[head.lane],
        next_in=None if wake is None else max(0.0, wake - now),
        in_flight=core.in_flight,
        max_concurrency=limits.max_in_flight,
        concurrency=core.concurrency,
        mode=limits.mode,
        declared_rate=declared,
        rate=rate.rate * 60 if limited else None,
        confidence=rate.confidence if limited else None,
        burst=declared_burst if state is None else state.burst,
        limit_found=core.limit_found,
        level=_sendable_now(core, now) if limited else None,
        tokens_per_minute=limits.tokens_per_minute,
        tokens_level=core.tokens.level_at(now) if core.tokens is not None else None,
        window_wait=window_wait(rate, now) or None,
        advertised_limit=core.advertised[0],
        advertised_remaining=core.advertised[1],
        retry_after=gate.retry_at - now if gate.retry_at > now else None,
        trial_in=max(0.0, gate.trial_at - now) if gate.half_open else None,
        answered=core.answers,
        rate_limited=core.rate_limited_requests,
        unanswered=core.unanswered,
        retried=retries.retried,
        backing_off=retries.backing_off,
        last_error=retries.last_error,
        timer_set=timer_set,
    )


def _sendable_now(core: Admission, now: float) -> int:
    def wait_for(requests: int) -> float:
        return core.rate.time_until(requests, now)

    enough = 1  # usually few may be sent, so their number is doubled rather than the range halved
    while enough < _MAX_SENDABLE and wait_for(enough) <= 0:
        enough *= 2
    return enough // 2 + bisect_right(range(enough // 2 + 1, min(enough, _MAX_SENDABLE)), 0.0, key=wait_for)
