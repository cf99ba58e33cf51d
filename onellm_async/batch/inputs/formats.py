"""The registry of input formats: a new one is one file and one row of `FORMATS`. Pure."""

import re
from collections.abc import Callable, Iterator
from pathlib import PurePath

from attrs import evolve, frozen

from onellm_async.batch.inputs.arrow import FILE_MAGIC, STREAM_MAGIC, split_arrow
from onellm_async.batch.inputs.decoding import inner_name
from onellm_async.batch.inputs.entry import ByteSource, Entry
from onellm_async.batch.inputs.entry_parser import EntryParser, ParseFunction
from onellm_async.batch.inputs.json_document import split_json
from onellm_async.batch.inputs.lines import split_lines
from onellm_async.batch.inputs.parquet import MAGIC, parquet_rows, split_parquet
from onellm_async.errors import BatchError, ConfigurationError
from onellm_async.wire import parse_json


@frozen
class InputFormat:
    """How an input is written.

    Attributes:
        name: As ``--format`` has it.
        suffixes: Endings of the names of its files, in lower case.
        recognizes: Whether an input whose first line that is not blank is this one is written so.
        splitter: The entries of an input, some at a time. Blocks.
        parse: The request and the ``custom_id`` of an entry.
        has_requests: Whether an entry is a whole request, which takes no template.
        is_table: Whether it has columns.
        is_binary: Whether it is no text, and has a reader of its own that needs the whole file.
        count: How many entries a file has, where it says so itself.
    """

    name: str
    suffixes: tuple[str, ...]
    recognizes: Callable[[bytes], bool]
    splitter: Callable[[ByteSource], Iterator[list[Entry]]]
    parse: ParseFunction
    has_requests: bool = False
    is_table: bool = False
    is_binary: bool = False
    count: Callable[[ByteSource], int] | None = None

    def __str__(self) -> str:
        return self.name


