import asyncio
from collections.abc import Callable
from random import Random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.circuit_breaker import CircuitBreaker
from onellm_async.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    ConfigurationError,
    InternalServerError,
    ResponseDecodeError,
)
from onellm_async.failure_kinds import FailureKind
from onellm_async.retry import AttemptCounts, RetryBudget, RetryDecision, RetryPolicy, decide, retrying
from onellm_async.wire.error_replies import error_for

Refused = "because trying again cannot help"
DEADLINE = "because the deadline would pass before the next attempt"


def status(code: int, text: str = "", retry_after: str | None = None) -> APIError:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return error_for(code, headers, text, b"", model="GPT-5", now=0.0)


def unconnected(*, retryable: bool = True) -> APIError:
    return APIConnectionError("refused", kind=FailureKind.CANNOT_CONNECT if retryable else FailureKind.NOT_TRUSTED)


def cut_off() -> APIError:
    return APITimeoutError("late")


def verdict(
    error: APIError,
    policy: RetryPolicy | None = None,
    *,
    attempts: int = 1,
    server_errors: int = 0,
    possibly_billed: int = 0,
    budget_left: float = 20.0,
    time_left: float | None = None,
    patient: bool = False,
    seed: int = 0,
) -> RetryDecision:
    return decide(
        error,
        AttemptCounts(attempts, server_errors, possibly_billed),
        policy or RetryPolicy(),
        budget_remaining=budget_left,
        time_left=time_left,
        wait_for_ready=patient,
        random=Random(seed),
    )


TABLE: list[tuple[str, Callable[[], APIError], str]] = [
    ("name not found, refused, TLS handshake", unconnected, "repeat"),
    ("timeout while connecting", lambda: APITimeoutError("no connection", kind=FailureKind.CANNOT_CONNECT), "repeat"),
    ("certificate failure, too many open files", lambda: unconnected(retryable=False), "fatal"),
    ("timeout after sending", cut_off, "ambiguous"),
    ("reset after sending", lambda: APIConnectionError("reset"), "ambiguous"),
    ("undecodable body", lambda: ResponseDecodeError("?", status_code=200), "ambiguous"),
    ("500", lambda: status(500), "unbilled"),
    *((f"{code}", lambda code=code: status(code), "ambiguous") for code in (408, 425, 502, 503, 504, 520, 599)),
    *((f"{code}", lambda code=code: status(code), "fatal") for code in (301, 302, 303, 307, 308)),
    *((f"{code}", lambda code=code: status(code), "fatal") for code in (400, 401, 402, 403, 404, 405, 413, 415, 422)),
    *((f"{code}", lambda code=code: status(code), "fatal") for code in (501, 505, 511)),
    ("insufficient balance in a 500", lambda: status(500, "Insufficient balance, please"), "fatal"),
    ("insufficient balance in a 503", lambda: status(503, "insufficient balance"), "fatal"),
]


@pytest.mark.parametrize(("case", "error", "class_of_failure"), TABLE, ids=[row[0] for row in TABLE])
class TestVerdictTable:
    def test_the_default_policy_repeats_whatever_can_pass(
        self, case: str, error: Callable[[], APIError], class_of_failure: str
    ) -> None:
        found = verdict(error(), server_errors=1, possibly_billed=1)
        assert found.retry is (class_of_failure != "fatal")
        if not found.retry:
            assert found == RetryDecision(retry=False, wait=0.0, reason=Refused)

    def test_ambiguous_never_repeats_only_what_was_certainly_not_billed(
        self, case: str, error: Callable[[], APIError], class_of_failure: str
    ) -> None:
        found = verdict(error(), RetryPolicy(ambiguous="never"), server_errors=1, possibly_billed=1)
        assert found.retry is (class_of_failure in {"repeat", "unbilled"})
        if class_of_failure == "ambiguous":
            assert "may have been billed" in found.reason

    def test_ambiguous_once_repeats_until_the_second_such_failure(
        self, case: str, error: Callable[[], APIError], class_of_failure: str
    ) -> None:
        policy = RetryPolicy(ambiguous="once")
        assert verdict(error(), policy, possibly_billed=1).retry is (class_of_failure != "fatal")
        assert verdict(error(), policy, attempts=2, possibly_billed=2).retry is (
            class_of_failure in {"repeat", "unbilled"}
        )

    def test_no_class_outlives_the_attempts(
        self, case: str, error: Callable[[], APIError], class_of_failure: str
    ) -> None:
        found = verdict(error(), attempts=4)
        assert not found.retry
        assert found.reason == (Refused if class_of_failure == "fatal" else "after 4 attempts")


