"""Record batches of Arrow → entries. Pure; what reads them brings pyarrow."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from onellm_async.batch.inputs.entry import ByteSource, Entry
from onellm_async.batch.inputs.entry_parser import check_prompt_column
from onellm_async.batch.inputs.request_fields import ROW_FIELDS
from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.wire import dump_json

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch, Schema

ROWS = 2048
"""Rows that are read at once."""
_BESIDE = frozenset({"custom_id", "id", *ROW_FIELDS})


def entries_of(source: ByteSource, schema: "Schema", batches: Iterable["RecordBatch"]) -> Iterator[list[Entry]]:
    """The entries of some record batches, a batch at a time.

    Args:
        source: The input.
        schema: Of all of its columns.
        batches: With the `wanted_columns` in them.

    Raises:
        BatchError: If a column is missing.
    """
    parser, count = source.parser([name for name in schema.names if not _has_binary(schema.field(name).type)]), 0
    for batch in batches:
        rows = rows_of(batch)
        first = source.first_index + count
        yield [Entry(first + number, count + number + 1, dump_json(row), parser) for number, row in enumerate(rows)]
        count += len(rows)


def wanted_columns(source: ByteSource, schema: "Schema") -> list[str]:
    """The columns to read: the prompt and what belongs to it, or all that JSON can hold.

    Raises:
        BatchError: If there is no column of text or messages for the prompt.
    """
    import pyarrow as pa  # noqa: PLC0415

    names = list(schema.names)
    for name in names:
        if names.count(name) > 1:
            raise BatchError(f"{source.name} has two columns that are called {name!r}.")
    readable = [name for name in names if not _has_binary(schema.field(name).type)]
    if not source.has_prompt:
        return readable
    check_prompt_column(source.name, names, source.field)
    prompts = [name for name in ("prompt", "messages") if name in names] if source.field is None else [source.field]
    for name in prompts:
        kind = schema.field(name).type
        if not (_is_text(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind)):
            raise BatchError(
                f"{source.name}: the column {name!r} holds {kind}, not text.",
                advice="Name another with field=, or make the prompt with template=.",
            )
    if source.all_columns:
        return readable
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


def rows_of(batch: "RecordBatch") -> list[dict[str, JSON]]:
    """The rows of `batch`, with every column that JSON has no type for as text."""
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
    return list(pa.RecordBatch.from_arrays(arrays, names=batch.schema.names).to_pylist())
