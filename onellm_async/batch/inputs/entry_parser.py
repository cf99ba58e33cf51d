"""The bytes of one entry → one prompt, or what is wrong with them. Pure: no file is touched here."""

import re
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import NamedTuple, TypeAlias

from attrs import field, frozen

from onellm_async.batch.inputs.defaults import RequestDefaults
from onellm_async.batch.inputs.entry import LineError, ParsedEntry
from onellm_async.batch.inputs.notes import InputNotes
from onellm_async.batch.inputs.request_fields import DOCUMENTED, RECORD_FIELDS, ROW_FIELDS, request_fields
from onellm_async.batch.inputs.template import PromptTemplate, TemplateError
from onellm_async.batch.seen_keys import SeenKeys
from onellm_async.chat import JSON, ChatRequest
from onellm_async.errors import BatchError, InvalidRequestError
from onellm_async.validation import truncated_repr
from onellm_async.wire import dump_json, parse_json


def check_prompt_column(source: str, columns: Sequence[str], wanted: str | None) -> None:
    """Refuses a table that has no column for the prompt.

    Args:
        source: Name of the input.
        columns: The names of its columns.
        wanted: The column that the caller named; None for ``prompt`` or ``messages``.

    Raises:
        BatchError: If there is none.
    """
    if wanted in columns or (wanted is None and {"prompt", "messages"} & set(columns)):
        return
    there = ", ".join(map(truncated_repr, columns[:8])) + (", …" if len(columns) > 8 else "")
    raise BatchError(
        f"{source} has no column {wanted or 'prompt'!r} (columns: {there}).",
        advice="Name the prompt's column with field=, or make the prompt of several with template=.",
    )


class Parsed(NamedTuple):
    """What a parse function finds in an entry. A named tuple, of which one is made for each line.

    Attributes:
        request: What to send.
        record: The fields of the entry, to keep beside the answer.
        custom_id: The caller's own name of the entry.
        id_field: The field that holds it.
        is_row: Whether it is a row of a table, of which all columns are kept by default.
    """

    request: ChatRequest
    record: Mapping[str, JSON]
    custom_id: str | None = None
    id_field: str = "custom_id"
    is_row: bool = False


ParseFunction: TypeAlias = "Callable[[EntryParser, bytes], Parsed]"
"""Finds the request in an entry."""

ALL = "all"
"""Keep all fields of an entry beside its answer."""
WHOLE = ("*",)
"""All fields of each record, whatever their names are."""

HOPELESS = 20
"""Entries from the beginning of which all are bad before the input is refused."""

SAVE_AS_UTF8 = "Save the file as UTF-8."
_PLACE_IN_ENTRY = re.compile(r": line (\d+) column (\d+) \(char \d+\)")


class _BadLineError(Exception):
    """Inside this file only: what is wrong with a line."""


@frozen(kw_only=True)
class ParserOptions:
    """How entries are read; the same for all files of a run.

    Attributes:
        prompt_field: The field or column that holds the prompt; None for ``prompt`` or ``messages``.
        template: Makes the prompt of all fields instead.
        defaults: What is asked of every prompt.
        id_field: The field or column that holds the id of an entry; None for ``custom_id``, or ``id``
            where it is unique.
        keep: Fields to keep beside the answer: `ALL`, or their names; None for all of a table and none of others.
    """

    prompt_field: str | None = None
    template: PromptTemplate | None = None
    defaults: RequestDefaults = field(factory=RequestDefaults)
    id_field: str | None = None
    keep: str | tuple[str, ...] | None = None

    @property
    def kept_text(self) -> str | None:
        """What is kept, as a text that tells two runs apart; None for what is usual."""
        return ", ".join(self.keep) or "none" if isinstance(self.keep, tuple) else self.keep

    @property
    def reads_all_columns(self) -> bool:
        """Whether every column of a table is read, and not only the prompt and what belongs to it."""
        return self.keep is None or bool(self.keep) or self.template is not None or self.id_field is not None

    def check_columns(self, source: str, columns: Sequence[str]) -> None:
        """Refuses a table that lacks a column.

        Raises:
            BatchError: If there is no column for the prompt, or none of a name that was given.
        """
        if self.template is None:
            check_prompt_column(source, columns, self.prompt_field)
        else:
            self.template.check_columns(source, columns)
        for option, name in self._names_beside:
            if name not in columns:
                there = ", ".join(map(truncated_repr, columns[:8]))
                raise BatchError(f"{source} has no column {name!r}, which {option}= names (columns: {there}).")

    def check_text(self, source: str) -> None:
        """Refuses plain text, whose only field is ``prompt`` and whose lines have no ids, where another is named.

        Raises:
            BatchError: With the name, and with what the text has.
        """
        for option, name in self._names_beside:
            if name != "prompt" or option == "id_field":
                lacks = "no ids" if name == "prompt" else f"no field {name!r}"
                raise BatchError(
                    f"{source} has {lacks}, which {option}= names: it is plain text, whose only field is 'prompt'.",
                    advice="If its lines are JSON or rows, say input_format='jsonl' or input_format='csv'.",
                )

    @property
    def _names_beside(self) -> list[tuple[str, str]]:
        """The options that name fields beside the prompt, and each of these names."""
        kept = self.keep if isinstance(self.keep, tuple) else ()
        ids = [] if self.id_field is None else [("id_field", self.id_field)]
        return [*ids, *(("keep", name) for name in kept)]