@pytest.mark.parametrize(("server_errors", "retried"), [(1, True), (2, True), (3, False)])
def test_a_500_is_repeated_twice_at_most(server_errors: int, retried: bool) -> None:
    found = verdict(status(500), RetryPolicy(max_attempts=9), attempts=server_errors, server_errors=server_errors)
    assert found.retry is retried
    assert retried or found.reason == "after 3 server errors"


def test_an_unconnected_attempt_is_not_held_back_by_earlier_server_errors() -> None:
    assert verdict(unconnected(), RetryPolicy(max_attempts=9), attempts=5, server_errors=5).retry


def test_one_attempt_means_no_repeat() -> None:
    for error in (unconnected(), status(500), cut_off()):
        assert not verdict(error, RetryPolicy.none()).retry


@given(st.integers(1, 2000), st.floats(0, 10), st.floats(0, 100), st.integers(), st.none() | st.integers(0, 400))
def test_the_wait_has_full_jitter_below_an_exponential_ceiling_and_retry_after_as_floor(
    attempts: int, base: float, cap: float, seed: int, retry_after: int | None
) -> None:
    policy = RetryPolicy(max_attempts=3000, backoff_base=base, backoff_cap=cap)
    error = status(503, retry_after=None if retry_after is None else str(retry_after))
    found = verdict(error, policy, attempts=attempts, seed=seed)
    floor = min(300.0, retry_after or 0)
    ceiling = min(cap, base * 2.0 ** min(attempts - 1, 60))
    assert found.retry
    assert floor <= found.wait <= max(floor, ceiling) + 1e-9


def test_the_jitter_covers_its_whole_range() -> None:
    waits = sorted(verdict(cut_off(), attempts=3, seed=seed).wait for seed in range(400))
    assert waits[0] < 0.05
    assert waits[-1] > 1.95
    assert 0.9 < sum(waits) / len(waits) < 1.1


@given(st.floats(0, 400), st.integers(), st.integers(0, 300), st.booleans(), st.floats(0, 2))
def test_no_wait_reaches_the_deadline(
    time_left: float, seed: int, retry_after: int, patient: bool, budget_left: float
) -> None:
    error = status(503, retry_after=str(retry_after))
    found = verdict(error, time_left=time_left, seed=seed, patient=patient, budget_left=budget_left)
    assert not found.retry or found.wait < time_left


def test_a_deadline_that_would_pass_while_waiting_is_the_reason_to_stop() -> None:
    found = verdict(status(503, retry_after="10"), time_left=10.0)
    assert found == RetryDecision(
        retry=False, wait=0.0, reason="because the deadline would pass before the next attempt"
    )
    assert verdict(status(503, retry_after="10"), time_left=10.001).retry


def test_a_used_up_budget_ends_a_single_chat_and_slows_a_fan_out() -> None:
    found = verdict(cut_off(), budget_left=0.9)
    assert found == RetryDecision(retry=False, wait=0.0, reason="because the retry budget of this client is used up")
    waits = [verdict(cut_off(), budget_left=0.9, patient=True, seed=seed).wait for seed in range(100)]
    assert max(waits) > 25
    assert max(waits) <= 30
    assert max(verdict(cut_off(), budget_left=1.0, patient=True, seed=seed).wait for seed in range(100)) <= 0.5


def test_a_fatal_failure_says_so_even_when_the_budget_is_used_up() -> None:
    assert verdict(status(401), budget_left=0.0).reason == Refused


def test_the_budget_pays_one_for_a_repeat_and_earns_a_tenth_for_an_answer() -> None:
    budget = RetryBudget(RetryPolicy())
    budget.earn()
    assert budget.remaining == 20
    for _ in range(25):
        budget.spend()
    assert budget.remaining == 0
    for _ in range(9):
        budget.earn()
    assert budget.remaining < 1
    for _ in range(1000):
        budget.earn()
    assert budget.remaining == 20


