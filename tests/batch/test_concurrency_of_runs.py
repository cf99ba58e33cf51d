"""`max_concurrency="auto"` of a run: its workers follow the number that is found out."""

from virtual_runs import run

from onellm_async import Limits


def test_a_run_has_as_many_workers_as_are_found_out():
    limits = Limits(max_concurrency="auto", requests_per_minute=600_000, burst=10_000)
    ran = run([str(number) for number in range(508)], lambda prompt, at: None, limits=limits, latency=1.0)
    assert ran.report.complete
    assert ran.seconds < 10, "4, 8, 16, … at once"
    each_second = [sum(int(at) == second for at, _ in ran.service.sent) for second in range(3)]
    assert each_second == [4, 8, 16]