class EntryParser:
    """Turns the entries of one input into items.

    Fields of a request beside the prompt (``model``, ``system``, ``max_tokens``, …) are those of its request. The
    others are kept beside the answer where that is wanted; what is neither is noted once.

    Args:
        source: Name of the input, for messages.
        parse: Finds the request in an entry, as the format of the input has it.
        options: How entries are read.
        notes: Takes what is to be said once per run.
        ids: The ids used so far, where several inputs are one run.
        number: Which of these inputs this is, from 0.

    Attributes:
        source: As given.
        hopeless: The first complaint, once all of the first 20 entries are bad.

    Example:
        >>> parser = EntryParser("in.jsonl", EntryParser.parse_record)
        >>> parser.read(b'{"prompt": "Hi"}', line=1, index=0).request.messages
        (Message(role='user', content='Hi'),)
    """

    def __init__(
        self,
        source: str,
        parse: ParseFunction,
        options: ParserOptions | None = None,
        *,
        notes: InputNotes | None = None,
        ids: "SeenIds | None" = None,
        number: int = 0,
    ) -> None:
        self.source: str = source
        self.hopeless: LineError | None = None
        options = options or ParserOptions()
        self._parse = parse
        self._options = options
        self._field = options.prompt_field
        self._template = options.template
        self._defaults = options.defaults
        self._id_field = options.id_field
        self._keep = options.keep
        self._notes = notes or InputNotes()
        self._ids = SeenIds() if ids is None else ids
        self._number = number
        self._bad: LineError | None = None
        self._tried = 0
        named = {name for name in (self._field, self._id_field) if name is not None}
        if self._template is not None:
            named |= self._template.fields
        self._not_for_request = frozenset(named)
        self._used = self._used_fields()
        self._replaces = self._defaults.sets_anything

    def _used_fields(self) -> frozenset[str] | None:
        """The fields of a line that are sent or kept; None where all of them may be."""
        if self._keep == ALL or "row" in self._not_for_request:
            return None
        prompts = ("prompt", "messages") if self._template is None and self._field is None else ()
        return frozenset({*RECORD_FIELDS, *_IDS, "stream", *prompts, *self._not_for_request, *(self._keep or ())})

    def reserve_custom_id(self, custom_id: str, line: int = 0) -> None:
        """Takes note of an id that was used in an entry that was not parsed; `line` is 0 where it is not known."""
        self._ids.add(custom_id, self._number, line)

    def read(self, raw: bytes, *, line: int, index: int) -> ParsedEntry | LineError:
        """The item in an entry, or what is wrong with it. Never raises.

        A fingerprint of every ``custom_id`` is remembered, about 40 bytes: a second use of one is an error.

        Args:
            raw: The line, not blank, without its line break; for a row of a table, the row as a JSON object.
            line: Its number, from 1.
            index: Its position among the non-blank lines, from 0.
        """
        try:
            found = self._parse(self, raw)
            custom_id = found.custom_id
            if custom_id is not None and (first := self._ids.add(custom_id, self._number, line)) is not None:
                self._refuse_repeated(found, first)
                custom_id = None
            kept = self._kept(found, raw)
        except (_BadLineError, InvalidRequestError, TemplateError) as error:
            complaint = LineError(self.source, line, str(error))
            self._despair(complaint, index)
            return complaint
        self._tried = -1
        return ParsedEntry(index, line, found.request, custom_id, kept)

    def _despair(self, complaint: LineError, index: int) -> None:
        if index != self._tried:  # there was a good one, or one that an earlier session completed
            self._tried = -1
            return
        self._bad = self._bad or complaint
        self._tried += 1
        if self._tried >= HOPELESS:
            self.hopeless = self._bad

    def _refuse_repeated(self, found: Parsed, first: str) -> None:
        if found.id_field == "id" and self._id_field is None:  # that it is an id was only a guess
            self._notes.repeated_id("id")
            return
        raise _BadLineError(f"{found.id_field} {truncated_repr(found.custom_id)} was used {first}.")

    def parse_text(self, raw: bytes) -> Parsed:
        """The request in a line of text."""
        text = decoded(raw)
        if "\0" in text:
            raise _BadLineError("It holds a NUL, which no text does.")
        return Parsed(self._defaults.request(self._filled(text)), {"prompt": text})

    def parse_record(self, raw: bytes) -> Parsed:
        """The request in a line of JSON: an object or a string."""
        value = _json_value(raw)
        if isinstance(value, str):
            if self._field is not None:
                raise _BadLineError(f"It is a JSON string, not an object with {self._field!r}.")
            return Parsed(self._defaults.request(self._filled(_not_blank(value))), {"prompt": value})
        if not isinstance(value, dict):
            raise _BadLineError(f"It is {_kind(value)}, not an object or a string.")
        prompt = self._prompt_of(value) if self._template is None else _not_blank(self._template.render(value))
        if value.get("stream") is True:
            raise _BadLineError("stream is True; OneLLM answers in one piece and cannot stream.")
        return self._parsed(value, prompt, request_fields(value, RECORD_FIELDS, but=self._not_for_request))

    def parse_row(self, raw: bytes) -> Parsed:
        """The request in a row of a table, which is a JSON object by now. An empty cell is no value."""
        row = _json_value(raw)
        if not isinstance(row, dict):
            raise _BadLineError(f"It is {_kind(row)}, not a row.")
        if self._template is None:
            prompt = _messages_in(self._prompt_of(row, str), self._field or "messages")
        else:
            prompt = _not_blank(
                self._template.render({name: None if value == "" else value for name, value in row.items()})
            )
        fields = request_fields(row, ROW_FIELDS, but=self._not_for_request, from_text=True)
        return self._parsed(row, prompt, fields, table=True)

    def parse_batch_line(self, raw: bytes) -> Parsed:
        """The request in a line of an OpenAI batch."""
        value = _json_value(raw)
        if not isinstance(value, dict):
            raise _BadLineError(f"It is {_kind(value)}, not an object.")
        custom_id, id_field = self._id_of(value)
        if custom_id is None:
            raise _BadLineError("It has no custom_id.")
        method, url, body = value.get("method") or "POST", value.get("url") or _CHAT, value.get("body")
        if body is None and isinstance(value.get("params"), dict):  # as Anthropic's batches have it
            body = value["params"]
        if method != "POST":
            raise _BadLineError(f"method is {truncated_repr(method)}; only POST can be sent.")
        if not isinstance(url, str) or not url.rstrip("/").endswith("/chat/completions"):
            raise _BadLineError(f"url is {truncated_repr(url)}; only /v1/chat/completions can be sent.")
        if not isinstance(body, dict):
            raise _BadLineError(f"body is {_kind(body)}, not an object.")
        request = self._defaults.merge_into(body)
        if self._replaces:
            self._notes.replaced(self._defaults.replaced(request_fields(body, RECORD_FIELDS)))
        if request.extra:
            self._notes.passed_on(name for name in request.extra if name not in DOCUMENTED)
        if self._keep != ALL:
            self._notes.unused(value, _OF_BATCH_LINES.union(self._keep or ()))
        return Parsed(request, value, custom_id, id_field)

    def _parsed(
        self, record: Mapping[str, JSON], prompt: JSON, fields: Mapping[str, JSON], *, table: bool = False
    ) -> Parsed:
        request = self._defaults.request(prompt, fields)
        if fields and self._replaces:
            self._notes.replaced(self._defaults.replaced(fields))
        custom_id, id_field = self._id_of(record)
        if self._used is not None and not (self._keep is None and table):
            self._notes.unused(record, self._used)
        return Parsed(request, record, custom_id, id_field, table)

    def _filled(self, text: str) -> str:
        if self._template is None:
            return text
        return _not_blank(self._template.render({"prompt": text}))

    def _prompt_of(self, value: Mapping[str, JSON], messages_as: type = list) -> JSON:
        if self._field is not None:
            if self._field not in value:
                raise _BadLineError(f"It has no field {self._field!r} (fields: {_names(value)}).")
            return _prompt(repr(self._field), value[self._field], "a string or messages")
        prompt, messages = value.get("prompt"), value.get("messages")
        if messages is not None:
            if prompt is not None:
                raise _BadLineError("It has both prompt and messages; name one of them with field=.")
            if not isinstance(messages, list | messages_as):
                raise _BadLineError(f"messages is {_kind(messages)}, not an array.")
            return messages
        if prompt is None and "prompt" not in value:
            raise _BadLineError(
                f"It has neither prompt nor messages (fields: {_names(value)}); name its field with field=, "
                "or make the prompt with template=." + _inner_records(value)
            )
        return _prompt("prompt", prompt, "a string")

    def _id_of(self, record: Mapping[str, JSON]) -> tuple[str | None, str]:
        if self._id_field is not None:
            return _id(record, self._id_field), self._id_field
        if (custom_id := _id(record, "custom_id")) is not None:
            return custom_id, "custom_id"
        value = record.get("id")
        is_usable = isinstance(value, str | int) or (isinstance(value, float) and _is_exact(value))
        return (_id(record, "id") if is_usable else None), "id"

    def _kept(self, found: Parsed, raw: bytes) -> bytes | None:
        if self._keep is None or self._keep == ALL:
            if found.is_row:
                return raw  # it was made of the row as it is written out
            return None if self._keep is None else dump_json(found.record)
        record = found.record
        return dump_json({name: record[name] for name in self._keep if name in record}) if self._keep else None


