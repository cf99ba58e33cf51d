"""How the commands that take prompts read them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from attrs import evolve, frozen
from cyclopts import Parameter

from onellm_async.cli import groups
from onellm_async.cli.options import RunRequestFlags
from onellm_async.cli.stream import STREAM

if TYPE_CHECKING:
    from onellm_async.batch import InputFile

__all__ = ["READING", "SELECTING", "InputFlags", "SelectionFlags", "open_input"]


@Parameter(name="*", group=groups.INPUT)
@frozen
class InputFlags:
    """How the input is read."""

    field: Annotated[
        str | None,
        Parameter(
            help="Field of a JSON object, or column of a table, that holds the prompt. [default: prompt or messages]"
        ),
    ] = None
    template: Annotated[
        str | None,
        Parameter(help="Jinja2 template that makes the prompt from fields or columns: a file, or the text itself."),
    ] = None
    format: Annotated[
        str | None,
        Parameter(
            help="Format of the input: text, jsonl, json, openai-batch, csv, tsv, parquet, arrow. "
            "[default: by its name and first line]"
        ),
    ] = None
    id_field: Annotated[
        str | None,
        Parameter(help="Field or column with the id of each prompt. [default: custom_id, or id if it is unique]"),
    ] = None
    keep: Annotated[
        str | None,
        Parameter(
            help="Fields of each line or row that go beside its answer: `all`, `none`, or their names with commas "
            "between them. [default: all of a table, none of others]"
        ),
    ] = None
    strict: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Send nothing if a line is bad. A pipe is read up to its first bad line.",
        ),
    ] = False

    @property
    def kept(self) -> str | list[str] | None:
        """The fields to keep: ``"all"``, or their names; None for what is usual."""
        if self.keep is None or self.keep == "all":
            return self.keep
        return [] if self.keep == "none" else [name.strip() for name in self.keep.split(",") if name.strip()]


@Parameter(name="*", group=groups.SELECTION)
@frozen
class SelectionFlags:
    """Which prompts of the input are sent, and how often."""

    limit: Annotated[
        int | None,
        Parameter(help="Send only the first N prompts. A run without it continues with the others. [default: all]"),
    ] = None
    samples: Annotated[int, Parameter(help="Send each prompt N times. Each answer has its `sample`, 1 to N.")] = 1
    deduplicate: Annotated[
        bool | None,
        Parameter(
            help="Send identical requests once; with --no-deduplicate send each. [default: once those with temperature "
            "0, each of the others]"
        ),
    ] = None
    cache: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="Output or journal of an earlier run; its answers to the same requests are used. Repeatable.",
        ),
    ] = ()


READING = InputFlags()
SELECTING = SelectionFlags()
"""Nothing but defaults."""


def open_input(
    sources: Sequence[str], reading: InputFlags, asking: RunRequestFlags, *, capped: bool = False
) -> "InputFile":
    """Opens what a command was told to read.

    Args:
        sources: Files, patterns, or standard input.
        reading: How they are read.
        asking: What is asked of every prompt.
        capped: Whether the cost is capped, so that the smaller of two limits of tokens counts.

    Outside the event loop: opening a named pipe waits for its writer, and Ctrl-C must end that.

    Raises:
        BatchError: If it cannot be opened, or a flag does not go with it.
    """
    from onellm_async.batch import PromptTemplate, input_format_named, open_source
    from onellm_async.cli.connection import defaults_from

    return open_source(
        ["-" if source in STREAM else source for source in sources],
        forced_format=None if reading.format is None else input_format_named(reading.format),
        field=reading.field,
        template=None if reading.template is None else PromptTemplate.open(reading.template),
        defaults=evolve(defaults_from(asking), least_max_tokens=capped),
        id_field=reading.id_field,
        keep=reading.kept,
    )
