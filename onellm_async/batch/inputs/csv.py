"""Pieces of CSV or TSV → numbered rows → entries. Pure.

The standard library reads the rows. It wants whole ones, so the lines of a row that is not complete yet are read again
with the next piece. A row becomes a JSON object by the names of the columns, so that everything after this reads
tables as it reads lines.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence

from attrs import frozen

from onellm_async.batch.inputs.entry import ByteSource, Entry, EntryReader, InvalidEntry, LineError
from onellm_async.batch.inputs.entry_parser import SAVE_AS_UTF8
from onellm_async.batch.inputs.lines import BYTE_ORDER_MARK, LONGEST_LINE, too_long
from onellm_async.errors import BatchError
from onellm_async.formatting import pluralize
from onellm_async.validation import truncated_repr
from onellm_async.wire import dump_json

_DELIMITERS = ",;\t|"
_MARKDOWN = (
    "Take the bars at its ends and the row of dashes out: sed 's/ *| */|/g; s/^|//; s/|$//; /^[|: -]*$/d' FILE | "
    "onellm-async run - --format csv"
)
_EXCEL_HINT = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""A first line that Excel writes and reads to tell the delimiter."""


@frozen
class CsvDialect:
    """How the columns of a row are separated.

    Attributes:
        delimiter: What stands between them.
        spaced: Whether a space after it does not belong to the column.
    """

    delimiter: str = ","
    spaced: bool = False


def dialect_of(header: str) -> CsvDialect:
    """The dialect of a header row: comma, semicolon, tab or bar, whichever is there most often.

    Example:
        >>> dialect_of('id;"first, last";prompt')
        CsvDialect(delimiter=';', spaced=False)
    """
    bare = re.sub(r'"[^"]*"', '""', header)
    delimiter = max(_DELIMITERS, key=bare.count)
    gaps = re.findall(re.escape(delimiter) + "(.)", bare)
    return CsvDialect(delimiter, bool(gaps) and set(gaps) == {" "})


class _NeedMoreError(Exception):
    """Inside this file only: the lines ran out within a row."""


class CsvSplitter:
    """Cuts pieces of bytes into numbered rows.

    Rows in which nothing stands are counted and dropped. A row is numbered by the line in which it begins. Bytes that
    are not UTF-8 come out as lone surrogates.

    Args:
        delimiter: What separates columns; None to tell from the first row.
        longest: Bytes of the longest row; of a longer one nothing is kept.
    """

    def __init__(self, delimiter: str | None = None, longest: int = LONGEST_LINE) -> None:
        self._dialect = None if delimiter is None else CsvDialect(delimiter)
        self._longest = longest
        self._tail = bytearray()  # an incomplete line
        self._pending: list[str] = []  # complete lines of an incomplete row, which is inside quotes
        self._size = 0  # of these
        self._line = 0  # how many lines went before these
        self._skipping = False  # within a row that is too long
        self._quoted = False  # while skipping: whether inside quotes
        # The module's own limit belongs to the whole process and is 128 KiB; it is only ever raised here.
        csv.field_size_limit(max(csv.field_size_limit(), longest))

    @property
    def delimiter(self) -> str | None:
        """What separates columns; None while that is not known."""
        return None if self._dialect is None else self._dialect.delimiter

    def feed(self, piece: bytes) -> list[tuple[int, list[str] | str]]:
        """The rows that `piece` completes, as (line number from 1, fields); or what is wrong with a row."""
        if self._skipping:
            piece = self._skip(piece)
        complete, newline, rest = piece.rpartition(b"\n")
        rows: list[tuple[int, list[str] | str]] = []
        if newline:
            text = bytes(self._tail) + complete
            self._tail = bytearray(rest)
            if not self._pending or b'"' in text:
                rows = self._rows(self._pending + self._decoded(text))
            else:  # a row that is inside quotes cannot end here
                self._pending += self._decoded(text)
                self._size += len(text)
        else:
            self._tail += rest
        if self._size + len(self._tail) > self._longest:
            rows.append((self._line + 1, _too_long(in_quotes=bool(self._pending))))
            self._quoted = bool(self._pending)
            self._line += len(self._pending)
            self._pending, self._size = [], 0
            self._skipping = True
            tail, self._tail = bytes(self._tail), bytearray()
            self._skip(tail)
        return rows

    def finish(self) -> list[tuple[int, list[str] | str]]:
        """The last rows."""
        lines = self._decoded(bytes(self._tail)) if self._tail else []
        self._tail = bytearray()
        if not lines and not self._pending:
            return []
        rows = self._rows(self._pending + lines)
        if self._pending:
            count = len(self._pending)
            rows.append(
                (
                    self._line + 1,
                    "A quoted field begins here and is never closed"
                    + (f": the {count:,} lines to the end of the input would be in it." if count > 1 else "."),
                )
            )
        return rows

    def _decoded(self, text: bytes) -> list[str]:
        if self._line == 0 and not self._pending:
            text = text.removeprefix(BYTE_ORDER_MARK)
        return text.decode(errors="surrogateescape").split("\n")

    def _skip(self, piece: bytes) -> bytes:
        """What of `piece` follows the row that is too long."""
        position = 0
        while self._skipping:
            end = piece.find(b"\n", position)
            if piece.count(b'"', position, end if end >= 0 else len(piece)) % 2:
                self._quoted = not self._quoted
            if end < 0:
                return b""
            self._line += 1
            position = end + 1
            self._skipping = self._quoted
        return piece[position:]

    def _rows(self, lines: list[str]) -> list[tuple[int, list[str] | str]]:
        """The complete rows in `lines`; the lines of the last one are kept if it is not complete."""
        used = self._learn_dialect(lines) if self._dialect is None else 0
        dialect = self._dialect or CsvDialect()
        long = sum(map(len, lines)) > self._longest

        def supply() -> Iterator[str]:
            for line in lines[used:]:
                yield line + "\n"
            raise _NeedMoreError

        reader = csv.reader(supply(), delimiter=dialect.delimiter, skipinitialspace=dialect.spaced)
        first, start, rows = self._line + used + 1, 0, []
        while True:
            try:
                fields: list[str] | str = next(reader)
            except csv.Error as error:
                fields = f"Not CSV: {error}."
            except _NeedMoreError:
                break
            if long and sum(map(len, lines[used + start : used + reader.line_num])) > self._longest:
                fields = _too_long(in_quotes=reader.line_num - start > 1)
            if isinstance(fields, str) or any(map(str.strip, fields)):
                rows.append((first + start, fields))
            start = reader.line_num
        self._pending = lines[used + start :]
        self._size = sum(map(len, self._pending))
        self._line += used + start
        return rows

    def _learn_dialect(self, lines: list[str]) -> int:
        """Takes the dialect from the first line in which something stands.

        Returns:
            How many lines belong to no row.
        """
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            if (hint := _EXCEL_HINT.fullmatch(line)) is not None:
                self._dialect = CsvDialect(hint[1])
                return number + 1
            self._dialect = dialect_of(line)
            break
        return 0


