import sqlite3
import sys
from pathlib import Path

import pytest

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.journal.journal import Journal
from onellm_async.cli import main


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a run whose journal is beside it."""
    monkeypatch.chdir(tmp_path)
    journal = Journal.open("answers.jsonl.journal", RunIdentity(input="prompts.txt", lines=3, model="GPT-5-Nano"))
    journal.finish("interrupted by Ctrl-C", complete=False)
    journal.close()
    return Path("answers.jsonl")


@pytest.mark.parametrize("given", ["answers.jsonl", "answers.jsonl.journal"])
def test_the_report_of_an_output_or_its_journal_is_written_beside_it(
    given: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", given]) == 0
    told = capsys.readouterr()
    page = Path("answers.jsonl.report.html").read_text("utf-8")
    assert told.out == ""
    assert told.err == f"Written to answers.jsonl.report.html ({len(page.encode()) / 1000:.0f} kB).\n"
    assert page.startswith("<!DOCTYPE html>")
    assert '<h1 dir="auto">answers.jsonl</h1>' in page
    assert "It ended: interrupted by Ctrl-C." in page


def test_the_report_goes_where_it_is_told_to_and_replaces_the_one_before(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["report", str(run), "-o", "monday.html"]) == 0
    assert "Written to monday.html" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["answers.jsonl.journal", "monday.html"]


def test_a_hyphen_writes_the_report_to_standard_output(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "-o", "-"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("<!DOCTYPE html>")
    assert told.out.endswith("</html>\n")
    assert told.err == ""


def test_answers_are_never_replaced_by_a_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.write_text("paid for")
    assert main(["report", str(run), "-o", str(run)]) == 2
    assert "answers.jsonl exists and is not a report. Name another file with -o." in capsys.readouterr().err
    assert run.read_text() == "paid for"


def test_a_run_that_is_not_there_is_an_error_that_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "nothing.jsonl"]) == 2
    assert "There is no journal at nothing.jsonl.journal." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("foreign", ["text", "database"])
def test_a_file_that_is_no_journal_is_left_alone(
    foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "other.journal"
    if foreign == "text":
        path.write_text("Dear diary, " * 100)
    else:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE days (day TEXT)")
        connection.close()
    before = path.read_bytes()
    assert main(["report", "other.journal"]) == 2
    assert "other.journal is not a journal." in capsys.readouterr().err
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "-o", "missing/r.html"]) == 2
    assert "missing/r.html cannot be written: No such file or directory." in capsys.readouterr().err


def test_without_jinja_the_command_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("onellm_async.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["report", str(run)]) == 2
    assert "Install it with: pip install 'onellm-async[cli,report]'" in capsys.readouterr().err


def test_the_help_shows_examples_and_what_is_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "onellm-async report answers.jsonl -o monday.html" in told
    assert "no prompts and no answers" in told
