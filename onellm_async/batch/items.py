"""One line of an input → one prompt, or what is wrong with the line. Pure: no file is touched here.

Three formats are read, one prompt a line:

- ``text``: the line is the prompt;
- ``jsonl``: an object with ``prompt`` (a string), ``messages``, or a field that the caller names; or a JSON string.
  A ``custom_id`` beside it is carried into the output, every other field is ignored;
- ``openai-batch``: ``{"custom_id", "method", "url", "body"}``, where the body is a whole chat request.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePath

from attrs import frozen

from onellm_async.batch.defaults import RequestDefaults
from onellm_async.chat import JSON, ChatRequest
from onellm_async.errors import ConfigurationError, InvalidRequestError
from onellm_async.validation import shown
from onellm_async.wire import parse_json

__all__ = ["InputFormat", "Item", "LineError", "LineReader", "sniff_format"]


class InputFormat(StrEnum):
    """How the lines of an input are written."""

    TEXT = "text"
    JSONL = "jsonl"
    OPENAI_BATCH = "openai-batch"

    @classmethod
    def _missing_(cls, value: object) -> "InputFormat":
        raise ConfigurationError(f"format is {value!r}; it must be one of {', '.join(cls)}.")


@frozen
class Item:
    """One prompt of an input.

    Attributes:
        index: Its position among the non-blank lines of the input, from 0. A bad line keeps its position, so that
            the others do not move when it is repaired.
        line: Its line number, from 1.
        request: What to send.
        custom_id: The caller's own name of it, None where the line has none.
    """

    index: int
    line: int
    request: ChatRequest
    custom_id: str | None = None


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


class _BadLineError(Exception):
    """Inside this file only: what is wrong with a line."""


def sniff_format(name: str, first_line: bytes) -> InputFormat:
    """The format of an input, from its name and its first non-blank line.

    ``.txt`` and ``.md`` are text and ``.jsonl`` or ``.ndjson`` JSON lines; elsewhere a JSON object in the first line
    decides. JSON lines are an OpenAI batch when the first one has ``custom_id`` and ``body``.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix in {".txt", ".md"}:
        return InputFormat.TEXT
    try:
        value = parse_json(first_line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return InputFormat.OPENAI_BATCH if {"custom_id", "body"} <= value.keys() else InputFormat.JSONL
    return InputFormat.JSONL if suffix in {".jsonl", ".ndjson", ".json"} else InputFormat.TEXT


class LineReader:
    """Turns the lines of one input into items.

    Args:
        source: Name of the input, for messages.
        shape: How its lines are written.
        prompt_field: The field of a JSON object that holds the prompt; None for ``prompt`` or ``messages``.
        defaults: What is asked of every prompt.

    Example:
        >>> LineReader("in.jsonl", InputFormat.JSONL).read(b'{"prompt": "Hi"}', line=1, index=0).request.messages
        (Message(role='user', content='Hi'),)
    """

    def __init__(
        self,
        source: str,
        shape: InputFormat,
        *,
        prompt_field: str | None = None,
        defaults: RequestDefaults | None = None,
    ) -> None:
        self._source = source
        self._shape = shape
        self._field = prompt_field
        self._defaults = defaults or RequestDefaults()
        self._lines_by_id: dict[str, int] = {}

    def read(self, raw: bytes, *, line: int, index: int) -> Item | LineError:
        """The item in a line, or what is wrong with it. Never raises.

        Every ``custom_id`` is remembered, about 100 bytes each: a second use of one is an error.

        Args:
            raw: The line, not blank, without its line break.
            line: Its number, from 1.
            index: Its position among the non-blank lines, from 0.
        """
        try:
            request, custom_id = self._parse(raw)
            if custom_id is not None:
                first = self._lines_by_id.setdefault(custom_id, line)
                _demand(first == line, f"custom_id {shown(custom_id)} was used in line {first} already.")
        except (_BadLineError, InvalidRequestError) as error:
            return LineError(self._source, line, str(error))
        return Item(index, line, request, custom_id)

    def _parse(self, raw: bytes) -> tuple[ChatRequest, str | None]:
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise _BadLineError(f"Not UTF-8: {error.reason} at byte {error.start + 1} of the line.") from None
        if self._shape is InputFormat.TEXT:
            return self._defaults.request(text), None
        value = _json_value(raw)
        if self._shape is InputFormat.OPENAI_BATCH:
            return self._batch_request(value)
        return self._prompt(value)

    def _prompt(self, value: JSON) -> tuple[ChatRequest, str | None]:
        if isinstance(value, str):
            _demand(self._field is None, f"It is a JSON string, not an object with {self._field!r}.")
            _demand(value.strip() != "", "The prompt is empty.")
            return self._defaults.request(value), None
        _demand(isinstance(value, dict), f"It is {_kind(value)}, not an object or a string.")
        prompt = self._prompt_of(value)
        if isinstance(prompt, str):
            _demand(prompt.strip() != "", "The prompt is empty.")
        return self._defaults.request(prompt), _custom_id(value)

    def _prompt_of(self, value: Mapping[str, JSON]) -> JSON:
        there = ", ".join(shown(name) for name in list(value)[:5]) or "none"
        if self._field is not None:
            _demand(self._field in value, f"It has no field {self._field!r} (fields: {there}).")
            prompt = value[self._field]
            _demand(isinstance(prompt, str | list), f"{self._field!r} is {_kind(prompt)}, not a string or messages.")
            return prompt
        if "messages" in value:
            _demand("prompt" not in value, "It has both prompt and messages; one of them is needed.")
            _demand(isinstance(value["messages"], list), f"messages is {_kind(value['messages'])}, not an array.")
            return value["messages"]
        _demand(
            "prompt" in value, f"It has neither prompt nor messages (fields: {there}); name its field with --field."
        )
        _demand(isinstance(value["prompt"], str), f"prompt is {_kind(value['prompt'])}, not a string.")
        return value["prompt"]

    def _batch_request(self, value: JSON) -> tuple[ChatRequest, str | None]:
        _demand(isinstance(value, dict), f"It is {_kind(value)}, not an object.")
        custom_id = _custom_id(value)
        _demand(custom_id is not None, "It has no custom_id.")
        method, url, body = value.get("method", "POST"), value.get("url", "/v1/chat/completions"), value.get("body")
        _demand(method == "POST", f"method is {shown(method)}; only POST can be sent.")
        _demand(
            isinstance(url, str) and url.rstrip("/").endswith("/chat/completions"),
            f"url is {shown(url)}; only /v1/chat/completions can be sent.",
        )
        _demand(isinstance(body, dict), f"body is {_kind(body)}, not an object.")
        return self._defaults.over(body), custom_id


def _demand(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _BadLineError(otherwise)


def _json_value(raw: bytes) -> JSON:
    try:
        return parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"Not JSON: {error}.") from None


def _custom_id(value: Mapping[str, JSON]) -> str | None:
    custom_id = value.get("custom_id")
    _demand(custom_id is None or isinstance(custom_id, str), f"custom_id is {_kind(custom_id)}, not a string.")
    return custom_id


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
