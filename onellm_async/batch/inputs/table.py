"""Tables in memory as the entries of a run: anything that hands out an Arrow stream, and `datasets.Dataset`."""

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Protocol

from onellm_async.batch.inputs.defaults import RequestDefaults
from onellm_async.batch.inputs.entry import Entry, LineError, SecondLook
from onellm_async.batch.inputs.entry_parser import EntryParser, FirstEntries, ParserOptions, SeenIds, length_of
from onellm_async.batch.inputs.formats import InputFormat, input_format_named
from onellm_async.batch.inputs.notes import InputNotes
from onellm_async.batch.inputs.template import PromptTemplate
from onellm_async.daemon_thread import in_daemon_thread
from onellm_async.errors import BatchError

if TYPE_CHECKING:
    from pyarrow import RecordBatch, RecordBatchReader


class ArrowStream(Protocol):
    """What hands out an Arrow stream, as DataFrames and relations do."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The stream, as the Arrow PyCapsule interface has it."""


_BATCH = 1000
"""Rows that a dataset hands out at once."""


def is_table(source: object) -> bool:
    """Whether `source` is a table: a DataFrame, a relation, an Arrow table or reader, or a dataset.

    A single column, such as a Series, is no table but prompts.
    """
    named = hasattr(source, "columns") or hasattr(source, "column_names") or hasattr(source, "schema")
    return named and (hasattr(source, "__arrow_c_stream__") or _is_dataset(source) or _is_pandas(source))


def _is_dataset(source: object) -> bool:
    return hasattr(source, "with_format") and hasattr(source, "iter") and hasattr(source, "column_names")


def _is_pandas(source: object) -> bool:
    return type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns")


class TableInput:
    """A table in memory as entries; iterate over it once.

    Args:
        table: A DataFrame of polars or pandas, a relation of duckdb, a table or reader of pyarrow, a
            ``datasets.Dataset``.
        options: How its rows are read.

    Attributes:
        name: What it is called in messages: its type.
        options: As given.
        defaults: What is asked of every row.
        field: The column that holds the prompt; None for ``prompt`` or ``messages``.
        template: Makes the prompt instead.
        format: What the output follows where its name tells nothing.
        notes: What is to be said of it once per run.
        kept_columns: The columns that go beside the answers.
        count: Number of its rows; None if it is not known beforehand.

    Raises:
        BatchError: If pyarrow is not installed, the table cannot be read, or it has no column for the prompt.
    """

    format: InputFormat = input_format_named("arrow")
    first_index = 0

    def __init__(self, table: object, options: ParserOptions) -> None:
        self.name: str = type(table).__name__
        self.options: ParserOptions = options
        self.defaults: RequestDefaults = options.defaults
        self.field: str | None = options.prompt_field
        self.template: PromptTemplate | None = options.template
        self.notes: InputNotes = InputNotes()
        self._ids = SeenIds()
        self._table = table
        self.count: int | None = _rows_of(table)
        self._reader = _reader_of(self.name, table)
        self._batches: Iterator[list[Entry]] | None = None
        self._check_columns(self._reader.schema.names)
        keep = options.keep
        names = [name for name in self._reader.schema.names if name != "custom_id" or options.id_field is not None]
        self.kept_columns: tuple[str, ...] = keep if isinstance(keep, tuple) else tuple(names)

    @property
    def keep(self) -> str | None:
        """What is kept, as a text that tells two runs apart; None for what is usual."""
        return self.options.kept_text

    @property
    def all_columns(self) -> bool:
        """Whether every column is read."""
        return self.options.reads_all_columns

    @property
    def has_prompt(self) -> bool:
        """Whether a column holds the prompt, and no template makes it."""
        return self.template is None

    def reserve_custom_id(self, custom_id: str, line: int = 0) -> None:
        """Takes note of the id of a row that need not be parsed, so that no later one may use it again."""
        self._ids.add(custom_id, 0, line)

    async def begin(self, *, strict: bool = False) -> None:
        """Refuses a table of whose first rows none can be sent; with `strict`, one that has any bad row.

        What can be read only once, such as a reader or a relation, is not read to its end for `strict`.

        Raises:
            BatchError: Naming the first bad row, or if there are no rows or they cannot be read.
        """
        if strict and not _is_read_once(self._table):
            await in_daemon_thread(TableInput(self._table, self.options).refuse_bad_rows)
        await in_daemon_thread(self._refuse_unusable)

    def refuse_bad_rows(self) -> None:
        """Reads all rows, after which nothing is left to iterate over. Blocks.

        Raises:
            BatchError: Naming the first bad row, or if the table cannot be read.
        """
        for entry in self.rows():
            if isinstance(item := entry.item(), LineError):
                raise BatchError(str(item), advice="Nothing was sent (strict).")

    def _refuse_unusable(self) -> None:
        from onellm_async.batch.inputs.arrow import split_reader  # noqa: PLC0415  # as below

        batches, read = split_reader(self, self._reader), list[list[Entry]]()
        first, parser = FirstEntries(self.name, "row"), EntryParser(self.name, self.format.parse, self.options)
        for entries in batches:
            read.append(entries)
            for entry in entries:
                first.add(parser.read(entry.raw, line=entry.line, index=entry.index))
                if first.usable:
                    break
            if first.usable:
                break
        else:
            first.end()
        self._batches = chain(read, batches)

    async def __aiter__(self) -> AsyncIterator[Entry]:
        """The rows in their order.

        Raises:
            BatchError: If the table cannot be read any further.
        """
        from onellm_async.batch.inputs.arrow import split_reader  # noqa: PLC0415  # the record batches need pyarrow

        batches = split_reader(self, self._reader) if self._batches is None else self._batches
        while (entries := await in_daemon_thread(lambda: next(batches, None))) is not None:
            for entry in entries:
                yield entry

    def look_through(self) -> SecondLook | None:
        """Its entries, read once more; None for what can be read only once, such as a reader or a relation."""
        if _is_read_once(self._table):
            return None
        again = TableInput(self._table, self.options)
        return SecondLook(again.rows(), again.reserve_custom_id)

    def rows(self) -> Iterator[Entry]:
        """Its rows, after which nothing is left to iterate over. Blocks."""
        from onellm_async.batch.inputs.arrow import split_reader  # noqa: PLC0415  # as below

        for entries in split_reader(self, self._reader):
            yield from entries

    def pieces(self) -> Iterator[bytes]:
        """Nothing: a table has no bytes."""
        return iter(())

    def file(self) -> BinaryIO:
        """Nothing: a table is no file.

        Raises:
            BatchError: Always.
        """
        raise BatchError(f"{self.name} is no file.")

    def parser(self, columns: Sequence[str] | None = None, *, first: bytes = b"") -> EntryParser:
        """The reader of its entries."""
        return EntryParser(self.name, self.format.parse, self.options, notes=self.notes, ids=self._ids)

    def _check_columns(self, columns: Sequence[str]) -> None:
        self.options.check_columns(self.name, columns)