def _object(first_line: bytes) -> dict[str, object]:
    try:
        value = parse_json(first_line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_batch_line(first_line: bytes) -> bool:
    """Whether a line, or an element of a JSON document, is a request of an OpenAI batch."""
    keys = _object(first_line).keys()
    return "custom_id" in keys and not keys.isdisjoint({"body", "params"})


def _is_object(first_line: bytes) -> bool:
    return bool(_object(first_line))


def _is_document(first_line: bytes) -> bool:
    """Whether a JSON document begins so that is no JSON line: an array, or an object over several lines."""
    if first_line.startswith(b"["):
        rest = first_line[1:].lstrip()
        return not rest or rest[:1] in b'{["]-0123456789'
    return first_line.startswith(b"{") and first_line.endswith((b"{", b"[", b",")) and not _object(first_line)


def _never(first_line: bytes) -> bool:
    return False


def _split_csv(source: ByteSource) -> Iterator[list[Entry]]:
    from onellm_async.batch.inputs.csv import split_csv  # noqa: PLC0415  # the csv module, only where it is wanted

    return split_csv(source, None)


def _split_tsv(source: ByteSource) -> Iterator[list[Entry]]:
    from onellm_async.batch.inputs.csv import split_csv  # noqa: PLC0415

    return split_csv(source, "\t")


_LINES = (".jsonl", ".ndjson", ".json")

FORMATS: tuple[InputFormat, ...] = (
    InputFormat("openai-batch", _LINES, is_batch_line, split_lines, EntryParser.parse_batch_line, has_requests=True),
    InputFormat("json", _LINES, _is_document, split_json, EntryParser.parse_record),
    InputFormat("jsonl", _LINES, _is_object, split_lines, EntryParser.parse_record),
    InputFormat("csv", (".csv",), _never, _split_csv, EntryParser.parse_row, is_table=True),
    InputFormat("tsv", (".tsv", ".tab"), _never, _split_tsv, EntryParser.parse_row, is_table=True),
    InputFormat(
        "parquet",
        (".parquet", ".pq"),
        lambda first_line: first_line.startswith(MAGIC),
        split_parquet,
        EntryParser.parse_row,
        is_table=True,
        is_binary=True,
        count=parquet_rows,
    ),
    InputFormat(
        "arrow",
        (".arrow", ".feather", ".arrows", ".ipc"),
        lambda first_line: first_line.startswith((FILE_MAGIC, STREAM_MAGIC)),
        split_arrow,
        EntryParser.parse_row,
        is_table=True,
        is_binary=True,
    ),
    InputFormat("text", (".txt", ".md"), _never, split_lines, EntryParser.parse_text),
)
"""All formats, in the order in which they are tried; the last is that of an input that no other recognizes."""

TEXT = FORMATS[-1]
BATCH_DOCUMENT = evolve(FORMATS[0], suffixes=(), splitter=split_json)
"""An OpenAI batch whose requests are the elements of a JSON document: known by the first of them."""


def input_format_named(name: str) -> InputFormat:
    """The format of that name.

    Raises:
        ConfigurationError: If there is none.
    """
    for each in FORMATS:
        if each.name == name:
            return each
    raise ConfigurationError(f"format is {name!r}; it must be one of {', '.join(map(str, FORMATS))}.")


_SUFFIX = re.compile(r"\.[a-z][a-z0-9_]{0,9}")


def formats_of(name: str) -> tuple[InputFormat, ...]:
    """The formats that an input of that name may have.

    Raises:
        BatchError: If the ending of the name is that of no format.
    """
    suffix = PurePath(inner_name(name)).suffix.lower()
    found = tuple(each for each in FORMATS if suffix in each.suffixes)
    if found or not _SUFFIX.fullmatch(suffix):
        return found
    known = ", ".join(dict.fromkeys(suffix for each in FORMATS for suffix in each.suffixes))
    raise BatchError(
        f"{name} cannot be read: no input format is called {suffix} (known: {known}).",
        advice=f"Say how it is written with input_format=…: {', '.join(map(str, FORMATS))}.",
    )


def recognize_binary(start: bytes) -> bool:
    """Whether an input that begins so is in a format that is no text."""
    return any(each.is_binary and each.recognizes(start) for each in FORMATS)


def recognize_format(name: str, first_line: bytes, *, pipe: bool = False) -> InputFormat:
    """The format of an input, from its name and its first line that is not blank.

    The name decides where it can; among several formats with one ending the first line does. Where there is no ending,
    text that looks like another format is refused: line by line it would be paid for and worth nothing.

    Args:
        name: The input's name.
        first_line: Its first line that is not blank.
        pipe: Whether it is a pipe, in messages.

    Raises:
        BatchError: If neither tells the format.
    """
    try:
        candidates = formats_of(name)
    except BatchError:
        found = next((each for each in FORMATS if each.recognizes(first_line)), None)
        if found is not None and found.name != "json":
            return found
        raise
    if len(candidates) == 1:
        if candidates[0] is TEXT and _table_of(first_line) == "tsv":  # as spreadsheets export "Unicode text"
            raise BatchError(
                f"{name} looks like a table whose columns are separated by tabs, and is called text.",
                advice="Say input_format='tsv'; or input_format='text', if each line is a prompt.",
            )
        return candidates[0]
    if candidates:
        return next((each for each in candidates if each.recognizes(first_line)), candidates[-1])
    found = next((each for each in FORMATS if each.recognizes(first_line)), TEXT)
    looks_like = "json" if found.name == "json" else _table_of(first_line) if found is TEXT else None
    if looks_like is not None:
        raise BatchError(
            f"{name} looks like {looks_like.upper()}, but {'a pipe' if pipe else 'its name'} does not tell the format.",
            advice=f"Say input_format={looks_like!r}; or input_format='text', if each line is a prompt.",
        )
    return found


_COLUMN = re.compile(r'"?[A-Za-z_][\w.-]{0,40}"?')
_USUAL_COLUMNS = frozenset(
    {"prompt", "messages", "custom_id", "id", "question", "text", "input", "instruction", "system"}
)

_FEWEST_COLUMNS = {"csv": 3, "tsv": 2}
"""Names without a space between them that are no prompt, whatever they are: ``Hello,world`` may be one."""


def _table_of(first_line: bytes) -> str | None:
    """The format of a table whose header `first_line` looks like; None where it is prose."""
    line = first_line.decode(errors="replace")
    for delimiter, name in ((",", "csv"), (";", "csv"), ("|", "csv"), ("\t", "tsv")):
        cells = line.split(delimiter)
        names = {cell.strip('"').lower() for cell in cells}
        if all(map(_COLUMN.fullmatch, cells)) and (
            names == {"prompt"} or (len(cells) > 1 and names & _USUAL_COLUMNS) or len(cells) >= _FEWEST_COLUMNS[name]
        ):
            return name
    return None
