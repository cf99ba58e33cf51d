"""Inputs of any size as a stream of entries: the thin host of the formats.

A file, a pipe or standard input is read in pieces of 256 KiB and cut into entries by a thread, so that neither a slow
disk nor a slow producer stops the event loop, and a prompt that has arrived is sent without waiting for the next.
"""

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from attrs import frozen

from onellm_async.batch.inputs.binary_files import refuse_binary
from onellm_async.batch.inputs.defaults import RequestDefaults
from onellm_async.batch.inputs.entry import Entry, LineError
from onellm_async.batch.inputs.entry_parser import EntryParser, check_prompt_column
from onellm_async.batch.inputs.formats import TEXT, InputFormat, formats_of, input_format_named, recognize_format
from onellm_async.batch.inputs.lines import BYTE_ORDER_MARK, LONGEST_LINE
from onellm_async.batch.inputs.template import PromptTemplate
from onellm_async.daemon_thread import in_daemon_thread
from onellm_async.descriptors import read_piece
from onellm_async.errors import BatchError
from onellm_async.files import describe_os_error

_PIECE = 256 * 1024


@frozen
class InputScan:
    """What a look through a whole input found, before anything is sent.

    Attributes:
        lines: How many entries it has.
        first_error: The first bad line; None when there is none, or when lines were only counted.
        digest: BLAKE2b of all its bytes, 32 hexadecimal digits.
    """

    lines: int
    first_error: LineError | None = None
    digest: str = ""


