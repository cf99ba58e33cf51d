"""A run's journal → one HTML file that tells how it went.

``model.py`` holds the numbers, ``reading.py`` takes them out of a journal, ``page.py`` makes HTML of them.
"""

import os
import time
from datetime import datetime
from pathlib import Path

from onellm_async.batch.journal.reader import JournalReader
from onellm_async.report.model import Report
from onellm_async.report.page import render
from onellm_async.report.reading import read_report
from onellm_async.report.saving import report_path, save_report

__all__ = ["Report", "read_report", "render", "render_report", "report_path", "save_report"]


def render_report(run: str | os.PathLike[str]) -> tuple[str, Path]:
    """The report of a run as it stands, in the time zone of this machine, and the path of the run's journal.

    Args:
        run: Path of its output or of its journal.

    Raises:
        BatchError: If there is no journal, or it cannot be read.
    """
    with JournalReader.open(run) as journal:
        report, path = read_report(journal, now=time.time()), journal.path
    zone = datetime.now().astimezone().tzinfo
    assert zone is not None  # noqa: S101  # astimezone gives one
    return render(report, zone=zone), path
