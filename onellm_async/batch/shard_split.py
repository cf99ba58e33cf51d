"""An input cut into shards: files of an equal number of prompts, and a manifest that describes them."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from filecmp import cmp
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from attrs import asdict, frozen

from onellm_async.batch.inputs.arrow import FILE_MAGIC
from onellm_async.batch.inputs.entry import InvalidEntry
from onellm_async.batch.inputs.formats import BATCH_DOCUMENT, InputFormat, input_format_named
from onellm_async.batch.inputs.lines import LineSplitter, split_lines, too_long
from onellm_async.batch.inputs.sources import OpenFile, open_source
from onellm_async.errors import BatchError, ConfigurationError
from onellm_async.files import describe_os_error, sync_directory, sync_file
from onellm_async.formatting import pluralize
from onellm_async.validation import Checks
from onellm_async.wire import dump_json, parse_json

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

    from onellm_async.batch.inputs.csv import CsvSplitter

MANIFEST = "shards.json"
"""File that describes the shards of a directory. It is written last, so the shards are complete if it is there."""
_VERSION = 1
_ROWS = 1000
"""Rows of a table that are read at once."""
_SUFFIXES = {"text": ".txt", "jsonl": ".jsonl", "openai-batch": ".jsonl", "csv": ".csv", "tsv": ".tsv"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_check = Checks(ConfigurationError)


@frozen
class ShardManifest:
    """What a directory of shards is made of.

    Attributes:
        format: Name of the input format.
        digest: Of the whole input.
        prompts: Entries of each shard but the last.
        entries: Entries of the input.
        names: File names of the shards, in the order of the input.
    """

    format: str
    digest: str
    prompts: int
    entries: int
    names: tuple[str, ...]


def split_input(
    source: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    prompts: int = 1000,
    input_format: str | None = None,
) -> list[Path]:
    """Splits an input into shards. The same input gives the same shards, and a second call does nothing. Blocks.

    Lines stay as they are, bad ones too. Tables keep their format and columns.

    Args:
        source: The input, in any input format.
        directory: Where the shards are written; it is made if there is none.
        prompts: Entries of each shard.
        input_format: How the input is written; None to tell from its name and first line.

    Returns:
        The shards, in the order of the input.

    Raises:
        BatchError: If the input cannot be read, a line or row is too long or broken, or the directory has shards of
            another input.
        ConfigurationError: If `prompts` is no integer of at least 1.

    Example:
        ::

            for shard in split_input("prompts.jsonl", "shards", prompts=5000):
                print(shard)  # shards/shard-00000.jsonl, …
    """
    _check.integer(1)(None, _Named("prompts"), prompts)
    target = Path(directory)
    opened = open_source(
        os.fspath(source), forced_format=None if input_format is None else input_format_named(input_format)
    )
    try:
        hasher = blake2b(digest_size=16)
        shapes = [each.recognized(hasher.update) for each in opened.files]
        if any(shape is not shapes[0] for shape in shapes):
            raise BatchError(f"{opened.name} are in several formats.", advice="Split the files of each format apart.")
        if (target / MANIFEST).exists():
            for each in opened.files:
                for _ in each.pieces():
                    """Read for its digest."""
            found = read_manifest(target)
            if (found.digest, found.prompts) != (hasher.hexdigest(), prompts):
                raise BatchError(
                    f"{target} has the shards of another input ({pluralize(found.prompts, 'prompt')} each).",
                    advice="Name another directory.",
                )
            return [target / name for name in found.names]
        try:
            target.mkdir(parents=True, exist_ok=True)
            shape_name, names, entries = _write_shards(opened.files, shapes[0], target, prompts)
            manifest = ShardManifest(shape_name, hasher.hexdigest(), prompts, entries, tuple(names))
            _write_file(target / MANIFEST, dump_json({"version": _VERSION, **asdict(manifest)}))
            sync_directory(target)
        except OSError as error:
            raise BatchError(f"{target} cannot be written: {describe_os_error(error)}.") from None
        return [target / name for name in names]
    finally:
        opened.close()


@frozen
class _Named:
    name: str


def read_manifest(directory: str | os.PathLike[str]) -> ShardManifest:
    """What the shards of a directory are made of.

    Raises:
        BatchError: If the directory has no shards, or its manifest cannot be read.
    """
    path = Path(directory) / MANIFEST
    try:
        found = parse_json(path.read_bytes())
        version = int(found["version"])
        names = tuple(map(str, found["names"]))
        if any(Path(name).name != name for name in names):
            raise ValueError  # noqa: TRY301  # a name that leads elsewhere
        manifest = ShardManifest(
            str(found["format"]), str(found["digest"]), int(found["prompts"]), int(found["entries"]), names
        )
    except FileNotFoundError:
        raise BatchError(
            f"{directory} has no shards ({MANIFEST} is missing).", advice="Split an input first: onellm-async shard."
        ) from None
    except OSError as error:
        raise BatchError(f"{path} cannot be read: {describe_os_error(error)}.") from None
    except (ValueError, KeyError, TypeError):
        raise BatchError(f"{path} is not the description of shards.") from None
    if version != _VERSION:
        raise BatchError(f"{path} is of version {version}; this program reads version {_VERSION}.")
    return manifest


def _write_shards(
    files: Sequence[OpenFile], shape: InputFormat, directory: Path, prompts: int
) -> tuple[str, list[str], int]:
    """Writes the shards.

    Returns:
        The name of their format, their names, and the number of entries.
    """
    if shape.is_binary:
        return ("parquet", *_write_columns(files, shape, directory, prompts))
    name = "jsonl" if shape.name not in _SUFFIXES else shape.name  # the elements of a JSON document become lines
    by_lines = shape.splitter is split_lines
    write = _write_table if name in _DELIMITERS else _write_lines if by_lines else _write_elements
    with _Writer(directory, _SUFFIXES[name], prompts) as writer:
        for each in files:
            write(each, shape, writer)
        # The first element of a document tells whether it is a batch.
        return ("openai-batch" if files[0].shape is BATCH_DOCUMENT else name, *writer.finish())


def _write_lines(source: OpenFile, shape: InputFormat, writer: "_Writer") -> None:
    splitter = LineSplitter()
    for lines in _fed(splitter, source.pieces()):
        for number, line in lines:
            if line is None:
                raise BatchError(f"{source.name}:{number}: {too_long('line')}", advice="Remove it or make it shorter.")
            writer.write(line + b"\n")


def _fed(splitter: LineSplitter, pieces: Iterator[bytes]) -> Iterator[list[tuple[int, bytes | None]]]:
    for piece in pieces:
        yield splitter.feed(piece)
    yield splitter.finish()


def _write_elements(source: OpenFile, shape: InputFormat, writer: "_Writer") -> None:
    for entries in shape.splitter(source):
        for entry in entries:
            if isinstance(entry, InvalidEntry):
                raise BatchError(str(entry.item()), advice="Fix it, or remove it.")
            writer.write(dump_json(parse_json(entry.raw)) + b"\n")


def _write_table(source: OpenFile, shape: InputFormat, writer: "_Writer") -> None:
    from onellm_async.batch.inputs.csv import CsvSplitter  # noqa: PLC0415  # the csv module, only where it is wanted

    splitter = CsvSplitter("\t" if shape.name == "tsv" else None)
    header: bytes | None = None
    for rows in _rows(splitter, source.pieces()):
        for number, row in rows:
            if isinstance(row, str):
                raise BatchError(f"{source.name}:{number}: {row}", advice="Fix the row.")
            if header is not None:
                writer.write(_csv_row(row, _DELIMITERS[shape.name], csv.QUOTE_MINIMAL))
                continue
            header = _csv_row(row, _DELIMITERS[shape.name], csv.QUOTE_ALL)
            if writer.header not in {b"", header}:
                raise BatchError(f"{source.name} has other columns than the files before it.")
            writer.header = header


def _rows(splitter: "CsvSplitter", pieces: Iterator[bytes]) -> Iterator[list[tuple[int, list[str] | str]]]:
    for piece in pieces:
        yield splitter.feed(piece)
    yield splitter.finish()


def _csv_row(fields: Sequence[str], delimiter: str, quoting: "int") -> bytes:
    """A row; bytes that were not UTF-8 stay what they were. All names are quoted, so that no name shows a delimiter."""
    line = io.StringIO(newline="")
    csv.writer(line, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerow(fields)  # type: ignore[arg-type]
    return line.getvalue().encode(errors="surrogateescape")


def _write_columns(
    files: Sequence[OpenFile], shape: InputFormat, directory: Path, prompts: int
) -> tuple[list[str], int]:
    """Writes Parquet or Arrow as Parquet."""
    for each in files:
        for _ in each.pieces():
            """Read for its digest."""
    if len(files) > 1:
        raise BatchError(f"Several {shape} files are split one at a time.", advice="Name one file and one directory.")
    (source,) = files
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise BatchError(
            f"{source.name} is {shape}, and pyarrow is not installed.", advice="pip install 'onellm-async[parquet]'"
        ) from None
    names: list[str] = []
    entries = 0
    try:
        with _record_batches(source, shape, min(prompts, _ROWS)) as (schema, batches):
            for rows in _rebatched(batches, prompts):
                table = pa.Table.from_batches(rows, schema=schema)
                names.append(_shard_name(len(names), ".parquet"))
                entries += table.num_rows
                buffer = io.BytesIO()
                pq.write_table(table, buffer)
                _write_file(directory / names[-1], buffer.getvalue())
    except (pa.ArrowException, TypeError, io.UnsupportedOperation) as error:
        raise BatchError(f"{source.name} cannot be read as {str(shape).capitalize()}: {str(error)[:300]}") from None
    return names, entries


@contextmanager
def _record_batches(
    source: OpenFile, shape: InputFormat, rows: int
) -> "Iterator[tuple[Schema, Iterator[RecordBatch]]]":
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    with source.file() as stream:
        if shape.name == "parquet":
            with pq.ParquetFile(stream) as file:
                yield file.schema_arrow, file.iter_batches(rows)
            return
        is_file = stream.read(len(FILE_MAGIC)) == FILE_MAGIC
        stream.seek(0)
        if not is_file:
            with pa.ipc.open_stream(stream) as reader:
                yield reader.schema, iter(reader)
            return
        with pa.ipc.open_file(stream) as reader:
            yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))


def _rebatched(batches: "Iterable[RecordBatch]", rows: int) -> "Iterator[list[RecordBatch]]":
    """Batches with `rows` rows together, the last ones with fewer."""
    kept: list[RecordBatch] = []
    size = 0
    for batch in batches:
        rest = batch
        while size + rest.num_rows >= rows:
            yield [*kept, rest.slice(0, rows - size)]
            rest = rest.slice(rows - size)
            kept, size = [], 0
        if rest.num_rows:
            kept.append(rest)
            size += rest.num_rows
    if kept:
        yield kept


class _Writer:
    """Cuts entries into files, one of which is open at a time."""

    def __init__(self, directory: Path, suffix: str, prompts: int) -> None:
        self.header = b""
        self._directory = directory
        self._suffix = suffix
        self._prompts = prompts
        self._names: list[str] = []
        self._entries = 0
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:  # something failed: the file is incomplete, and has no name yet
            self._stack.__exit__(BatchError, BatchError("incomplete"), None)

    def write(self, entry: bytes) -> None:
        if self._file is None:
            name = _shard_name(len(self._names), self._suffix)
            self._file = self._stack.enter_context(_fresh_file(self._directory / name))
            self._names.append(name)
            self._file.write(self.header)
        self._file.write(entry)
        self._entries += 1
        if self._entries % self._prompts == 0:
            self._end()

    def finish(self) -> tuple[list[str], int]:
        self._end()
        return self._names, self._entries

    def _end(self) -> None:
        if self._file is not None:
            self._file = None
            self._stack.close()


def _shard_name(number: int, suffix: str) -> str:
    return f"shard-{number:05}{suffix}"


@contextmanager
def _fresh_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is complete. An interrupted split may have left the same one."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            sync_file(file.fileno())
        _check_same(path, partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _check_same(path: Path, fresh: Path) -> None:
    if path.exists() and not cmp(path, fresh, shallow=False):
        raise BatchError(f"{path} is there already, and is not this shard.", advice="Name an empty directory.")


def _write_file(path: Path, content: bytes) -> None:
    with _fresh_file(path) as file:
        file.write(content)
