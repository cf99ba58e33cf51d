"""A second book of a client's tokens, kept from what can be seen of its requests. Pure."""

from onellm_async.events import Answered, Event, Queued, Refused
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.estimate import TokenEstimator
from onellm_async.limits.policy import Limits
from onellm_async.simulation.trace import RESOLUTION, Left, Retuned, Returned

__all__ = ["TokenAccount"]

_SAME_LEVEL = 1e-3
"""Tokens; books that differ by less agree."""
_PROBE_BYTES = 1000


class TokenAccount:
    """Holds each request against `Limits.tokens_per_minute`.

    A request may leave when its estimate, or a full bucket, is there. It takes its estimate, and when its answer comes
    it has taken what it used instead: a *debt* where that is more. What was refused, or never arrived, took nothing;
    where nobody knows, the estimate stands. The bucket holds a minute's tokens.

    Args:
        limits: What the client was told at the start, at 0 s.
    """

    def __init__(self, limits: Limits) -> None:
        self._bucket: TokenBucket | None = None
        self._estimator: TokenEstimator | None = None
        self._estimates: dict[int, tuple[float, float]] = {}
        self._taken: dict[int, float] = {}
        self._sizes: dict[int, int] = {}
        self._moment = 0.0
        self._new_debt = self._spilt = 0.0
        self.overdrafts: list[str] = []
        """Where a request left although its tokens were not there."""
        self._retune(limits, 0.0)

    def level_at(self, now: float) -> float | None:
        """Tokens that are there; None without a limit."""
        return None if self._bucket is None else self._bucket.level_at(now)

    def agrees(self, level: float | None, now: float) -> bool:
        """Whether the client's own level is the one it should be, or may be: it is then gone on with.

        Of what happens in one moment only the order that can be seen is known. In another one the client may have
        taken before it gave back, and have spilt less.
        """
        if self._bucket is None or level is None:
            return self._bucket is None and level is None
        self._see(now)
        more = level - self._bucket.level_at(now)
        if not -_SAME_LEVEL <= more <= self._spilt + _SAME_LEVEL:
            return False
        self._bucket.give_back(more, now)
        self._spilt = 0.0
        return True

    def hear(self, event: Event) -> None:
        """Books one event."""
        match event:
            case Queued(request=request) if request not in self._estimates:
                self._estimates[request] = self._estimate(event.model)
            case Left(request=request):
                self._take(request, event)
            case Answered(request=request):
                self._settle(event)
            case Refused(request=request) | Returned(request=request, arrived=False):
                self._give_back(self._taken.get(request, 0.0), event.at)
            case Retuned():
                self._retune(event.limits, event.at)

    def _estimate(self, model: str) -> tuple[float, float]:
        """Tokens of the reply and for each byte of the body; the size is seen only when the request leaves."""
        if self._estimator is None:
            return 0.0, 0.0
        reply = self._estimator.estimate(model, 0, None)
        return reply, (self._estimator.estimate(model, _PROBE_BYTES, None) - reply) / _PROBE_BYTES

    def _take(self, request: int, left: Left) -> None:
        reply, of_a_byte = self._estimates.get(request, (0.0, 0.0))
        self._sizes[request] = left.size
        self._taken[request] = 0.0
        if self._bucket is None:
            return
        estimate = self._taken[request] = reply + of_a_byte * left.size
        needed = min(estimate, self._bucket.capacity)
        self._see(left.at)
        # It may have been granted just before an answer of the same moment told of a debt.
        there = self._bucket.level_at(left.at) + self._new_debt
        if there < needed - _SAME_LEVEL - self._bucket.rate * RESOLUTION:
            self.overdrafts.append(
                f"request {request} left at {left.at:.3f} s with {there:.1f} tokens there; it needed {needed:.1f}"
            )
        self._bucket.take(estimate, left.at)

    def _settle(self, answered: Answered) -> None:
        request, read, written = answered.request, answered.input_tokens, answered.output_tokens
        if self._estimator is not None:
            self._estimator.learn(answered.model, self._sizes[request], read, written)
        if read is not None and written is not None:
            self._give_back(self._taken[request] - read - written, answered.at)

    def _give_back(self, tokens: float, now: float) -> None:
        if self._bucket is not None:
            self._see(now)
            self._new_debt += max(0.0, -tokens)
            self._spilt += max(0.0, self._bucket.level_at(now) + tokens - self._bucket.capacity)
            self._bucket.give_back(tokens, now)

    def _see(self, now: float) -> None:
        if now > self._moment + RESOLUTION:
            self._moment, self._new_debt, self._spilt = now, 0.0, 0.0

    def _retune(self, limits: Limits, now: float) -> None:
        per_minute = limits.tokens_per_minute
        if per_minute is None:
            self._bucket = self._estimator = None
            return
        if self._estimator is None:
            self._estimator = TokenEstimator()
        if self._bucket is None or not self._estimates:  # what nobody has used yet is full
            self._bucket = TokenBucket(per_minute / 60, per_minute, updated_at=now)
            self._taken = dict.fromkeys(self._taken, 0.0)  # not from this one
        else:
            before = self._bucket.level_at(now)
            self._bucket.retune(now, rate=per_minute / 60, capacity=per_minute)
            self._see(now)
            self._new_debt += before - self._bucket.level_at(now)
