import stat
from pathlib import Path

import pytest

from onellm_async.errors import BatchError
from onellm_async.report.page import GENERATOR, report_path, save_report

PAGE = f'<!DOCTYPE html><meta name="generator" content="{GENERATOR}">é'


def test_a_report_stands_beside_the_journal_and_is_named_after_the_output() -> None:
    assert report_path(Path("runs/answers.jsonl.journal")) == Path("runs/answers.jsonl.report.html")


def test_a_report_appears_whole_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    save_report(PAGE, path)
    save_report(PAGE + "more", path)
    assert path.read_text("utf-8") == PAGE + "more"
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o111 == 0


def test_nothing_but_a_report_is_replaced(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text("paid for")
    with pytest.raises(BatchError, match=r"answers.jsonl exists and is not a report. Name another file with -o."):
        save_report(PAGE, answers)
    with pytest.raises(BatchError, match="exists and is not a report"):
        save_report(PAGE, tmp_path)
    link = tmp_path / "link.html"
    link.symlink_to(answers)
    with pytest.raises(BatchError, match="exists and is not a report"):
        save_report(PAGE, link)
    assert answers.read_text() == "paid for"


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=r"missing/r.html cannot be written: No such file or directory. Name another"):
        save_report(PAGE, tmp_path / "missing" / "r.html")
    with pytest.raises(BatchError, match="cannot be written"):
        save_report(PAGE, Path("\0"))


def test_what_stands_there_stays_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    save_report(PAGE, path)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BatchError, match="No space left on device"):
        save_report("new", path)
    assert path.read_text("utf-8") == PAGE
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