def length_of(source: object) -> int | None:
    """The length of a source; None where it has none, as a progress bar around a generator says only when asked."""
    try:
        return len(source) if isinstance(source, Sized) else None
    except (TypeError, NotImplementedError):
        return None


class FirstEntries:
    """Refuses an input in memory, or from a program, of which none of the first entries can be sent.

    Args:
        source: Name of the input.
        noun: What its entries are called.

    Attributes:
        usable: Whether an entry can be sent, so that there is nothing more to check.
    """

    def __init__(self, source: str, noun: str) -> None:
        self.usable: bool = False
        self._source = source
        self._noun = noun
        self._bad = 0
        self._complaint: LineError | None = None

    def add(self, item: ParsedEntry | LineError) -> None:
        """Takes the next entry.

        Raises:
            BatchError: If all so far are bad, and they are enough.
        """
        if not isinstance(item, LineError):
            self.usable = True
        elif not self.usable:
            self._complaint = self._complaint or item
            self._bad += 1
            if self._bad >= HOPELESS:
                raise BatchError(f"{self._told}. The first {HOPELESS} {self._noun}s are all bad, so nothing was sent.")

    def end(self) -> None:
        """Takes the end of the input.

        Raises:
            BatchError: If there was no entry, or no usable one.
        """
        if self.usable:
            return
        if self._complaint is None:
            raise BatchError(f"{self._source} holds no prompts.")
        raise BatchError(f"{self._told}. All {self._noun}s are bad, so nothing was sent.")

    @property
    def _told(self) -> str:
        return str(self._complaint).rstrip(".")


