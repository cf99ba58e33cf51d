import pytest
from attrs import evolve
from sample_reports import span

from onellm_async.batch.journal.reader import Bucket
from onellm_async.report.model import ProgressSample
from onellm_async.report.reading import parse_sample
from onellm_async.report.timeline import allowed_answers, bucket_width, cut_slices, slice_width

T = 1_767_258_000.0


def one_a_second(first: float, last: float) -> list[Bucket]:
    return [Bucket(first + second, 1, 0) for second in range(int(last - first))]


@pytest.mark.parametrize(
    ("worked", "width"), [(0.5, 0.01), (60, 0.5), (1947, 15), (6000, 60), (86_400, 600), (40 * 86_400, 86_400)]
)
def test_slices_are_round_and_no_more_than_can_be_told_apart(worked: float, width: float) -> None:
    assert slice_width(worked) == width
    assert worked / width <= 180
    assert bucket_width(worked) == width / 16


@pytest.mark.parametrize(
    ("worked", "outcomes", "width"), [(4.3, 400, 0.2), (600, 60, 30), (600, 100_000, 5), (60, 1, 2), (60, 0, 2)]
)
def test_few_outcomes_are_cut_into_few_slices(worked: float, outcomes: int, width: float) -> None:
    assert slice_width(worked, outcomes) == width
    assert bucket_width(worked, outcomes) == width / 16
    (part, *_) = cut_slices([span(T, T + worked)], [], [], outcomes)
    assert part.width == width


def test_sessions_are_laid_end_to_end_whatever_the_break_between_them() -> None:
    sessions = (span(T, T + 100), span(T + 90_000, T + 90_050))
    slices = cut_slices(sessions, [], [])
    assert {part.width for part in slices} == {1.0}
    assert [part.start for part in slices] == [float(second) for second in range(150)]
    assert (slices[99].session, slices[99].clock) == (0, T + 99)
    assert (slices[100].session, slices[100].clock) == (1, T + 90_000)


def test_the_last_slice_of_a_session_takes_what_is_left() -> None:
    slices = cut_slices([span(T, T + 100.3)], [], one_a_second(T, T + 100))
    assert sum(part.width for part in slices) == pytest.approx(100.3)
    assert slices[-1].width == pytest.approx(1.3)
    short = cut_slices([span(T, T + 0.001)], [], [])
    assert [part.width for part in short] == [pytest.approx(0.001, rel=0.01)]


def test_every_outcome_is_in_exactly_one_slice_and_money_adds_up() -> None:
    sessions = (span(T, T + 300), span(T + 1000, T + 1300))
    buckets = one_a_second(T, T + 300) + one_a_second(T + 1000, T + 1300)
    slices = cut_slices(sessions, [], buckets)
    assert sum(part.answered for part in slices) == 600
    assert {part.answered for part in slices} == {5}


def test_what_is_spent_stays_spent_while_a_resumed_session_counts_it_anew() -> None:
    sessions = (span(T, T + 90), span(T + 1000, T + 1090))
    samples = [
        *(
            ProgressSample(at=T + second, cost=second / 100, input_tokens=second, output_tokens=2 * second)
            for second in range(90)
        ),
        *(ProgressSample(at=T + 1000 + second, cost=second / 50, input_tokens=2 * second) for second in range(90)),
    ]
    slices = cut_slices(sessions, samples, [])
    costs = [part.cost for part in slices]
    assert costs == sorted(costs)
    assert costs[89] == costs[110] == 0.89
    assert (costs[-1], slices[-1].input_tokens, slices[-1].output_tokens) == (1.78, 178, 178)


def test_an_outcome_at_the_very_end_belongs_to_the_last_slice() -> None:
    slices = cut_slices([span(T, T + 60)], [], [Bucket(T + 60, 3, 0)])
    assert slices[-1].answered == 3


def test_sessions_without_a_length_have_no_slices() -> None:
    assert cut_slices([span(T, T)], [ProgressSample(at=T)], one_a_second(T, T + 5)) == ()


def test_counters_that_begin_anew_with_a_session_are_told_as_what_was_added() -> None:
    sessions = (span(T, T + 100), span(T + 500, T + 600))
    samples = [
        ProgressSample(at=T + 0.5, rate_limited=1),
        ProgressSample(at=T + 10.5, rate_limited=4, retries=2),
        ProgressSample(at=T + 99.5, rate_limited=4, retries=2),
        ProgressSample(at=T + 500.5, rate_limited=2, retries=1),
        ProgressSample(at=T + 599, rate_limited=2, retries=5),
    ]
    slices = cut_slices(sessions, samples, [])
    assert {part.start: part.rate_limited for part in slices if part.rate_limited} == {0: 1, 10: 3, 100: 2}
    assert {part.start: part.retries for part in slices if part.retries} == {10: 2, 100: 1, 198: 4}


def test_where_nobody_looked_the_look_before_still_holds() -> None:
    samples = [
        ProgressSample(at=T + 10, queued={"batch": 7}, in_flight=3, limit=40),
        ProgressSample(at=T + 10.4, in_flight=5, limit=50),
    ]
    slices = cut_slices([span(T, T + 30)], samples, [])
    width = slices[0].width
    before, there, after = slices[0], slices[int(10 / width)], slices[-1]
    assert (before.in_flight, before.limit) == (None, 40)
    assert (there.in_flight, there.queued) == (3, {"batch": 7})
    assert (after.in_flight, after.queued, after.limit) == (5, {}, 50)


def test_in_flight_is_the_mean_of_the_samples_in_a_slice() -> None:
    samples = [ProgressSample(at=T + second / 10, in_flight=second) for second in range(10)]
    slices = cut_slices([span(T, T + 180)], samples, [])
    assert slices[0].in_flight == 4.5


def test_the_limit_lets_through_what_it_refills_and_a_burst_for_each_session() -> None:
    sessions = [
        span(T, T + 600, requests_per_minute=40, burst=40),
        span(T + 1000, T + 1060, requests_per_minute=60, burst=10),
    ]
    slices = cut_slices(sessions, [], [])
    assert allowed_answers(sessions, slices) == pytest.approx(400 + 40 + 60 + 10)
    unknown = [evolve(sessions[0], requests_per_minute=None), sessions[1]]
    assert allowed_answers(unknown, cut_slices(unknown, [], [])) is None
    assert allowed_answers([], []) is None


def test_a_sample_is_read_whatever_it_lacks() -> None:
    sample = {
        "progress": {
            "total": 1319,
            "retries": 2,
            "counts": {"cost": 0.5, "input_tokens": 7, "output_tokens": 8},
        },
        "snapshot": {
            "declared_rate": 60.0,
            "queued": {"batch": 10, "default": 0},
            "in_flight": 3,
            "rate": 40.0,
            "rate_limited": 2,
            "retried": 5,
        },
    }
    assert parse_sample(T, sample) == ProgressSample(
        at=T,
        queued={"batch": 10},
        in_flight=3,
        limit=40.0,
        declared=60.0,
        rate_limited=2,
        retries=5,
        total=1319,
        cost=0.5,
        input_tokens=7,
        output_tokens=8,
    )
    assert (
        parse_sample(T, None)
        == parse_sample(T, [1])
        == parse_sample(T, {"snapshot": "x", "queued": 3, "rate": True})
        == ProgressSample(at=T)
    )
