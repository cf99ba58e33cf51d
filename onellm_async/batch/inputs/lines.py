"""Pieces of bytes → numbered lines → entries. Pure."""

from collections.abc import Iterator
from typing import Protocol

from onellm_async.batch.inputs.entry import ByteSource, Entry, InvalidEntry, LineError

LONGEST_LINE = 16 * 1024 * 1024
"""Bytes of the longest line that is read; a longer one is reported and skipped, so that memory stays bounded."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def too_long(what: str) -> str:
    """The message for a line or row that is not read."""
    return f"The {what} is longer than {LONGEST_LINE // 2**20} MiB."


class LineSplitter:
    """Cuts pieces of bytes into numbered lines.

    Lines end with LF or CR LF; blank ones are counted and dropped, and so is a byte order mark. A line longer than
    `longest` comes out as None, and its bytes are not kept.
    """

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._tail = bytearray()
        self._overlong = False
        self._line = 0

    def feed(self, piece: bytes) -> list[tuple[int, bytes | None]]:
        """The lines that `piece` completes, as (line number from 1, line)."""
        lines: list[tuple[int, bytes | None]] = []
        first, separator, rest = piece.partition(b"\n")
        self._keep(first)
        if not separator:
            return lines
        self._end_of_line(lines)
        number = self._line
        longest = self._longest
        *complete, tail = rest.split(b"\n")
        for line in complete:
            number += 1
            if len(line) > longest:
                lines.append((number, None))
            elif line.strip():
                lines.append((number, line[:-1] if line[-1] == 13 else line))
        self._line = number
        self._keep(tail)
        return lines

    def finish(self) -> list[tuple[int, bytes | None]]:
        """The last line, where no line break ends it."""
        lines: list[tuple[int, bytes | None]] = []
        if self._tail or self._overlong:
            self._end_of_line(lines)
        return lines

    def _keep(self, part: bytes) -> None:
        if self._overlong or len(self._tail) + len(part) > self._longest:
            self._overlong = True
            self._tail.clear()
        else:
            self._tail += part

    def _end_of_line(self, lines: list[tuple[int, bytes | None]]) -> None:
        self._line += 1
        line, overlong = bytes(self._tail).removesuffix(b"\r"), self._overlong
        self._tail.clear()
        self._overlong = False
        if self._line == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if overlong:
            lines.append((self._line, None))
        elif line.strip():
            lines.append((self._line, line))


class Splitter(Protocol):
    """Cuts pieces of bytes into numbered texts of entries; None stands for one that is too long to be kept."""

    def feed(self, piece: bytes) -> list[tuple[int, bytes | None]]:
        """The texts that `piece` completes, each with the number of its line."""

    def finish(self) -> list[tuple[int, bytes | None]]:
        """The last texts, when there are no more pieces."""


def split_lines(source: ByteSource) -> Iterator[list[Entry]]:
    """The entries of an input that has one a line."""
    return split_with(LineSplitter(), source, "line")


def split_with(splitter: Splitter, source: ByteSource, what: str) -> Iterator[list[Entry]]:
    """The entries of an input.

    Args:
        splitter: Cuts it.
        source: The input. Its parser is made for the first text that is there.
        what: What a text is called in the message on one that is too long.
    """
    reader, count = None, source.first_index
    for texts in _texts(source, splitter):
        if reader is None and (first := next((raw for _, raw in texts if raw is not None), None)) is not None:
            reader = source.parser(first=first)
        yield [
            Entry(index, line, raw, reader)
            if raw is not None and reader is not None
            else InvalidEntry(index, b"", LineError(source.name, line, too_long(what)))
            for index, (line, raw) in enumerate(texts, count)
        ]
        count += len(texts)


def _texts(source: ByteSource, splitter: Splitter) -> Iterator[list[tuple[int, bytes | None]]]:
    for piece in source.pieces():
        yield splitter.feed(piece)
    yield splitter.finish()