def _too_long(*, in_quotes: bool) -> str:
    text = too_long("row")
    return f"{text} A quoted field begins in it, and all lines to the next quote are in that." if in_quotes else text


def split_csv(source: ByteSource, delimiter: str | None) -> Iterator[list[Entry]]:
    """The entries of a CSV or TSV input.

    Args:
        source: The input.
        delimiter: What separates columns; None to tell from the first row.

    Raises:
        BatchError: If the header cannot be used.
    """
    entries = CsvEntries(source.name, delimiter, source.parser, source.first_index)
    for piece in source.pieces():
        yield entries.feed(piece)
    yield entries.finish()


class CsvEntries:
    """The entries of a CSV or TSV input, whose first row names the columns.

    Args:
        source: Name of the input.
        delimiter: What separates columns; None to tell from the first row.
        reader_for: Makes their reader, given the names of the columns.
        first_index: Index of the first entry.
    """

    def __init__(
        self,
        source: str,
        delimiter: str | None,
        reader_for: Callable[[Sequence[str]], EntryReader],
        first_index: int = 0,
    ) -> None:
        self._source = source
        self._reader_for = reader_for
        self._splitter = CsvSplitter(delimiter)
        self._reader: EntryReader | None = None
        self._columns: list[str] = []
        self._count = first_index

    def feed(self, piece: bytes) -> list[Entry]:
        """The entries that `piece` completes.

        Raises:
            BatchError: If the header cannot be used.
        """
        return [self._entry(line, row) for line, row in self._rows(self._splitter.feed(piece))]

    def finish(self) -> list[Entry]:
        """The last entries.

        Raises:
            BatchError: If the header cannot be used.
        """
        return [self._entry(line, row) for line, row in self._rows(self._splitter.finish())]

    def _rows(self, rows: list[tuple[int, list[str] | str]]) -> list[tuple[int, list[str] | str]]:
        if self._reader is not None or not rows:
            return rows
        (line, header), *others = rows
        self._columns = self._names(line, header)
        self._reader = self._reader_for(self._columns)
        return others

    def _names(self, line: int, header: list[str] | str) -> list[str]:
        where = f"{self._source}:{line}"
        if isinstance(header, str):
            raise BatchError(f"{where}: the header cannot be read. {header}")
        names = [name.strip() or f"column_{number}" for number, name in enumerate(header, 1)]
        if self._splitter.delimiter == "|" and len(header) > 2 and not (header[0].strip() or header[-1].strip()):
            raise BatchError(f"{where}: it looks like a Markdown table, whose second row is no data.", advice=_MARKDOWN)
        if (bad := _undecoded(names)) is not None:
            raise BatchError(f"{where}: the header is not UTF-8 (column {bad + 1}).", advice=SAVE_AS_UTF8)
        for name in names:
            if names.count(name) > 1:
                raise BatchError(f"{where}: the header names the column {truncated_repr(name)} twice.")
        return names

    def _entry(self, line: int, row: list[str] | str) -> Entry:
        index, self._count = self._count, self._count + 1
        if isinstance(row, str):
            return self._bad(index, line, b"", row)
        raw = dump_json(dict(zip(self._columns, row, strict=False)))
        if len(row) != len(self._columns):
            return self._bad(
                index, line, raw, f"It has {pluralize(len(row), 'field')}; the header names {len(self._columns)}."
            )
        if b"\\udc" in raw and (bad := _undecoded(row)) is not None:
            return self._bad(
                index, line, raw, f"Not UTF-8: column {truncated_repr(self._columns[bad])}. {SAVE_AS_UTF8}"
            )
        if b"\\u0000" in raw and (column := _with_nul(self._columns, row)) is not None:
            return self._bad(index, line, raw, f"Column {truncated_repr(column)} holds a NUL, which no text does.")
        if self._reader is None:  # the header comes first
            raise AssertionError
        return Entry(index, line, raw, self._reader)

    def _bad(self, index: int, line: int, raw: bytes, message: str) -> Entry:
        return InvalidEntry(index, raw, LineError(self._source, line, message))


def _undecoded(texts: Sequence[str]) -> int | None:
    """Which text holds bytes that were not UTF-8."""
    for number, text in enumerate(texts):
        if any("\udc80" <= character <= "\udcff" for character in text):
            return number
    return None


def _with_nul(columns: Sequence[str], row: Sequence[str]) -> str | None:
    """Which column holds a NUL."""
    return next((name for name, text in zip(columns, row, strict=False) if "\0" in text), None)
