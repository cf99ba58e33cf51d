"""The benchmark of limits of every kind: its cases, its figures, and what it says of them."""

from attrs import evolve

from benchmarks import limit_sockets
from benchmarks.any_limit import REFERENCE, Case, Figures, Outcome, cases, dark_second, main, outcome_of
from onellm_async.server import Faults, WindowLimit
from onellm_async.simulation import Scenario, simulate


def case_named(name):
    return next(case for case in cases() if case.name == name)


def test_every_case_has_a_name_of_its_own_and_a_reference():
    names = [case.name for case in cases()]
    assert len(names) == 87
    assert set(names) == set(REFERENCE)


def test_the_share_of_a_case_is_that_of_the_best_possible_time():
    case = case_named("sliding 40 in 60, N=5w, lat 0.3, c48")
    outcome = outcome_of(case, 1)
    result = simulate(evolve(case.scenario, seed=1))
    assert outcome == Outcome(result.goodput, result.rate_limited / 200, dark_second(result))
    assert 240 < result.best_makespan < 241


def test_a_changing_limit_is_judged_by_what_is_accepted_after_the_change():
    outcome = outcome_of(case_named("40/min -> 20/min (empty), 60..660 s after"), 1)
    assert 0.9 <= outcome.share <= 1.05


def test_a_case_is_met_by_medians_and_by_the_worst_dark_second():
    case = Case(1, "bucket 5/s b1", Scenario(), 0.9, 0.1)

    def row(*outcomes):
        return Figures(case, [Outcome(*each) for each in outcomes]).row()[-1]

    assert row((0.99, 0.01, 0), (0.99, 0.01, 2), (0.5, 0.5, 1)) == "met"
    assert row((0.99, 0.01, 0), (0.99, 0.01, 3)) == "not met"
    assert row((0.95, 0.01, 0)) == "met, below the reference"
    assert row((0.99, 0.02, 0)) == "met, below the reference"
    assert row((0.8, 0.01, 0)) == "not met, below the reference"


def test_the_command_prints_a_row_for_each_case_that_was_chosen(tmp_path, capsys):
    output = tmp_path / "limits.md"
    main(["--seeds", "1", "--only", "concurrent 16, lat 0.3", "--processes", "1", "--output", str(output)])
    text = output.read_text("utf-8")
    assert "against 1 services, 1 seeds each" in text
    assert text in capsys.readouterr().out


def test_a_window_is_used_by_more_than_one_client_in_a_simulation():
    limits = [WindowLimit(30, 10.0)]
    run = simulate(Scenario(prompts=60, clients=2, service_limits=limits, faults=Faults(latency=0.1)))
    assert run.answered == 120
    assert run.best_makespan < run.makespan


def test_a_client_is_measured_at_a_window_over_sockets():
    section = limit_sockets.run(repetitions=1, services=limit_sockets.QUICK, only="onellm-async")
    assert [row[0] for row in section.rows] == ["40 in 0.5 s: onellm-async, nothing declared"]
    assert section.rows[0][-1] == "0 (0)"


def test_a_client_that_is_not_done_in_time_is_listed_so():
    section = limit_sockets.run(repetitions=1, services=limit_sockets.QUICK, only="onellm-async", give_up=0.01)
    assert section.rows[0][1] == "not done after 0.01 s"


def test_services_and_clients_of_the_sockets_are_chosen_by_parts_of_their_names(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(limit_sockets, "_once", lambda service, contender, give_up: asked.append((service, contender)))
    monkeypatch.setattr(limit_sockets, "_row", lambda service, contender, found: ("", "", "", "", ""))
    main(["--sockets", "--repetitions", "2", "--only", "200/s", "--only", "8 in", "--client", "litellm",
          "--client", "onellm", "--beside", "1"])  # fmt: skip
    names = [(service.name, contender.name) for service, contender in asked]
    assert len(names) == 8
    assert set(names[:4]) == set(names[4:])
    assert {name for name, _ in names} == {"8 in flight", "200/s, burst 40"}
    assert "1 runs at a time" in capsys.readouterr().out
