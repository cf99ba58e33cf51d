"""Pauses, retunes, a limit of tokens and silences in a simulated run; and faults in each, which the observer sees."""

import pytest
from attrs import evolve

from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.policy import Limits
from onellm_async.server.settings import Faults
from onellm_async.simulation.scenario import Pause, Retune, Scenario, Silence, SingleChat, simulate

DECLARED = Limits(20, 600, 10)
TOKENS = evolve(DECLARED, tokens_per_minute=3000)


def declared(limits=DECLARED, **scenario):
    """One client that is told the truth."""
    faults = scenario.pop("faults", Faults(latency=1.0, latency_sigma=0.3))
    return Scenario(limits=limits, requests_per_minute=600, burst=10, faults=faults, **scenario)


def sent_between(run, begin, end, client=0):
    return sum(begin < at < end for at in run.sent_at[client])


def test_nothing_leaves_during_a_pause_and_everything_after_it():
    run = simulate(declared(prompts=100, controls=[Pause(at=2, seconds=1000)]))
    assert (run.answered, run.failed, run.violations) == (100, 0, [])
    assert sent_between(run, 0, 2) > 10
    assert sent_between(run, 2, 1002) == 0
    assert sent_between(run, 1001.9, 1100) > 50
    assert 1002 < run.makespan < 1020


def test_the_first_resume_ends_overlapping_pauses():
    pauses = [Pause(at=1, seconds=100), Pause(at=2, seconds=20)]
    run = simulate(declared(prompts=60, controls=pauses))
    assert run.violations == []
    assert sent_between(run, 1.001, 22) == 0
    assert 22 < run.makespan < 40


def test_a_pause_of_one_client_leaves_the_others_alone():
    scenario = declared(prompts=40, clients=2, controls=[Pause(at=1, seconds=500, client=1)])
    run = simulate(evolve(scenario, limits=Limits(20, 300, 5)))
    assert run.violations == []
    assert run.answered_at[0][-1] < 100
    assert run.answered_at[1][-1] > 501


def test_new_slots_and_a_new_rate_are_kept_from_the_moment_on():
    slow = evolve(DECLARED, max_concurrency=2, requests_per_minute=60)
    run = simulate(declared(prompts=80, controls=[Retune(at=3, limits=slow)]))
    assert (run.answered, run.violations) == (80, [])
    assert sent_between(run, 3, 33) <= 31, "one a second"


def test_a_limit_of_tokens_holds_back_what_the_rate_would_let_through():
    run = simulate(declared(TOKENS, prompts=100, longest_prompt=2000))
    assert (run.answered, run.failed, run.violations) == (100, 0, [])
    assert run.makespan > 2 * run.best_makespan


def test_prompts_may_be_long_in_coming_and_chats_come_in_waves():
    chats = [SingleChat(at=at) for wave in (5000, 20_000) for at in (wave, wave + 0.1, wave + 3)]
    silences = [Silence(before=0, seconds=50), Silence(before=10, seconds=3000)]
    run = simulate(declared(prompts=20, silences=silences, chats=chats))
    assert (run.answered, run.failed, run.violations) == (20, 0, [])
    assert len(run.sent_at[0]) == 26
    assert sent_between(run, 0, 50) == 0
    assert sent_between(run, 3060, 4999) == 0
    assert run.makespan > 20_003


@pytest.mark.parametrize(
    ("broken", "instead", "invariant", "scenario"),
    [
        ("gate.Gate.pause", lambda gate: None, 2, declared(prompts=60, controls=[Pause(at=2, seconds=10)])),
        (
            "gate.Gate._set",
            lambda gate: setattr(gate, "opens_at", gate.expected_at),
            11,
            declared(prompts=60, controls=[Pause(at=2, seconds=10)]),
        ),
        (
            "admission.Admission.retune",
            lambda core, limits, rate, now: None,
            2,
            declared(prompts=60, controls=[Retune(at=2, limits=evolve(DECLARED, max_concurrency=1))]),
        ),
        (
            "admission.Admission._return_tokens",
            lambda core, ticket, used, now: None,
            12,
            declared(TOKENS, prompts=60),
        ),
        (
            "admission.Admission._return_tokens",
            lambda core, ticket, used, now: core.tokens.give_back(2 * (ticket.tokens - used), now),
            12,
            declared(TOKENS, prompts=60),
        ),
    ],
    ids=["a pause that is not heard", "sends while paused", "a deaf retune", "lost tokens", "tokens from nowhere"],
)
def test_the_observer_catches(monkeypatch, broken, instead, invariant, scenario):
    monkeypatch.setattr(f"onellm_async.limits.{broken}", instead)
    assert any(text.startswith(f"({invariant}) ") for text in simulate(scenario).violations)


def test_the_observer_catches_requests_that_do_not_wait_for_their_tokens(monkeypatch):
    time_until = TokenBucket.time_until
    heedless = 3000.0

    def hasty(bucket, amount, now):
        return 0.0 if bucket.capacity == heedless else time_until(bucket, amount, now)

    monkeypatch.setattr(TokenBucket, "time_until", hasty)
    found = simulate(declared(TOKENS, prompts=60, longest_prompt=2000)).violations
    assert any("(12)" in text and "it needed" in text for text in found)
