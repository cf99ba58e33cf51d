import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.batch.health import HealthMonitor, HealthPolicy, Verdict
from onellm_async.chat import ChatResponse
from onellm_async.errors import (
    APITimeoutError,
    BadRequestError,
    ConfigurationError,
    InternalServerError,
    StructureError,
)

DOWN = InternalServerError("500 down.", status_code=500)
BAD = BadRequestError("400 bad.", status_code=400)
LATE = APITimeoutError("No answer within 600 s.")
UNFIT = StructureError("It does not fit.", response=ChatResponse("no"), problems=("no JSON",))


def after(outcomes, **policy):
    """A run with these outcomes: errors, and None for answers."""
    health = HealthMonitor(HealthPolicy(**policy), 0)
    for outcome in outcomes:
        note(health, outcome)
    return health


def note(health, outcome):
    if outcome is None:
        health.answered()
    elif outcome is UNFIT:
        health.unfit(outcome)
    else:
        health.failed(outcome)


def verdict(health, *, undecided=0, untried=True, others_answered=True):
    return health.verdict(undecided=undecided, untried=untried, others_answered=others_answered)


def test_a_fifth_of_the_last_fifty_may_fail_alike_and_one_more_pauses_the_run():
    health = after([None] * 40 + [DOWN] * 10)
    assert verdict(health) is Verdict.GO_ON
    health.failed(DOWN)
    assert str(health.alike()) == "11 of the last 50 prompts failed alike: 500 down."
    assert verdict(health) is Verdict.PAUSE


def test_failures_that_differ_pause_nothing():
    assert verdict(after([DOWN, BAD, LATE] * 9)) is Verdict.GO_ON


def test_old_failures_are_forgotten():
    assert verdict(after([DOWN] * 10 + [None] * 50 + [DOWN])) is Verdict.GO_ON


def test_a_run_that_fails_from_the_start_pauses_at_the_eleventh_failure():
    assert verdict(after([DOWN] * 10), others_answered=False) is Verdict.GO_ON
    assert verdict(after([DOWN] * 11), others_answered=False) is Verdict.PAUSE


def test_whoever_allows_all_failures_is_never_paused_by_them():
    health = after([DOWN] * 200, max_failure_share=1)
    assert verdict(health) is Verdict.GO_ON
    assert health.alike_in_all(0) is None


@given(st.lists(st.sampled_from([None, DOWN, BAD]), max_size=200))
def test_the_counts_are_those_of_the_last_fifty(outcomes):
    latest = outcomes[-50:]
    expected = bool(latest) and latest[-1] is not None and latest.count(latest[-1]) > 5
    assert (verdict(after(outcomes, max_failure_share=0.1)) is Verdict.PAUSE) == expected


def test_failures_stand_where_others_were_answered_and_no_untried_prompt_is_left():
    health = after([None] * 20 + [DOWN] * 11)
    assert verdict(health, untried=False) is Verdict.GO_ON
    assert verdict(health, untried=False, others_answered=False) is Verdict.PAUSE


def resumed(*outcomes):
    health = after([DOWN] * 11)
    health.pause()
    health.resume(answered=True)
    for outcome in outcomes:
        note(health, outcome)
    return health


def test_half_of_the_prompts_tried_after_a_resume_may_not_fail_alike():
    assert verdict(resumed(*[DOWN, None] * 10, None, DOWN)) is Verdict.STOP
    assert verdict(resumed(*[DOWN, None, None] * 20)) is Verdict.GO_ON
    assert str(resumed(*[None, DOWN] * 11).alike_since_resume()) == (
        "11 of the 22 prompts tried after the pause failed alike: 500 down."
    )


def test_prompts_in_flight_count_as_tried_as_failures_come_sooner_than_answers():
    assert verdict(resumed(*[DOWN] * 11), undecided=12) is Verdict.GO_ON
    assert verdict(resumed(*[DOWN] * 11), undecided=11) is Verdict.STOP


def test_a_second_outage_long_after_the_first_pauses_again():
    assert verdict(resumed(*[None] * 60, *[DOWN] * 11)) is Verdict.PAUSE


def test_a_second_outage_among_many_bad_prompts_pauses_again_when_nothing_else_is_left_in_sight():
    outcomes = [DOWN, None, None] * 60
    assert verdict(resumed(*outcomes, *[DOWN] * 11)) is Verdict.GO_ON
    assert verdict(resumed(*outcomes, *[DOWN] * 45)) is Verdict.PAUSE


@pytest.mark.parametrize(("failed", "answered", "too_many"), [(11, 11, True), (11, 12, False), (10, 0, False)])
def test_at_the_end_half_of_all_prompts_are_too_many(failed, answered, too_many):
    health = after([DOWN] * failed)
    assert (health.alike_in_all(answered) is not None) == too_many


