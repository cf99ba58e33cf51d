"""The registry of output formats: a new one is one file and one row of `FORMATS`. Pure."""

from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import PurePath
from types import TracebackType
from typing import Protocol, Self

from attrs import evolve, frozen

from onellm_async.batch.journal.record import JournalRecord
from onellm_async.batch.outputs.columns import encode_columns
from onellm_async.batch.outputs.csv import csv_header, encode_csv, encode_tsv
from onellm_async.batch.outputs.jsonl import encode_jsonl
from onellm_async.batch.outputs.openai_batch import encode_bad_line, encode_openai_batch
from onellm_async.batch.outputs.sinks import FileSink, StreamSink
from onellm_async.errors import BatchError, ConfigurationError


class Sink(Protocol):
    """A place for encoded records; enter it before it is written to."""

    async def __aenter__(self) -> Self:
        """Begins the output."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes the output, or leaves it as it is after an exception."""

    async def write(self, lines: bytes) -> None:
        """Takes whole records in their order.

        Raises:
            BatchError: If they cannot be written.
        """


class SinkOpener(Protocol):
    """Opens the sink of a format; the arguments are those of `open_sink`."""

    def __call__(
        self,
        path: str | PathLike[str] | None,
        *,
        header: bytes,
        columns: tuple[str, ...],
        force: bool,
        resume: bool,
        replace: bool,
    ) -> Sink:
        """Opens `path`; None is standard output.

        Raises:
            BatchError: If it cannot be written.
        """


