"""``onellm-async export``: the outcomes of a run so far, from its journal."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.stream import STREAM
from onellm_async.cli.terminal import print_error, say
from onellm_async.formatting import pluralize

if TYPE_CHECKING:
    from onellm_async.batch import JournalReader, JournalRecord

_EXAMPLES = """\
Examples:
  onellm-async export answers.jsonl -o so-far.jsonl
  onellm-async export answers.jsonl -o answers.csv
  onellm-async export answers.jsonl --failed -o failed.csv
  onellm-async export answers.jsonl | jq -r .response.content

It works on an active run, too, and writes the outcomes so far.
"""

_PORTION = 1000
"""Records written at once."""


def export(
    run: Annotated[str, Parameter(name="RUN", help="Output of the run, or its journal.")],
    /,
    *,
    output: Annotated[
        str | None,
        Parameter(name=["--output", "-o"], help="The file; `-` is standard output. [default: standard output]"),
    ] = None,
    shape: Annotated[
        str | None,
        Parameter(
            name="--format",
            help="Output format: jsonl, openai-batch, csv, tsv, parquet. "
            "[default: as the output's name and the run's input say]",
        ),
    ] = None,
    failed: Annotated[
        bool, Parameter(negative="", show_default=False, help="Only prompts that failed, with why they did.")
    ] = False,
    force: Annotated[bool, Parameter(negative="", show_default=False, help="Replace an existing file.")] = False,
) -> int:
    """Runs ``onellm-async export``.

    Args:
        run: Output of the run, or its journal.
        output: The file.
        shape: Output format.
        failed: Only prompts that failed.
        force: Replace an existing file.
    """
    import asyncio

    from onellm_async.batch import JournalReader

    output = None if output in STREAM else output
    with JournalReader.open(run) as journal:
        if journal.warning is not None:
            print_error(journal.warning)
        written = asyncio.run(_write(journal, output, shape, force=force, failed=failed))
    if output is not None:
        say(f"{pluralize(written, 'record')} written to {output}.")
    return ExitCode.OK


export_command: App = command(
    export,
    _EXAMPLES,
    {
        ExitCode.OK: "the outcomes so far were written, failures included",
    },
)


async def _write(journal: "JournalReader", output: str | None, shape: str | None, *, force: bool, failed: bool) -> int:
    from onellm_async.batch import RecordState, open_sink, output_format, output_format_named

    if shape is None:
        encoding = output_format(output, journal.identity.format or "jsonl")
    else:
        encoding = output_format_named(shape)
    encoding = encoding.keeping(tuple(journal.identity.columns or ())).sampling(journal.identity.samples or 1)
    written = 0
    async with open_sink(output, encoding, force=force) as sink:
        records: Iterator[JournalRecord] = journal.records()
        if failed:
            records = (record for record in records if record.state is RecordState.FAILED)
        while lines := [encoding.encode(record) for record in islice(records, _PORTION)]:
            await sink.write(b"".join(lines))
            written += len(lines)
    return written
