import pytest

from onellm_async import APIConnectionError, ChatOutcome, ChatResponse, Fate, Usage
from onellm_async.batch import Tally
from onellm_async.events import Answered, Failed, Granted, Queued, Refused, Retrying, Sent

ERROR = APIConnectionError("reset", fate=Fate.AMBIGUOUS)


USAGE = Usage(3, 5, 8)


def answer(cost=0.01, usage=USAGE):
    return ChatOutcome(0, "Hi", ChatResponse("Hello", usage=usage, cost=cost))


def test_outcomes_add_up():
    tally = Tally(100.0)
    tally.settled(answer(), 101.0)
    tally.settled(answer(cost=None, usage=None), 101.5)
    tally.settled(answer(usage=Usage(None, 2, None)), 102.0)
    tally.settled(ChatOutcome(3, "Hi", error=ERROR), 102.0)
    tally.bad_line()
    now = tally.snapshot(104.0)

    assert (now.done, now.answered, now.failed, now.bad_lines) == (4, 3, 1, 1)
    assert (now.input_tokens, now.output_tokens) == (3, 7)
    assert now.cost == pytest.approx(0.02)
    assert now.unpriced == 1
    assert now.elapsed == 4.0
    assert now.rate == 1.0
    assert now.total is None
    assert now.eta is None


def test_events_tell_what_is_in_flight_refused_and_retried():
    tally = Tally(0.0)
    tally(Queued(1, "m", 0.0, "batch"))
    tally(Granted(1, "m", 0.0, 0.0))
    assert tally.snapshot(0.0).in_flight == 0
    for number in (1, 2, 3, 4):
        tally(Sent(number, "m", 0.0, 1))
    assert tally.snapshot(0.0).in_flight == 4
    tally(Refused(1, "m", 0.0, None))
    tally(Retrying(2, "m", 0.0, 1, 0.5, ERROR))
    tally(Answered(3, "m", 0.0, 1, 1.0, 1, 1, None))
    tally(Failed(4, "m", 0.0, 1, 1.0, ERROR))
    tally(Failed(5, "m", 0.0, 0, 1.0, ERROR))
    now = tally.snapshot(0.0)

    assert (now.in_flight, now.refusals, now.retries) == (0, 1, 1)


def test_the_rate_is_that_of_the_last_minute():
    tally = Tally(0.0)
    for second in range(100):
        for _ in range(5):
            tally.settled(answer(), second + 0.5)
    assert tally.snapshot(100.0).rate == pytest.approx(5.0, rel=0.1)

    for second in range(100, 200):
        tally.settled(answer(), second + 0.5)
    assert tally.snapshot(200.0).rate == pytest.approx(1.0, rel=0.1)
    assert tally.snapshot(300.0).rate == 0.0


def test_the_time_left_follows_from_the_rate():
    tally = Tally(0.0)
    tally.total = 100
    assert tally.snapshot(0.0).eta is None
    for second in range(10):
        tally.settled(answer(), second + 0.5)
    tally.bad_line()

    assert tally.snapshot(10.0).eta == pytest.approx(89.0)


def test_a_first_burst_does_not_promise_more_than_the_limit_allows():
    tally = Tally(0.0, ceiling=40 / 60)
    tally.total = 1000
    for _ in range(40):
        tally.settled(answer(), 1.0)

    assert tally.snapshot(1.0).eta == pytest.approx(960 * 60 / 40)


def test_nothing_left_takes_no_time():
    tally = Tally(0.0)
    tally.total = 1
    tally.settled(answer(), 1.0)

    assert tally.snapshot(2.0).eta == 0.0
