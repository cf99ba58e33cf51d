"""Rows of answers as CSV (RFC 4180) that a spreadsheet may open. Pure.

An answer that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return would be run as a formula there; an
apostrophe before it keeps it text.
"""

import csv

from onellm_async.batch.columns import COLUMNS, values_of
from onellm_async.batch.journal_rows import Row
from onellm_async.chat import JSON

__all__ = ["CsvRecords", "neutralised"]

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def neutralised(value: JSON) -> JSON:
    """`value`, as a text that no spreadsheet takes for a formula.

    Example:
        >>> neutralised("=1+1"), neutralised("1+1")
        ("'=1+1", '1+1')
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


class _Echo:
    """The file that a `csv.writer` wants; what is written to it is what `writerow` returns."""

    def write(self, text: str) -> str:
        return text


class CsvRecords:
    """Writes journal rows as rows of CSV.

    Attributes:
        header: The names of the columns.
    """

    def __init__(self) -> None:
        self._writer = csv.writer(_Echo())
        self.header: bytes = self._encoded(list(COLUMNS))

    def line(self, row: Row) -> bytes:
        """A row with its line break, CR LF."""
        return self._encoded([neutralised(value) for value in values_of(row)])

    def _encoded(self, values: list[JSON]) -> bytes:
        text: str = self._writer.writerow(values)  # what `_Echo.write` returns
        try:
            return text.encode()
        except UnicodeEncodeError:  # half a character, as some models answer; CSV has no escapes
            return text.encode(errors="surrogatepass").decode(errors="replace").encode()
