"""Where records go: a file that appears whole, or a stream.

Writing happens in a thread: a full pipe or a slow disk holds back the run, never the requests in flight.
"""

import asyncio
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from onellm_async.batch.outputs.output_place import AtomicOutputFile
from onellm_async.daemon_thread import in_daemon_thread
from onellm_async.descriptors import unwritable, write_all
from onellm_async.errors import BatchError
from onellm_async.files import describe_os_error


class StreamSink:
    """Writes to an open file descriptor, such as standard output (1), and leaves it open.

    Args:
        descriptor: Where to.
        name: What it is called in messages.
        header: What stands before the first record.
    """

    def __init__(self, descriptor: int, name: str = "standard output", *, header: bytes = b"") -> None:
        self._descriptor = descriptor
        self._name = name
        self._header = header

    async def __aenter__(self) -> Self:
        if self._header:
            await self.write(self._header)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to do."""

    async def write(self, lines: bytes) -> None:
        """Writes `lines` completely.

        Raises:
            BatchError: If the reader has left (its ``__cause__`` is a BrokenPipeError), or the disk behind it is full.
        """
        # A daemon thread: a reader that does not read must not keep a process alive that was told to end at once.
        await in_daemon_thread(lambda: self._write(lines))

    def _write(self, lines: bytes) -> None:
        try:
            write_all(self._descriptor, lines)
        except OSError as error:
            raise unwritable(self._name, error)  # noqa: B904  # it names its cause itself


class FileSink:
    """A file that is written beside its place, as ``NAME.partial``, and takes its place when its block is left.

    Symbolic links are not followed. Where the block is left by an exception, or the process is killed, the
    ``.partial`` file stays, with every line written so far.

    Args:
        path: Where the output is to be.
        force: Replace an existing output, and a ``.partial`` file that a killed run left.
        resume: A ``.partial`` file is that of the run that goes on, and is written anew.
        replace: An existing output is that of the run that goes on, and is replaced in the end.
        header: What stands before the first record.

    Raises:
        BatchError: If the place is taken, is no regular file, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        resume: bool = False,
        replace: bool = False,
        header: bytes = b"",
    ) -> None:
        self._place = AtomicOutputFile(path, force=force, resume=resume, replace=replace)
        self.path: Path = self._place.path
        self.partial_path: Path = self._place.partial_path
        self._header = header

    async def write(self, lines: bytes) -> None:
        """Appends `lines`.

        Raises:
            BatchError: If they cannot be written, for example on a full disk. What was written before is kept.
        """
        await asyncio.to_thread(_write_all, self._place.descriptor, lines, str(self.partial_path))

    async def __aenter__(self) -> Self:
        if self._header:
            try:
                await self.write(self._header)
            except BaseException:
                self._place.abandon()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Moves the file to its place.

        Raises:
            BatchError: If another process has taken the place meanwhile; the ``.partial`` file is kept.
        """
        if kind is None:
            await asyncio.to_thread(self._place.publish)
        else:
            self._place.abandon()


def _write_all(descriptor: int, lines: bytes, name: str) -> None:
    view = memoryview(lines)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise BatchError(f"{name} cannot be written: {describe_os_error(error)}.") from None
