"""Where the lines of output go: a file that appears whole, or a stream.

Writing happens in a thread: a full pipe or a slow disk holds back the run, never the requests under way.
"""

import asyncio
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from onellm_async.errors import BatchError

__all__ = ["FileSink", "Sink", "StreamSink"]


class Sink(Protocol):
    """Takes lines in the order in which they are to stand."""

    async def write(self, lines: bytes) -> None:
        """Takes whole lines.

        Raises:
            BatchError: If they cannot be written.
        """


class StreamSink:
    """Writes to an open file descriptor, such as standard output (1), and leaves it open."""

    def __init__(self, descriptor: int, name: str = "standard output") -> None:
        self._descriptor = descriptor
        self._name = name

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to do."""

    async def write(self, lines: bytes) -> None:
        """Writes `lines` completely.

        Raises:
            BatchError: If the reader has gone, or the disk behind it is full.
        """
        await asyncio.to_thread(_write_all, self._descriptor, lines, self._name)


class FileSink:
    """A file that is written beside its place, as ``NAME.partial``, and takes its place when its block is left.

    Symbolic links are not followed. Where the block is left by an exception, or the process is killed, the
    ``.partial`` file stays, with every line written so far.

    Args:
        path: Where the output is to be.
        force: Replace an existing output, and a ``.partial`` file that a killed run left.

    Raises:
        BatchError: If the place is taken, is no regular file, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.path: Path = Path(path)
        self.partial_path: Path = self.path.with_name(self.path.name + ".partial") if self.path.name else self.path
        self._force = force
        self._refuse_unless_free(self.path, "already exists")
        self._refuse_unless_free(self.partial_path, "was left by a run that was killed; it holds answers")
        try:
            if force:
                self.partial_path.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self.partial_path, flags, 0o666)
        except OSError as error:
            raise BatchError(f"{self.path} cannot be written: {error.strerror}.") from None

    async def write(self, lines: bytes) -> None:
        """Appends `lines`.

        Raises:
            BatchError: If they cannot be written, for example on a full disk. What was written before is kept.
        """
        await asyncio.to_thread(_write_all, self._descriptor, lines, str(self.partial_path))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Moves the file to its place.

        Raises:
            BatchError: If somebody else has taken the place meanwhile; the ``.partial`` file is kept.
        """
        if kind is None:
            await asyncio.to_thread(self._publish)
        else:
            os.close(self._descriptor)

    def _publish(self) -> None:
        try:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            if self._force:
                self.partial_path.replace(self.path)
            else:
                _rename_exclusively(self.partial_path, self.path)
        except FileExistsError:
            raise BatchError(
                f"{self.path} came into being during the run; the answers are in {self.partial_path}."
            ) from None
        except OSError as error:
            raise BatchError(
                f"{self.path} cannot be finished: {error.strerror}. The answers are in {self.partial_path}."
            ) from None

    def _refuse_unless_free(self, path: Path, taken: str) -> None:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise BatchError(f"{self.path} cannot be written: {getattr(error, 'strerror', error)}.") from None
        if stat.S_ISLNK(mode):
            raise BatchError(f"{path} is a symbolic link, which is not followed.", advice="Name the file itself.")
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise BatchError(f"{path} is {kind}.", advice="Name a file, or leave -o out to write to standard output.")
        if not self._force:
            raise BatchError(f"{path} {taken}.", advice="Move it away, or replace it with --force.")


def _rename_exclusively(old: Path, new: Path) -> None:
    """Renames without replacing anything, where the file system has hard links."""
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        if os.path.lexists(new):
            raise FileExistsError from None
        old.rename(new)
    else:
        old.unlink()


def _write_all(descriptor: int, lines: bytes, name: str) -> None:
    view = memoryview(lines)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise BatchError(f"{name} cannot be written: {error.strerror}.") from None
