"""When a failed attempt is repeated, and after how long. The only room that knows tenacity.

The verdict is a value, found from the error and the history of its request; tenacity only runs the loop. A refusal by
rate limit never gets here: it is flow control, answered by the limiter, and costs no attempt.
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Literal, TypeVar

from attrs import field, frozen

from onellm_async.errors import APIError, Billing, ConfigurationError
from onellm_async.validation import Checks

__all__ = ["CircuitBreaker", "History", "RetryBudget", "RetryPolicy", "Verdict", "judge", "run_attempts"]

T = TypeVar("T")
_check = Checks(ConfigurationError, "RetryPolicy.")


def _ambiguous(_: object, attribute: object, value: object) -> None:
    if not isinstance(value, str) or value not in {"retry", "once", "never"}:
        raise _check.refusal("ambiguous", value, "it must be 'retry', 'once' or 'never'")


@frozen(kw_only=True)
class RetryPolicy:
    """How often, and after what wait, a failed attempt is repeated.

    Attributes:
        max_attempts: Attempts for one request in all, refusals by rate limit not counted. Default 4.
        max_server_error_retries: Of these, repeats after a 500, which the service says it did not bill. Default 2.
        ambiguous: What to do after an attempt that may have been billed without an answer (timeout, reset,
            truncated reply, 502, 503, 504): ``"retry"`` within the attempts, ``"once"``, or ``"never"``. The number of
            such attempts is on the reply or the error as ``possibly_billed``.
        backoff_base: Seconds; the wait before repeat n is drawn from 0 to ``backoff_base · 2ⁿ⁻¹`` (full jitter, as in
            Marc Brooker's "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). Default 0.5.
        backoff_cap: Seconds; the upper end of that range grows no further. Default 30.
        budget: Repeats that the client as a whole may make in a row; each answer at the first attempt gives
            ``budget_refill`` back. When it is used up, errors surface at once instead of feeding a storm; a fan-out
            goes on repeating, but drawing each wait from the whole range up to ``backoff_cap``. Default 20.
        budget_refill: Default 0.1, so that in the long run at most every tenth request is a repeat.
        breaker_failures: Failures in a row, over at least three requests, that open the circuit breaker; 0 switches it
            off. Default 5.
        breaker_wait: Seconds until the first probe; doubles with each probe that fails, up to 300. Default 15.

    Raises:
        ConfigurationError: If a value is out of range; the message names it.
    """

    max_attempts: int = field(default=4, validator=_check.integer(1))
    max_server_error_retries: int = field(default=2, validator=_check.integer(0))
    ambiguous: Literal["retry", "once", "never"] = field(default="retry", validator=_ambiguous)
    backoff_base: float = field(default=0.5, validator=_check.number(0))
    backoff_cap: float = field(default=30.0, validator=_check.number(0))
    budget: float = field(default=20.0, validator=_check.number(0))
    budget_refill: float = field(default=0.1, validator=_check.number(0))
    breaker_failures: int = field(default=5, validator=_check.integer(0))
    breaker_wait: float = field(default=15.0, validator=_check.number(0, above=True))

    @classmethod
    def none(cls) -> "RetryPolicy":
        """One attempt, no circuit breaker: every failure surfaces at once."""
        return cls(max_attempts=1, breaker_failures=0)


@frozen
class Verdict:
    """What to do about a failure.

    Attributes:
        retry: Whether to try again.
        wait: Seconds before that.
        reason: Why, or why not, in words.
    """

    retry: bool
    wait: float
    reason: str


@frozen
class History:
    """What a request has behind it when an attempt of it fails, that attempt included."""

    attempts: int
    server_errors: int
    possibly_billed: int


class RetryBudget:
    """Repeats that are left for all requests of a client together."""

    __slots__ = ("_capacity", "_refill", "left")

    def __init__(self, policy: RetryPolicy) -> None:
        self._capacity = policy.budget
        self.left: float = policy.budget
        self._refill = policy.budget_refill

    def earn(self) -> None:
        """Takes note of an answer at the first attempt."""
        if self.left < self._capacity:
            self.left = min(self._capacity, self.left + self._refill)

    def spend(self) -> None:
        """Takes note of a repeat."""
        self.left = max(0.0, self.left - 1)


def judge(
    error: APIError,
    history: History,
    policy: RetryPolicy,
    *,
    budget_left: float,
    time_left: float | None,
    patient: bool,
    random: Random,
) -> Verdict:
    """The verdict on a failed attempt.

    Args:
        error: How it failed.
        history: What the request has behind it, this failure included.
        policy: The user's wishes.
        budget_left: What is left of the client's retry budget.
        time_left: Seconds until the deadline; None without one.
        patient: Nobody waits for this single answer: with the budget used up it waits longer instead of failing.
        random: Where the jitter comes from.
    """
    hindrance = _hindrance(error, history, policy)
    exhausted = budget_left < 1
    if hindrance is None and exhausted and not patient:
        hindrance = "the retry budget of this client is used up"
    if hindrance is not None:
        return Verdict(retry=False, wait=0.0, reason=hindrance)
    ceiling = policy.backoff_base * 2.0 ** min(history.attempts - 1, 60)
    ceiling = policy.backoff_cap if exhausted else min(policy.backoff_cap, ceiling)
    wait = max(random.uniform(0, ceiling), getattr(error, "retry_after", None) or 0.0)
    if time_left is not None and wait >= time_left:
        return Verdict(retry=False, wait=0.0, reason="the deadline would pass while waiting to try again")
    return Verdict(retry=True, wait=wait, reason=error.billing.value)


def _hindrance(error: APIError, history: History, policy: RetryPolicy) -> str | None:
    if not error.retryable:
        return "trying again cannot help"
    if history.attempts >= policy.max_attempts:
        return f"all {policy.max_attempts} attempts are used up"
    if error.billing is Billing.NOT_BILLED and history.server_errors > policy.max_server_error_retries:
        return f"{policy.max_server_error_retries} repeats after server errors are used up"
    if error.billing is Billing.POSSIBLY_BILLED and policy.ambiguous == "never":
        return "it may have been billed, and the policy does not repeat such requests"
    if error.billing is Billing.POSSIBLY_BILLED and policy.ambiguous == "once" and history.possibly_billed > 1:
        return "it may have been billed twice, and the policy repeats such requests once"
    return None


class CircuitBreaker:
    """Notices that the service as a whole is down, so that nobody hammers it.

    Pure: it keeps count and tells when one request may probe the service; the limiter's gate does the holding back.
    """

    __slots__ = ("_failed_requests", "_failures", "_openings", "_policy", "reopens_at")

    _DISTINCT_REQUESTS = 3
    _LONGEST_WAIT = 300.0

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._failed_requests: set[int] = set()
        self._openings = 0
        self.reopens_at: float | None = None

    def failed(self, request: int, now: float) -> float | None:
        """Takes note of a failure; returns when a probe may go if the circuit is (now) open, else None."""
        if self._policy.breaker_failures == 0:
            return None
        self._failures += 1
        if len(self._failed_requests) < self._DISTINCT_REQUESTS:
            self._failed_requests.add(request)
        if self.reopens_at is not None and now < self.reopens_at:
            return self.reopens_at  # stragglers sent before it opened say nothing new
        enough = min(self._DISTINCT_REQUESTS, self._policy.breaker_failures)
        if self._failures < self._policy.breaker_failures or len(self._failed_requests) < enough:
            return None
        wait = min(self._LONGEST_WAIT, self._policy.breaker_wait * 2.0 ** min(self._openings, 60))
        self._openings += 1
        self.reopens_at = now + wait
        return self.reopens_at

    def answered(self) -> bool:
        """Takes note that the service answered sensibly; returns whether that closes an open circuit."""
        if not self._failures:
            return False
        was_open = self.reopens_at is not None
        self._failures = self._openings = 0
        self._failed_requests.clear()
        self.reopens_at = None
        return was_open


async def run_attempts(
    attempt: Callable[[], Awaitable[T]], first_failure: APIError, verdict_on: Callable[[APIError], Verdict]
) -> T:
    """Repeats `attempt` after `first_failure` for as long as `verdict_on` says so.

    Safe to cancel: nothing is held while it waits.

    Args:
        attempt: One attempt; entered only after the first one has failed, so that success costs nothing here.
        first_failure: How the first attempt ended.
        verdict_on: Called exactly once for each failure.

    Raises:
        APIError: The last failure, when the verdict on it is not to retry.
    """
    verdict = verdict_on(first_failure)
    if not verdict.retry:
        raise first_failure
    try:
        from tenacity import AsyncRetrying, RetryCallState, retry_if_exception  # noqa: PLC0415  # 27 ms, seldom needed
    except OSError:  # no file can be opened: all descriptors are in use
        raise first_failure from None

    async def again() -> T:  # tenacity does not await what a plain function returns
        return await attempt()

    def worth_repeating(failure: BaseException) -> bool:
        nonlocal verdict
        if not isinstance(failure, APIError):
            return False
        verdict = verdict_on(failure)
        return verdict.retry

    def wait(_: RetryCallState) -> float:
        return verdict.wait

    retrying = AsyncRetrying(sleep=asyncio.sleep, retry=retry_if_exception(worth_repeating), wait=wait, reraise=True)
    await asyncio.sleep(verdict.wait)
    return await retrying(again)
