"""What a limiter is doing at one moment, as a value."""

from bisect import bisect_right
from collections.abc import Mapping

from attrs import field, frozen

from onellm_async.limits.admission import Admission
from onellm_async.limits.bottleneck import Bottleneck
from onellm_async.limits.policy import LANES, Limits, Mode

__all__ = ["Snapshot", "snapshot_of", "unused"]

_MOST_AT_ONCE = 1_000_000


@frozen(kw_only=True)
class Snapshot:
    """One client at one moment. All of it can be written as JSON: ``json.dumps(attrs.asdict(snapshot))``.

    Attributes:
        at: Seconds on the event loop's clock; 0 before the client was used in one.
        paused: Whether the client was paused.
        queued: Chats waiting for admission, by lane.
        waiting_for: What the first of each lane waits for; ``"idle"`` where nobody waits.
        longest_wait: Seconds that somebody has been waiting in each lane. The wait of a request that comes back, after
            a refusal by rate limit or for a retry, starts anew.
        bottleneck: What the next request of all waits for.
        next_in: Seconds until it leaves, as far as that is known; None when it depends on others, or nobody waits.
        in_flight: Requests under way.
        max_concurrency: Most of them at once, as declared.
        concurrency: Most of them at once for now: fewer than declared while the service is overloaded.
        mode: What refusals teach, as `Limits.mode`.
        declared_rate: Requests per minute as declared; None where they are not.
        rate: Requests per minute that the limiter keeps up now, declared or learned; None without a limit.
        confidence: How sure that is, from 0 to 1; None where nothing is learned.
        burst: Requests that the service lets through at once after a pause; None where nobody knows.
        level: Requests that could leave at once as far as the rate goes; None without a limit.
        tokens_per_minute: As declared; None without a limit.
        tokens_level: Tokens that could be used at once, negative while in debt; None without a limit.
        retry_after: Seconds for which the service asked everybody to wait; None when it did not.
        trial_in: Seconds until the next trial request while the circuit is open, 0 while one is in flight; None when it
            is closed.
        answered: Requests that the service replied to so far, 429s not counted.
        rate_limited: Requests that were answered 429 so far; they cost nothing.
        unanswered: Requests without a reply so far: they timed out, were cancelled, or never arrived.
        retried: Of all these, retries after a failure; a 429 is none.
        backing_off: Chats that wait to be retried after a failure.
        last_error: The last failure or 429 since the last answer, with the text of the service; None after an answer.
        timer_set: Whether the limiter will look again by itself.
    """

    at: float = 0.0
    paused: bool = False
    queued: Mapping[str, int] = field(factory=lambda: dict.fromkeys(LANES, 0), hash=False)
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
    level: int | None = None
    tokens_per_minute: float | None = None
    tokens_level: float | None = None
    retry_after: float | None = None
    trial_in: float | None = None
    answered: int = 0
    rate_limited: int = 0
    unanswered: int = 0
    retried: int = 0
    backing_off: int = 0
    last_error: str | None = None
    timer_set: bool = False

    @property
    def sent(self) -> int:
        """Requests that have left so far."""
        return self.answered + self.rate_limited + self.unanswered + self.in_flight

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way, nobody waits, and no timer is set."""
        return not self.in_flight and not any(self.queued.values()) and not self.timer_set


def unused(limits: Limits, *, paused: bool = False) -> Snapshot:
    """Of a limiter that has never been in an event loop."""
    return Snapshot(
        max_concurrency=limits.max_concurrency,
        concurrency=limits.max_concurrency,
        mode=limits.mode,
        declared_rate=limits.declared_rate,
        tokens_per_minute=limits.tokens_per_minute,
        paused=paused,
    )


def snapshot_of(core: Admission, now: float, *, timer_set: bool) -> Snapshot:
    """What `core` is doing at `now`. Changes nothing, and takes the same time however many wait."""
    limits, gate, rate = core.limits, core.gate, core.rate
    limited = limits.mode != "unlimited"
    learned = rate.state
    declared_burst = limits.burst if limits.declared_rate is not None else None
    wake = core.next_wake(now)
    nobody = dict.fromkeys(LANES, 0.0)
    return Snapshot(
        at=now,
        paused=gate.paused,
        queued=core.queue.lengths(),
        waiting_for={**dict.fromkeys(LANES, "idle"), **core.bottlenecks(now)},
        longest_wait={**nobody, **{lane: now - since for lane, since in core.queue.waiting_since().items()}},
        bottleneck=core.bottleneck(now),
        next_in=None if wake is None else max(0.0, wake - now),
        in_flight=core.in_flight,
        max_concurrency=limits.max_concurrency,
        concurrency=core.concurrency,
        mode=limits.mode,
        declared_rate=limits.declared_rate,
        rate=rate.rate * 60 if limited else None,
        confidence=rate.confidence if limited else None,
        burst=declared_burst if learned is None else learned.burst,
        level=_leaving_at_once(core, now) if limited else None,
        tokens_per_minute=limits.tokens_per_minute,
        tokens_level=core.tokens.level_at(now) if core.tokens is not None else None,
        retry_after=gate.retry_at - now if gate.retry_at > now else None,
        trial_in=max(0.0, gate.probe_at - now) if gate.probing else None,
        answered=core.answers,
        rate_limited=core.rate_limited,
        unanswered=core.unanswered,
        timer_set=timer_set,
    )


def _leaving_at_once(core: Admission, now: float) -> int:
    return bisect_right(range(1, _MOST_AT_ONCE), 0.0, key=lambda requests: core.rate.time_until(requests, now))
