"""The report of a run, or of all shards of one: one HTML file, from its journals."""

import os
import time
from datetime import datetime
from pathlib import Path

from onellm_async.batch.journal.reader import JournalReader
from onellm_async.report.model import Report
from onellm_async.report.page import render_page, report_path, save_report
from onellm_async.report.reading import read_report
from onellm_async.report.shards import read_shards_report

__all__ = ["Report", "read_report", "read_shards_report", "render_page", "render_report", "report_path", "save_report"]


def render_report(run: str | os.PathLike[str]) -> tuple[str, Path]:
    """The page of a run as it is now, in the time zone of this machine, and the path that it is named after.

    Args:
        run: Path of its output or of its journal, or a directory of shards.

    Returns:
        HTML, and the path of the journal or of the directory.

    Raises:
        BatchError: If there is no journal, or it cannot be read.
    """
    if Path(run).is_dir():
        path = Path(run).resolve()
        report = read_shards_report(path, now=time.time())
    else:
        with JournalReader.open(run) as journal:
            report, path = read_report(journal, now=time.time()), journal.path
    zone = datetime.now().astimezone().tzinfo
    assert zone is not None  # noqa: S101  # astimezone gives one
    return render_page(report, zone=zone), path