def test_a_budget_of_none_allows_no_repeat() -> None:
    budget = RetryBudget(RetryPolicy(retry_budget=0))
    budget.earn()
    assert budget.remaining == 0


class TestCircuitBreaker:
    def test_it_opens_after_five_failures_over_three_requests(self) -> None:
        breaker = CircuitBreaker(5, 15.0)
        assert [breaker.record_failure(request, 0.0) for request in (1, 2, 3, 1)] == [None] * 4
        assert breaker.record_failure(2, 100.0) == 115.0
        assert breaker.trial_at == 115.0

    def test_one_unlucky_request_or_two_do_not_open_it(self) -> None:
        breaker = CircuitBreaker(5, 15.0)
        assert {breaker.record_failure(number % 2, 0.0) for number in range(50)} == {None}
        assert breaker.record_failure(7, 1.0) == 16.0

    def test_an_answer_starts_the_count_anew(self) -> None:
        breaker = CircuitBreaker(5, 15.0)
        for request in range(4):
            breaker.record_failure(request, 0.0)
        assert breaker.record_answer() is False
        assert [breaker.record_failure(request, 0.0) for request in range(4)] == [None] * 4
        assert breaker.record_failure(9, 0.0) == 15.0

    def test_each_probe_that_fails_doubles_the_wait_up_to_five_minutes(self) -> None:
        breaker = CircuitBreaker(5, 15.0)
        now, waits = 0.0, []
        for request in range(5):
            breaker.record_failure(request, now)
        for _ in range(70):
            assert breaker.trial_at is not None
            waits.append(breaker.trial_at - now)
            now = breaker.trial_at
            breaker.record_failure(1, now)
        assert waits[:6] == [15, 30, 60, 120, 240, 300]
        assert set(waits[5:]) == {300}

    def test_stragglers_change_nothing(self) -> None:
        breaker = CircuitBreaker(5, 15.0)
        for request in range(5):
            breaker.record_failure(request, 0.0)
        assert [breaker.record_failure(request, 14.9) for request in range(20)] == [15.0] * 20
        assert breaker.record_failure(0, 15.0) == 45.0

    def test_an_answer_closes_it_and_forgets_the_doubling(self) -> None:
        breaker = CircuitBreaker(5, 15.0)
        for request in range(5):
            breaker.record_failure(request, 0.0)
        breaker.record_failure(0, 15.0)
        assert breaker.record_answer() is True
        assert breaker.trial_at is None
        assert breaker.record_answer() is False
        for request in range(5):
            breaker.record_failure(request, 100.0)
        assert breaker.trial_at == 115.0

    def test_zero_failures_switch_it_off(self) -> None:
        breaker = CircuitBreaker(0, 15.0)
        assert {breaker.record_failure(request, 0.0) for request in range(100)} == {None}
        assert breaker.trial_at is None

    @pytest.mark.parametrize("threshold", [1, 2])
    def test_a_threshold_below_three_needs_no_more_requests_than_failures(self, threshold: int) -> None:
        breaker = CircuitBreaker(threshold, 15.0)
        results = [breaker.record_failure(request, 0.0) for request in range(threshold)]
        assert results == [None] * (threshold - 1) + [15.0]

    def test_it_remembers_few_requests_however_many_fail(self) -> None:
        breaker = CircuitBreaker(10**6, 15.0)
        for request in range(10_000):
            breaker.record_failure(request, 0.0)
        assert len(breaker._failed_requests) <= 3


