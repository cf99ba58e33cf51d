"""The benchmark of the limiter's targets says what it found, and in words whether that is enough."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.targets import LATENCY, Target, acquire_and_release, bytes_per_waiter, goodput_of, seconds_until_back
from onellm_async.limits.policy import Limits
from onellm_async.simulation import Scenario, simulate

ROOT = Path(__file__).parents[1]


def test_a_quick_run_has_a_row_for_every_target_and_some_settings_on_sockets(tmp_path):
    output = tmp_path / "targets.md"
    command = [sys.executable, "-m", "benchmarks", "--quick", "targets", "sockets", "--output", output]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=True)
    report = output.read_text("utf-8")
    rows = [line for line in report.splitlines() if line.startswith("| ") and "---" not in line]
    assert sum(re.search(r"\| +(met|not met|met by the median) \|$", row) is not None for row in rows) == 13
    assert sum(row.startswith("| 200/s, ") and row.endswith(" 0 |") for row in rows) == 2


def test_a_target_is_met_by_all_by_the_median_or_not():
    target = Target("x", "goodput", 0.9, at_least=True, form="{:.2f}")
    assert target.row([0.91, 0.95, 0.99]) == ("x: goodput", "≥ 0.90", "0.95", "0.91", "met")
    assert target.row([0.8, 0.95, 0.99])[2:] == ("0.95", "0.80", "met by the median")
    assert target.row([0.8, 0.85, 0.99])[2:] == ("0.85", "0.80", "not met")
    assert Target("x", "refused", 0.01).row([0.0, 0.0, 0.1])[-1] == "met by the median"


@pytest.mark.parametrize("late", [0.0, 50.0, 200.0])
def test_a_client_is_back_when_it_uses_the_changed_rate_and_no_more(late):
    """The limit doubles at 300 s, and this client notices it `late`."""
    slow = [second * 1.5 for second in range(int((300 + late) / 1.5))]
    fast = [slow[-1] + (number + 1) * 0.75 for number in range(400)]
    sent = slow + fast

    class Seen:
        sent_at = (sent,)
        answered_at = ([time + LATENCY for time in sent],)

    assert seconds_until_back(Seen, 80) == pytest.approx(late, abs=9), "a fifth of a window may still be slow"
    assert seconds_until_back(Seen, 40, changed_at=10) == 0
    assert seconds_until_back(Seen, 400) == float("inf")


def test_goodput_is_that_of_the_simulation():
    result = simulate(Scenario(prompts=60, limits=Limits(), seed=3))
    assert goodput_of(Limits(), 60, 3) == (result.goodput, result.rate_limited_share)


def test_costs_are_measured_not_guessed():
    assert 0 < acquire_and_release(500) < 1000
    assert 50 < bytes_per_waiter(2000) < 2000
