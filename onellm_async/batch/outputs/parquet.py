"""A Parquet file of answers that appears whole. The only writer that knows pyarrow."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from onellm_async.batch.outputs.columns import COLUMNS, kept_names
from onellm_async.batch.outputs.output_place import AtomicOutputFile
from onellm_async.errors import BatchError
from onellm_async.wire import parse_json

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise BatchError(
        "Parquet cannot be written, because pyarrow is not installed.", advice="pip install 'onellm-async[parquet]'"
    ) from None

__all__ = ["ROW_GROUP", "ParquetSink"]

ROW_GROUP = 10_000
"""Rows of a row group. They wait in memory until it is full: at 2 kB an answer, 20 MB."""

_TYPES = {int: pa.int64(), str: pa.string(), float: pa.float64()}
_FIELDS = [pa.field(name, _TYPES[kind], nullable=name != "index") for name, kind in COLUMNS.items()]


class ParquetSink:
    """Like `onellm_async.batch.FileSink`, for the lines that `encode_columns` makes.

    The same records give the same bytes, however they were handed over. The ``.partial`` file of a process that was
    killed lacks its index and cannot be read; the journal has what was in it.

    Args:
        path: Where the output is to be.
        columns: Fields of the input that follow the answer, as text.
        force: Replace an existing output, and a ``.partial`` file that a killed run left.
        resume: A ``.partial`` file is that of the run that goes on, and is written anew.
        replace: An existing output is that of the run that goes on, and is replaced in the end.

    Raises:
        BatchError: If the place is taken, is no regular file, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        columns: Sequence[str] = (),
        force: bool = False,
        resume: bool = False,
        replace: bool = False,
    ) -> None:
        self._place = AtomicOutputFile(path, force=force, resume=resume, replace=replace)
        self.path: Path = self._place.path
        self.partial_path: Path = self._place.partial_path
        self._waiting: list[bytes] = []
        self._lost: BatchError | None = None
        self._file: BinaryIO = os.fdopen(self._place.descriptor, "wb", closefd=False)
        self._schema = pa.schema(_FIELDS + [pa.field(name, pa.string()) for name in kept_names(columns)])
        self._writer = pq.ParquetWriter(self._file, self._schema)

    async def write(self, lines: bytes) -> None:
        """Takes records; whole row groups are written.

        Raises:
            BatchError: If they cannot be written, for example on a full disk.
        """
        self._waiting += lines.splitlines()
        while len(self._waiting) >= ROW_GROUP:
            group, self._waiting = self._waiting[:ROW_GROUP], self._waiting[ROW_GROUP:]
            await asyncio.to_thread(self._write_group, group)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Writes the rest and the index, and moves the file to its place.

        Raises:
            BatchError: If it cannot be written, or another process has taken the place; the ``.partial`` file is kept.
        """
        await asyncio.to_thread(self._end, publish=kind is None)

    def _end(self, *, publish: bool) -> None:
        try:
            self._finish()
        except BaseException as error:
            with suppress(Exception):  # so that nothing is written once the descriptor is another file's
                self._writer.close()
            with suppress(Exception):
                self._file.close()
            self._place.abandon()
            if publish or not isinstance(error, BatchError):
                raise
            return
        if publish:
            self._place.publish()
        else:
            self._place.abandon()

    def _finish(self) -> None:
        if self._lost is not None:
            raise self._lost
        if self._waiting:
            self._write_group(self._waiting)
        try:
            self._writer.close()
            self._file.close()
        except (OSError, pa.ArrowException) as error:
            raise self._unwritable(error) from error

    def _write_group(self, lines: list[bytes]) -> None:
        rows = [parse_json(line) for line in lines]
        try:
            columns = [
                pa.array([_storable(value) for value in column], field.type)
                for column, field in zip(zip(*rows, strict=True), self._schema, strict=True)
            ]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=ROW_GROUP)
        except (OSError, pa.ArrowException, OverflowError) as error:
            self._lost = self._unwritable(error)
            raise self._lost from error

    def _unwritable(self, error: Exception) -> BatchError:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        return BatchError(f"{self.partial_path} cannot be written: {reason}.")


def _storable(value: object) -> object:
    """`value` without halves of characters, which Parquet's UTF-8 does not hold."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode(errors="surrogatepass").decode(errors="replace")
    return value
