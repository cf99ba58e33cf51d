"""A second account of a client's tokens, kept from what can be observed of its requests. Pure."""

from onellm_async.events import Answered, Event, Failed, Queued, RateLimited, Retrying
from onellm_async.failure_kinds import RULES
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.policy import Limits
from onellm_async.limits.token_estimator import TokenEstimator
from tests.fuzzing.trace import RESOLUTION, Finding, RequestSent, ResponseReceived, Retuned

_TOLERANCE = 1e-3
"""Tokens. Levels that differ by less agree."""
_SAMPLE_BYTES = 1000
"""Size of a body from which the estimator's tokens per byte are derived."""


class TokenAccount:
    """Checks each request against `Limits.tokens_per_minute`.

    A request may be sent when its estimate, or a full bucket, is available. It takes its estimate. Its answer settles
    what it used instead, which may leave a debt. A request that never arrived, or whose failure used no tokens (a 429,
    an overload), takes nothing. If the usage is unknown, the estimate stands. The bucket holds the tokens of one
    minute.

    Args:
        limits: The client's limits at the start, at 0 s.
    """

    def __init__(self, limits: Limits) -> None:
        self._bucket: TokenBucket | None = None
        self._estimator: TokenEstimator | None = None
        self._estimates: dict[int, tuple[float, float]] = {}
        self._taken: dict[int, float] = {}
        self._sizes: dict[int, int] = {}
        self._moment = 0.0
        self._new_debt = self._overflowed = 0.0
        self.overdrafts: list[Finding] = []
        """Where a request was sent although its tokens were not available."""
        self._retune(limits, 0.0)

    def level_at(self, now: float) -> float | None:
        """Available tokens; None without a limit."""
        return None if self._bucket is None else self._bucket.level_at(now)

    def reconcile(self, level: float | None, now: float) -> bool:
        """Compares the client's level with the observed one, and continues with the client's if that is possible.

        Of events of one moment only their observable order is known. In another order the client may have taken
        tokens before it gave others back, and so have lost fewer to a full bucket.
        """
        if self._bucket is None or level is None:
            return self._bucket is None and level is None
        self._advance(now)
        more = level - self._bucket.level_at(now)
        if not -_TOLERANCE <= more <= self._overflowed + _TOLERANCE:
            return False
        self._bucket.give_back(more, now)
        self._overflowed = 0.0
        return True

    def record(self, event: Event) -> None:
        """Books one event."""
        match event:
            case Queued(request=request) if request not in self._estimates:
                self._estimates[request] = self._estimate(event.model)
            case RequestSent(request=request):
                self._take(request, event)
            case Answered(request=request):
                self._settle(event)
            case RateLimited(request=request) | ResponseReceived(request=request, arrived=False):
                self._give_all_back(request, event.at)
            case Retrying(request=request, error=error) | Failed(request=request, error=error):
                if RULES[error.kind].gives_back == "tokens":
                    self._give_all_back(request, event.at)
            case Retuned():
                self._retune(event.limits, event.at)

    def _estimate(self, model: str) -> tuple[float, float]:
        """Tokens of the reply, and for each byte of the body, whose size is known only when the request is sent."""
        if self._estimator is None:
            return 0.0, 0.0
        reply = self._estimator.estimate(model, 0, None)
        return reply, (self._estimator.estimate(model, _SAMPLE_BYTES, None) - reply) / _SAMPLE_BYTES

    def _take(self, request: int, sent: RequestSent) -> None:
        reply, per_byte = self._estimates.get(request, (0.0, 0.0))
        self._sizes[request] = sent.size
        self._taken[request] = 0.0
        if self._bucket is None:
            return
        estimate = self._taken[request] = reply + per_byte * sent.size
        needed = min(estimate, self._bucket.capacity)
        self._advance(sent.at)
        # The permit may have been granted just before an answer of the same moment settled with a debt.
        available = self._bucket.level_at(sent.at) + self._new_debt
        if available < needed - _TOLERANCE - self._bucket.rate * RESOLUTION:
            text = f"sent with {available:.1f} tokens available, {needed:.1f} needed"
            self.overdrafts.append(Finding(sent.at, text, request))
        self._bucket.take(estimate, sent.at)

    def _settle(self, answered: Answered) -> None:
        request, read, written = answered.request, answered.input_tokens, answered.output_tokens
        if self._estimator is not None:
            self._estimator.learn(answered.model, self._sizes[request], read, written)
        if read is not None and written is not None:
            self._give_back(self._taken[request] - read - written, answered.at)

    def _give_all_back(self, request: int, now: float) -> None:
        self._give_back(self._taken.get(request, 0.0), now)
        self._taken[request] = 0.0

    def _give_back(self, tokens: float, now: float) -> None:
        if self._bucket is not None:
            self._advance(now)
            self._new_debt += max(0.0, -tokens)
            self._overflowed += max(0.0, self._bucket.level_at(now) + tokens - self._bucket.capacity)
            self._bucket.give_back(tokens, now)

    def _advance(self, now: float) -> None:
        if now > self._moment + RESOLUTION:
            self._moment, self._new_debt, self._overflowed = now, 0.0, 0.0

    def _retune(self, limits: Limits, now: float) -> None:
        per_minute = limits.tokens_per_minute
        if per_minute is None:
            self._bucket = self._estimator = None
            return
        if self._estimator is None:
            self._estimator = TokenEstimator()
        if self._bucket is None or not self._estimates:  # a bucket that was never used is full
            self._bucket = TokenBucket(per_minute / 60, per_minute, updated_at=now)
            self._taken = dict.fromkeys(self._taken, 0.0)  # not taken from this bucket
        else:
            before = self._bucket.level_at(now)
            self._bucket.retune(now, rate=per_minute / 60, capacity=per_minute)
            self._advance(now)
            self._new_debt += before - self._bucket.level_at(now)
