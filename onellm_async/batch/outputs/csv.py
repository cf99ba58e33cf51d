"""Rows of answers as CSV (RFC 4180) that a spreadsheet may open. Pure.

An answer that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return would be run as a formula there; an
apostrophe before it keeps it text.
"""

from onellm_async.batch.journal.record import JournalRecord
from onellm_async.batch.outputs.columns import COLUMNS, values_of
from onellm_async.chat import JSON

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

CSV_HEADER = (",".join(COLUMNS) + "\r\n").encode()
"""The names of the columns."""


def encode_csv(row: JournalRecord) -> bytes:
    """A row with its line break, CR LF.

    Written here, because for answers of 1,500 characters the csv module takes three times as long.
    """
    text = ",".join(map(_field, values_of(row))) + "\r\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a character, as some models answer; CSV has no escapes
        return text.encode(errors="surrogatepass").decode(errors="replace").encode()


def neutralize_formula(text: str) -> str:
    """`text`, so that no spreadsheet takes it for a formula.

    Example:
        >>> neutralize_formula("=1+1"), neutralize_formula("1+1")
        ("'=1+1", '1+1')
    """
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _field(value: JSON) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value)
    text = neutralize_formula(value)
    if '"' in text or "," in text or "\n" in text or "\r" in text:
        return '"' + text.replace('"', '""') + '"'
    return text
