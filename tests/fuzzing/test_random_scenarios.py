"""Two hundred random scenarios, each checked against every invariant, and the command that replays them."""

from collections import Counter

import pytest
from attrs import evolve

from onellm_async.server import ClosedTimes, ConcurrencyLimit, RandomLimit, WindowLimit
from onellm_async.simulation import Pause, Retune, simulate
from tests.fuzzing.__main__ import main, replay_line
from tests.fuzzing.invariants import Violation
from tests.fuzzing.observed_run import ObservedRun, observe
from tests.fuzzing.random_scenario import random_scenario
from tests.fuzzing.recorder import Recorder
from tests.fuzzing.trace_printer import TracingRecorder, phase_of

KNOWN = (20, 209, 377, 474, 631, 778, 925, 1207, 1238, 1517, 1603, 1618)
AFTER_SILENCE = (400, 451, 528, 645, 925, 10_233, 700_038)
SINCE_MENDED = {
    10_187: "a Retry-After of 0 tells nothing",
    10_656: "429s at random slow a client down",
    700_176: "overloads are no attempts, and use no tokens",
    708_650: "a window that was never full is doubted",
    740_874: "a service that was down is no window, and a probe goes on after it",
}
CHUNK = 20


def broken(seed, **how):
    found = observe(random_scenario(seed, **how)).violations
    return [replay_line(seed, violation, **how) for violation in found[:1]]


