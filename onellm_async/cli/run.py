"""``onellm-async run``: a file of prompts → a file of answers."""

import sys
from contextlib import AsyncExitStack
from time import monotonic, time
from typing import TYPE_CHECKING, Annotated

from attrs import evolve, frozen
from cyclopts import Group, Parameter

from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.options import ASKING, CONNECTING, STREAM, Asking, Connecting, FieldName, LineFormat
from onellm_async.cli.terminal import complain, say
from onellm_async.errors import BatchError

if TYPE_CHECKING:
    import asyncio

    from rich.console import Console

    from onellm_async.batch import RunReport, Source

__all__ = ["RUN_EXAMPLES", "run"]

RUN_EXAMPLES = """\
Examples:
  onellm-async run prompts.txt -o answers.jsonl --local
  onellm-async run questions.jsonl -o answers.jsonl --field question
  onellm-async run openai-batch.jsonl -o results.jsonl --rpm 600 --burst 100
  onellm-async run prompts.txt -o answers.jsonl -m GPT-5-Mini --rpm auto
  generate-prompts | onellm-async run - | jq -r .response.content

Input: one prompt a line, blank lines are skipped.
  text          the line is the prompt
  jsonl         {"prompt": "..."}, {"messages": [...]}, with --field NAME
                {"NAME": "..."}, or a JSON string; a "custom_id" is kept
  openai-batch  {"custom_id", "method", "url", "body"}
Flags win over what an openai-batch line says itself; $ONELLM_MODEL does not.

Output: one JSON line per prompt in the order of the input,
  {"index", "custom_id"?, "response": {"content", ...}, "error"}
or OpenAI's batch output for openai-batch input. It is written to OUTPUT.partial
and renamed at the end, also when the run is stopped by a signal or an error.
"""

_FILES = Group.create_ordered("Input and output")


@Parameter(name="*", group=_FILES)
@frozen
class Files:
    """Where prompts come from and answers go."""

    output: Annotated[
        str | None,
        Parameter(
            name=["--output", "-o"], help="File for the answers; `-` is standard output. [default: standard output]"
        ),
    ] = None
    field: FieldName = None
    format: LineFormat = None
    strict: Annotated[
        bool,
        Parameter(
            negative="", help="Send nothing if a line of the file is bad; a pipe is stopped at the first bad line."
        ),
    ] = False
    force: Annotated[bool, Parameter(negative="", show_default=False, help="Replace an existing output.")] = False


def run(
    source: Annotated[str, Parameter(name="INPUT")],
    /,
    *,
    files: Files = Files(),
    asking: Asking = ASKING,
    connecting: Connecting = CONNECTING,
) -> int:
    """Ask every prompt of a file and write the answers in its order.

    Args:
        source: File of prompts; `-` is standard input.
        files: Where prompts come from and answers go.
        asking: What is asked of every prompt.
        connecting: Where the service is.
    """
    import asyncio

    from onellm_async.batch import InputFormat, open_source
    from onellm_async.cli.connection import defaults_from

    files = evolve(files, output=None if files.output in STREAM else files.output)
    # Opened outside the event loop: opening a named pipe waits for its writer, and Ctrl-C must end that.
    opened = open_source(
        "-" if source in STREAM else source,
        forced_format=None if files.format is None else InputFormat(files.format),
        field=files.field,
        defaults=defaults_from(asking),
    )
    return asyncio.run(_run(opened, files, connecting))


async def _run(source: "Source", files: Files, connecting: Connecting) -> int:
    import asyncio

    from rich.console import Console

    from onellm_async.cli.progress import note
    from onellm_async.cli.signals import ending_on_signals

    console = Console(stderr=True)
    stop = asyncio.Event()
    with ending_on_signals(stop, lambda text: note(console, text)) as caught:
        try:
            report = await _answer_all(source, files, connecting, console, stop)
        except asyncio.CancelledError:
            if caught.number is None:
                raise
            where = "" if files.output is None else f" What was answered is in {files.output}.partial."
            complain(f"ended at once; requests under way may be billed.{where}")
            return 128 + caught.number
    _tell(report, files.output)
    return _exit_code(report, caught.number)


async def _answer_all(
    source: "Source", files: Files, connecting: Connecting, console: "Console", stop: "asyncio.Event"
) -> "RunReport":
    from onellm_async.batch import FileSink, OutcomeWriter, StreamSink, Tally, run_prompts
    from onellm_async.cli.connection import connected
    from onellm_async.cli.progress import Display, note

    rate = connecting.requests_per_minute
    writer = OutcomeWriter(created=int(time()))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(source)
        if files.output is not None and source.is_file(files.output):
            raise BatchError(f"{files.output} is the input itself.", advice="Name another output.")
        total = await _look_through(source, strict=files.strict)
        tally = Tally(monotonic(), ceiling=None if rate is None else rate / 60)
        tally.total = total
        client = await stack.enter_async_context(connected(connecting, hooks=(tally,)))
        sink: StreamSink | FileSink = StreamSink(1)
        if files.output is not None:
            sink = FileSink(files.output, force=files.force)
        await stack.enter_async_context(sink)
        live = console.is_terminal and not (files.output is None and sys.stdout.isatty())
        await stack.enter_async_context(Display(console, lambda: tally.snapshot(monotonic()), live=live))
        return await run_prompts(
            client,
            source,
            sink=sink,
            encode=lambda item, outcome: writer.line(item, outcome, source.format),
            stop=stop,
            strict=files.strict,
            tally=tally,
            on_bad_line=lambda error: note(console, str(error)),
        )


async def _look_through(source: "Source", *, strict: bool) -> int | None:
    import asyncio

    survey = await asyncio.to_thread(source.survey, strict=strict)
    if survey is None:
        return None
    if survey.first_error is not None:
        raise BatchError(str(survey.first_error), advice="Nothing was sent (--strict).")
    return survey.lines


def _tell(report: "RunReport", output: str | None) -> None:
    from onellm_async.cli.progress import counted, summary

    say(summary(report.progress) + ("" if output is None else f" Written to {output}."))
    if report.strict_error is not None:
        complain(f"stopped at a bad line (--strict): {report.strict_error}")
    if report.stopped_by is not None:
        complain(f"stopped early: {report.stopped_by}")
    if not report.complete:
        total = report.progress.total
        left = report.unsent if total is None else total - report.progress.done - report.progress.bad_lines
        complain(f"not sent: {counted(left, 'prompt')}" + ("." if total is not None else ", and those not read yet."))


def _exit_code(report: "RunReport", signal_number: int | None) -> int:
    if report.strict_error is not None:
        return ExitCode.USAGE
    if report.stopped_by is not None:
        return ExitCode.STOPPED
    if report.interrupted and signal_number is not None:
        return 128 + signal_number
    return ExitCode.FAILED if report.progress.failed or report.progress.bad_lines else ExitCode.OK
