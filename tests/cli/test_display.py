import io

import pytest
from rich.console import Console

from onellm_async.batch import RunProgress
from onellm_async.cli.progress import clock_time, counted, live_view, note, plain_line, summary


def progress(**changes):
    usual = {
        "done": 120,
        "failed": 2,
        "bad_lines": 0,
        "total": 2000,
        "in_flight": 12,
        "refusals": 3,
        "retries": 4,
        "input_tokens": 1240,
        "output_tokens": 3001,
        "cost": 0.01234,
        "unpriced": 0,
        "elapsed": 60.0,
        "rate": 2.0,
        "eta": 940.0,
    }
    return RunProgress(**usual | changes)


def drawn(renderable):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard", _environ={})
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00 min"), (125, "2:05 min"), (11_229, "3:07:09 h")]
)
def test_times_are_told_as_a_clock_does(seconds, text):
    assert clock_time(seconds) == text


def test_numbers_agree_with_their_nouns():
    assert (counted(1, "prompt"), counted(1200, "prompt")) == ("1 prompt", "1,200 prompts")


def test_a_plain_line_tells_everything():
    assert plain_line(progress()) == (
        "120/2,000 done, 2.0 requests/s, 12 in flight, 4,241 tokens, $0.0123, "
        "3 refused, 4 retried, 2 failed, ETA 15:40 min"
    )


def test_what_is_not_known_is_not_made_up():
    line = plain_line(progress(total=None, eta=None, unpriced=7, bad_lines=1))

    assert line.startswith("120 done, ")
    assert line.endswith("2 failed, 1 bad line, ETA unknown")
    assert "$0.0123 + 7 of unknown price" in line


def test_a_summary_has_totals_with_units():
    assert summary(progress(bad_lines=2)) == (
        "118 answered, 2 failed, 2 bad lines in 60.0 s (2.0 requests/s); "
        "1,240 input + 3,001 output tokens, $0.0123; 3 refused, 4 retried."
    )
    assert summary(progress(done=0, failed=0, elapsed=0.0)).startswith("0 answered, 0 failed in 0.0 s (0.0 requests/s)")


def test_the_live_view_shows_a_bar_the_numbers_and_failures_in_red():
    shown = drawn(live_view(progress(bad_lines=1)))

    assert "120/2,000  1:00 min  ETA 15:40 min" in shown
    assert "2.0 requests/s" in shown
    assert "\x1b[31m2 failed" in shown
    assert "1 bad line" in shown
    assert "1,240 input + 3,001 output tokens  $0.0123" in shown
    assert "━" in shown


def test_the_live_view_of_an_endless_input_has_no_total_and_nothing_red_while_all_is_well():
    shown = drawn(live_view(progress(total=None, failed=0, eta=None)))

    assert "120  1:00 min  ETA unknown" in shown
    assert "\x1b[31m0 failed" not in shown


def test_a_note_is_printed_as_it_is_but_for_control_characters():
    console = Console(file=io.StringIO(), width=20)
    note(console, "[bold]in.txt:1[/bold] \x1b[31m a line that is longer than the terminal is wide")

    assert console.file.getvalue() == "[bold]in.txt:1[/bold] �[31m a line that is longer than the terminal is wide\n"
