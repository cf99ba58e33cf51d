"""Retry decisions and exponential backoff with jitter. The only room that knows tenacity.

The decision is a value. It is made from the kind of the failure (`failure_kinds.py`) and the attempts of its request;
tenacity only runs the loop. A 429 never gets here: the limiter requeues the request, which costs no attempt.
"""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Literal, TypeVar

from attrs import field, frozen

from onellm_async.errors import APIError, ConfigurationError
from onellm_async.failure_kinds import RULES, Retry
from onellm_async.validation import Checks

T = TypeVar("T")
_check = Checks(ConfigurationError, "RetryPolicy.")


def _ambiguous(_: object, attribute: object, value: object) -> None:
    if not isinstance(value, str) or value not in {"retry", "once", "never"}:
        raise _check.error("ambiguous", value, "it must be 'retry', 'once' or 'never'")


@frozen(kw_only=True)
class RetryPolicy:
    """How often, and after what wait, a failed attempt is retried.

    Attributes:
        max_attempts: Attempts for one request in all, 429s not counted. Default 4.
        max_server_error_retries: Of these, retries after a 500, which the service says it did not bill. Default 2.
        ambiguous: What to do after an attempt that may have been billed without an answer (timeout, reset,
            truncated reply, 502, 503, 504): ``"retry"`` within the attempts, ``"once"``, or ``"never"``. The number of
            such attempts is on the reply or the error as ``possibly_billed``.
        backoff_base: Seconds; the wait before retry n is drawn from 0 to ``backoff_base · 2ⁿ⁻¹`` (full jitter, as in
            Marc Brooker's "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). Default 0.5.
        backoff_cap: Seconds; the upper end of that range grows no further. Default 30.
        retry_budget: Retries that the client as a whole may make in a row; each answer at the first attempt gives
            ``retry_budget_refill`` back. When it is used up, errors surface at once instead of feeding a storm. A
            fan-out goes on with its retries, but draws each wait from 0 to ``backoff_cap``. Default 20.
        retry_budget_refill: Default 0.1, so that in the long run at most every tenth request is a retry.
        breaker_failures: Failures in a row, over at least three requests, that open the circuit breaker; 0 switches it
            off. A 500 or a 4xx never opens it: the service that answers so is up. Default 5.
        breaker_wait: Seconds until the first trial request; doubles with each trial that fails, up to 300. Default 15.
        max_outage: Seconds without an accepted request, 429s included, after which a fan-out or a run gives up
            waiting and ends with the last error; None waits for ever. Time in which your own declared limits or a
            pause held everything back does not count. A single chat does not wait for it. Default 3600.

    Raises:
        ConfigurationError: If a value is out of range; the message names it.
    """

    max_attempts: int = field(default=4, validator=_check.integer(1))
    max_server_error_retries: int = field(default=2, validator=_check.integer(0))
    ambiguous: Literal["retry", "once", "never"] = field(default="retry", validator=_ambiguous)
    backoff_base: float = field(default=0.5, validator=_check.number(0))
    backoff_cap: float = field(default=30.0, validator=_check.number(0))
    retry_budget: float = field(default=20.0, validator=_check.number(0))
    retry_budget_refill: float = field(default=0.1, validator=_check.number(0))
    breaker_failures: int = field(default=5, validator=_check.integer(0))
    breaker_wait: float = field(default=15.0, validator=_check.number(0, above=True))
    max_outage: float | None = field(default=3600.0, validator=_check.number(0, above=True, optional=True))

    @classmethod
    def none(cls) -> "RetryPolicy":
        """One attempt, no circuit breaker: every failure surfaces at once."""
        return cls(max_attempts=1, breaker_failures=0)


@frozen
class RetryDecision:
    """The decision on a failed attempt.

    Attributes:
        retry: Whether to retry.
        wait: Seconds before that.
        reason: Why, or why not, in words that follow "Gave up".
    """

    retry: bool
    wait: float
    reason: str


@frozen
class AttemptCounts:
    """Attempts of a request, including the one that just failed.

    Attributes:
        attempts: Attempts that count.
        server_errors: Of these, 500s.
        possibly_billed: Of these, the ones that may have been billed without an answer.
    """

    attempts: int
    server_errors: int
    possibly_billed: int


class RetryBudget:
    """The retry budget that all requests of a client share."""

    __slots__ = ("_capacity", "_refill", "remaining")

    def __init__(self, policy: RetryPolicy) -> None:
        self._capacity = policy.retry_budget
        self.remaining: float = policy.retry_budget
        self._refill = policy.retry_budget_refill

    def earn(self) -> None:
        """Counts an answer at the first attempt."""
        if self.remaining < self._capacity:
            self.remaining = min(self._capacity, self.remaining + self._refill)

    def spend(self) -> None:
        """Counts a retry."""
        self.remaining = max(0.0, self.remaining - 1)


