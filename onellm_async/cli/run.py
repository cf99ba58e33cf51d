"""``onellm-async run``: a file of prompts → a file of answers, through crashes and restarts."""

import sys
from contextlib import AsyncExitStack
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Literal

from attrs import evolve, frozen
from cyclopts import Group, Parameter

from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.options import ASKING, CONNECTING, STREAM, Asking, Connecting
from onellm_async.cli.reading import READING, Reading, open_input
from onellm_async.cli.terminal import complain, say
from onellm_async.errors import BatchError, BudgetExceededError, ConfigurationError

if TYPE_CHECKING:
    import asyncio

    from rich.console import Console

    from onellm_async.batch import BatchReport, Counts, FileRun, Source

__all__ = ["RUN_EXAMPLES", "run"]

RUN_EXAMPLES = """\
Examples:
  onellm-async run prompts.txt -o answers.jsonl --local
  onellm-async run questions.jsonl -o answers.jsonl --field question
  onellm-async run people.csv -o letters.csv --template 'Write to {{ name }}.'
  onellm-async run prompts.txt -o answers.jsonl --max-cost 5 --max-tokens 300
  onellm-async run prompts.txt -o answers.jsonl --preflight 20
  onellm-async run openai-batch.jsonl -o results.jsonl --rpm 600 --burst 100
  generate-prompts | onellm-async run - | jq -r .response.content

Interrupted, killed, out of money? The same command again goes on from there:
what was answered is kept in OUTPUT.journal and not asked again.

Input: one prompt a line, blank lines are skipped.
  text          the line is the prompt
  jsonl         {"prompt": "..."}, {"messages": [...]}, with --field NAME
                {"NAME": "..."}, or a JSON string; a "custom_id" is kept
  openai-batch  {"custom_id", "method", "url", "body"}
  csv, tsv      a header, then a prompt a row, in column "prompt" or --field
  parquet       likewise
Flags win over what an openai-batch line says itself; $ONELLM_MODEL does not.

Output: one record per prompt in the order of the input, as the name of OUTPUT
says: .jsonl, .csv or .parquet. JSON lines are
  {"index", "custom_id"?, "response": {"content", ...}, "error"}
or OpenAI's batch output for openai-batch input. It is written to OUTPUT.partial
and renamed when every prompt has an answer or an error.

While it runs, another terminal may ask for `onellm-async status OUTPUT`, and
`pause`, `resume`, `retune` or `stop` it. `report` tells afterwards how it went.
"""


@Parameter(name="*", group=Group.create_ordered("Output"))
@frozen
class Writing:
    """Where answers go."""

    output: Annotated[
        str | None,
        Parameter(
            name=["--output", "-o"],
            help="File for the answers; `-` is standard output, which cannot be resumed. [default: standard output]",
        ),
    ] = None
    journal: Annotated[
        str | None, Parameter(help="File that remembers what was sent and answered. [default: OUTPUT.journal]")
    ] = None
    force: Annotated[
        bool,
        Parameter(
            negative="", show_default=False, help="Begin anew: drop an existing output and the answers in its journal."
        ),
    ] = False


@Parameter(name="*", group=Group.create_ordered("Spending"))
@frozen
class Spending:
    """What may be spent; all sittings of a run count together."""

    max_cost: Annotated[float | None, Parameter(help="USD, never passed; needs --max-tokens. [default: no cap]")] = None
    max_tokens_total: Annotated[
        int | None, Parameter(help="Input and output tokens together, never passed; likewise. [default: no cap]")
    ] = None
    preflight: Annotated[
        int | None,
        Parameter(help="Ask so many prompts first, then project cost and time, and on a terminal ask to go on."),
    ] = None
    estimate: Annotated[
        bool, Parameter(negative="", show_default=False, help="Send nothing; foretell as `onellm-async plan` does.")
    ] = False


@Parameter(name="*", group=Group.create_ordered("Going on"))
@frozen
class GoingOn:
    """What is done with doubtful, failed and repeated prompts."""

    ambiguous: Annotated[
        Literal["retry", "hold"],
        Parameter(help="What was sent, and its answer never came: ask again (may bill twice), or hold back."),
    ] = "retry"
    retry_failed: Annotated[
        bool, Parameter(negative="", show_default=False, help="Ask again what an earlier sitting failed to get.")
    ] = False
    deduplicate: Annotated[bool, Parameter(show_default=False, help="Send identical requests once. [default: yes]")] = (
        True
    )
    keep_going: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="Do not stop when over 20 % of the last 50 fail alike."),
    ] = False
    stall_after: Annotated[float, Parameter(help="Seconds without any outcome after which the run ends.")] = 3600.0


