"""Inputs of any size as a stream of entries: the thin host of the formats.

A file, a pipe or standard input is read in pieces of 256 KiB and cut into entries by a thread, so that neither a slow
disk nor a slow producer stops the event loop, and a prompt that has arrived is sent without waiting for the next.
Several files are one input.
"""

import contextlib
import errno
import glob
import os
import stat
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from attrs import frozen

from onellm_async.batch.inputs.decoding import LFS_POINTER, check_lfs_pointer, decoded_pieces
from onellm_async.batch.inputs.defaults import RequestDefaults
from onellm_async.batch.inputs.entry import Entry, LineError, SecondLook
from onellm_async.batch.inputs.entry_parser import ALL, WHOLE, EntryParser, ParserOptions, SeenIds
from onellm_async.batch.inputs.formats import (
    BATCH_DOCUMENT,
    TEXT,
    InputFormat,
    formats_of,
    input_format_named,
    is_batch_line,
    recognize_binary,
    recognize_format,
)
from onellm_async.batch.inputs.lines import BYTE_ORDER_MARK, LONGEST_LINE
from onellm_async.batch.inputs.notes import InputNotes
from onellm_async.batch.inputs.template import PromptTemplate
from onellm_async.chat import ChatRequest
from onellm_async.daemon_thread import in_daemon_thread
from onellm_async.descriptors import read_piece
from onellm_async.errors import BatchError
from onellm_async.files import describe_os_error
from onellm_async.formatting import pluralize

_PIECE = 256 * 1024
_SAMPLE = 20
"""Entries of a file that are parsed before anything is sent."""


@frozen
class InputScan:
    """What a look through a whole input found, before anything is sent.

    Attributes:
        lines: How many entries it has.
        first_error: The first bad line; None when there is none, or when lines were only counted.
        digest: BLAKE2b of all its bytes, 32 hexadecimal digits.
        sample: The requests of the first entries that are good.
    """

    lines: int
    first_error: LineError | None = None
    digest: str = ""
    sample: tuple[ChatRequest, ...] = ()


