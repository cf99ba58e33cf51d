"""Files of Arrow → entries: the IPC file format, which is Feather 2, and the stream format, also through a pipe."""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from onellm_async.batch.inputs.entry import ByteSource, Entry
from onellm_async.batch.inputs.record_batches import ROWS, entries_of, wanted_columns
from onellm_async.errors import BatchError

if TYPE_CHECKING:
    from pyarrow import RecordBatch, RecordBatchReader

FILE_MAGIC = b"ARROW1\0\0"
"""How an Arrow file begins."""
STREAM_MAGIC = b"\xff\xff\xff\xff"
"""How an Arrow stream begins."""


def split_arrow(source: ByteSource) -> Iterator[list[Entry]]:
    """The entries of an Arrow file or stream. Blocks.

    Raises:
        BatchError: If pyarrow is not installed, the input is not Arrow or broken, or has no column for the prompt.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra
    except ImportError:
        raise BatchError(
            f"{source.name} is Arrow, and pyarrow is not installed.", advice="pip install 'onellm-async[parquet]'"
        ) from None
    try:
        with source.file() as stream:
            is_file = stream.read(len(FILE_MAGIC)) == FILE_MAGIC
            stream.seek(0)
            with pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream) as reader:
                if is_file:
                    batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
                else:
                    batches = iter(reader)
                columns = wanted_columns(source, reader.schema)
                yield from entries_of(source, reader.schema, _pieces(batches, columns))
    except (pa.ArrowException, OSError, TypeError, io.UnsupportedOperation) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BatchError(f"{source.name} cannot be read as Arrow: {reason[:300]}") from None


def split_reader(source: ByteSource, reader: "RecordBatchReader") -> Iterator[list[Entry]]:
    """The entries of a table in memory. Blocks.

    Raises:
        BatchError: If it has no column for the prompt, or cannot be read to its end.
    """
    import pyarrow as pa  # noqa: PLC0415

    try:
        columns = wanted_columns(source, reader.schema)
        yield from entries_of(source, reader.schema, _pieces(iter(reader), columns))
    except (pa.ArrowException, OSError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BatchError(f"{source.name} cannot be read: {reason[:300]}") from None


def _pieces(batches: Iterator["RecordBatch"], columns: list[str]) -> Iterator["RecordBatch"]:
    """`batches` with the wanted columns, in pieces that are small enough to be rows of Python."""
    for batch in batches:
        wanted = batch.select(columns)
        for start in range(0, wanted.num_rows, ROWS):
            yield wanted.slice(start, ROWS)