def test_a_prompt_that_was_retried_counts_once():
    health = after([DOWN] * 11)
    health.retried(DOWN, answered=True)
    health.retried(DOWN, answered=False)
    assert health.outcomes == 11
    assert health.alike_in_all(1) is None
    health.failed(DOWN)
    assert str(health.alike_in_all(11)) == "11 of 22 prompts failed alike: 500 down."


def test_failures_that_a_retry_mended_do_not_hide_those_of_a_second_outage():
    health = resumed()
    for _ in range(11):
        health.retried(DOWN, answered=True)
    for _ in range(11):
        health.failed(DOWN)
    assert verdict(health) is Verdict.STOP


@pytest.mark.parametrize("left", [None, 60])
def test_trials_follow_one_another_more_and_more_slowly(left):
    health = after([])
    for _ in range(2):
        health.pause()
        assert [health.trial_failed(left=left) for _ in range(7)] == [15, 30, 60, 120, 240, 300, 300]


def test_where_few_prompts_are_left_one_is_tried_every_minute():
    health = after([])
    health.pause()
    assert [health.trial_failed(left=59) for _ in range(4)] == [15, 30, 60, 60]


def quiet(health, seconds, *, waits=True, start=0):
    """What is said in so many seconds without an outcome, with the second in which it is said."""
    said = []
    for second in range(start + 1, start + seconds + 1):
        health.tick(second, waits=waits)
        if (silence := health.quiet_for()) is not None:
            said.append((second, silence))
    return said


def test_silence_is_told_every_quarter_of_an_hour_and_ends_the_run_after_an_hour():
    health = after([])
    assert quiet(health, 3599) == [(900, 900), (1800, 1800), (2700, 2700)]
    assert health.stalled_for is None
    health.tick(3600, waits=True)
    assert health.stalled_for == 3600


def test_an_outcome_ends_the_silence():
    health = after([])
    quiet(health, 899)
    health.failed(BAD)
    assert quiet(health, 899, start=899) == []


def test_only_time_counts_in_which_something_waited_for_the_service():
    health = after([])
    assert quiet(health, 100_000, waits=False) == []
    assert health.stalled_for is None


def test_a_process_that_was_stopped_and_a_laptop_that_slept_waited_for_nothing():
    health = after([])
    for tick in range(1, 30):
        health.tick(tick * 86_400, waits=True)
    assert health.quiet_for() is None
    assert health.stalled_for is None


def test_a_pause_without_an_answer_ends_the_run_after_an_hour_although_trials_fail_meanwhile():
    health = after([DOWN] * 11)
    health.pause()
    for second in range(1, 3600):
        health.tick(second, waits=True)
        if second % 300 == 0:
            health.failed(DOWN)
    assert health.stalled_for is None
    health.tick(3600, waits=True)
    assert health.stalled_for == 3600


@pytest.mark.parametrize(("name", "value"), [("max_failure_share", 1.1), ("notify_after", 0), ("stall_after", -1)])
def test_a_policy_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"HealthPolicy.{name} is"):
        HealthPolicy(**{name: value})


def stops_for_unfit(outcomes, undecided=0, **policy):
    return after(outcomes, **policy).too_many_unfit(undecided) is not None


def test_answers_that_do_not_fit_stop_a_run_at_the_eleventh_if_none_fits():
    assert not stops_for_unfit([UNFIT] * 10)
    assert stops_for_unfit([UNFIT] * 11)
    assert str(after([UNFIT] * 11).too_many_unfit(0)) == (
        "11 of the last 11 answers do not conform to the schema: It does not fit."
    )


def test_a_part_of_answers_that_do_not_fit_stops_no_run_before_there_are_a_hundred():
    assert not stops_for_unfit([UNFIT, None] * 49)
    assert not stops_for_unfit([UNFIT, None, None] * 1000)
    assert stops_for_unfit([None, UNFIT] * 50)
    assert str(after([None, UNFIT] * 50).too_many_unfit(0)).startswith("50 of 100 answers do not conform")


def test_a_service_that_answers_otherwise_late_in_a_run_stops_it():
    assert not stops_for_unfit([None] * 5000 + [UNFIT] * 44)
    assert stops_for_unfit([None] * 5000 + [UNFIT] * 45)


def test_short_answers_that_do_not_fit_come_first_and_wait_for_the_longer_ones():
    assert not stops_for_unfit([UNFIT] * 11, undecided=12)
    assert stops_for_unfit([UNFIT] * 11, undecided=11)


def test_an_answer_that_does_not_fit_is_no_failure_of_the_service():
    health = after([DOWN] * 10 + [UNFIT] * 40)
    assert verdict(health) is Verdict.GO_ON
    assert health.outcomes == 50
    assert verdict(after([UNFIT] * 40 + [DOWN] * 10)) is Verdict.GO_ON


def test_whoever_allows_all_failures_is_never_stopped_by_answers_that_do_not_fit():
    assert not stops_for_unfit([UNFIT] * 200, max_failure_share=1)
