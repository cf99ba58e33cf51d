import random

import pytest

from onellm_async.batch.estimate import Capacity, estimate_run
from onellm_async.batch.journal.record import JournalRecord, RecordState

ENOUGH = Capacity(requests=None, tokens=None, concurrency=1_000_000)


def row(cost=0.01, *, latency=2.0, tokens=(10, 20), state=RecordState.ANSWERED, copy_of=None):
    return JournalRecord(
        index=0,
        line=1,
        line_digest=77,
        request_digest=b"d" * 16,
        sent_at=1.0,
        state=state,
        completed_at=2.0,
        attempts=1 if copy_of is None else 0,
        cost=cost,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        elapsed=latency,
        latency=latency,
        copy_of=copy_of,
        result=b"{}",
    )


def test_prompts_that_all_cost_the_same_are_estimated_exactly():
    cost = estimate_run([row(0.01)] * 20, 980, ENOUGH).cost

    assert (cost.expected, cost.low, cost.high) == pytest.approx((9.8, 9.8, 9.8))


def test_the_interval_is_as_wide_as_the_sample_is_small_and_varied():
    narrow = estimate_run([row(0.010), row(0.011)] * 50, 1000, ENOUGH).cost
    small = estimate_run([row(0.010), row(0.011)] * 3, 1000, ENOUGH).cost
    varied = estimate_run([row(0.001), row(0.020)] * 50, 1000, ENOUGH).cost

    def width(cost):
        return cost.high - cost.low

    assert width(narrow) < width(small)
    assert width(narrow) < width(varied)
    assert all(cost.low <= cost.expected <= cost.high for cost in (narrow, small, varied))


def test_the_interval_holds_in_nineteen_of_twenty_cases():
    draw = random.Random(7)
    held = 0
    for _ in range(400):
        costs = [draw.uniform(0.001, 0.02) for _ in range(10 + 200)]
        estimated = estimate_run([row(cost) for cost in costs[:10]], 200, ENOUGH).cost
        held += estimated.low <= sum(costs[10:]) <= estimated.high

    assert 0.91 <= held / 400 <= 0.98


def test_two_answers_give_a_wide_interval_that_never_goes_below_nothing():
    cost = estimate_run([row(0.001), row(0.02)], 100, ENOUGH).cost

    assert cost.low == 0.0
    assert cost.high > 5 * cost.expected


def test_an_unknown_price_is_not_made_up():
    assert estimate_run([row(0.01), row(None), row(0.01)], 10, ENOUGH).cost is None
    assert estimate_run([row(0.01)], 10, ENOUGH).cost is None
    assert estimate_run([], 10, ENOUGH).cost is None


def test_failures_cost_nothing_and_are_as_frequent_later_and_copies_are_not_sent():
    sample = [row(0.03), row(None, state=RecordState.FAILED), row(0.0, copy_of=0)] * 10

    assert estimate_run(sample, 200, ENOUGH, left=300).cost.expected == pytest.approx(3.0)


def test_what_is_still_under_way_is_no_sample():
    estimate = estimate_run([row(), row(), row(None, state=RecordState.IN_FLIGHT)], 10, ENOUGH)

    assert estimate.based_on == 2
    assert estimate.cost is not None


@pytest.mark.parametrize(
    ("capacity", "seconds", "bound_by"),
    [
        (Capacity(requests=0.5, tokens=None, concurrency=48), 100 / 0.5 + 2.0, "rate"),
        (Capacity(requests=50.0, tokens=None, concurrency=4), 100 * 2.0 / 4 + 2.0, "concurrency"),
        (Capacity(requests=50.0, tokens=10.0, concurrency=48), 100 * 30 / 10 + 2.0, "tokens"),
        (Capacity(requests=None, tokens=None, concurrency=1), 100 * 2.0 + 2.0, "concurrency"),
    ],
)
def test_the_slowest_of_all_limits_sets_the_pace(capacity, seconds, bound_by):
    estimate = estimate_run([row()] * 10, 100, capacity)

    assert estimate.seconds.expected == pytest.approx(seconds)
    assert estimate.bound_by == bound_by


def test_the_time_spreads_where_answers_take_different_times_and_not_where_the_rate_rules():
    varied = [row(latency=1.0), row(latency=9.0)] * 10
    slots = estimate_run(varied, 100, Capacity(requests=None, tokens=None, concurrency=4)).seconds
    paced = estimate_run(varied, 100, Capacity(requests=0.1, tokens=None, concurrency=48)).seconds

    assert slots.low < slots.expected < slots.high
    assert paced.low == paced.expected == paced.high


def test_copies_take_no_time():
    sample = [row(), row(0.0, latency=None, copy_of=0)] * 10
    estimate = estimate_run(sample, 50, Capacity(requests=1.0, tokens=None, concurrency=48))

    assert estimate.seconds.expected == pytest.approx(50 + 2.0)


def test_too_few_answers_tell_nothing_about_the_time():
    assert estimate_run([row(), row(None, state=RecordState.FAILED)], 10, ENOUGH).seconds is None
