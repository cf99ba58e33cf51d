"""The bytes of one entry → one prompt, or what is wrong with them. Pure: no file is touched here."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from onellm_async.batch.inputs.defaults import RequestDefaults
from onellm_async.batch.inputs.entry import LineError, ParsedEntry
from onellm_async.batch.inputs.template import PromptTemplate, TemplateError
from onellm_async.batch.seen_keys import SeenKeys
from onellm_async.chat import JSON, ChatRequest
from onellm_async.errors import BatchError, InvalidRequestError
from onellm_async.validation import truncated_repr
from onellm_async.wire import parse_json


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
        advice="Name the prompt's column with --field, or make the prompt of several with --template.",
    )


ParseFunction: TypeAlias = "Callable[[EntryParser, bytes], tuple[ChatRequest, str | None]]"
"""Makes the request and the ``custom_id`` of an entry."""


class _BadLineError(Exception):
    """Inside this file only: what is wrong with a line."""


class EntryParser:
    """Turns the entries of one input into items.

    In lines, a ``custom_id`` beside the prompt is carried into the output and every other field is ignored. In tables,
    ``id`` will do where there is no ``custom_id``, and ``system`` is the row's own instruction.

    Args:
        source: Name of the input, for messages.
        parse: Makes a request of an entry, as the format of the input has it.
        prompt_field: The field or column that holds the prompt; None for ``prompt`` or ``messages``.
        template: Makes the prompt of all fields instead.
        defaults: What is asked of every prompt.

    Attributes:
        source: As given.

    Example:
        >>> parser = EntryParser("in.jsonl", EntryParser.parse_record)
        >>> parser.read(b'{"prompt": "Hi"}', line=1, index=0).request.messages
        (Message(role='user', content='Hi'),)
    """

    def __init__(
        self,
        source: str,
        parse: ParseFunction,
        *,
        prompt_field: str | None = None,
        template: PromptTemplate | None = None,
        defaults: RequestDefaults | None = None,
    ) -> None:
        self.source: str = source
        self._parse = parse
        self._field = prompt_field
        self._template = template
        self._defaults = defaults or RequestDefaults()
        self._ids = SeenKeys()

    def reserve_custom_id(self, custom_id: str, line: int = 0) -> None:
        """Takes note of an id that was used in an entry that was not parsed; `line` is 0 where it is not known."""
        self._ids.add(_key(custom_id), line)

    def read(self, raw: bytes, *, line: int, index: int) -> ParsedEntry | LineError:
        """The item in an entry, or what is wrong with it. Never raises.

        A fingerprint of every ``custom_id`` is remembered, about 40 bytes: a second use of one is an error.

        Args:
            raw: The line, not blank, without its line break; for a row of a table, the row as a JSON object.
            line: Its number, from 1.
            index: Its position among the non-blank lines, from 0.
        """
        try:
            request, custom_id = self._parse(self, raw)
            if custom_id is not None:
                first = self._ids.add(_key(custom_id), line)
                if first is not None and first != line:
                    raise _BadLineError(_used(custom_id, first))  # noqa: TRY301
        except (_BadLineError, InvalidRequestError, TemplateError) as error:
            return LineError(self.source, line, str(error))
        return ParsedEntry(index, line, request, custom_id)

    def parse_text(self, raw: bytes) -> tuple[ChatRequest, str | None]:
        """The request in a line of text."""
        return self._defaults.request(self._filled(_text(raw))), None

    def parse_record(self, raw: bytes) -> tuple[ChatRequest, str | None]:
        """The request in a line of JSON: an object or a string."""
        value = _json_value(raw)
        if isinstance(value, str):
            _demand(self._field is None, f"It is a JSON string, not an object with {self._field!r}.")
            return self._defaults.request(self._filled(_not_blank(value))), None
        return self._defaults.request(self._prompt(value)), _custom_id(value)

    def parse_row(self, raw: bytes) -> tuple[ChatRequest, str | None]:
        """The request in a row of a table, which is a JSON object by now."""
        row = _json_value(raw)
        return self._defaults.request(self._prompt(row), system=_cell(row, "system")), _id_of_row(row)

    def parse_batch_line(self, raw: bytes) -> tuple[ChatRequest, str | None]:
        """The request in a line of an OpenAI batch."""
        return self._batch_request(_json_value(raw))

    def _filled(self, text: str) -> str:
        if self._template is None:
            return text
        return _not_blank(self._template.render({"prompt": text}))

    def _prompt(self, value: JSON) -> JSON:
        _demand(isinstance(value, dict), f"It is {_kind(value)}, not an object or a string.")
        prompt = self._prompt_of(value) if self._template is None else self._template.render(value)
        return _not_blank(prompt) if isinstance(prompt, str) else prompt

    def _prompt_of(self, value: Mapping[str, JSON]) -> JSON:
        if self._field is not None:
            _demand(self._field in value, f"It has no field {self._field!r} (fields: {_names(value)}).")
            prompt = value[self._field]
            _demand(isinstance(prompt, str | list), f"{self._field!r} is {_kind(prompt)}, not a string or messages.")
            return prompt
        if "messages" in value:
            _demand("prompt" not in value, "It has both prompt and messages; one of them is needed.")
            _demand(isinstance(value["messages"], list), f"messages is {_kind(value['messages'])}, not an array.")
            return value["messages"]
        if "prompt" not in value:
            raise _BadLineError(
                f"It has neither prompt nor messages (fields: {_names(value)}); name its field with --field."
            )
        _demand(isinstance(value["prompt"], str), f"prompt is {_kind(value['prompt'])}, not a string.")
        return value["prompt"]

    def _batch_request(self, value: JSON) -> tuple[ChatRequest, str | None]:
        _demand(isinstance(value, dict), f"It is {_kind(value)}, not an object.")
        custom_id = _custom_id(value)
        _demand(custom_id is not None, "It has no custom_id.")
        method, url, body = value.get("method", "POST"), value.get("url", "/v1/chat/completions"), value.get("body")
        _demand(method == "POST", f"method is {truncated_repr(method)}; only POST can be sent.")
        _demand(
            isinstance(url, str) and url.rstrip("/").endswith("/chat/completions"),
            f"url is {truncated_repr(url)}; only /v1/chat/completions can be sent.",
        )
        _demand(isinstance(body, dict), f"body is {_kind(body)}, not an object.")
        return self._defaults.merge_into(body), custom_id


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _BadLineError(otherwise)


def _not_blank(prompt: str) -> str:
    if not prompt or prompt.isspace():
        raise _BadLineError("The prompt is empty.")
    return prompt


def _key(custom_id: str) -> bytes:
    return custom_id.encode(errors="surrogatepass")


def _used(custom_id: str, first: int) -> str:
    where = f"in line {first} already" if first else "before, in a line that is done"
    return f"custom_id {truncated_repr(custom_id)} was used {where}."


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _BadLineError(f"Not UTF-8: {error.reason} at byte {error.start + 1} of the line.") from None


def _json_value(raw: bytes) -> JSON:
    _text(raw)
    try:
        return parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"Not JSON: {error}.") from None


def _custom_id(value: Mapping[str, JSON]) -> str | None:
    custom_id = value.get("custom_id")
    if custom_id is not None and not isinstance(custom_id, str):
        raise _BadLineError(f"custom_id is {_kind(custom_id)}, not a string.")
    return custom_id


def _id_of_row(row: Mapping[str, JSON]) -> str | None:
    return _cell(row, "custom_id") if "custom_id" in row else _cell(row, "id")


def _cell(row: Mapping[str, JSON], name: str) -> str | None:
    """The text in a column; None where there is no such column or nothing in it."""
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise _BadLineError(f"{name} is {_kind(value)}, not a string.")


def _names(value: Mapping[str, JSON]) -> str:
    return ", ".join(truncated_repr(name) for name in list(value)[:5]) or "none"


def _kind(value: JSON) -> str:
    if value is None:
        return "null or missing"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names[type(value)]
