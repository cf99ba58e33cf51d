"""Two hundred scenarios drawn from seeds, each held against every invariant; and an observer that is no blind one."""

from collections import Counter

import pytest
from attrs import evolve

from onellm_async.chat import ChatOutcome, ChatResponse
from onellm_async.errors import APIConnectionError
from onellm_async.events import Granted, Queued, Refused, Retrying, Sent
from onellm_async.limits.policy import Limits
from onellm_async.retry import RetryPolicy
from onellm_async.server.settings import Faults
from onellm_async.simulation.__main__ import main, replay_line
from onellm_async.simulation.invariants import violations
from onellm_async.simulation.random_scenario import random_scenario
from onellm_async.simulation.scenario import Pause, Retune, Scenario, simulate
from onellm_async.simulation.trace import Cancelled, Left, Paused, Resumed, Retuned, Returned, Trace, TrueLimit

KNOWN = (20, 209, 377, 474, 631, 778, 925, 1207, 1238, 1517, 1603, 1618)
AFTER_SILENCE = (451, 645, 925)
CHUNK = 20


def broken(seed, **how):
    found = simulate(random_scenario(seed, **how)).violations
    return [f"{replay_line(seed, **how)}   # {text}" for text in found[:1]]


@pytest.mark.parametrize("first", range(0, 200, CHUNK))
def test_no_seed_breaks_an_invariant(first):
    wrong = [line for seed in range(first, first + CHUNK) for line in broken(seed)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("seed", KNOWN)
def test_seeds_that_once_broke_an_invariant_never_do_again(seed):
    assert not broken(seed, undisturbed=True)


@pytest.mark.parametrize("seed", AFTER_SILENCE)
def test_a_client_that_is_refused_after_a_long_silence_does_not_fall_silent_itself(seed):
    assert not broken(seed)


def test_disturbances_leave_what_a_seed_means_without_them():
    told = ("requests_per_minute", "burst", "faults", "changes", "outages", "travel", "lane", "deadline", "timeout")
    for seed in KNOWN:
        plain, full = random_scenario(seed, undisturbed=True), random_scenario(seed)
        assert [getattr(plain, name) for name in told] == [getattr(full, name) for name in told]
        assert full.chats[: len(plain.chats)] == plain.chats
        assert (plain.controls, plain.silences, plain.longest_prompt) == ((), (), 0)
        assert plain.limits.tokens_per_minute is None


def test_the_two_hundred_have_every_disturbance_among_them_and_some_have_none():
    scenarios = [random_scenario(seed) for seed in range(200)]
    controls = [control for scenario in scenarios for control in scenario.controls]
    kinds = Counter(type(control) for control in controls)
    assert min(kinds[Pause], kinds[Retune]) >= 30
    assert sum(scenario.limits.tokens_per_minute is not None for scenario in scenarios) >= 20
    assert sum(bool(scenario.silences) for scenario in scenarios) >= 10
    assert sum(random_scenario(seed, undisturbed=True) == scenarios[seed] for seed in range(200)) >= 50


def test_a_seed_gives_the_same_run_again_to_the_last_digit():
    for seed in (1, 2, 3, 5, 8, 13):
        assert random_scenario(seed) == random_scenario(seed)
        assert simulate(random_scenario(seed)) == simulate(random_scenario(seed))


def test_the_command_shows_scenario_result_and_violations(capsys):
    assert main(["1"]) == 0
    told = capsys.readouterr().out
    assert "seed: 1\n" in told
    assert "goodput" in told
    assert "violations: 0" in told


def test_many_seeds_are_summed_up_and_the_broken_ones_can_be_replayed(capsys, monkeypatch):
    monkeypatch.setattr(
        "onellm_async.simulation.__main__.simulate",
        lambda scenario: evolve(simulate(evolve(scenario, prompts=1)), violations=["(1) wrong"] * (scenario.seed == 6)),
    )
    assert main(["5", "--count", "3"]) == 1
    assert capsys.readouterr().out == "python -m onellm_async.simulation 6   # (1) wrong\n2 of 3 seeds passed.\n"
    assert main(["6", "--count", "2", "--undisturbed"]) == 1
    assert capsys.readouterr().out.startswith("python -m onellm_async.simulation 6 --undisturbed   # (1) wrong\n")


# The observer sees what it is there for.


def trace(*events, **changes):
    plain = Trace(
        limits=Limits(2, 60, 1),
        retry=RetryPolicy(max_attempts=2),
        true_limit=TrueLimit(1.0, 1.0),
        events=events,
        deadlines={},
        singles=frozenset(),
        asked=(),
        outcomes=(),
        single_answers=(),
        billed={},
        phantoms=(),
        idle_waits=(),
        left_over=(),
        complete=True,
    )
    return evolve(plain, **changes)


def attempt(request, at, until=None, attempt=1):
    until = at if until is None else until
    return (
        Granted(request, "m", at, 0.0),
        Sent(request, "m", at, attempt),
        Left(request, "m", at),
        Returned(request, "m", until, arrived=True),
    )


def queued(request, at, lane="batch"):
    return Queued(request, "m", at, lane)


def failure():
    return APIConnectionError("reset")


def outcome(index, prompt, content):
    return ChatOutcome(index, prompt, ChatResponse(content))


BROKEN = {
    "sends beyond the bucket": (1, trace(*attempt(1, 0.0), *attempt(2, 0.1), *attempt(3, 0.2))),
    "more under way than slots": (2, trace(*(Left(n, "m", 0.0) for n in range(3)), true_limit=None)),
    "a timer that is left": (2, trace(left_over=["1 timers are left"])),
    "a slot that nobody has": (2, trace(phantoms=["1 slots are taken by 0 requests"])),
    "a request without leave": (3, trace(Left(1, "m", 0.0), Returned(1, "m", 0.0, arrived=True))),
    "a grant that is never used": (3, trace(Granted(1, "m", 0.0, 0.0))),
    "overtaking": (4, trace(queued(1, 0.0), queued(2, 0.0), *attempt(2, 1.0), *attempt(1, 9.0))),
    "a refused one that loses its place": (
        4,
        trace(
            queued(1, 0.0),
            *attempt(1, 0.0),
            queued(2, 0.1),
            Refused(1, "m", 0.2, None),
            queued(1, 0.2),
            *attempt(2, 5.0),
            *attempt(1, 9.0),
        ),
    ),
    "time that passes for nothing": (5, trace(idle_waits=["1 s pass"])),
    "a cancelled request that goes on": (6, trace(Cancelled(1, "", 0.0, waiting=True), *attempt(1, 1.0))),
    "a send within Retry-After": (7, trace(Refused(1, "m", 0.0, 30.0), *attempt(2, 29.0))),
    "a send after the deadline": (7, trace(*attempt(1, 5.0), deadlines={1: 4.0})),
    "one attempt too many": (8, trace(Retrying(1, "m", 0.0, 2, 0.1, failure()))),
    "a bill that nobody speaks of": (
        8,
        trace(asked=["a"], outcomes=[outcome(0, "a", "a")], billed={"a": 2}),
    ),
    "the answer of another": (9, trace(asked=["a"], outcomes=[outcome(0, "a", "b")])),
    "no answer": (9, trace(asked=["a"])),
    "two answers": (9, trace(asked=["a"], outcomes=[outcome(0, "a", "a")] * 2)),
    "no end": (10, trace(complete=False)),
    "a send while paused": (11, trace(Paused(0, "", 1.0), *attempt(1, 2.0), Resumed(0, "", 3.0))),
    "more under way than the new slots": (
        2,
        trace(Left(1, "m", 0.0), Retuned(0, "", 1.0, Limits(1, 60, 1)), Left(2, "m", 2.0), true_limit=None),
    ),
    "tokens that were not there": (12, trace(token_errors=["request 1 left"])),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_observer_sees(name):
    invariant, run = BROKEN[name]
    assert any(text.startswith(f"({invariant}) ") for text in violations(run))


def test_the_observer_finds_nothing_wrong_with_a_good_run():
    events = (
        queued(1, 0.0),
        *attempt(1, 0.0),
        queued(2, 0.1),
        Paused(0, "", 0.2),
        Resumed(0, "", 0.9),
        Retuned(0, "", 1.0, Limits(1, 60, 1)),
        *attempt(2, 1.1),
    )
    assert violations(trace(*events, asked=["a"], outcomes=[outcome(0, "a", "a")], billed={"a": 1})) == []


def test_more_under_way_than_new_slots_is_no_error_as_long_as_nothing_is_added():
    events = [Left(1, "m", 0.0), Left(2, "m", 0.0), Retuned(0, "", 1.0, Limits(1, 60, 1))]
    ended = [Returned(1, "m", 2.0, arrived=True), Returned(2, "m", 2.0, arrived=True), Left(3, "m", 2.0)]
    assert not [text for text in violations(trace(*events, *ended, true_limit=None)) if text.startswith("(2)")]


def test_a_limiter_that_forgets_a_slot_is_caught(monkeypatch):
    monkeypatch.setattr("onellm_async.limits.limiter.Permit.settle", lambda permit: None)
    faults = Faults(latency=1, reset_before_rate=0.2)
    scenario = Scenario(prompts=60, limits=Limits(20, 600, 40), requests_per_minute=600, faults=faults)
    assert any("(2)" in text for text in simulate(scenario).violations)
