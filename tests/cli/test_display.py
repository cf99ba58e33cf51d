import io
import re

import pytest
from attrs import evolve
from rich.console import Console

from onellm_async.batch import Budget, RunCounts, RunProgress
from onellm_async.batch.run_report import money_at_risk
from onellm_async.batch.run_report import resuming_text as resuming
from onellm_async.cli.run_display import clock_time, live_view, note, plain_line, summary
from onellm_async.formatting import pluralize
from onellm_async.limits.snapshot import Snapshot


def progress(**changes):
    usual = {
        "completed": 120,
        "failed": 2,
        "completed_before": 0,
        "held": 0,
        "bad_lines": 0,
        "total": 2000,
        "in_flight": 12,
        "rate_limited": 3,
        "retries": 4,
        "counts": RunCounts(cost=0.01234, input_tokens=1240, output_tokens=3001),
        "elapsed": 60.0,
        "rate": 2.0,
        "eta": 940.0,
        "eta_low": None,
        "eta_high": None,
    }
    totals = {name: changes.pop(name) for name in ("deduplicated", "unpriced") if name in changes}
    usual["counts"] = evolve(usual["counts"], **totals)
    return RunProgress(**usual | changes)


def limiter(**changes):
    return Snapshot(**{"max_concurrency": 48, "concurrency": 48, "rate": 150.0, "bottleneck": "rate"} | changes)


def drawn(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard", _environ={})
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00 min"), (125, "2:05 min"), (11_229, "3:07:09 h")]
)
def test_times_are_told_as_a_clock_does(seconds, text):
    assert clock_time(seconds) == text


def test_numbers_agree_with_their_nouns():
    assert (pluralize(1, "prompt"), pluralize(1200, "prompt")) == ("1 prompt", "1,200 prompts")


def test_a_plain_line_tells_everything():
    waiting = limiter(queued={"interactive": 1, "default": 0, "batch": 1200}, bottleneck="tokens")
    assert plain_line(progress(), waiting) == (
        "120/2,000 done, 2.0 of 2.5 requests/s, 12 in flight, queued: 1 interactive, 1,200 batch, "
        "bottleneck: token limit, 4,241 tokens, $0.012, 3 rate-limited, 4 retries, 2 failed, ETA 15:40 min"
    )


def test_the_limit_that_was_found_is_told():
    line = plain_line(progress(), limiter(limit_found="40 requests in any 60 s, 4 requests at once"))
    assert "12 in flight, found: 40 requests in any 60 s, 4 requests at once, 4,241 tokens" in line


def test_a_burst_is_not_told_as_a_share_of_the_limit():
    assert "314.1 requests/s (burst; limit 2.5), 12 in flight" in plain_line(progress(rate=314.1), limiter())


def test_no_rate_is_told_as_more_than_a_whole():
    shown = [plain_line(progress(rate=rate), limiter()).split(", ")[1] for rate in (2.5, 2.54, 2.6, 3.5)]
    assert shown == [
        "2.5 of 2.5 requests/s",
        "2.5 of 2.5 requests/s",
        "2.6 requests/s (limit 2.5)",
        "3.5 requests/s (burst; limit 2.5)",
    ]


def test_money_and_tokens_are_set_against_the_budget():
    line = plain_line(progress(), limiter(), Budget(max_cost=5.0, max_tokens=10_000))

    assert "4,241 of 10,000 tokens, $0.012 of $5.00" in line


def test_the_time_left_has_its_spread_where_that_matters():
    assert plain_line(progress(eta_low=800.0, eta_high=1100.0), limiter()).endswith(
        "ETA 15:40 min (13:20 min to 18:20 min)"
    )
    assert plain_line(progress(eta_low=939.0, eta_high=940.5), limiter()).endswith("ETA 15:40 min")


def test_a_paused_run_says_so_instead_of_what_it_waits_for():
    line = plain_line(progress(), limiter(paused=True, bottleneck="paused"))

    assert "paused" in line
    assert "bottleneck" not in line


def test_what_is_not_known_is_not_made_up():
    line = plain_line(progress(total=None, eta=None, unpriced=7, bad_lines=1), limiter(rate=None))

    assert line.startswith("120 done, 2.0 requests/s, ")
    assert line.endswith("2 failed, 1 bad line, ETA unknown")
    assert "$0.012 + 7 of unknown price" in line


def test_a_summary_has_totals_with_units():
    assert summary(progress(bad_lines=2)) == (
        "118 answered, 2 failed, 2 bad lines in 60.0 s (2.0 requests/s); "
        "1,240 input + 3,001 output tokens, $0.012; 3 rate-limited, 4 retries."
    )
    assert summary(progress(completed=0, failed=0, elapsed=0.0)).startswith(
        "0 answered, 0 failed in 0.0 s (0.0 requests/s)"
    )


def test_a_summary_tells_what_was_there_before_and_what_was_copied_and_counts_neither_as_speed():
    assert summary(progress(completed_before=60, deduplicated=20)).startswith(
        "118 answered (20 copied from identical ones), 2 failed (60 in earlier sessions) in 60.0 s (1.0 requests/s)"
    )


def test_the_live_view_shows_a_bar_the_numbers_and_failures_in_red():
    shown = drawn(live_view(progress(bad_lines=1), limiter()))

    assert "120/2,000  1:00 min  ETA 15:40 min" in shown
    assert "2.0 of 2.5 requests/s" in shown
    assert "\x1b[31m2 failed" in shown
    assert "1 bad line" in shown
    assert "4,241 tokens  (1,240 input + 3,001 output)  $0.012" in shown
    assert "━" in shown


