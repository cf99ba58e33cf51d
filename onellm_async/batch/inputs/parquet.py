"""Parquet → entries, a few thousand rows at a time. The only reader that knows pyarrow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onellm_async.batch.inputs.entry import ByteSource, Entry
from onellm_async.batch.inputs.entry_parser import check_prompt_column
from onellm_async.batch.inputs.request_fields import ROW_FIELDS
from onellm_async.errors import BatchError
from onellm_async.wire import dump_json

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch
    from pyarrow.parquet import ParquetFile

MAGIC = b"PAR1"
"""How a Parquet file begins and ends."""

_ROWS = 2048
_BUFFER = 1024 * 1024
"""Bytes of a column that are read at once; without it pyarrow reads a column's whole row group."""
_BESIDE = frozenset({"custom_id", "id", *ROW_FIELDS})


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
        columns = _columns(source, file)
        made, index = source.parser(list(file.schema_arrow.names)), 0
        for batch in file.iter_batches(_ROWS, columns=columns):
            rows = _readable(batch).to_pylist()
            first = source.first_index + index
            yield [Entry(first + number, index + number + 1, dump_json(row), made) for number, row in enumerate(rows)]
            index += len(rows)


def _columns(source: ByteSource, file: "ParquetFile") -> list[str]:
    import pyarrow as pa  # noqa: PLC0415

    schema = file.schema_arrow
    names = list(schema.names)
    for name in names:
        if names.count(name) > 1:
            raise BatchError(f"{source.name} has two columns that are called {name!r}.")
    readable = [name for name in names if not _has_binary(schema.field(name).type)]
    if source.all_columns:
        return readable
    check_prompt_column(source.name, names, source.field)
    prompts = [name for name in ("prompt", "messages") if name in names] if source.field is None else [source.field]
    for name in prompts:
        kind = schema.field(name).type
        if not (_is_text(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind)):
            raise BatchError(
                f"{source.name}: the column {name!r} holds {kind}, not text.",
                advice="Name another with --field, or make the prompt with --template.",
            )
    return prompts + [name for name in readable if name in _BESIDE and name not in prompts]


def _is_text(kind: "DataType") -> bool:
    import pyarrow as pa  # noqa: PLC0415

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _has_binary(kind: "DataType") -> bool:
    """Whether there are bytes anywhere in a column of that type, for which JSON has nothing."""
    import pyarrow as pa  # noqa: PLC0415

    if pa.types.is_dictionary(kind):
        return _has_binary(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_has_binary(kind.field(number).type) for number in range(kind.num_fields))
    types = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_type(kind) for is_type in types)


def _readable(batch: "RecordBatch") -> "RecordBatch":
    """`batch` with every column that JSON has no type for as text."""
    import pyarrow as pa  # noqa: PLC0415

    arrays = []
    for column in batch.columns:
        kind = column.type
        plain = (
            _is_text(kind)
            or pa.types.is_nested(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_null(kind)
        )
        arrays.append(column if plain else column.cast(pa.string()))
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


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