class InputFile:
    """An open input; iterate over it once. Made by `open_source`.

    Attributes:
        name: The input's name, as shown to the user.
        format: How it is written; known once the first line was read.
        field: The field or column that holds the prompt, None where none was named.
        template: Makes the prompt of all fields or columns instead, None where none does.
        defaults: What is asked of every prompt.
    """

    def __init__(
        self,
        name: str,
        descriptor: int,
        *,
        forced_format: InputFormat | None = None,
        field: str | None = None,
        template: PromptTemplate | None = None,
        defaults: RequestDefaults | None = None,
    ) -> None:
        self.name: str = name
        self._descriptor = descriptor
        self._regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self.field: str | None = field
        self.template: PromptTemplate | None = template
        self.defaults: RequestDefaults = defaults or RequestDefaults()
        self._format = forced_format or self._format_by_name()
        self._reader: EntryParser | None = None
        self._pieces: Iterator[bytes] = iter(())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor > 2:
            os.close(self._descriptor)

    @property
    def format(self) -> InputFormat:
        """How it is written: as forced, else as the name and the first line say."""
        return self._format or TEXT

    @property
    def all_columns(self) -> bool:
        """Whether every column of a table is wanted."""
        return self.template is not None

    def is_file(self, path: str) -> bool:
        """Whether `path` is the very file that is being read."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), Path(path).stat())
        except (OSError, ValueError):
            return False

    def reserve_custom_id(self, custom_id: str, line: int = 0) -> None:
        """Takes note of the id of an entry that need not be parsed, so that no later one may use it again.

        Args:
            custom_id: The id.
            line: The entry's line; 0 where it is not known.
        """
        if self._reader is not None:  # it is there as soon as there is an entry
            self._reader.reserve_custom_id(custom_id, line)

    def survey(self, *, strict: bool = False) -> InputScan | None:
        """Counts the entries, and with `strict` checks each of them, without consuming the input. Blocks: use a thread.

        Returns:
            None for a pipe or a terminal, which can be read only once.

        Raises:
            BatchError: If the file cannot be read.
        """
        if not self._regular:
            return None
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        lines, first_error, hasher = 0, None, blake2b(digest_size=16)
        try:
            shape, pieces = self._recognized(hasher.update)
            if shape.count is not None and not strict:
                lines = shape.count(self)
            else:
                for entries in self._entries(shape, pieces):
                    lines += len(entries)
                    if strict and first_error is None:
                        items = (entry.item() for entry in entries)
                        first_error = next((item for item in items if isinstance(item, LineError)), None)
        finally:
            os.lseek(self._descriptor, start, os.SEEK_SET)
            self._reader = None  # it has seen every custom_id
        return InputScan(lines, first_error, hasher.hexdigest())

    async def __aiter__(self) -> AsyncIterator[Entry]:
        """The entries in the order of the input; `Entry.item` tells whether one is good.

        Raises:
            BatchError: If the input cannot be read any further, or is a table without a column for the prompt.
        """
        batches = self._batches()
        try:
            while (entries := await in_daemon_thread(lambda: next(batches, None))) is not None:
                for entry in entries:
                    yield entry
        finally:
            with contextlib.suppress(ValueError):  # a thread is in it, and the last to know it
                batches.close()

    def _batches(self) -> Generator[list[Entry], None, None]:
        yield from self._entries(*self._recognized())

    def _entries(self, shape: InputFormat, pieces: Iterator[bytes]) -> Iterator[list[Entry]]:
        self._pieces = pieces
        return shape.splitter(self)

    def _recognized(self, watch: Callable[[bytes], object] | None = None) -> tuple[InputFormat, Iterator[bytes]]:
        """The format, and all pieces: those that had to be read to know it, too."""
        pieces = self._read_pieces(watch)
        if self._format is None:
            pieces, first_line = _with_first_line(pieces)
            shape = recognize_format(self.name, first_line)
            if shape.has_requests and self.template is not None:
                raise BatchError(f"{self.name} is an OpenAI batch, whose requests are whole: it takes no template.")
            self._format = shape
        if self._format.count is not None and watch is not None:
            for _ in pieces:
                """Read for its digest; the format has a reader of its own."""
        return self._format, pieces

    def pieces(self) -> Iterator[bytes]:
        """Its bytes from here to the end."""
        return self._pieces

    def file(self) -> BinaryIO:
        """The whole file, for formats that have their index at its end.

        Raises:
            BatchError: If it is a pipe.
        """
        if not self._regular:
            raise BatchError(
                f"{self.name} is a pipe, from which {str(self.format).capitalize()} cannot be read.",
                advice="Its index is at its end; use a file.",
            )
        stream = os.fdopen(self._descriptor, "rb", closefd=False)
        stream.seek(0)
        return stream

    def parser(self, columns: Sequence[str] | None = None) -> EntryParser:
        """The reader of its entries.

        Raises:
            BatchError: If the table has no column for the prompt.
        """
        if columns is not None and self.template is None:
            check_prompt_column(self.name, columns, self.field)
        self._reader = EntryParser(
            self.name, self.format.parse, prompt_field=self.field, template=self.template, defaults=self.defaults
        )
        return self._reader

    def _format_by_name(self) -> InputFormat | None:
        """The format, where the name and a given field tell it without a look inside."""
        with contextlib.suppress(BatchError):  # the first line may tell the format
            candidates = formats_of(self.name)
            if len(candidates) == 1 and not (self.field is not None and candidates[0] is TEXT):
                return candidates[0]
        return None if self.field is None else input_format_named("jsonl")

    def _read_pieces(self, watch: Callable[[bytes], object] | None) -> Iterator[bytes]:
        start = True
        while piece := self._read_piece():
            if start and (self._format is None or self._format.count is None):
                refuse_binary(self.name, piece)
            start = False
            if watch is not None:
                watch(piece)
            yield piece

    def _read_piece(self) -> bytes:
        try:
            return read_piece(self._descriptor, _PIECE)
        except OSError as error:
            raise BatchError(f"{self.name} cannot be read: {describe_os_error(error)}.") from None


def _with_first_line(pieces: Iterator[bytes]) -> tuple[Iterator[bytes], bytes]:
    """`pieces`, and the first line in them that is not blank; b"" where there is none."""
    read: list[bytes] = []
    size, start = 0, bytearray()  # `start` is an incomplete line, or blank
    for piece in pieces:
        read.append(piece)
        start += piece
        size += len(piece)
        if not (b"\n" in piece or b"\r" in piece or size > LONGEST_LINE):
            continue
        for line in start.splitlines(keepends=True):
            if line.strip() and (line.endswith((b"\n", b"\r")) or size > LONGEST_LINE):
                return chain(read, pieces), bytes(line).removeprefix(BYTE_ORDER_MARK).strip()
        if not start.strip():
            start.clear()
    return iter(read), bytes(start).removeprefix(BYTE_ORDER_MARK).strip()


def open_source(
    path: str,
    *,
    forced_format: InputFormat | None = None,
    field: str | None = None,
    template: PromptTemplate | None = None,
    defaults: RequestDefaults | None = None,
) -> InputFile:
    """Opens an input.

    Args:
        path: A file or named pipe; ``-`` is standard input.
        forced_format: How it is written; None to tell from its name and first line.
        field: The field or column that holds the prompt; implies JSON lines where the name tells no table.
        template: Makes the prompt of all fields or columns instead.
        defaults: What is asked of every prompt.

    Raises:
        BatchError: If it cannot be opened, is a directory, or `field` or `template` do not go with its format.
    """
    if field is not None and forced_format is not None and (forced_format is TEXT or forced_format.has_requests):
        raise BatchError(f"A field ({field!r}) can be named only in JSON lines and tables, not in {forced_format}.")
    if template is not None and field is not None:
        raise BatchError(f"A field ({field!r}) and a template exclude each other: a template names its fields itself.")
    if template is not None and forced_format is not None and forced_format.has_requests:
        raise BatchError("An OpenAI batch takes no template: its requests are whole.")
    if path == "-":
        name, descriptor = "<stdin>", 0
        _check_standard_input()
    else:
        name, descriptor = path, _open_file(path)
    return InputFile(name, descriptor, forced_format=forced_format, field=field, template=template, defaults=defaults)


def _check_standard_input() -> None:
    try:
        os.read(0, 0)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno == errno.EBADF:
            raise BatchError("Standard input is closed.", advice="Name an input file.") from None
        raise BatchError(f"Standard input cannot be read: {error.strerror}.", advice="Name an input file.") from None


def _open_file(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise BatchError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.") from None
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BatchError(f"{path} cannot be read: it is a directory.")
    return descriptor