@frozen
class OutputFormat:
    """How an output is written.

    Attributes:
        name: As ``--format`` of ``export`` has it.
        suffixes: Endings of the names of its files, in lower case.
        encode: The record of a row, with its line break. The same row gives the same bytes.
        open_sink: Opens the place for what `encode` makes.
        header: What stands before the first record, given the fields of the input that have columns.
        encode_bad_line: The record of a bad line, from its index, its bytes and what is wrong with it; None where bad
            lines have no records.
        encode_row: Makes an encoder of rows that also have columns for fields of the input; None where a record holds
            kept fields in itself.
        columns: The fields of the input that follow the answer in each row; see `keeping`.
        samples: How often each prompt is asked; see `sampling`.
        lines: Whether records are lines, which a stream takes as well; otherwise the output is a file.
    """

    name: str
    suffixes: tuple[str, ...]
    encode: Callable[[JournalRecord], bytes]
    open_sink: SinkOpener
    header: Callable[[tuple[str, ...]], bytes] = lambda columns: b""
    encode_bad_line: Callable[[int, bytes, str], bytes] | None = None
    encode_row: Callable[[tuple[str, ...]], Callable[[JournalRecord], bytes]] | None = None
    columns: tuple[str, ...] = ()
    samples: int = 1
    lines: bool = True

    def bad_line(self, index: int, raw: bytes, message: str) -> bytes:
        """The record of a bad line; b"" where bad lines have none."""
        return b"" if self.encode_bad_line is None else self.encode_bad_line(index // self.samples, raw, message)

    def keeping(self, columns: tuple[str, ...]) -> "OutputFormat":
        """The same with columns for kept fields of the input, where records are rows."""
        if not columns or self.encode_row is None:
            return self
        plain = evolve(self, encode=self.encode_row(columns), columns=columns, samples=1)
        return plain.sampling(self.samples)

    def sampling(self, samples: int) -> "OutputFormat":
        """The same where each prompt is asked several times: records have the index of their prompt in the input."""
        if samples == self.samples:
            return self
        encode = self.encode

        def encode_sample(record: JournalRecord) -> bytes:
            copy_of = None if record.copy_of is None else record.copy_of // samples
            return encode(evolve(record, index=record.index // samples, copy_of=copy_of))

        return evolve(self, encode=encode_sample, samples=samples)

    def __str__(self) -> str:
        return self.name


def open_text(
    path: str | PathLike[str] | None,
    *,
    header: bytes = b"",
    columns: tuple[str, ...] = (),
    force: bool = False,
    resume: bool = False,
    replace: bool = False,
) -> FileSink | StreamSink:
    """A file or a stream of records that are written as they are."""
    if path is None:
        return StreamSink(1, header=header)
    return FileSink(path, force=force, resume=resume, replace=replace, header=header)


def _open_parquet(
    path: str | PathLike[str] | None,
    *,
    header: bytes,
    columns: tuple[str, ...],
    force: bool,
    resume: bool,
    replace: bool,
) -> Sink:
    from onellm_async.batch.outputs.parquet import ParquetSink  # noqa: PLC0415  # pyarrow, only where it is wanted

    if path is None:
        raise BatchError("Parquet cannot be written to standard output.", advice="Name a file as the output.")
    return ParquetSink(path, columns=columns, force=force, resume=resume, replace=replace)


class _RowEncoder(Protocol):
    def __call__(self, record: JournalRecord, columns: Sequence[str] = ...) -> bytes: ...


def _rows(encode: _RowEncoder) -> Callable[[tuple[str, ...]], Callable[[JournalRecord], bytes]]:
    return lambda columns: lambda record: encode(record, columns)


FORMATS: tuple[OutputFormat, ...] = (
    OutputFormat("jsonl", (".jsonl", ".ndjson"), encode_jsonl, open_text),
    OutputFormat("openai-batch", (), encode_openai_batch, open_text, encode_bad_line=encode_bad_line),
    OutputFormat("csv", (".csv",), encode_csv, open_text, csv_header, encode_row=_rows(encode_csv)),
    OutputFormat(
        "tsv",
        (".tsv", ".tab"),
        encode_tsv,
        open_text,
        partial(csv_header, delimiter="\t"),
        encode_row=_rows(encode_tsv),
    ),
    OutputFormat(
        "parquet",
        (".parquet", ".pq"),
        encode_columns,
        _open_parquet,
        encode_row=_rows(encode_columns),
        lines=False,
    ),
)
"""All formats; the first is that of outputs whose name says nothing."""

_CURES = {
    ".json": "Write JSON lines (.jsonl); `jq -s . answers.jsonl` makes one document of them.",
    ".gz": "Write it without .gz and compress it afterwards: gzip {stem}",
    ".zst": "Write it without .zst and compress it afterwards: zstd {stem}",
    ".xlsx": "Write .csv, which spreadsheets open.",
    ".xls": "Write .csv, which spreadsheets open.",
    ".ods": "Write .csv, which spreadsheets open.",
    ".txt": "Write .jsonl; `jq -r .response.content answers.jsonl` gives the answers alone.",
    ".md": "Write .jsonl; `jq -r .response.content answers.jsonl` gives the answers alone.",
}
"""What to do instead of naming an output so; ``{stem}`` is its name without that ending."""


def output_format_named(name: str) -> OutputFormat:
    """The format of that name.

    Raises:
        ConfigurationError: If there is none.
    """
    for each in FORMATS:
        if each.name == name:
            return each
    raise ConfigurationError(f"output format is {name!r}; it must be one of {', '.join(map(str, FORMATS))}.")


def output_format(path: str | PathLike[str] | None, source_format: str = "jsonl") -> OutputFormat:
    """The format of an output: as its name says, else that of OpenAI for an OpenAI batch, else JSON lines.

    Args:
        path: The output; None for a stream.
        source_format: Name of the format of the input.

    Raises:
        BatchError: If the name has an ending of no format.
    """
    suffix = "" if path is None else PurePath(path).suffix.lower()
    found = next((each for each in FORMATS if suffix in each.suffixes), None)
    if found is None and suffix:
        known = ", ".join(suffix for each in FORMATS for suffix in each.suffixes)
        raise BatchError(
            f"{path} cannot be written: no output format is called {suffix} (known: {known}).",
            advice=_CURES.get(suffix, "Name the output with one of these, or with none for JSON lines.").replace(
                "{stem}", PurePath(path or "").stem
            ),
        )
    if source_format == "openai-batch" and (found is None or found is FORMATS[0]):
        return output_format_named("openai-batch")
    return found or FORMATS[0]


def open_sink(
    path: str | PathLike[str] | None,
    shape: OutputFormat,
    *,
    force: bool = False,
    resume: bool = False,
    replace: bool = False,
    header: bool = True,
) -> Sink:
    """The sink for records in that format; enter it before it is written to.

    Args:
        path: Where the output is to be; None is standard output.
        shape: How records are written.
        force: Replace an existing output, and a ``.partial`` file that a killed run left.
        resume: A ``.partial`` file is that of the run that goes on, and is written anew.
        replace: An existing output is that of the run that goes on, and is replaced in the end.
        header: Write what stands before the first record as soon as the sink is entered.

    Raises:
        BatchError: If the place is taken, is no regular file, or cannot be written; for Parquet also if it is standard
            output, or pyarrow is not installed.

    Example:
        ::

            shape = output_format("answers.csv")
            async with open_sink("answers.csv", shape) as sink:
                await sink.write(b"".join(map(shape.encode, rows)))
    """
    first = shape.header(shape.columns) if header else b""
    return shape.open_sink(path, header=first, columns=shape.columns, force=force, resume=resume, replace=replace)
