"""Pauses, retunes, a token limit and source gaps in a simulated run."""

from attrs import evolve

from onellm_async.limits.policy import Limits
from onellm_async.server.settings import Faults
from onellm_async.simulation import Pause, Retune, Scenario, SingleChat, SourceGap
from tests.fuzzing.observed_run import observe

DECLARED = Limits(max_concurrency=20, requests_per_minute=600, burst=10)
TOKENS = evolve(DECLARED, tokens_per_minute=3000)


def declared(limits=DECLARED, **scenario):
    """One client that is told the truth."""
    faults = scenario.pop("faults", Faults(latency=1.0, latency_sigma=0.3))
    return Scenario(limits=limits, requests_per_minute=600, burst=10, faults=faults, **scenario)


def simulated(scenario):
    """The result of a run and its violations."""
    run = observe(scenario)
    return run.result, run.violations


def sent_between(run, begin, end, client=0):
    return sum(begin < at < end for at in run.sent_at[client])


def test_nothing_is_sent_during_a_pause_and_everything_after_it():
    run, violations = simulated(declared(prompts=100, controls=[Pause(at=2, seconds=1000)]))
    assert (run.answered, run.failed, violations) == (100, 0, [])
    assert sent_between(run, 0, 2) > 10
    assert sent_between(run, 2, 1002) == 0
    assert sent_between(run, 1001.9, 1100) > 50
    assert 1002 < run.makespan < 1020


def test_the_first_resume_ends_overlapping_pauses():
    pauses = [Pause(at=1, seconds=100), Pause(at=2, seconds=20)]
    run, violations = simulated(declared(prompts=60, controls=pauses))
    assert violations == []
    assert sent_between(run, 1.001, 22) == 0
    assert 22 < run.makespan < 40


def test_a_pause_of_one_client_leaves_the_others_alone():
    scenario = declared(prompts=40, clients=2, controls=[Pause(at=1, seconds=500, client=1)])
    run, violations = simulated(evolve(scenario, limits=Limits(max_concurrency=20, requests_per_minute=300, burst=5)))
    assert violations == []
    assert run.answered_at[0][-1] < 100
    assert run.answered_at[1][-1] > 501


def test_new_slots_and_a_new_rate_are_kept_from_the_moment_on():
    slow = evolve(DECLARED, max_concurrency=2, requests_per_minute=60)
    run, violations = simulated(declared(prompts=80, controls=[Retune(at=3, limits=slow)]))
    assert (run.answered, violations) == (80, [])
    assert sent_between(run, 3, 33) <= 31, "one a second"


def test_a_limit_of_tokens_holds_back_what_the_rate_would_let_through():
    run, violations = simulated(declared(TOKENS, prompts=100, max_prompt_length=2000))
    assert (run.answered, run.failed, violations) == (100, 0, [])
    assert run.makespan > 2 * run.best_makespan


def test_prompts_may_be_long_in_coming_and_chats_come_in_waves():
    chats = [SingleChat(at=at) for wave in (5000, 20_000) for at in (wave, wave + 0.1, wave + 3)]
    source_gaps = [SourceGap(before=0, seconds=50), SourceGap(before=10, seconds=3000)]
    run, violations = simulated(declared(prompts=20, source_gaps=source_gaps, chats=chats))
    assert (run.answered, run.failed, violations) == (20, 0, [])
    assert len(run.sent_at[0]) == 26
    assert sent_between(run, 0, 50) == 0
    assert sent_between(run, 3060, 4999) == 0
    assert run.makespan > 20_003
