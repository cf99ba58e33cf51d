import errno
import fcntl
import os
from pathlib import Path

import pytest

from onellm_async import files


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The commands that a file descriptor gets, on a system that has macOS's."""
    given: list[int] = []
    monkeypatch.setattr(files, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: given.append(command))
    monkeypatch.setattr(os, "fsync", lambda descriptor: given.append(0))
    return given


def test_where_the_system_can_empty_the_drives_cache_it_is_emptied(commands: list[int]) -> None:
    files.sync_file(1)
    assert commands == [51]


def test_where_the_file_system_cannot_the_usual_way_is_taken(
    commands: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, command: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "fcntl", unsupported)
    files.sync_file(1)
    assert commands == [0]


def test_elsewhere_the_usual_way_is_taken(commands: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "_FULL_SYNC", None)
    files.sync_directory(tmp_path)
    assert commands == [0]


@pytest.mark.parametrize("code", [5, 32, 33])
def test_a_file_that_another_program_holds_open_is_told_with_the_cure(code: int) -> None:
    error = PermissionError(errno.EACCES, "The process cannot access the file")
    error.winerror = code  # type: ignore[attr-defined]  # as on Windows
    assert files.describe_os_error(error) == (
        "The process cannot access the file. "
        "If another program has the file open, close it there and run the same command again"
    )


def test_other_errors_are_told_in_the_words_of_the_system() -> None:
    assert files.describe_os_error(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert files.describe_os_error(OSError("odd")) == "odd"