def _is_read_once(table: object) -> bool:
    """Whether `table` is a reader, or a relation, which has no second result while one is open."""
    return hasattr(table, "read_next_batch") or hasattr(table, "fetchall")


def _rows_of(table: object) -> int | None:
    """How many rows `table` has, where that costs nothing to know: a relation would run its query for it."""
    rows = getattr(table, "num_rows", None)
    if isinstance(rows, int):
        return rows
    return None if hasattr(table, "fetchall") else length_of(table)


def _reader_of(name: str, table: object) -> "RecordBatchReader":
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra
    except ImportError:
        raise BatchError(
            f"{name} cannot be read, because pyarrow is not installed.", advice="pip install 'onellm-async[parquet]'"
        ) from None
    try:
        if hasattr(table, "__arrow_c_stream__"):
            return pa.RecordBatchReader.from_stream(table)
        if _is_dataset(table):
            return _reader_of_dataset(table)
        return pa.Table.from_pandas(table, preserve_index=False).to_reader()
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BatchError(f"{name} cannot be read as a table: {reason[:300]}") from None


def _reader_of_dataset(dataset: object) -> "RecordBatchReader":
    import pyarrow as pa  # noqa: PLC0415

    tables = dataset.with_format("arrow").iter(batch_size=_BATCH)  # type: ignore[attr-defined]  # as `_is_dataset` says
    first = next(tables, None)
    if first is None:
        return pa.table({name: [] for name in dataset.column_names or ()}).to_reader()  # type: ignore[attr-defined]

    def batches() -> "Iterator[RecordBatch]":
        yield from first.to_batches()
        for table in tables:
            yield from table.cast(first.schema).to_batches()

    return pa.RecordBatchReader.from_batches(first.schema, batches())