def test_the_live_view_of_an_endless_input_has_no_total_and_nothing_red_while_all_is_well():
    shown = drawn(live_view(progress(total=None, failed=0, eta=None), limiter()))

    assert "120  1:00 min  ETA unknown" in shown
    assert "\x1b[31m0 failed" not in shown


def test_the_live_view_of_a_paused_run_says_so_in_yellow():
    assert "\x1b[33mpaused" in drawn(live_view(progress(), limiter(paused=True)))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_narrow_terminal_shows_all_of_the_live_view_in_more_lines(width):
    busy = progress(completed=120_000, total=2_000_000, bad_lines=7, eta=94_000.0, eta_low=90_000.0, eta_high=99_000.0)
    state = limiter(queued={"batch": 4000}, backing_off=12, trial_in=9.0, last_error="503 Service Unavailable.")
    lines = re.sub(r"\x1b\[[\d;]*m", "", drawn(live_view(busy, state, Budget(max_cost=5)), width)).splitlines()
    shown = " ".join(" ".join(lines).split())

    assert max(map(len, lines)) <= width
    assert len(lines) <= (3 if width == 200 else 24)
    for part in (
        *("120,000/2,000,000", "1:00 min", "ETA 26:06:40 h", "2.0 of 2.5 requests/s", "12 in flight", "3 429s"),
        *("4 retries", "2 failed", "7 bad lines", "4,000 queued", "12 waiting for a retry", "$0.012 of $5"),
        "circuit open: 503 Service Unavailable, next attempt in 9 s",
    ):
        assert part in shown


def test_a_narrow_terminal_breaks_lines_between_figures():
    lines = re.sub(r"\x1b\[[\d;]*m", "", drawn(live_view(progress(), limiter()), 40)).splitlines()

    assert [line.strip() for line in lines] == [
        "120/2,000  1:00 min  ETA 15:40 min",
        "━━" + lines[1].strip()[2:],
        "2.0 of 2.5 requests/s  12 in flight",
        "3 429s  4 retries  2 failed",
        "4,241 tokens",
        "(1,240 input + 3,001 output)  $0.012",
    ]


def test_requests_that_wait_are_called_queued_and_lanes_named_where_there_are_several():
    assert "  1,200 queued" in drawn(live_view(progress(), limiter(queued={"interactive": 0, "batch": 1200})))
    both = plain_line(progress(), limiter(queued={"interactive": 1, "default": 0, "batch": 1200}))
    assert "queued: 1 interactive, 1,200 batch" in both


def test_a_note_is_printed_as_it_is_but_for_control_characters():
    console = Console(file=io.StringIO(), width=20)
    note(console, "[bold]in.txt:1[/bold] \x1b[31m a line that is longer than the terminal is wide")

    assert console.file.getvalue() == "[bold]in.txt:1[/bold] �[31m a line that is longer than the terminal is wide\n"


def test_the_money_at_risk_is_bounded_by_max_tokens_or_told_by_experience():
    assert money_at_risk(RunCounts(answered=4, cost=0.4, in_flight=2, at_risk=0.05)) == "at most $0.05 at risk"
    assert money_at_risk(RunCounts(answered=4, cost=0.4, in_flight=2)) == "about $0.20 at risk, as answers cost so far"
    assert money_at_risk(RunCounts(in_flight=2)) == "the amount at risk is unknown without --max-tokens"
    unpriced = RunCounts(in_flight=2, at_risk_tokens=60)
    assert money_at_risk(unpriced) == "the amount at risk is unknown without a list price"
    assert money_at_risk(RunCounts(answered=4, cost=0.4)) == "at most $0.00 at risk"


def test_a_circuit_that_is_open_is_told_with_its_cause_and_the_next_attempt():
    shut = limiter(bottleneck="circuit_open", trial_in=12.3, last_error="No connection to 127.0.0.1:9: refused.")
    line = plain_line(progress(), shut)

    assert "circuit open: No connection to 127.0.0.1:9: refused, next attempt in 12 s, " in line
    assert "circuit open: 503 busy, a trial request in flight, " in plain_line(
        progress(), limiter(bottleneck="circuit_open", trial_in=0.0, last_error="503 busy")
    )
    assert "circuit open: No connection" in drawn(live_view(progress(), shut))


def test_a_pause_for_failures_is_told_with_its_cause_and_the_next_attempt():
    trouble = {"trouble": "11 of the last 20 prompts failed alike: 500 boom.", "trial_in": 75.0}

    assert "paused: 11 of the last 20 prompts failed alike: 500 boom, next attempt in 1:15 min, " in (
        plain_line(progress(**trouble), limiter(bottleneck="idle"))
    )


def test_while_nothing_but_retries_wait_the_last_error_is_told():
    waiting = limiter(bottleneck="idle", backing_off=3, in_flight=0, last_error="500 boom.")
    assert ", 3 waiting for a retry, last error: 500 boom, " in plain_line(progress(), waiting)


def test_what_is_left_when_a_run_resumes_is_told_with_all_that_may_have_been_billed():
    counts = RunCounts(answered=8214, failed=3, in_flight=2, possibly_billed=10, at_risk=0.0041, cost=1.9)
    assert resuming(counts, 9988) == (
        "Resuming: 8,214 answered, 3 failed, 12 possibly billed (at most $0.0041 at risk), 1,771 remaining. "
        "Spent: $1.90."
    )
    assert resuming(RunCounts(answered=1)) == "Resuming: 1 answered, 0 failed, 0 possibly billed. Spent: $0.00."
