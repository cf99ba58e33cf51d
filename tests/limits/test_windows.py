import pytest

from onellm_async.limits.send_log import SendLog
from onellm_async.limits.slots import Slots
from onellm_async.limits.windows import Window, Windows


def log_of(times):
    log = SendLog()
    for at in times:
        log.sent(at)
    return log


def test_a_log_finds_the_time_that_is_nearest():
    log = SendLog()
    assert log.nearest(3.0) == 3.0
    for at in (1.0, 2.0, 4.0):
        log.sent(at)
    assert [log.nearest(at) for at in (0.0, 1.4, 1.6, 2.9, 3.1, 9.0)] == [1, 1, 2, 2, 4, 4]


def test_a_log_counts_what_was_accepted_and_drops_the_oldest():
    log = SendLog(size=8)
    for at in range(20):
        log.sent(float(at))
    assert log.total == 20
    assert log.last(1) == 19
    assert log.last(9) is None
    assert log.accepted_until(18.0) == 19
    assert log.remove(18.0)
    assert not log.remove(18.0)
    assert log.total == 19


@pytest.mark.parametrize(("seconds", "most"), [(0.5, 3), (1.0, 4), (10.0, 6)])
def test_the_most_that_was_accepted_in_any_time_is_a_lower_bound_of_the_limit(seconds, most):
    assert log_of([0.0, 3.0, 3.2, 3.4, 4.0, 9.0]).max_count(seconds, 100.0) == most


def test_a_silence_gives_the_smallest_window_that_nothing_contradicts():
    burst = [number / 100 for number in range(40)]
    windows = Windows(log_of([*burst, 60.1]))
    window = windows.add(start=0.4, shortest_at=50.0, end=60.1, burst_at=0.0)
    assert (window.count, window.seconds, window.shortest) == (40, 60.1, 50.0)
    assert window.describe() == "40 requests in any 60 s"
    assert windows.rate == pytest.approx(40 / 60.1)


@pytest.mark.parametrize(
    ("at", "rounds", "count"),
    [
        ([0.0, 0.1, 0.2, 0.3, 60.0, 60.1], 1, 2),  # two were accepted, and the next when they had left
        ([0.0, 0.1, 0.2, 0.3, 60.0, 60.1], 0, 4),  # it was not kept to yet
        ([0.0, 0.1, 0.2, 40.0, 60.0, 60.1], 1, 4),  # the one at 40 s may have been in the window
        ([0.0, 0.1, 0.2, 0.3, 60.0, 60.1, 60.2, 60.3], 1, 4),  # it was full
        ([60.0, 60.1], 1, 4),  # nothing is known of what was before
    ],
)
def test_a_window_that_was_kept_to_has_a_lower_count_if_what_was_accepted_after_a_rest_fills_it(at, rounds, count):
    windows = Windows(log_of([*at, 120.5]))
    window = Window(4, 50.0, 60.0)
    window.rounds = rounds
    windows.all = [window]
    assert windows.reduce(window, shortest_at=100.0, end=120.5) == (count == 2)
    assert (window.count, window.seconds) == (count, 60.0)


@pytest.mark.parametrize("was_outage", [True, False])
def test_a_count_that_fell_is_tried_in_the_next_round_and_comes_back_at_once(was_outage):
    log, window = log_of([0.0, 0.1, 0.2]), Window(8, 50.0, 60.0)
    window.rounds = 3
    window.reduce(3)
    for at in (60.0, 60.1, 60.2, 60.3):
        assert window.earliest(log, 0.1) <= at
        window.sent(at, log)
        log.sent(at)
    assert window.extra_at == 60.3, "one more than three"
    if was_outage:
        assert window.advance(60.5, 0.1)
        assert window.count == 8
    else:
        log.remove(60.3)
        window.refute_extra()
        assert window.advance(60.5, 0.1)
        assert window.count == 3
        assert window.earliest(log, 0.1) == 120.0


@pytest.mark.parametrize(("shortest_at", "end"), [(121.0, 130.0), (100.0, 110.0)])
def test_a_window_keeps_its_count_if_the_silence_is_longer_or_shorter_than_it(shortest_at, end):
    windows = Windows(log_of([0.0, 0.1, 0.2, 0.3, 60.0, 60.1, end]))
    windows.all = [window := Window(4, 50.0, 60.0)]
    window.rounds = 1
    assert not windows.reduce(window, shortest_at, end)


def test_a_window_opens_when_its_oldest_request_has_left():
    log = log_of([0.0, 1.0, 2.0])
    window = Window(3, 9.0, 10.0)
    assert window.earliest(log, 0.1) == 10.0
    assert [window.expected(number, log, 5.0) for number in (1, 2, 3, 4)] == [10.0, 11.0, 12.0, 20.0]
    assert window.earliest(log_of([0.0]), 0.1) < 0


def test_a_refused_trial_proves_the_length_and_a_smaller_count_begins_anew():
    window = Window(40, 2.0, 5.0)
    window.trial = 4.0
    window.refute_trial(4.0)
    assert (window.shortest, window.trial) == (4.0, None)
    window.rounds = 3
    window.shrink(20)
    assert (window.count, window.rounds) == (20, 0)


@pytest.mark.parametrize(("ack", "at"), [(0.1, 8.0), (1.5, 8.5), (3.0, 9.0)])
def test_a_shorter_window_that_was_kept_to_for_a_round_is_kept_to_once_its_429_must_have_come(ack, at):
    log, window = log_of([0.0, 1.0, 2.0, 3.0]), Window(4, 3.0, 5.0)
    window.trial = 4.0
    for sent_at in (4.0, 5.0, 6.0, 7.0):
        window.sent(sent_at, log)
        log.sent(sent_at)
    assert window.earliest(log, ack) == at
    assert window.advance(at, ack)
    assert window.seconds == (5.0 if ack > 2 else 4.0)


def test_a_429_at_a_record_of_requests_in_flight_suggests_a_limit_and_an_answer_beyond_refutes_it():
    slots = Slots()
    for at in (0.0, 0.1, 0.2):
        slots.sent(at)
    assert not slots.rate_limited(slots.refused(0.2)), "it may be another limit as well"
    assert slots.limit == 2
    slots.answered(0.0, 0.5)
    slots.answered(0.1, 0.6)
    for at in (1.0, 1.1, 1.2):
        slots.sent(at)
    slots.answered(1.2, 1.5)
    assert slots.limit == float("inf")


def test_429s_below_the_limit_take_its_support_away():
    slots = Slots()
    for at in (0.0, 0.1, 0.2):
        slots.sent(at)
    slots.rate_limited(slots.refused(0.2))
    for at in (0.0, 0.1):
        slots.answered(at, 0.5)
    slots.sent(1.0)
    slots.sent(1.1)
    slots.rate_limited(slots.refused(1.1))
    assert slots.limit == float("inf")
    assert slots.in_flight == 1