@pytest.mark.virtual_time
class TestRunAttempts:
    async def test_the_waits_are_slept_exactly(self) -> None:
        left = [cut_off(), cut_off()]
        sent_at: list[float] = []
        waits = iter([0.25, 7.5, 30.0])

        async def attempt() -> str:
            sent_at.append(asyncio.get_running_loop().time())
            if left:
                raise left.pop()
            return "answer"

        answer = await retrying(
            attempt, cut_off(), lambda _: RetryDecision(retry=True, wait=next(waits), reason=""), asyncio.sleep
        )
        assert answer == "answer"
        assert sent_at == [0.25, 7.75, 37.75]

    async def test_the_last_failure_surfaces_itself_and_each_is_judged_once(self) -> None:
        failures = [status(500), cut_off(), unconnected()]
        judged: list[APIError] = []

        async def attempt() -> str:
            raise failures[len(judged)]

        def judge_twice(failure: APIError) -> RetryDecision:
            judged.append(failure)
            return RetryDecision(retry=len(judged) < 3, wait=1.0, reason="")

        with pytest.raises(APIConnectionError) as caught:
            await retrying(attempt, failures[0], judge_twice, asyncio.sleep)
        assert caught.value is failures[2]
        assert judged == failures
        assert asyncio.get_running_loop().time() == 2.0

    async def test_a_first_failure_not_worth_a_repeat_surfaces_at_once(self) -> None:
        async def attempt() -> str:
            pytest.fail("a further attempt was made")

        first = status(401)
        with pytest.raises(APIError) as caught:
            await retrying(attempt, first, verdict, asyncio.sleep)
        assert caught.value is first
        assert asyncio.get_running_loop().time() == 0

    @pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, RuntimeError, ConfigurationError])
    async def test_nothing_but_a_failure_of_the_service_is_repeated(self, kind: type[BaseException]) -> None:
        calls = 0

        async def attempt() -> str:
            nonlocal calls
            calls += 1
            raise kind("stop")

        async def run() -> None:
            with pytest.raises(kind):
                await retrying(
                    attempt, cut_off(), lambda _: RetryDecision(retry=True, wait=0.0, reason=""), asyncio.sleep
                )

        await run()
        assert calls == 1

    async def test_cancelling_the_wait_ends_it_without_another_attempt(self) -> None:
        async def attempt() -> str:
            pytest.fail("a further attempt was made")

        waiting = asyncio.create_task(
            retrying(attempt, cut_off(), lambda _: RetryDecision(retry=True, wait=30.0, reason=""), asyncio.sleep)
        )
        await asyncio.sleep(5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled()
        assert asyncio.get_running_loop().time() == 5

    async def test_a_deadline_ends_the_wait(self) -> None:
        async def attempt() -> str:
            pytest.fail("a further attempt was made")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await retrying(
                    attempt, cut_off(), lambda _: RetryDecision(retry=True, wait=30.0, reason=""), asyncio.sleep
                )
        assert asyncio.get_running_loop().time() == 3


BAD_POLICIES = {
    "max_attempts": [0, -1, 1.5, True, None, "4"],
    "max_server_error_retries": [-1, 1.5, None],
    "ambiguous": ["", "always", None, [], {}, 1],
    "backoff_base": [-0.1, float("nan"), float("inf"), None, "1", 10**400],
    "backoff_cap": [-0.1, float("nan"), float("inf"), None],
    "retry_budget": [-1, float("nan"), float("inf"), None],
    "retry_budget_refill": [-1, float("nan"), None],
    "breaker_failures": [-1, 1.5, None, True],
    "breaker_wait": [0, -1, float("nan"), float("inf"), None],
    "max_outage": [0, -1, float("nan"), float("inf"), "1"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_POLICIES.items() for value in values], ids=repr
)
def test_a_bad_policy_is_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"^RetryPolicy\.{name} is ") as caught:
        RetryPolicy(**{name: value})  # type: ignore[arg-type]
    assert repr(value)[:80] in str(caught.value)


def test_every_field_of_the_policy_has_its_bad_values_above() -> None:
    assert set(BAD_POLICIES) == {field.name for field in attrs.fields(RetryPolicy)}


def test_a_policy_takes_keywords_only_and_is_frozen() -> None:
    with pytest.raises(TypeError):
        RetryPolicy(3)  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RetryPolicy().retry_budget = 5  # type: ignore[misc]


@given(st.sampled_from([500, 502, 503]), st.integers(0, 3), st.integers(0, 3))
def test_a_server_error_is_always_an_internal_server_error(code: int, attempts: int, billed: int) -> None:
    error = status(code)
    assert isinstance(error, InternalServerError)
    assert verdict(error, attempts=attempts + 1, possibly_billed=billed).reason