class OpenFile:
    """One open file or pipe of an input, as the formats see it."""

    def __init__(self, name: str, descriptor: int, number: int, owner: "InputFile", shape: InputFormat | None) -> None:
        self.name: str = name
        self.descriptor: int = descriptor
        self.regular: bool = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._number = number
        self._owner = owner
        self.shape: InputFormat | None = shape or self._shape_by_name()
        self.opened: EntryParser | None = None
        self.first_index: int = 0
        self.entries: int = 0  # as a scan counted them
        self.size: int = 0  # in bytes, when a scan began
        self.modified_at: int = 0  # in nanoseconds, likewise
        self.scanned_bytes: int = 0
        self._pieces: Iterator[bytes] = iter(())
        self._begun = False

    @property
    def field(self) -> str | None:
        """The field or column that holds the prompt."""
        return self._owner.field

    @property
    def all_columns(self) -> bool:
        """Whether every column of a table is wanted."""
        return self._owner.options.reads_all_columns

    @property
    def has_prompt(self) -> bool:
        """Whether a field or column holds the prompt."""
        return self._owner.template is None

    def recognized(self, watch: Callable[[bytes], object] | None = None) -> InputFormat:
        """The format, for which the first line may have to be read."""
        if self.shape is not None and self._begun:
            self._begun = False
            return self.shape
        pieces = self._read_pieces(watch)
        if self.shape is not None and self.shape.is_binary:
            self._pieces = pieces
        else:
            pieces = self._decoded(pieces)
            if self.shape is None:
                pieces, first_line = _with_first_line(pieces)
                self.shape = recognize_format(self.name, first_line, pipe=not self.regular)
                self._check_takes_no_template(self.shape)
            elif self.shape.has_requests:
                pieces, first_line = _with_first_line(pieces)
                if first_line.startswith(b"["):
                    self.shape = BATCH_DOCUMENT
            if self.shape is TEXT:
                self._owner.options.check_text(self.name)
            self._pieces = pieces
        if self.shape.is_binary and watch is not None:
            for _ in pieces:
                """Read for its digest; the format has a reader of its own."""
        return self.shape

    def _check_takes_no_template(self, shape: InputFormat) -> None:
        if shape.has_requests and self._owner.template is not None:
            raise BatchError(f"{self.name} is an OpenAI batch, whose requests are whole: it takes no template.")

    def begin(self) -> bool:
        """Reads the first line of a pipe. Returns whether there is any."""
        shape = self.recognized()
        if not shape.is_binary:
            self._pieces, first_line = _with_first_line(self._pieces)
            self._begun = True
            return bool(first_line)
        return True

    def pieces(self) -> Iterator[bytes]:
        """Its text from here to the end."""
        return self._pieces

    def file(self) -> BinaryIO:
        """The whole file, for formats that have their index at its end.

        Raises:
            BatchError: If it is a pipe.
        """
        if not self.regular:
            raise BatchError(
                f"{self.name} is a pipe, from which {str(self.shape).capitalize()} cannot be read.",
                advice="Its index is at its end; use a file.",
            )
        stream = os.fdopen(self.descriptor, "rb", closefd=False)
        stream.seek(0)
        check_lfs_pointer(self.name, stream.read(len(LFS_POINTER)))
        stream.seek(0)
        return stream

    def parser(self, columns: Sequence[str] | None = None, *, first: bytes = b"") -> EntryParser:
        """The reader of its entries.

        Raises:
            BatchError: If the table lacks a column that is wanted.
        """
        if self.shape is not None and self.shape.name == "json" and is_batch_line(first):
            self._check_takes_no_template(BATCH_DOCUMENT)
            self.shape = BATCH_DOCUMENT
        if columns is not None:
            self._owner.options.check_columns(self.name, columns)
            self._owner.columns = tuple(columns)
        self._owner.ids.name(self._number, self.name)
        self.opened = EntryParser(
            self.name,
            (self.shape or TEXT).parse,
            self._owner.options,
            notes=self._owner.notes,
            ids=self._owner.ids,
            number=self._number,
        )
        return self.opened

    def refuse_shorter(self, read: int, *, ended: bool) -> None:
        """Refuses a file that became shorter since it was scanned: what is left may end within an entry.

        Args:
            read: How many of its entries were read before.
            ended: Whether there are no more.

        Raises:
            BatchError: With both numbers, and what to do.
        """
        if read < self.entries and (ended or os.fstat(self.descriptor).st_size < self.size):
            raise BatchError(
                f"{self.name} became shorter while it was read: {pluralize(self.entries, 'entry')} "
                f"{'was' if self.entries == 1 else 'were'} counted in it, and {read:,} were read.",
                advice="Write the whole file and run the same command again.",
            )

    def read_scanned(self, watch: Callable[[bytes], object], start: int) -> None:
        """Reads as many bytes once more as a scan has read, from the position `start`."""
        os.lseek(self.descriptor, start, os.SEEK_SET)
        left = self.scanned_bytes
        while left and (piece := read_piece(self.descriptor, min(left, _PIECE))):
            watch(piece)
            left -= len(piece)

    def _shape_by_name(self) -> InputFormat | None:
        """The format, where the name and a given field tell it without a look inside."""
        with contextlib.suppress(BatchError):  # the first line may tell the format
            candidates = formats_of(self.name)
            if candidates and candidates[0] is not TEXT:
                return candidates[0] if len(candidates) == 1 else None
        return None if self._owner.field is None else input_format_named("jsonl")

    def _decoded(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """`pieces` as text; a Parquet or Arrow file without its ending is left as it is."""
        first = next(pieces, b"")
        pieces = chain([first] if first else [], pieces)
        if self.shape is None and recognize_binary(first):
            return pieces
        return decoded_pieces(self.name, pieces)

    def _read_pieces(self, watch: Callable[[bytes], object] | None) -> Iterator[bytes]:
        while piece := self._read_piece():
            if watch is not None:
                watch(piece)
            yield piece

    def _read_piece(self) -> bytes:
        try:
            return read_piece(self.descriptor, _PIECE)
        except OSError as error:
            raise BatchError(f"{self.name} cannot be read: {describe_os_error(error)}.") from None


class InputFile:
    """An open input; iterate over it once. Made by `open_source`.

    Attributes:
        name: The input's name, as shown to the user.
        field: The field or column that holds the prompt, None where none was named.
        template: Makes the prompt of all fields or columns instead, None where none does.
        defaults: What is asked of every prompt.
        options: How its entries are read.
        notes: What is to be said of it once per run.
        ids: The ids used so far.
        columns: The names of the columns of a table; None before the first is known, and where there are none.
    """

    def __init__(
        self,
        name: str,
        descriptor: int,
        *more: tuple[str, int],
        forced_format: InputFormat | None = None,
        options: ParserOptions | None = None,
    ) -> None:
        self.options: ParserOptions = options or ParserOptions()
        self.field: str | None = self.options.prompt_field
        self.template: PromptTemplate | None = self.options.template
        self.defaults: RequestDefaults = self.options.defaults
        self.notes: InputNotes = InputNotes()
        self.ids: SeenIds = SeenIds()
        self.columns: tuple[str, ...] | None = None
        self._scanned: tuple[str, list[int]] | None = None  # the digest, and where the files began
        files = [(name, descriptor), *more]
        self.name: str = name if not more else f"{name} and {len(more)} more"
        self._files = [
            OpenFile(each, opened, number, self, forced_format) for number, (each, opened) in enumerate(files)
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its files; ``async with`` does so, too."""
        for each in self._files:
            if each.descriptor > 2:
                os.close(each.descriptor)

    @property
    def files(self) -> "tuple[OpenFile, ...]":
        """Its files, in their order."""
        return tuple(self._files)

    @property
    def format(self) -> InputFormat:
        """How it is written: as forced, else as the name and the first line of its first file say."""
        return self._files[0].shape or TEXT

    @property
    def keep(self) -> str | None:
        """What is kept, as a text that tells two runs apart; None for what is usual."""
        return self.options.kept_text

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """The fields that go beside the answer; `WHOLE` where their names are not known beforehand."""
        keep = self.options.keep
        if isinstance(keep, tuple):
            return keep
        if len(self._files) == 1 and self.columns is not None:
            return tuple(name for name in self.columns if name != "custom_id" or self.options.id_field is not None)
        return WHOLE if keep == ALL or self.columns is not None or self._may_be_table else ()

    @property
    def _may_be_table(self) -> bool:
        return any(each.shape is not None and each.shape.is_table for each in self._files)

    def is_file(self, path: str) -> bool:
        """Whether `path` is a file that is being read."""
        try:
            there = Path(path).stat()
            return any(os.path.samestat(os.fstat(each.descriptor), there) for each in self._files)
        except (OSError, ValueError):
            return False

    def reserve_custom_id(self, custom_id: str, line: int = 0) -> None:
        """Takes note of the id of an entry that need not be parsed, so that no later one may use it again.

        Args:
            custom_id: The id.
            line: The entry's line; 0 where it is not known.
        """
        self.ids.add(custom_id, 0, line)

    def begin(self) -> None:
        """Reads the first line of a pipe, so that what cannot be used is refused before anything is opened. Blocks.

        Raises:
            BatchError: If its format is not known, or it ends without a prompt.
        """
        if len(self._files) == 1 and not self._files[0].regular and not self._files[0].begin():
            raise BatchError(f"{self.name} holds no prompts.")

    def scan(self, *, strict: bool = False) -> InputScan | None:
        """Counts the entries, and with `strict` checks each of them, without consuming the input. Blocks: use a thread.

        Returns:
            None for a pipe or a terminal, which can be read only once.

        Raises:
            BatchError: If the file cannot be read, or all its first entries are bad.
        """
        if not all(each.regular for each in self._files):
            return None
        starts = [os.lseek(each.descriptor, 0, os.SEEK_CUR) for each in self._files]
        hasher, found = blake2b(digest_size=16), _Found(strict=strict)
        try:
            for each in self._files:
                each.first_index = before = found.lines
                state = os.fstat(each.descriptor)
                each.size, each.modified_at, each.scanned_bytes = state.st_size, state.st_mtime_ns, 0

                def watch(piece: bytes, file: OpenFile = each) -> None:
                    hasher.update(piece)
                    file.scanned_bytes += len(piece)

                shape = each.recognized(watch)
                for entries in shape.splitter(each):
                    found.add(entries)
                    if shape.count is not None and not strict:
                        found.lines = before + shape.count(each)
                        break
                each.entries = found.lines - before
        finally:
            self._rewind(starts)
        if not strict:
            found.refuse_hopeless()
        digest = hasher.hexdigest()
        self._scanned = digest, starts
        return InputScan(found.lines, found.first_error, digest, tuple(found.requests))

    def look_through(self) -> SecondLook | None:
        """Its entries, without consuming the input; None for a pipe or a terminal, which can be read only once.

        Raises:
            BatchError: While it is iterated over, as in the input's own iteration.
        """
        if not all(each.regular for each in self._files):
            return None
        return SecondLook(self._looked_through(), self.reserve_custom_id)

    def _looked_through(self) -> Iterator[Entry]:
        starts = [os.lseek(each.descriptor, 0, os.SEEK_CUR) for each in self._files]
        try:
            for entries in self._batches():
                for entry in entries:
                    self._refuse_hopeless()
                    yield entry
        finally:
            self._rewind(starts)

    def _rewind(self, starts: Sequence[int]) -> None:
        for each, start in zip(self._files, starts, strict=True):
            os.lseek(each.descriptor, start, os.SEEK_SET)
        self.notes, self.ids = InputNotes(), SeenIds()  # they know the lines already

    async def __aiter__(self) -> AsyncIterator[Entry]:
        """The entries in the order of the input; `Entry.item` tells whether one is good.

        Raises:
            BatchError: If the input cannot be read any further, became shorter or was rewritten since it was scanned,
                is a table without a column for the prompt, or has nothing but bad lines at its beginning.
        """
        batches = self._batches()
        try:
            while (entries := await in_daemon_thread(lambda: next(batches, None))) is not None:
                for entry in entries:
                    self._refuse_hopeless()
                    yield entry
        finally:
            with contextlib.suppress(ValueError):  # a thread is in it, and the last to know it
                batches.close()

    def _batches(self) -> Generator[list[Entry], None, None]:
        count = 0
        for each in self._files:
            each.first_index = count
            for entries in each.recognized().splitter(each):
                each.refuse_shorter(count - each.first_index, ended=False)
                count += len(entries)
                yield entries
            each.refuse_shorter(count - each.first_index, ended=True)
        self._refuse_rewritten()

    def _refuse_rewritten(self) -> None:
        """Refuses files that are not what was scanned: some entries were read from the old and some from the new.

        What was appended is read like the rest. A file is read once more only where its time has changed.
        """
        if self._scanned is None or all(
            os.fstat(each.descriptor).st_mtime_ns == each.modified_at for each in self._files
        ):
            return
        digest, starts = self._scanned
        hasher = blake2b(digest_size=16)
        for each, start in zip(self._files, starts, strict=True):
            each.read_scanned(hasher.update, start)
        if hasher.hexdigest() != digest:
            raise BatchError(
                f"{self.name} was rewritten while it was read, so some prompts were those of before.",
                advice="Run the same command again: prompts that are new in it are sent, and no answer is paid twice.",
            )

    def _refuse_hopeless(self) -> None:
        parser = self._files[0].opened
        if parser is not None and parser.hopeless is not None:
            raise _hopeless(str(parser.hopeless))


class _Found:
    """What a scan finds."""

    def __init__(self, *, strict: bool) -> None:
        self.lines = 0
        self.first_error: LineError | None = None
        self.requests: list[ChatRequest] = []
        self._strict = strict
        self._tried = 0
        self._complaint: LineError | None = None

    def add(self, entries: list[Entry]) -> None:
        self.lines += len(entries)
        if self._tried >= _SAMPLE and not (self._strict and self.first_error is None):
            return
        for entry in entries:
            item = entry.item()
            if isinstance(item, LineError):
                self._complaint = self._complaint or item
                if self._strict:
                    self.first_error = item
                    return
            elif self._tried < _SAMPLE:
                self.requests.append(item.request)
            self._tried += 1
            if self._tried >= _SAMPLE and not self._strict:
                return

    def refuse_hopeless(self) -> None:
        """Refuses an input of which none of the first entries can be sent."""
        if self._complaint is not None and not self.requests:
            raise _hopeless(str(self._complaint), all_lines=self.lines == self._tried)


def _hopeless(complaint: str, *, all_lines: bool = False) -> BatchError:
    which = "All lines are bad" if all_lines else f"The first {_SAMPLE} lines are all bad"
    return BatchError(f"{complaint.rstrip('.')}. {which}, so nothing was sent.")


def _with_first_line(pieces: Iterator[bytes]) -> tuple[Iterator[bytes], bytes]:
    """`pieces`, and the first line in them that is not blank; b"" where there is none."""
    read: list[bytes] = []
    size, start = 0, bytearray()  # `start` is an incomplete line, or blank
    for piece in pieces:
        read.append(piece)
        start += piece
        size += len(piece)
        if not (b"\n" in piece or size > LONGEST_LINE):
            continue
        for line in start.split(b"\n")[: None if size > LONGEST_LINE else -1]:
            if bare := bytes(line).removeprefix(BYTE_ORDER_MARK).strip():
                return chain(read, pieces), bare
        start = start[start.rfind(b"\n") + 1 :]
    return iter(read), bytes(start).removeprefix(BYTE_ORDER_MARK).strip()


def open_source(
    path: str | Sequence[str],
    *,
    forced_format: InputFormat | None = None,
    field: str | None = None,
    template: PromptTemplate | None = None,
    defaults: RequestDefaults | None = None,
    id_field: str | None = None,
    keep: str | Sequence[str] | None = None,
) -> InputFile:
    """Opens an input.

    Args:
        path: A file or named pipe; ``-`` is standard input. A pattern such as ``data/*.jsonl``, or several of
            all these, are one input.
        forced_format: How it is written; None to tell from its name and first line.
        field: The field or column that holds the prompt; implies JSON lines where the name tells no table.
        template: Makes the prompt of all fields or columns instead.
        defaults: What is asked of every prompt.
        id_field: The field or column that holds the id of an entry.
        keep: Fields that go beside the answer: ``"all"``, or their names; None for all of a table and none of others.

    Raises:
        BatchError: If it cannot be opened, is a directory, or the field or template do not go with its format.
    """
    options = ParserOptions(
        prompt_field=field,
        template=template,
        defaults=defaults or RequestDefaults(),
        id_field=id_field,
        keep=keep if keep is None or isinstance(keep, str) else tuple(keep),
    )
    if field is not None and forced_format is not None and (forced_format is TEXT or forced_format.has_requests):
        raise BatchError(f"A field ({field!r}) can be named only in JSON lines and tables, not in {forced_format}.")
    if template is not None and field is not None:
        raise BatchError(f"A field ({field!r}) and a template exclude each other: a template names its fields itself.")
    if template is not None and forced_format is not None and forced_format.has_requests:
        raise BatchError("An OpenAI batch takes no template: its requests are whole.")
    paths = [each for given in ([path] if isinstance(path, str) else path) for each in _expanded(given)]
    if not paths:
        raise BatchError("No input was named.")
    opened: list[tuple[str, int]] = []
    try:
        opened.extend(map(_opened, paths))  # one by one: those before a failure are closed below
        (name, descriptor), *more = opened
        return InputFile(name, descriptor, *more, forced_format=forced_format, options=options)
    except BaseException:
        for _, descriptor in opened:
            if descriptor > 2:
                os.close(descriptor)
        raise


def _expanded(path: str) -> list[str]:
    """The files that a pattern stands for, in the order of their names; a path itself."""
    if path == "-" or not glob.has_magic(path) or os.path.lexists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  # of a text that may be absolute
    if not found:
        raise BatchError(f"{path} cannot be read: no file has such a name.")
    return found


def _opened(path: str) -> tuple[str, int]:
    if path == "-":
        _check_standard_input()
        return "<stdin>", 0
    return path, _open_file(path)


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
        raise BatchError(f"{path} cannot be read: it is a directory.", advice=f"Its files are one input: '{path}/*'")
    return descriptor
