"""Pieces of a JSON document → its records. Pure.

A document is an array of records, or records one after another, as `jq` without ``-c`` writes them. Only the record
that is being read is in memory.
"""

import re
from collections.abc import Iterator

from onellm_async.batch.inputs.entry import ByteSource, Entry
from onellm_async.batch.inputs.lines import BYTE_ORDER_MARK, LONGEST_LINE, split_with, too_long
from onellm_async.errors import BatchError

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]|[^\s\[\]{},"]+|"', re.DOTALL)
"""A string, a bracket, a comma, a bare word; or the quote of a string that is not closed yet."""
_BRACKETS = {0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}


class JsonSplitter:
    """Cuts pieces of a document into records.

    Args:
        name: The input's name, for messages.
        longest: Bytes of the longest record; a longer one is reported and its bytes are not kept.
    """

    def __init__(self, name: str = "input", longest: int = LONGEST_LINE) -> None:
        self._name = name
        self._longest = longest
        self._text = b""
        self._line = 1  # of the beginning of `_text`
        self._depth = 0
        self._base: int | None = None  # depth of the records: 1 in an array, 0 outside
        self._ended = False  # after the array
        self._start: int | None = None  # of the record that is being read
        self._position = 0
        self._begun = False

    def feed(self, piece: bytes, *, final: bool = False) -> list[tuple[int, bytes | None]]:
        """The records that `piece` completes, as (line number, bytes); None for one that is too long.

        Raises:
            BatchError: If the document is not JSON.
        """
        if not self._begun:
            piece, self._begun = piece.removeprefix(BYTE_ORDER_MARK), True
        self._text += piece
        found: list[tuple[int, bytes | None]] = []
        text, position = self._text, self._position
        for token in _TOKEN.finditer(text, position):
            first, end = text[token.start()], token.end()
            word = first not in _BRACKETS and first not in b',"'
            if not final and (token[0] == b'"' or (word and end == len(text))):
                position = token.start()
                break
            position = end
            self._take(token, first, found)
        else:
            position = len(text)
        self._position = position
        self._forget()
        return found

    def finish(self) -> list[tuple[int, bytes | None]]:
        """The last records.

        Raises:
            BatchError: If the document is cut off.
        """
        found = self.feed(b"", final=True)
        if self._depth or self._start is not None:
            raise BatchError(
                f"{self._name} is cut off: a bracket of line {self._line:,} or before is never closed.",
                advice="Nothing beyond it was read. Fetch or write the file again.",
            )
        return found

    def _take(self, token: "re.Match[bytes]", first: int, found: list[tuple[int, bytes | None]]) -> None:
        step = _BRACKETS.get(first, 0)
        if self._base is None:
            self._base = 1 if first == 0x5B else 0
            self._ended = bool(self._base)  # an array is about to begin
        if self._ended:
            if first != 0x5B:
                raise self._error(token.start(), "something follows the array")
            self._ended, self._depth = False, 1
            return
        if self._depth == self._base:
            if step < 0:
                self._ended, self._depth = True, 0
                if not self._base:
                    raise self._error(token.start(), "a bracket is closed that was not opened")
                return
            if first == 0x2C:
                return
            self._start = token.start()
            if not step:
                self._emit(token.end(), found)
                return
        self._depth += step
        if step < 0 and self._depth == self._base:
            self._emit(token.end(), found)

    def _emit(self, end: int, found: list[tuple[int, bytes | None]]) -> None:
        start = self._start or 0
        line = self._line + self._text.count(b"\n", 0, start)
        found.append((line, self._text[start:end] if end - start <= self._longest else None))
        self._start = None

    def _forget(self) -> None:
        """Drops what was read, but not the record that is being read."""
        keep = self._position if self._start is None else self._start
        if len(self._text) - keep > self._longest + 1024 * 1024:
            raise BatchError(
                f"{self._name}:{self._line + self._text.count(10, 0, keep)}: {too_long('record')}",
                advice="Is a quote or a bracket missing? Nothing beyond it was read.",
            )
        self._line += self._text.count(b"\n", 0, keep)
        self._text = self._text[keep:]
        self._position -= keep
        if self._start is not None:
            self._start = 0

    def _error(self, at: int, what: str) -> BatchError:
        return BatchError(f"{self._name}:{self._line + self._text.count(10, 0, at)}: Not JSON: {what}.")


def split_json(source: ByteSource) -> Iterator[list[Entry]]:
    """The records of a JSON document.

    Raises:
        BatchError: If it is not JSON.
    """
    return split_with(JsonSplitter(source.name), source, "record")