_KEY_RETRIES_SPAN = 10.0
"""Seconds that the retries after a 401 take at least, if the key was accepted before. Only time
distinguishes a revoked key from one that was just rotated, or from a service that lost its table of users."""


def decide(
    error: APIError,
    counts: AttemptCounts,
    policy: RetryPolicy,
    *,
    budget_remaining: float,
    time_left: float | None,
    wait_for_ready: bool,
    random: Random,
) -> RetryDecision:
    """Decides whether a failed attempt is retried, and after how many seconds.

    Args:
        error: How it failed.
        counts: What the request has behind it, this failure included.
        policy: The user's wishes.
        budget_remaining: What is left of the client's retry budget.
        time_left: Seconds until the deadline; None without one.
        wait_for_ready: Whether the request belongs to a fan-out or a run. It then waits for a service that it cannot
            reach, and a used-up retry budget makes its waits longer instead of failing it.
        random: Where the jitter comes from.
    """
    retry = RULES[error.kind].retry
    reason = _stop_reason(retry, counts, policy, wait_for_ready=wait_for_ready)
    exhausted = budget_remaining < 1 and RULES[error.kind].budgeted
    if reason is None and exhausted and not wait_for_ready:
        reason = "because the retry budget of this client is used up"
    if reason is not None:
        return RetryDecision(retry=False, wait=0.0, reason=reason)
    ceiling = policy.backoff_base * 2.0 ** min(max(counts.attempts - 1, 0), 60)
    ceiling = policy.backoff_cap if exhausted else min(policy.backoff_cap, ceiling)
    wait = max(random.uniform(0, ceiling), getattr(error, "retry_after", None) or 0.0)
    if retry == "key":
        wait = max(wait, random.uniform(1.0, 1.2) * _KEY_RETRIES_SPAN / max(1, policy.max_attempts - 1))
    if time_left is not None and wait >= time_left:
        return RetryDecision(retry=False, wait=0.0, reason="because the deadline would pass before the next attempt")
    return RetryDecision(retry=True, wait=wait, reason=error.billing.value)


def _stop_reason(retry: Retry, counts: AttemptCounts, policy: RetryPolicy, *, wait_for_ready: bool) -> str | None:
    if retry == "no":
        return "because trying again cannot help"
    if counts.attempts >= policy.max_attempts and not (retry == "wait for ready" and wait_for_ready):
        return "after 1 attempt" if policy.max_attempts == 1 else f"after {policy.max_attempts} attempts"
    if retry == "server errors" and counts.server_errors > policy.max_server_error_retries:
        return f"after {policy.max_server_error_retries + 1} server errors"
    if retry == "ambiguous" and policy.ambiguous == "never":
        return "because it may have been billed, and the policy does not retry such requests"
    if retry == "ambiguous" and policy.ambiguous == "once" and counts.possibly_billed > 1:
        return "because it may have been billed twice, and the policy retries such requests once"
    return None


def import_tenacity() -> None:
    """Imports tenacity before a request can fail: when all file descriptors are in use, nothing can be imported."""
    import tenacity  # noqa: F401, PLC0415  # 27 ms, which importing the client does not need


async def retrying(
    attempt: Callable[[], Awaitable[T]],
    first_failure: APIError,
    decide_on: Callable[[APIError], RetryDecision],
    sleep: Callable[[float], Awaitable[None]],
) -> T:
    """Retries `attempt` after `first_failure` for as long as `decide_on` says so.

    Safe to cancel: nothing is held while it waits.

    Args:
        attempt: One attempt; entered only after the first one has failed, so that success costs nothing here.
        first_failure: How the first attempt ended.
        decide_on: Called exactly once for each failure.
        sleep: Waits before a retry. What it raises ends the retries.

    Raises:
        APIError: The last failure, when the decision on it is not to retry.
    """
    decision = decide_on(first_failure)
    if not decision.retry:
        raise first_failure
    from tenacity import AsyncRetrying, RetryCallState, retry_if_exception  # noqa: PLC0415  # see import_tenacity

    async def again() -> T:  # tenacity does not await what a plain function returns
        return await attempt()

    def is_worth_a_retry(failure: BaseException) -> bool:
        nonlocal decision
        if not isinstance(failure, APIError):
            return False
        decision = decide_on(failure)
        return decision.retry

    def wait(_: RetryCallState) -> float:
        return decision.wait

    loop = AsyncRetrying(sleep=sleep, retry=retry_if_exception(is_worth_a_retry), wait=wait, reraise=True)
    await sleep(decision.wait)
    return await loop(again)
