import pytest
from attrs import evolve

from onellm_async import APIConnectionError
from onellm_async.batch import JournalRecord, ProgressTracker, RecordState, RunCounts
from onellm_async.events import Answered, Failed, Granted, Queued, RateLimited, Retrying, Sent

ERROR = APIConnectionError("reset")


def row(state, *, cost=None, tokens=(None, None), copy_of=None):
    return JournalRecord(
        index=0,
        line=1,
        line_digest=77,
        request_digest=b"d" * 16,
        sent_at=1.0,
        state=state,
        completed_at=2.0,
        attempts=1,
        cost=cost,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        elapsed=1.0,
        latency=1.0,
        copy_of=copy_of,
        result=b"{}",
    )


def answer(cost=0.01, tokens=(3, 5), **changes):
    return row(RecordState.ANSWERED, cost=cost, tokens=tokens, **changes)


FAILURE = row(RecordState.FAILED)


def test_outcomes_add_up():
    tracker = ProgressTracker(100.0)
    tracker.settled(answer(), 101.0)
    tracker.settled(answer(cost=None, tokens=(None, None)), 101.5)
    tracker.settled(answer(tokens=(None, 2)), 102.0)
    tracker.settled(FAILURE, 102.0)
    tracker.bad_line()
    now = tracker.snapshot(104.0)

    assert (now.completed, now.answered, now.failed, now.bad_lines) == (4, 3, 1, 1)
    assert (now.input_tokens, now.output_tokens) == (3, 7)
    assert now.cost == pytest.approx(0.02)
    assert now.unpriced == 1
    assert now.elapsed == 4.0
    assert now.rate == 1.0
    assert now.total is None
    assert now.eta is None


def test_events_tell_what_is_in_flight_refused_and_retried():
    tracker = ProgressTracker(0.0)
    tracker(Queued(1, "m", 0.0, "batch"))
    tracker(Granted(1, "m", 0.0, 0.0))
    assert tracker.snapshot(0.0).in_flight == 0
    for number in (1, 2, 3, 4):
        tracker(Sent(number, "m", 0.0, 1))
    assert tracker.snapshot(0.0).in_flight == 4
    tracker(RateLimited(1, "m", 0.0, None))
    tracker(Retrying(2, "m", 0.0, 1, 0.5, ERROR))
    tracker(Answered(3, "m", 0.0, 1, 1.0, 1, 1, None))
    tracker(Failed(4, "m", 0.0, 1, 1.0, ERROR))
    tracker(Failed(5, "m", 0.0, 0, 1.0, ERROR))
    now = tracker.snapshot(0.0)

    assert (now.in_flight, now.rate_limited, now.retries) == (0, 1, 1)


def test_the_rate_is_that_of_the_last_minute():
    tracker = ProgressTracker(0.0)
    for second in range(100):
        for _ in range(5):
            tracker.settled(answer(), second + 0.5)
    assert tracker.snapshot(100.0).rate == pytest.approx(5.0, rel=0.1)

    for second in range(100, 200):
        tracker.settled(answer(), second + 0.5)
    assert tracker.snapshot(200.0).rate == pytest.approx(1.0, rel=0.1)
    assert tracker.snapshot(300.0).rate == 0.0


def test_the_time_left_follows_from_the_rate():
    tracker = ProgressTracker(0.0)
    tracker.total = 100
    assert tracker.snapshot(0.0).eta is None
    for second in range(10):
        tracker.settled(answer(), second + 0.5)
    tracker.bad_line()

    assert tracker.snapshot(10.0).eta == pytest.approx(89.0)


def test_a_first_burst_does_not_promise_more_than_the_limit_allows():
    tracker = ProgressTracker(0.0, ceiling=40 / 60)
    tracker.total = 1000
    for _ in range(40):
        tracker.settled(answer(), 1.0)

    assert tracker.snapshot(1.0).eta == pytest.approx(960 * 60 / 40)


def test_nothing_left_takes_no_time():
    tracker = ProgressTracker(0.0)
    tracker.total = 1
    tracker.settled(answer(), 1.0)

    assert tracker.snapshot(2.0).eta == 0.0


def test_outcomes_of_earlier_sessions_count_but_are_not_this_ones_speed():
    tracker = ProgressTracker(0.0)
    tracker.resumed(answer())
    tracker.resumed(FAILURE)
    tracker.resumed(evolve(row(RecordState.IN_FLIGHT), possibly_billed=1), held=True)
    now = tracker.snapshot(10.0)

    assert (now.completed, now.answered, now.failed, now.completed_before, now.held) == (3, 1, 2, 3, 1)
    assert now.cost == 0.01
    assert now.rate == 0.0


def test_a_copied_answer_is_an_answer_that_costs_nothing():
    tracker = ProgressTracker(0.0)
    tracker.settled(answer(), 1.0)
    tracker.settled(answer(cost=0.0, tokens=(0, 0), copy_of=0), 1.0)
    now = tracker.snapshot(2.0)

    assert (now.answered, now.deduplicated, now.unpriced) == (2, 1, 0)
    assert (now.cost, now.input_tokens, now.output_tokens) == (0.01, 3, 5)


def test_a_run_that_was_complete_before_is_told_by_its_counts():
    tracker = ProgressTracker(0.0)
    tracker.total = 12
    tracker.found(
        RunCounts(answered=8, failed=2, deduplicated=3, cost=0.5, unpriced=1, input_tokens=30, output_tokens=50)
    )
    now = tracker.snapshot(1.0)

    assert (now.completed, now.answered, now.failed, now.completed_before, now.deduplicated, now.bad_lines) == (
        10,
        8,
        2,
        10,
        3,
        2,
    )
    assert (now.cost, now.unpriced, now.input_tokens, now.output_tokens) == (0.5, 1, 30, 50)
    assert now.eta == 0.0


def test_the_time_left_has_a_spread_once_the_rate_was_seen_to_vary():
    tracker = ProgressTracker(0.0)
    tracker.total = 1000
    for second in range(20):
        tracker.settled(answer(), second + 0.5)
    early = tracker.snapshot(20.0)
    for second in range(20, 60):
        for _ in range(1 + (second // 10) % 2 * 4):
            tracker.settled(answer(), second + 0.5)
    now = tracker.snapshot(60.0)

    assert (early.eta_low, early.eta_high) == (None, None)
    assert now.eta_low < now.eta < now.eta_high


def test_a_steady_rate_has_hardly_any_spread():
    tracker = ProgressTracker(0.0)
    tracker.total = 1000
    for second in range(60):
        tracker.settled(answer(), second + 0.5)
    now = tracker.snapshot(60.0)

    assert now.eta == pytest.approx(940.0, rel=0.02)  # the window begins and ends within a second
    assert now.eta_high - now.eta_low < 0.07 * now.eta
