"""A report as a file that appears whole, in the place of an earlier report and of nothing else."""

import os
import stat
from pathlib import Path

from onellm_async.errors import BatchError
from onellm_async.files import describe_os_error

__all__ = ["GENERATOR", "report_path", "save_report"]

GENERATOR = "onellm-async report"
"""What a report says of its origin."""
_HEAD = 2048
"""Bytes within which it says so."""


def report_path(journal: Path) -> Path:
    """Where the report of a journal goes by default: ``NAME.report.html`` beside ``NAME.journal``."""
    return journal.with_name(journal.name.removesuffix(".journal") + ".report.html")


def save_report(page: str, path: Path) -> None:
    """Writes a page beside its place and moves it there. An earlier report is replaced; no symbolic link is followed.

    Args:
        page: HTML.
        path: Its place.

    Raises:
        BatchError: If something else than a report is there, or it cannot be written.
    """
    _refuse_unless_a_report(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, flags, 0o666), "wb") as file:  # noqa: PTH123  # of a descriptor
            file.write(page.encode())
        fresh.replace(path)
    except OSError as error:
        raise BatchError(
            f"{path} cannot be written: {describe_os_error(error)}.", advice="Name another file with -o."
        ) from None
    finally:
        if path.name:
            fresh.unlink(missing_ok=True)


def _refuse_unless_a_report(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                if GENERATOR.encode() in file.read(_HEAD):
                    return
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise BatchError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None
    raise BatchError(f"{path} is there and is no report.", advice="Name another file with -o.")
