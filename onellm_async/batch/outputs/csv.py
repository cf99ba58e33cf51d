"""Rows of answers as CSV (RFC 4180) or TSV that a spreadsheet may open. Pure.

An answer that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return would be run as a formula there; an
apostrophe before it keeps it text. Numbers, and what is the user's own, stay as they are.
"""

import re
from collections.abc import Sequence

from onellm_async.batch.journal.record import JournalRecord
from onellm_async.batch.outputs.columns import COLUMNS, kept_names, kept_values, values_of
from onellm_async.chat import JSON

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(\d[\d,.]*|\.\d+)([eE][+-]?\d+)?\s?%?")
_BY_A_MODEL = [name != "custom_id" for name in COLUMNS]
"""Which columns hold what a model or a service wrote; ids are the user's own."""


def csv_header(columns: Sequence[str] = (), delimiter: str = ",") -> bytes:
    """The names of the columns, with the line break.

    Args:
        columns: Fields of the input that follow the answer.
        delimiter: What separates columns.
    """
    return (delimiter.join(_quoted(name, delimiter) for name in [*COLUMNS, *kept_names(columns)]) + "\r\n").encode(
        errors="replace"
    )


def encode_csv(record: JournalRecord, columns: Sequence[str] = (), delimiter: str = ",") -> bytes:
    """A row with its line break, CR LF.

    Written here, because for answers of 1,500 characters the csv module takes three times as long.

    Args:
        record: The record.
        columns: Fields of the input that follow the answer.
        delimiter: What separates columns.
    """
    cells = [
        _cell(neutralize_formula(value) if by_a_model and isinstance(value, str) else value, delimiter)
        for value, by_a_model in zip(values_of(record), _BY_A_MODEL, strict=True)
    ]
    cells += [_cell(value, delimiter) for value in kept_values(record, columns)]
    text = delimiter.join(cells) + "\r\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a character, as some models answer; CSV has no escapes
        return text.encode(errors="surrogatepass").decode(errors="replace").encode()


def encode_tsv(record: JournalRecord, columns: Sequence[str] = ()) -> bytes:
    """A row whose columns are separated by tabs."""
    return encode_csv(record, columns, "\t")


def neutralize_formula(text: str) -> str:
    """`text`, so that no spreadsheet takes it for a formula.

    Example:
        >>> neutralize_formula("=1+1"), neutralize_formula("1+1"), neutralize_formula("-5")
        ("'=1+1", '1+1', '-5')
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(text) else text


def _cell(value: JSON, delimiter: str) -> str:
    if value is None:
        return ""
    return _quoted(value, delimiter) if isinstance(value, str) else str(value)


def _quoted(text: str, delimiter: str) -> str:
    if '"' in text or delimiter in text or "\n" in text or "\r" in text:
        return '"' + text.replace('"', '""') + '"'
    return text