class SeenIds:
    """The ids of a run, and where they were used first; about 40 bytes each."""

    def __init__(self, keys: SeenKeys | None = None) -> None:
        self._keys = SeenKeys() if keys is None else keys
        self._names: dict[int, str] = {}

    def name(self, number: int, source: str) -> None:
        """Says what input `number` is called, where there are several."""
        self._names[number] = source

    def add(self, custom_id: str, number: int, line: int) -> str | None:
        """Where `custom_id` was used first, as a phrase; None where it is new, or was used in that very line.

        Args:
            custom_id: The id.
            number: Which input it is in, from 0.
            line: Its line, from 1; 0 where it is not known.
        """
        position = number << 32 | line if line else 0
        first = self._keys.add(custom_id.encode(errors="surrogatepass"), position)
        if first is None or first == position:
            return None
        if not first:
            return "before, in a line that is done"
        line = first & 0xFFFFFFFF
        if first >> 32 != number:
            return f"in {self._names.get(first >> 32, 'another input')}:{line} already"
        return f"in line {line} already"


_CHAT = "/v1/chat/completions"
_IDS = ("custom_id", "id")
_OF_BATCH_LINES = frozenset({"custom_id", "method", "url", "body", "params"})


def _prompt(label: str, prompt: JSON, rule: str) -> JSON:
    if isinstance(prompt, str):
        return _not_blank(prompt)
    if not isinstance(prompt, list) or not all(isinstance(message, dict) for message in prompt):
        raise _BadLineError(f"{label} is {_kind(prompt)}, not {rule}.")
    return prompt


