"""The entries of an input, parsed only when they must be, and what parsing makes of them. Pure.

A run that is resumed passes over a million finished entries by position and digest, so an entry knows only its bytes
and who can read them.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import BinaryIO, Protocol

from attrs import frozen

from onellm_async.chat import ChatRequest
from onellm_async.wire import Dialect, encode_request


@frozen
class ParsedEntry:
    """One prompt of an input.

    Attributes:
        index: Its position among the non-blank lines of the input, from 0. A bad line keeps its position, so that
            the others do not move when it is repaired.
        line: Its line number, or in Parquet its row number, from 1.
        request: What to send.
        custom_id: The caller's own name of it, None where the line has none.
        kept: The fields that go beside the answer, as a JSON object; None where none do.
        sample: Which of several samples of the prompt this is, from 1; None where each prompt is asked once.
    """

    index: int
    line: int
    request: ChatRequest
    custom_id: str | None = None
    kept: bytes | None = None
    sample: int | None = None

    @cached_property
    def request_digest(self) -> bytes:
        """16 bytes that two items share exactly where one answer is for both: BLAKE2b of the request as it is encoded.

        The second sample of a prompt shares them with second samples of identical prompts only, as a copy of the first
        would be no sample. The first one shares them with a prompt that is asked once.
        """
        encoded = encode_request(self.request, Dialect.DOCUMENTED)
        if self.sample is not None and self.sample > 1:
            encoded += b"%d" % self.sample  # behind the end of the JSON object
        return blake2b(encoded, digest_size=16).digest()


@frozen
class LineError:
    """A line that holds no usable prompt; nothing was sent for it.

    Attributes:
        source: Name of the input, as shown to the user.
        line: Line number, from 1.
        message: What is wrong, and with which value.
    """

    source: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.message}"


class EntryReader(Protocol):
    """Who can read the entries of one input."""

    @property
    def source(self) -> str:
        """Name of the input."""

    def read(self, raw: bytes, *, line: int, index: int) -> ParsedEntry | LineError:
        """The item in an entry, or what is wrong with it. Never raises."""


class ByteSource(Protocol):
    """An open input, as the splitters of the formats see it."""

    @property
    def name(self) -> str:
        """Its name, as shown to the user."""

    @property
    def first_index(self) -> int:
        """Index of its first entry; above 0 where files before it belong to the same input."""

    @property
    def field(self) -> str | None:
        """The field or column that holds the prompt, None where none was named."""

    @property
    def all_columns(self) -> bool:
        """Whether every column of a table is wanted, as for a template."""

    @property
    def has_prompt(self) -> bool:
        """Whether a field or column holds the prompt, and no template makes it."""

    def pieces(self) -> Iterator[bytes]:
        """Its bytes from here to the end.

        Raises:
            BatchError: If it cannot be read.
        """

    def file(self) -> BinaryIO:
        """The same, for formats that have their index at the end; the caller closes it.

        Raises:
            BatchError: If it is a pipe.
        """

    def parser(self, columns: Sequence[str] | None = None, *, first: bytes = b"") -> EntryReader:
        """The reader of its entries, known once the first of them is there.

        Args:
            columns: The names of the columns of a table.
            first: The first entry of an input without columns.

        Raises:
            BatchError: If the table has no column for the prompt.
        """


class EntrySource(Protocol):
    """Entries in the order of the input."""

    def __aiter__(self) -> "AsyncIterator[Entry]":
        """The entries, once."""

    def reserve_custom_id(self, custom_id: str) -> None:
        """Takes note of an id that was used in an entry that was not parsed."""


@frozen
class SecondLook:
    """All entries of an input, before its own iteration or beside it, which stays where it is.

    Attributes:
        entries: In the order of the input. Each step may block.
        reserve_custom_id: Takes note of an id that was used in an entry that is not parsed in this look.
    """

    entries: Iterator["Entry"]
    reserve_custom_id: Callable[[str], None]


class Entry:
    """A non-blank line or row of an input, not parsed yet.

    Attributes:
        index: Its position among the non-blank lines of the input, from 0.
        line: The number of its first line, or in Parquet of its row, from 1.
        raw: The line without its line break; for a row of a table, the row as a JSON object.
    """

    __slots__ = ("_reader", "index", "line", "raw")

    def __init__(self, index: int, line: int, raw: bytes, reader: EntryReader) -> None:
        self.index: int = index
        self.line: int = line
        self.raw: bytes = raw
        self._reader = reader

    @property
    def source(self) -> str:
        """Name of the input."""
        return self._reader.source

    @property
    def sample(self) -> int | None:
        """Which of several samples of its prompt it is, from 1; None where each prompt is asked once."""
        return None

    @property
    def digest(self) -> int:
        """BLAKE2b of `raw` as a signed integer of 64 bits."""
        return int.from_bytes(blake2b(self.raw, digest_size=8).digest(), "big", signed=True)

    def item(self) -> ParsedEntry | LineError:
        """The prompt in it, or what is wrong with it. Never raises.

        The input remembers the ``custom_id``: a later entry with the same is an error.
        """
        return self._reader.read(self.raw, line=self.line, index=self.index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, line={self.line}, index={self.index})"


class InvalidEntry(Entry):
    """An entry that is known to be bad before it is parsed: longer than memory allows, or in no encoding."""

    __slots__ = ("_error",)

    def __init__(self, index: int, raw: bytes, error: LineError) -> None:
        self.index: int = index
        self.line: int = error.line
        self.raw: bytes = raw
        self._error = error

    @property
    def source(self) -> str:
        """Name of the input."""
        return self._error.source

    def item(self) -> LineError:
        """What is wrong with it."""
        return self._error
