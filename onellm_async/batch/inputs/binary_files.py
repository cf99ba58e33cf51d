"""Files that hold no lines: each would be garbage, line after line, and every line of it paid for. Pure."""

from onellm_async.batch.inputs.parquet import MAGIC
from onellm_async.errors import BatchError

__all__ = ["refuse_binary"]

_DECOMPRESS = "Decompress it, for example into a pipe: gunzip -c FILE | onellm-async run -"
_SAVE = "Save it as UTF-8."
_NOT_TEXT = (
    (b"\xff\xfe", "UTF-16", _SAVE),
    (b"\xfe\xff", "UTF-16", _SAVE),
    (b"\x1f\x8b", "compressed with gzip", _DECOMPRESS),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _DECOMPRESS.replace("gunzip", "zstd -d")),
    (b"PK\x03\x04", "a ZIP archive or a workbook", "Unpack it, or save the sheet as CSV."),
    (MAGIC, "Parquet", "Say so with --format parquet, and give it as a file."),
)
"""How such a file begins, what it is, and what its owner can do."""


def refuse_binary(name: str, start: bytes) -> None:
    """Refuses an input that is to be read as text and is known not to be.

    Args:
        name: Its name, as shown to the user.
        start: Its first bytes.

    Raises:
        BatchError: If it is UTF-16, compressed, an archive or Parquet.
    """
    for magic, kind, advice in _NOT_TEXT:
        if start.startswith(magic):
            raise BatchError(f"{name} cannot be read: it is {kind}.", advice=advice)