def _messages_in(prompt: JSON, name: str) -> JSON:
    """The messages that a cell of text holds as JSON, in the column of messages only."""
    if name != "messages" or not isinstance(prompt, str):
        return prompt
    bare = prompt.lstrip()
    if not bare.startswith("["):
        return prompt
    try:
        return parse_json(bare.encode(errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"messages is no JSON array: {error}.") from None


def _inner_records(value: Mapping[str, JSON]) -> str:
    """What to do with a document around a list of records, or with a conversation of another name."""
    for name, inner in value.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], dict) and not _TURN.isdisjoint(inner[0]):
            return f" If {name} is its conversation: field={name!r}"
        if isinstance(inner, list) and len(inner) > 1 and isinstance(inner[0], dict | str):
            return f" If its records are in {name}: jq -c '.{name}[]' FILE | onellm-async run - --format jsonl"
    return ""


_TURN = frozenset({"role", "from", "content", "value"})
"""Fields of a turn of a conversation, in the usual exports."""


def _not_blank(prompt: str) -> str:
    if not prompt or prompt.isspace():
        raise _BadLineError("The prompt is empty.")
    return prompt


def decoded(raw: bytes) -> str:
    """`raw` as text; a bad line where it is not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _BadLineError(
            f"Not UTF-8: {error.reason} at byte {error.start + 1} of the line. {SAVE_AS_UTF8}"
        ) from None


def _json_value(raw: bytes) -> JSON:
    decoded(raw)
    try:
        return parse_json(raw)
    except (ValueError, RecursionError) as error:
        # The message has the line of the input already; that of the parser counts within the entry.
        raise _BadLineError(f"Not JSON: {_PLACE_IN_ENTRY.sub(_place_text, str(error))}.") from None


def _place_text(found: "re.Match[str]") -> str:
    line, column = found.groups()
    return f" at column {column}" + (f" of line {line} of the entry" if line != "1" else "")


def _id(record: Mapping[str, JSON], name: str) -> str | None:
    """The id in a field; None where there is none."""
    value = record.get(name)
    if value is None or value == "":
        return None
    if type(value) is str:
        return value
    if isinstance(value, float) and value.is_integer():
        if not _is_exact(value):
            raise _BadLineError(f"{name} is too large a number to be read exactly; write it as a string.")
        value = int(value)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise _BadLineError(f"{name} is {_kind(value)}, not a string.")


def _is_exact(value: float) -> bool:
    """Whether `value` is an integer, and the only one that is read as this float."""
    return value.is_integer() and abs(value) < 2**53


def _names(value: Mapping[str, JSON]) -> str:
    return ", ".join(truncated_repr(name) for name in list(value)[:5]) or "none"


_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}


def _kind(value: JSON) -> str:
    if value is None:
        return "null or missing"
    return _KINDS[type(value)]
