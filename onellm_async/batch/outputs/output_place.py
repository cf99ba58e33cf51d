"""The place of an output: a file is written beside it, as ``NAME.partial``, and takes it whole. Blocks.

Symbolic links are not followed.
"""

import errno
import os
import stat
from pathlib import Path

from onellm_async.errors import BatchError
from onellm_async.files import describe_os_error, sync_directory, sync_file

__all__ = ["AtomicOutputFile", "demand_free", "demand_own"]


_LEFT = "was left by a run that was killed; it holds answers"


class AtomicOutputFile:
    """A place that is free, and the open ``.partial`` file beside it.

    Args:
        path: Where the output is to be.
        force: Replace whatever file is there, and a ``.partial`` file.
        resume: The ``.partial`` file is that of the run that goes on, and is written anew.
        replace: The output that is there is that of the run that goes on, and is replaced in the end.

    Attributes:
        path: As given.
        partial_path: The file that is written.
        descriptor: The same, open for writing.

    Raises:
        BatchError: If the place is taken, is no regular file, or cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, force: bool = False, resume: bool = False, replace: bool = False
    ) -> None:
        self.path: Path = Path(path)
        self.partial_path: Path = self.path.with_name(self.path.name + ".partial") if self.path.name else self.path
        self._replace = force or replace
        _demand_free(self.path, self._replace, "already exists", self.path)
        _demand_free(self.partial_path, force or resume, _LEFT, self.path)
        try:
            if force or resume:
                self.partial_path.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            self.descriptor: int = os.open(self.partial_path, flags, 0o666)
        except OSError as error:
            raise BatchError(f"{self.path} cannot be written: {describe_os_error(error)}.") from None

    def abandon(self) -> None:
        """Leaves the ``.partial`` file where it is."""
        os.close(self.descriptor)

    def publish(self) -> None:
        """Moves the file to its place, durably.

        Raises:
            BatchError: If another process has taken the place meanwhile; the ``.partial`` file is kept.
        """
        try:
            try:
                sync_file(self.descriptor)
            finally:
                os.close(self.descriptor)
            if self._replace:
                self.partial_path.replace(self.path)
            else:
                _rename_exclusively(self.partial_path, self.path)
            sync_directory(self.path.parent)
        except FileExistsError:
            raise _taken(self.path, self.partial_path) from None
        except OSError as error:
            raise BatchError(
                f"{self.path} cannot be finished: {describe_os_error(error)}. The answers are in {self.partial_path}."
            ) from error


def demand_free(path: str | os.PathLike[str]) -> None:
    """Looks whether an output could begin at `path`, and touches nothing. An empty ``.partial`` file is no hindrance.

    Raises:
        BatchError: If the place is taken, is no regular file, or in a directory that does not exist.
    """
    output = Path(path)
    if not output.parent.exists():
        raise BatchError(f"{output} cannot be written: {os.strerror(errno.ENOENT)}.")
    partial = output.with_name(output.name + ".partial")
    _demand_free(output, False, "already exists", output)
    _demand_free(partial, partial.is_file() and not partial.stat().st_size, _LEFT, output)


def demand_own(path: str | os.PathLike[str]) -> None:
    """Looks whether what is at `path` can be of a run that has not recorded an output, and touches nothing.

    Its ``.partial`` file becomes the output, so a run that was killed right after that leaves no other file.

    Raises:
        BatchError: If an output is beside a ``.partial`` file: another program made it.
    """
    output = Path(path)
    partial = output.with_name(output.name + ".partial")
    if output.is_file() and partial.is_file() and not partial.samefile(output):
        raise _taken(output, partial)


def _taken(output: Path, partial: Path) -> BatchError:
    return BatchError(
        f"{output} came into being during the run; the answers are in {partial}.",
        advice="Move it away and run the same command again: what was answered is not sent again. Or write the "
        "answers to another file with `onellm-async export`.",
    )


def _demand_free(path: Path, may_go: bool, taken: str, output: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise BatchError(f"{output} cannot be written: {getattr(error, 'strerror', error)}.") from None
    if stat.S_ISLNK(mode):
        raise BatchError(f"{path} is a symbolic link, which is not followed.", advice="Name the file itself.")
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise BatchError(f"{path} is {kind}.", advice="Name a file, or - for standard output.")
    if not may_go:
        raise BatchError(f"{path} {taken}.", advice="Move it away, or replace it with force=True.")


def _rename_exclusively(old: Path, new: Path) -> None:
    """Renames without replacing anything, where the file system has hard links."""
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError, AttributeError):  # a system may lack `os.link` altogether
        if os.path.lexists(new):
            raise FileExistsError from None
        old.rename(new)
    else:
        old.unlink()
