"""Rows of CSV or TSV → entries. Pure.

A row becomes a JSON object by the names of the columns, so that everything after this reads tables as it reads lines.
"""

from collections.abc import Callable, Sequence

from onellm_async.batch.inputs.csv_rows import CsvSplitter
from onellm_async.batch.inputs.entry import BadEntry, Entry, EntryReader, LineError
from onellm_async.errors import BatchError
from onellm_async.validation import truncated_repr
from onellm_async.wire import dump_json

__all__ = ["CsvEntries"]


class CsvEntries:
    """The entries of a CSV or TSV input, whose first row names the columns.

    Args:
        source: Name of the input.
        delimiter: What separates columns; None to tell from the first row.
        reader_for: Makes their reader, given the names of the columns.
    """

    def __init__(self, source: str, delimiter: str | None, reader_for: Callable[[list[str]], EntryReader]) -> None:
        self._source = source
        self._reader_for = reader_for
        self._splitter = CsvSplitter(delimiter)
        self._reader: EntryReader | None = None
        self._columns: list[str] = []
        self._count = 0

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
        if (bad := _undecoded(names)) is not None:
            raise BatchError(f"{where}: the header is not UTF-8 (column {bad + 1}).", advice="Save the table as UTF-8.")
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
            return self._bad(index, line, raw, f"It has {len(row)} fields; the header names {len(self._columns)}.")
        if b"\\udc" in raw and (bad := _undecoded(row)) is not None:
            return self._bad(index, line, raw, f"Not UTF-8: column {truncated_repr(self._columns[bad])}.")
        if self._reader is None:  # the header comes first
            raise AssertionError
        return Entry(index, line, raw, self._reader)

    def _bad(self, index: int, line: int, raw: bytes, message: str) -> Entry:
        return BadEntry(index, raw, LineError(self._source, line, message))


def _undecoded(texts: Sequence[str]) -> int | None:
    """Which text holds bytes that were not UTF-8."""
    for number, text in enumerate(texts):
        if any("\udc80" <= character <= "\udcff" for character in text):
            return number
    return None