def run(
    source: Annotated[str, Parameter(name="INPUT")],
    /,
    *,
    reading: Reading = READING,
    writing: Writing = Writing(),
    spending: Spending = Spending(),
    going_on: GoingOn = GoingOn(),
    asking: Asking = ASKING,
    connecting: Connecting = CONNECTING,
) -> int:
    """Ask every prompt of a file once and write the answers in its order; the same command again resumes.

    Args:
        source: File of prompts; `-` is standard input.
        reading: How it is read.
        writing: Where answers go.
        spending: What may be spent.
        going_on: What is done with doubtful, failed and repeated prompts.
        asking: What is asked of every prompt.
        connecting: Where the service is.
    """
    import asyncio

    if spending.estimate:
        from onellm_async.cli.plan import plan

        return plan(source, reading=reading, asking=asking, limiting=connecting)
    writing = evolve(writing, output=None if writing.output in STREAM else writing.output)
    if writing.output is None and writing.journal is not None:
        raise ConfigurationError("A journal needs an output file (-o): what went into a stream cannot be resumed.")
    if spending.preflight is not None and (spending.preflight < 2 or writing.output is None):
        raise ConfigurationError(
            f"preflight is {spending.preflight}; it needs at least 2 prompts, and an output file (-o)."
        )
    opened = open_input(source, reading, asking)
    return asyncio.run(_run(opened, reading, writing, spending, going_on, asking, connecting))


async def _run(
    source: "Source",
    reading: Reading,
    writing: Writing,
    spending: Spending,
    going_on: GoingOn,
    asking: Asking,
    connecting: Connecting,
) -> int:
    import asyncio

    from rich.console import Console

    from onellm_async.cli.progress import note
    from onellm_async.cli.run_settings import file_run
    from onellm_async.cli.signals import ending_on_signals

    console = Console(stderr=True)
    stop = asyncio.Event()
    plan = file_run(reading, writing, spending, going_on, asking, connecting)
    with ending_on_signals(stop, lambda text: note(console, text)) as caught:
        try:
            report = await _sit(source, plan, spending, connecting, console, stop)
        except asyncio.CancelledError:
            if caught.number is None:
                raise
            again = "" if writing.output is None else " The same command again goes on from here."
            complain(f"ended at once; requests under way may be billed.{again}")
            return 128 + caught.number
    _tell(report, writing.output)
    return _exit_code(report, caught.number)


async def _sit(
    source: "Source",
    plan: "FileRun",
    spending: Spending,
    connecting: Connecting,
    console: "Console",
    stop: "asyncio.Event",
) -> "BatchReport":
    import asyncio

    from onellm_async.batch import RunWatch, Tally, learned_rate, run_file, survey
    from onellm_async.cli.connection import connected
    from onellm_async.cli.progress import Display, note
    from onellm_async.retry import RetryPolicy

    rate = connecting.requests_per_minute
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(source)
        if plan.output is not None and source.is_file(plan.output):
            raise BatchError(f"{plan.output} is the input itself.", advice="Name another output.")
        surveyed = await survey(source, strict=plan.policy.strict)
        tally = Tally(monotonic(), ceiling=None if rate is None else rate / 60)
        tally.total = None if surveyed is None else surveyed.lines
        # What may have been billed is not asked again by itself where the user wants it held back.
        retry = RetryPolicy(ambiguous="never" if plan.policy.ambiguous == "hold" else "retry")
        learned = await asyncio.to_thread(learned_rate, plan)
        client = await stack.enter_async_context(connected(connecting, hooks=(tally,), retry=retry, rate_state=learned))
        watch = RunWatch(
            tally=tally,
            stop=stop,
            began=lambda counts: None if counts is None else note(console, _resuming(counts)),
            say=lambda text: note(console, text),
            on_bad_line=lambda error: note(console, str(error)),
        )
        live = console.is_terminal and not (plan.output is None and sys.stdout.isatty())
        display = Display(
            console,
            lambda: tally.snapshot(monotonic()),
            client.snapshot,
            budget=plan.budget,
            live=live,
        )
        async with display:
            return await run_file(client, source, surveyed, plan, watch)


def _resuming(counts: "Counts") -> str:
    from onellm_async.cli.progress import counted

    risk = f" (at most ${counts.at_risk:.4f} at risk)" if counts.at_risk else ""
    return (
        f"Resuming: {counted(counts.answered, 'prompt')} answered, {counts.failed:,} failed,"
        f" {counts.sent:,} possibly billed{risk}; ${counts.cost:.4f} spent so far."
    )


def _tell(report: "BatchReport", output: str | None) -> None:
    from onellm_async.cli.progress import counted, summary

    where = "" if output is None else f" Written to {output}{'' if report.complete else '.partial'}."
    say(summary(report.progress) + where)
    if report.counts.possibly_billed or (report.counts.sent and output is not None):
        lost = report.counts.possibly_billed + report.counts.sent
        say(f"Possibly billed without an answer: {counted(lost, 'attempt')}, at most ${report.counts.at_risk:.4f}.")
    if report.strict_error is not None:
        complain(f"stopped at a bad line (--strict): {report.strict_error}")
    if report.stopped_by is not None:
        complain(f"stopped early: {report.stopped_by}")
    if not report.complete:
        total = report.progress.total
        left = None if total is None else total - report.progress.done - report.progress.bad_lines
        again = "" if output is None else " The same command again goes on from here."
        complain(f"not asked yet: {'what was not read' if left is None else counted(left, 'prompt')}.{again}")


def _exit_code(report: "BatchReport", signal_number: int | None) -> int:
    if report.strict_error is not None:
        return ExitCode.USAGE
    if isinstance(report.stopped_by, BudgetExceededError):
        return ExitCode.BUDGET
    if report.stopped_by is not None:
        return ExitCode.STOPPED
    if report.interrupted:
        return ExitCode.INTERRUPTED if signal_number is None else 128 + signal_number
    return ExitCode.FAILED if report.progress.failed or report.progress.bad_lines else ExitCode.OK
