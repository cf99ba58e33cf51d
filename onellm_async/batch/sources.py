"""Inputs of any size as a stream of items: the thin host of `onellm_async.batch.items`.

A file, a pipe or standard input is read in pieces of 256 KiB by a thread, so that neither a slow disk nor a slow
producer stops the event loop, and a prompt that has arrived is sent without waiting for the next.
"""

import asyncio
import contextlib
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen

from onellm_async.batch.defaults import RequestDefaults
from onellm_async.batch.items import InputFormat, Item, LineError, LineReader, sniff_format
from onellm_async.errors import BatchError

__all__ = ["LONGEST_LINE", "LineSplitter", "Source", "Survey", "open_source"]

LONGEST_LINE = 16 * 1024 * 1024
"""Bytes of the longest line that is read; a longer one is reported and skipped, so that memory stays bounded."""

_PIECE = 256 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineSplitter:
    """Cuts pieces of bytes into numbered lines. Pure.

    Lines end with LF or CR LF; blank ones are counted and dropped, and so is a byte order mark. A line longer than
    `longest` comes out as None, and its bytes are not kept.
    """

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._tail = bytearray()
        self._overlong = False
        self._line = 0

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The lines that `piece` completes, as (line number from 1, line)."""
        *complete, rest = piece.split(b"\n")
        for part in complete:
            self._keep(part)
            yield from self._end_of_line()
        self._keep(rest)

    def finish(self) -> Iterator[tuple[int, bytes | None]]:
        """The last line, where no line break ends it."""
        if self._tail or self._overlong:
            yield from self._end_of_line()

    def _keep(self, part: bytes) -> None:
        if self._overlong or len(self._tail) + len(part) > self._longest:
            self._overlong = True
            self._tail.clear()
        else:
            self._tail += part

    def _end_of_line(self) -> Iterator[tuple[int, bytes | None]]:
        self._line += 1
        line, overlong = bytes(self._tail).removesuffix(b"\r"), self._overlong
        self._tail.clear()
        self._overlong = False
        if self._line == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if overlong:
            yield self._line, None
        elif line.strip():
            yield self._line, line


@frozen
class Survey:
    """What a look through a whole input found, before anything is sent.

    Attributes:
        lines: How many lines are not blank.
        first_error: The first bad line; None when there is none, or when lines were only counted.
    """

    lines: int
    first_error: LineError | None = None


class Source:
    """An open input; iterate over it once. Made by `open_source`.

    Attributes:
        name: The input's name, as shown to the user.
        format: How its lines are written; known once the first line was read.
    """

    def __init__(
        self,
        name: str,
        descriptor: int,
        *,
        forced_format: InputFormat | None = None,
        field: str | None = None,
        defaults: RequestDefaults | None = None,
    ) -> None:
        self.name = name
        self._descriptor = descriptor
        self._regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._format = forced_format or (InputFormat.JSONL if field is not None else None)
        self._field = field
        self._defaults = defaults or RequestDefaults()
        self._reader: LineReader | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor > 2:
            os.close(self._descriptor)

    @property
    def format(self) -> InputFormat:
        """How the lines are written: as forced, else as the name and the first line say."""
        return self._format or InputFormat.TEXT

    def is_file(self, path: str) -> bool:
        """Whether `path` is the very file that is being read."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), Path(path).stat())
        except (OSError, ValueError):
            return False

    def survey(self, *, strict: bool = False) -> Survey | None:
        """Counts the lines, and with `strict` checks each of them, without consuming the input. Blocks: use a thread.

        Returns:
            None for a pipe or a terminal, which can be read only once.

        Raises:
            BatchError: If the file cannot be read.
        """
        if not self._regular:
            return None
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        lines, first_error = 0, None
        for line, raw in self._remaining_lines():
            if strict and first_error is None:
                entry = self._entry(raw, line, lines)
                first_error = entry if isinstance(entry, LineError) else None
            lines += 1
        os.lseek(self._descriptor, start, os.SEEK_SET)
        self._reader = None  # it has seen every custom_id
        return Survey(lines, first_error)

    async def __aiter__(self) -> AsyncIterator[Item | LineError]:
        """The items, and the errors of bad lines, in the order of the lines.

        Raises:
            BatchError: If the input cannot be read any further.
        """
        splitter, index = LineSplitter(), 0
        while piece := await _in_daemon_thread(self._read_piece):
            for line, raw in splitter.feed(piece):
                yield self._entry(raw, line, index)
                index += 1
        for line, raw in splitter.finish():
            yield self._entry(raw, line, index)

    def _remaining_lines(self) -> Iterator[tuple[int, bytes | None]]:
        splitter = LineSplitter()
        while piece := self._read_piece():
            yield from splitter.feed(piece)
        yield from splitter.finish()

    def _read_piece(self) -> bytes:
        try:
            return os.read(self._descriptor, _PIECE)
        except OSError as error:
            raise BatchError(f"{self.name} cannot be read: {error.strerror}.") from None

    def _entry(self, raw: bytes | None, line: int, index: int) -> Item | LineError:
        if raw is None:
            return LineError(self.name, line, f"The line is longer than {LONGEST_LINE // 2**20} MiB.")
        if self._reader is None:
            if self._format is None:
                self._format = sniff_format(self.name, raw)
            self._reader = LineReader(self.name, self._format, prompt_field=self._field, defaults=self._defaults)
        return self._reader.read(raw, line=line, index=index)


def open_source(
    path: str,
    *,
    forced_format: InputFormat | None = None,
    field: str | None = None,
    defaults: RequestDefaults | None = None,
) -> Source:
    """Opens an input.

    Args:
        path: A file or named pipe; ``-`` is standard input.
        forced_format: How its lines are written; None to tell from its name and first line.
        field: The field of a JSON object that holds the prompt; implies JSON lines.
        defaults: What is asked of every prompt.

    Raises:
        BatchError: If it cannot be opened, is a directory, or `field` is given for another format than JSON lines.
    """
    if field is not None and forced_format not in {None, InputFormat.JSONL}:
        raise BatchError(f"A field ({field!r}) can be named only in JSON lines, not in {forced_format}.")
    if path == "-":
        return Source("<stdin>", 0, forced_format=forced_format, field=field, defaults=defaults)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise BatchError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.") from None
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BatchError(f"{path} cannot be read: it is a directory.")
    return Source(path, descriptor, forced_format=forced_format, field=field, defaults=defaults)


async def _in_daemon_thread(call: Callable[[], bytes]) -> bytes:
    """Like `asyncio.to_thread`, but a read that never returns (a silent pipe) does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[bytes] = loop.create_future()

    def settle(piece: bytes, error: BaseException | None) -> None:
        if result.done():  # nobody waits any more
            return
        if error is None:
            result.set_result(piece)
        else:
            result.set_exception(error)

    def read() -> None:
        piece, failure = b"", None
        try:
            piece = call()
        except BaseException as error:  # handed to whoever awaits the result
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, piece, failure)

    threading.Thread(target=read, name="onellm-async-input", daemon=True).start()
    return await result
