"""Parquet → entries, a few thousand rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onellm_async.batch.inputs.entry import ByteSource, Entry
from onellm_async.batch.inputs.record_batches import ROWS, entries_of, wanted_columns
from onellm_async.errors import BatchError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

MAGIC = b"PAR1"
"""How a Parquet file begins and ends."""

_BUFFER = 1024 * 1024
"""Bytes of a column that are read at once; without it pyarrow reads a column's whole row group."""


def parquet_rows(source: ByteSource) -> int:
    """How many rows the file has, by its own account.

    Raises:
        BatchError: If pyarrow is not installed, or the file is not Parquet.
    """
    with _opened(source) as file:
        return int(file.metadata.num_rows)


def split_parquet(source: ByteSource) -> Iterator[list[Entry]]:
    """The entries of a Parquet file, some thousand at a time. Blocks.

    Raises:
        BatchError: If pyarrow is not installed, the input is a pipe, not Parquet or broken, or has no column for the
            prompt.
    """
    with _opened(source) as file:
        columns = wanted_columns(source, file.schema_arrow)
        yield from entries_of(source, file.schema_arrow, file.iter_batches(ROWS, columns=columns))


@contextmanager
def _opened(source: ByteSource) -> Iterator["ParquetFile"]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise BatchError(
            f"{source.name} is Parquet, and pyarrow is not installed.", advice="pip install 'onellm-async[parquet]'"
        ) from None
    try:
        with source.file() as stream, pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BatchError(f"{source.name} cannot be read as Parquet: {reason[:300]}") from None
