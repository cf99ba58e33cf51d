"""Values as SQLite can bind them, and back. Pure.

SQLite stores text as UTF-8, which has no place for half of a surrogate pair. Such halves come from JSON escapes that
were cut in two, and from names of files that are not UTF-8. They are bound as bytes, and read back as they were.
"""

from onellm_async.errors import BatchError

__all__ = ["UnstorableRowError", "bind_number", "bind_text", "read_text"]

_LARGEST = 2**63 - 1


class UnstorableRowError(BatchError):
    """A row that the journal cannot store, whatever the disk. It concerns its own entry and no other."""


def bind_text(text: str | None) -> str | bytes | None:
    r"""`text`, or its bytes where it is not valid Unicode.

    Example:
        >>> bind_text("a"), bind_text("\ud800")
        ('a', b'\xed\xa0\x80')
    """
    if text is None or text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def read_text(value: str | bytes | None) -> str | None:
    """The text that `bind_text` was given."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def bind_number(value: float | None) -> float | None:
    """`value`, or None (unknown) where a sum of such values could not be stored any more.

    Example:
        >>> bind_number(0.5), bind_number(float("inf")), bind_number(2**64)
        (0.5, None, None)
    """
    if value is None or (-_LARGEST <= value <= _LARGEST):  # which NaN is not
        return value
    return None
