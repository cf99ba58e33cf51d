import base64
import hashlib
import json
import re
from datetime import UTC, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_reports import HOSTILE, START, a_report, bad_line, failure, span

import onellm_async.report
from onellm_async.batch.journal.record import RunCounts
from onellm_async.report.model import Latency, Report, RunStatus, RunTotals, TimeSlice
from onellm_async.report.page import render_page

VENDOR = Path(onellm_async.report.__file__).parent / "vendor"


class Reader(HTMLParser):
    """The words, the tags and the scripts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(report: Report) -> Reader:
    reader = Reader()
    reader.feed(render_page(report, zone=UTC))
    return reader


def test_the_page_tells_how_the_run_stands_and_its_figures() -> None:
    text = read(a_report()).text
    for words in (
        "answers.jsonl gsm8k.jsonl, sent to GPT-5-Nano complete",
        "Started 2026-01-01 09:00:00 UTC, resumed once, finished 2026-01-01 21:32:27 UTC.",
        "Answered 1,307 of 1,321 prompts",
        "Failed 12 and 2 bad lines",
        "Possibly billed 3 attempts at most $0.00042 at risk",
        "Duration 32 min 27 s active in 2 sessions, 12 h 32 min from start to end",
        "Goodput 94.8 % of what the limit allowed; 40.3 answers/min",
        "Cost $0.42 of $0.50 budget",
        "Tokens 534,081 131,204 input, 402,877 output",
        "Rate-limited 9 429s, not billed; 31 retries after failures",
        "91 % of the time the rate limit",
        "rate limit 91 %",
        "killed; end = last activity",
    ):
        assert words in text


def test_times_are_told_in_the_zone_that_is_asked_for() -> None:
    page = render_page(a_report(), zone=timezone(timedelta(hours=8), "CST"))
    assert "2026-01-01 17:00:00 CST" in page


def test_an_interrupted_run_says_what_is_left_and_how_to_go_on() -> None:
    sessions = (span(START, START + 60, end_reason="interrupted by Ctrl-C"),)
    totals = RunTotals(counts=RunCounts(answered=40, failed=1, in_flight=2, possibly_billed=2, at_risk=0.01), total=100)
    text = read(a_report(status=RunStatus.INTERRUPTED, sessions=sessions, totals=totals)).text
    assert "last activity 2026-01-01 09:01:00 UTC" in text
    assert "It ended: interrupted by Ctrl-C." in text
    assert "59 of 100 prompts remain. Run the same command again to resume." in text
    assert "Possibly billed 2 attempts at most $0.01 at risk" in text


def test_money_that_may_be_owed_and_has_no_bound_is_not_told_as_nothing() -> None:
    counts = RunCounts(answered=4, cost=0.4, possibly_billed=2)
    text = read(a_report(totals=RunTotals(counts=counts, total=6))).text
    assert "Possibly billed 2 attempts about $0.20 at risk, as answers cost so far" in text
    assert counts.to_dict()["at_risk"] is None


def test_a_running_run_shows_what_is_under_way_and_not_as_lost() -> None:
    sessions = (span(START, START + 60, is_running=True),)
    text = read(
        a_report(
            status=RunStatus.RUNNING, sessions=sessions, totals=RunTotals(counts=RunCounts(in_flight=7, at_risk=0.02))
        )
    ).text
    assert "still running when this report was created" in text
    assert "In flight 7 at most $0.02 at risk" in text
    assert "Possibly billed" not in text.partition("Failed prompts")[0]


def test_nothing_that_comes_from_the_run_becomes_html() -> None:
    hostile = a_report(name=HOSTILE, subtitle=HOSTILE, parameters=((HOSTILE, HOSTILE),))
    harmless = a_report(
        failures=tuple(failure(record.index, "id", "Error", "text") for record in a_report().failures),
        bad_lines=(bad_line(77, "x"), bad_line(901, "y")),
        parameters=(("a", "b"),),
    )
    first, second = read(hostile), read(harmless)
    assert [tag for tag, _ in first.tags] == [tag for tag, _ in second.tags]
    assert first.text.count("<script>window.hacked = true</script>") >= 6


def test_a_label_with_html_cannot_end_the_numbers_of_the_plots() -> None:
    part = TimeSlice(start=0, clock=START, width=10, queued={HOSTILE: 3}, in_flight=1)
    reader = read(a_report(slices=(part,)))
    numbers = json.loads(reader.scripts[0])
    assert numbers[2]["curves"][0]["label"] == f"queued, {HOSTILE}"
    assert len(reader.scripts) == 3


def test_only_the_two_scripts_of_the_page_may_run_and_nothing_may_be_loaded() -> None:
    reader = read(a_report())
    policy = next(attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv"))
    assert policy is not None
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in reader.scripts[1:]}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert policy.startswith("default-src 'none'")
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    assert not any(attrs.get("src") or (attrs.get("href") or "data:")[:5] != "data:" for _, attrs in reader.tags)


def test_every_figure_of_a_plot_is_in_a_table_without_scripts() -> None:
    report = a_report()
    text = read(report).text
    assert text.count("The numbers") == 5
    assert "15 s 09:00:15" in text
    assert "2.83 s to 4 s 342 68 %" in text


def test_the_license_of_the_plots_goes_with_every_copy() -> None:
    page = render_page(a_report(), zone=UTC)
    text = (VENDOR / "uPlot.LICENSE").read_text("utf-8").strip()
    assert text.startswith("The MIT License (MIT)\n\nCopyright (c)")
    assert text in page


def test_headings_tables_and_plots_have_names_for_those_who_do_not_see() -> None:
    tags = read(a_report()).tags
    assert [tag for tag, _ in tags if tag in {"h1", "h2", "h3"}] == ["h1", *["h2"] * 12]
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags) == 11
    assert all(attrs.get("aria-label") for _, attrs in tags if attrs.get("role") in {"img", "region"})
    assert all(attrs.get("scope") in {"col", "row"} for tag, attrs in tags if tag == "th")
    assert tags[1][1]["lang"] if tags[1][0] == "html" else tags[0][1]["lang"] == "en"


@pytest.mark.parametrize("standing", RunStatus)
def test_a_run_in_which_nothing_has_happened_yet_has_a_page(standing: RunStatus) -> None:
    report = Report(name="empty.jsonl", created_at=START, status=standing, totals=RunTotals())
    text = read(report).text
    assert "Answered 0 prompts" in text
    assert "Goodput" not in text
    assert "Throughput" not in text


def test_lone_surrogates_and_control_characters_do_not_stop_the_page() -> None:
    report = a_report(name="a\ud800b\x00c", latency=Latency())
    assert "a?b\x00c" in render_page(report, zone=UTC).encode().decode()


def test_the_page_stays_small() -> None:
    assert len(render_page(a_report(), zone=UTC)) < 200_000


def test_the_page_of_the_longest_run_stays_below_400_kilobytes() -> None:
    lanes = {"interactive": 123_456.0, "default": 123_456.0, "batch": 123_456.0}
    parts = tuple(
        TimeSlice(
            start=at * 14_400.0,
            clock=START + at * 14_400,
            width=14_400.0,
            answered=123_456,
            failed=123_456,
            limit=12_345.678,
            queued=lanes,
            in_flight=1234.5678,
            rate_limited=12_345,
            retries=12_345,
            cost=12_345.678 + at,
            input_tokens=123_456_789,
            output_tokens=123_456_789,
        )
        for at in range(190)
    )
    long = failure(12, "i" * 64, "BadRequestError", "€" * 300)
    page = render_page(
        a_report(slices=parts, failures=(long,) * 50, bad_lines=(bad_line(1, "€" * 300),) * 50), zone=UTC
    )
    assert len(page.encode()) < 400_000
