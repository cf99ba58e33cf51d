"""How inputs and outputs are written, and how that is told from a name and a first line. Pure."""

from enum import StrEnum
from pathlib import PurePath

from onellm_async.errors import ConfigurationError
from onellm_async.wire import parse_json

__all__ = ["InputFormat", "OutputFormat", "format_by_name", "output_format", "sniff_format"]


class InputFormat(StrEnum):
    """How an input is written."""

    TEXT = "text"
    """A line is a prompt."""
    JSONL = "jsonl"
    """A line is an object with ``prompt``, ``messages`` or a field that the caller names, or a JSON string."""
    OPENAI_BATCH = "openai-batch"
    """A line is ``{"custom_id", "method", "url", "body"}``; vLLM's batch files, too."""
    CSV = "csv"
    """A header row, then a prompt a row; separated by comma, semicolon, tab or bar, whichever the header has."""
    TSV = "tsv"
    """The same, separated by tabs."""
    PARQUET = "parquet"
    """A prompt a row."""

    @property
    def is_table(self) -> bool:
        """Whether it has columns: ``prompt``, and where they are there ``custom_id`` or ``id``, and ``system``."""
        return self in {InputFormat.CSV, InputFormat.TSV, InputFormat.PARQUET}

    @classmethod
    def _missing_(cls, value: object) -> "InputFormat":
        raise ConfigurationError(f"format is {value!r}; it must be one of {', '.join(cls)}.")


class OutputFormat(StrEnum):
    """How an output is written."""

    JSONL = "jsonl"
    OPENAI_BATCH = "openai-batch"
    CSV = "csv"
    PARQUET = "parquet"

    @classmethod
    def _missing_(cls, value: object) -> "OutputFormat":
        raise ConfigurationError(f"output format is {value!r}; it must be one of {', '.join(cls)}.")


_INPUTS_BY_SUFFIX = {
    ".csv": InputFormat.CSV,
    ".tsv": InputFormat.TSV,
    ".tab": InputFormat.TSV,
    ".parquet": InputFormat.PARQUET,
    ".pq": InputFormat.PARQUET,
}
_OUTPUTS_BY_SUFFIX = {".csv": OutputFormat.CSV, ".parquet": OutputFormat.PARQUET, ".pq": OutputFormat.PARQUET}


def format_by_name(name: str) -> InputFormat | None:
    """The format of a table, which its name alone tells; None for everything that is written in lines."""
    return _INPUTS_BY_SUFFIX.get(PurePath(name).suffix.lower())


def sniff_format(name: str, first_line: bytes) -> InputFormat:
    """The format of an input, from its name and its first non-blank line.

    Tables are told by their names: ``.csv``, ``.tsv``, ``.parquet``. ``.txt`` and ``.md`` are text and ``.jsonl`` or
    ``.ndjson`` JSON lines; elsewhere a JSON object in the first line decides. JSON lines are an OpenAI batch when the
    first one has ``custom_id`` and ``body``.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix in _INPUTS_BY_SUFFIX:
        return _INPUTS_BY_SUFFIX[suffix]
    if suffix in {".txt", ".md"}:
        return InputFormat.TEXT
    try:
        value = parse_json(first_line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return InputFormat.OPENAI_BATCH if {"custom_id", "body"} <= value.keys() else InputFormat.JSONL
    return InputFormat.JSONL if suffix in {".jsonl", ".ndjson", ".json"} else InputFormat.TEXT


def output_format(name: str | None, source: InputFormat) -> OutputFormat:
    """The format of an output: as its name says, else OpenAI's for an OpenAI batch, else JSON lines.

    Args:
        name: The output's name; None for a stream.
        source: How the input is written.
    """
    by_name = None if name is None else _OUTPUTS_BY_SUFFIX.get(PurePath(name).suffix.lower())
    if by_name is not None:
        return by_name
    return OutputFormat.OPENAI_BATCH if source is InputFormat.OPENAI_BATCH else OutputFormat.JSONL