@pytest.mark.parametrize("first", range(0, 200, CHUNK))
def test_no_seed_breaks_an_invariant(first):
    wrong = [line for seed in range(first, first + CHUNK) for line in broken(seed)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("seed", KNOWN)
def test_seeds_that_once_broke_an_invariant_never_do_again(seed):
    assert not broken(seed, undisturbed=True)


@pytest.mark.parametrize("seed", AFTER_SILENCE)
def test_a_client_with_a_429_after_a_long_silence_does_not_fall_silent_itself(seed):
    assert not broken(seed)


@pytest.mark.parametrize(("seed", "what"), SINCE_MENDED.items())
def test_what_once_broke_an_invariant_never_does_again(seed, what):
    assert not broken(seed), what


def test_perturbations_leave_what_a_seed_means_without_them():
    names = (
        "requests_per_minute",
        "burst",
        "outages",
        "network_delay",
        "lane",
        "deadline",
        "timeout",
    )
    for seed in KNOWN:
        plain, full = random_scenario(seed, undisturbed=True), random_scenario(seed)
        assert [getattr(plain, name) for name in names] == [getattr(full, name) for name in names]
        assert ((plain.faults, plain.changes) == (full.faults, full.changes)) == (full.service_limits is None)
        assert full.chats[: len(plain.chats)] == plain.chats
        assert (plain.controls, plain.source_gaps, plain.max_prompt_length) == ((), (), 0)
        assert plain.limits.tokens_per_minute is None


def test_the_two_hundred_have_every_perturbation_among_them_and_some_have_none():
    scenarios = [random_scenario(seed) for seed in range(200)]
    controls = [control for scenario in scenarios for control in scenario.controls]
    kinds = Counter(type(control) for control in controls)
    assert min(kinds[Pause], kinds[Retune]) >= 30
    assert sum(scenario.limits.tokens_per_minute is not None for scenario in scenarios) >= 20
    assert sum(bool(scenario.source_gaps) for scenario in scenarios) >= 10
    assert sum(random_scenario(seed, undisturbed=True) == scenarios[seed] for seed in range(200)) >= 30


def test_every_other_of_the_two_hundred_has_limits_of_another_kind():
    scenarios = [random_scenario(seed) for seed in range(200)]
    assert [scenario.service_limits is None for scenario in scenarios] == [False, True] * 100
    others = scenarios[::2]
    kinds = Counter(
        (type(limit), getattr(limit, "sliding", None)) for scenario in others for limit in scenario.service_limits
    )
    assert min(kinds[WindowLimit, True], kinds[WindowLimit, False], kinds[ConcurrencyLimit, None]) >= 25
    assert kinds[ClosedTimes, None] >= 10
    assert kinds[RandomLimit, None] >= 5
    assert sum(len(scenario.service_limits) > 1 for scenario in others) >= 30
    assert sum(bool(scenario.changes) for scenario in others) >= 20
    assert sum(bool(scenario.background_rate) for scenario in others) >= 10
    assert sum(scenario.faults.database_places is not None for scenario in others) >= 5
    assert {scenario.faults.retry_after for scenario in others} >= {None, "seconds", "fraction", "milliseconds"}
    assert {scenario.rate_headers for scenario in others} == {None, "openai", "seconds", "epoch"}


def test_a_seed_gives_the_same_run_again_to_the_last_digit():
    for seed in (1, 2, 3):
        assert random_scenario(seed) == random_scenario(seed)
        assert simulate(random_scenario(seed)) == simulate(random_scenario(seed))


def test_observers_change_nothing():
    for seed in (1, 2, 3):
        scenario, moments = random_scenario(seed), []
        recorders = [Recorder(scenario.limits, scenario.deadline) for _ in range(scenario.clients)]
        tracing = [TracingRecorder(scenario, moments, number) for number in range(scenario.clients)]
        plain = simulate(scenario)
        assert simulate(scenario, observers=recorders) == plain
        assert simulate(scenario, observers=tracing) == plain
        assert {moment.phase for moment in moments} - {""}


def test_the_command_shows_scenario_result_and_violations(capsys):
    assert main(["1"]) == 0
    out = capsys.readouterr().out
    assert "seed: 1\n" in out
    assert "goodput" in out
    assert "violations: 0" in out


def test_many_seeds_are_summed_up_and_the_broken_ones_can_be_replayed(capsys, monkeypatch):
    def broken_at_six(scenario):
        run = observe(evolve(scenario, prompts=1))
        violation = Violation(4, 5.9, "overtook request 2", request=3)
        return ObservedRun(run.result, run.traces, [violation] * (scenario.seed == 6))

    monkeypatch.setattr("tests.fuzzing.__main__.observe", broken_at_six)
    line = "--trace --around 5.900   # (4) request 3, 5.900 s: overtook request 2\n"
    assert main(["5", "--count", "3"]) == 1
    assert capsys.readouterr().out == f"python -m tests.fuzzing 6 {line}2 of 3 seeds passed.\n"
    assert main(["6", "--count", "2", "--undisturbed"]) == 1
    assert capsys.readouterr().out.startswith(f"python -m tests.fuzzing 6 --undisturbed {line}")


def test_a_trace_shows_time_request_lane_event_level_and_phase(capsys):
    assert main(["3", "--trace"]) == 0
    everything, summary = capsys.readouterr().out.split("\n\n", 1)
    heading, *lines = everything.splitlines()
    assert heading.split() == ["time", "request", "lane", "event", "level", "phase"]
    assert lines[0].split() == ["0.00000", "1", "batch", "Queued"]
    assert lines[2].split() == ["0.00000", "1", "batch", "Sent", "30.98", "DeclaredRate", "attempt=1"]
    assert [float(line.split()[0]) for line in lines] == sorted(float(line.split()[0]) for line in lines)
    assert summary.startswith("prompts: 59\n")
    assert main(["3", "--trace", "--around", "50"]) == 0
    around = capsys.readouterr().out.split("\n\n", 1)[0].splitlines()[1:]
    assert len(around) == 50
    assert float(around[24].split()[0]) < 50 <= float(around[25].split()[0])


def test_a_trace_of_several_clients_names_the_client_of_each_event(capsys):
    seed = next(seed for seed in range(100) if random_scenario(seed).clients == 4)
    assert main([str(seed), "--trace"]) == 0
    heading, *lines = capsys.readouterr().out.split("\n\n", 1)[0].splitlines()
    assert heading.split()[:3] == ["time", "client", "request"]
    assert {line.split()[1] for line in lines} == {"0", "1", "2", "3"}


def test_a_trace_shows_the_phases_of_a_rate_that_is_discovered():
    seed = next(seed for seed in range(100) if random_scenario(seed, undisturbed=True).limits.mode == "discover")
    scenario, moments = random_scenario(seed, undisturbed=True), []
    observe(scenario, lambda scenario: TracingRecorder(scenario, moments, 0))
    assert {"Startup", "Silence"} <= {moment.phase for moment in moments}
    assert phase_of(None) == ""


def test_around_without_a_trace_is_rejected(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["3", "--around", "5"])
    assert "--around needs --trace" in capsys.readouterr().err
