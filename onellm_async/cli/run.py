"""``onellm-async run``: flags → `AsyncOneLLM.run` → what is printed and the exit code."""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Literal, cast

from attrs import frozen
from cyclopts import App, Parameter

from onellm_async.cli import groups
from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode, reader_left
from onellm_async.cli.general import GENERAL, GeneralFlags
from onellm_async.cli.options import ASKING_EACH, CONNECTING, ConnectionFlags, LaneName, RunRequestFlags, seconds_from
from onellm_async.cli.reading import READING, SELECTING, InputFlags, SelectionFlags
from onellm_async.cli.stream import STREAM
from onellm_async.cli.terminal import print_error, require_output, say
from onellm_async.errors import BudgetExceededError, ConfigurationError

if TYPE_CHECKING:
    import asyncio

    from onellm_async.batch import RunOptions, RunReport
    from onellm_async.batch.config import InputFormatName, RunConfig
    from onellm_async.cli.run_display import RunDisplay
    from onellm_async.client import AsyncOneLLM

_EXAMPLES = """\
Examples:
  onellm-async run prompts.txt -o answers.jsonl --local
  onellm-async run questions.jsonl -o answers.jsonl --field question
  onellm-async run people.csv -o letters.csv --template 'Write to {{ name }}.'
  onellm-async run prompts.txt -o answers.jsonl --max-cost 5 --max-tokens 300
  onellm-async run prompts.txt -o answers.jsonl --preflight 20
  onellm-async run reviews.csv -o ratings.jsonl --schema rating.json
  onellm-async run openai-batch.jsonl -o results.jsonl --rpm 600 --burst 100
  generate-prompts | onellm-async run - | jq -r .response.content

Run the same command again to resume after an interrupt or a kill, and with a
higher --max-cost after a reached cap: OUTPUT.journal keeps the answers, and
nothing answered is sent twice. If INPUT has changed, only what is new is sent.

Input: one prompt a line, blank lines are skipped.
  text          the line is the prompt
  jsonl         {"prompt": "..."}, {"messages": [...]}, with --field NAME
                {"NAME": "..."}, or a JSON string; a "custom_id" is kept
  json          an array of these
  openai-batch  {"custom_id", "method", "url", "body"}
  csv, tsv      a header, then a prompt a row, in column "prompt" or --field
  parquet       likewise; arrow, too
Files may be packed (.gz, .zst); several are one run. "model", "system",
"max_tokens", "temperature" and so on of a line or row are those of its request:
flags go before them, and $ONELLM_MODEL after them.

Output: one record per prompt in the order of the input, as the name of OUTPUT
says: .jsonl, .csv, .tsv or .parquet. JSON lines are
  {"index", "custom_id"?, "input"?, "response": {"content", ...}, "error"}
or OpenAI's batch output for openai-batch input. It is written to OUTPUT.partial
and renamed when every prompt has an answer or an error.

While it runs, another terminal may ask for `onellm-async status OUTPUT`, and
`pause`, `resume`, `retune` or `stop` it. `report` tells afterwards how it went.
"""


@Parameter(name="*", group=groups.OUTPUT)
@frozen
class OutputFlags:
    """Where answers go."""

    output: Annotated[
        str | None,
        Parameter(
            name=["--output", "-o"],
            help="File for the answers; `-` is standard output. Only a file can be resumed. [default: standard output]",
        ),
    ] = None
    journal: Annotated[
        str | None, Parameter(help="File that records what was sent and answered. [default: OUTPUT.journal]")
    ] = None
    force: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Start over: discard the output and the answers in its journal.",
        ),
    ] = False


@Parameter(name="*", group=groups.BUDGET)
@frozen
class BudgetFlags:
    """What may be spent; all sessions of a run count together."""

    max_cost: Annotated[
        float | None, Parameter(help="Cost cap in USD over all sessions. Needs --max-tokens. [default: no cap]")
    ] = None
    max_tokens_total: Annotated[
        int | None,
        Parameter(help="Cap on input plus output tokens over all sessions. Needs --max-tokens. [default: no cap]"),
    ] = None
    preflight: Annotated[
        int | None,
        Parameter(help="Send the first N prompts, show the estimated cost and time, then ask whether to continue."),
    ] = None
    estimate: Annotated[
        bool, Parameter(negative="", show_default=False, help="Send nothing; estimate like `onellm-async plan`.")
    ] = False


@Parameter(name="*", group=groups.RESUMING)
@frozen
class ResumeFlags:
    """Which prompts of earlier sessions are sent again."""

    ambiguous: Annotated[
        Literal["retry", "hold"],
        Parameter(help="Prompts that may have been billed without an answer: retry (may be billed twice) or hold."),
    ] = "retry"
    retry_failed: Annotated[
        bool, Parameter(negative="", show_default=False, help="Retry prompts that failed in an earlier session.")
    ] = False
    accept_removed: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Take an input that lost prompts since the last session; their answers leave the output.",
        ),
    ] = False


@Parameter(name="*", group=groups.SESSION)
@frozen
class SessionFlags:
    """How this session shares the rate limit, and when it ends early."""

    lane: Annotated[
        LaneName,
        Parameter(help="Lane of the requests. `batch` leaves most of a shared rate limit to the other lanes."),
    ] = "batch"
    max_time: Annotated[
        str | None,
        Parameter(
            help="Stop after this time, in seconds or as 90s, 10m, 2h. Requests in flight finish. [default: no limit]"
        ),
    ] = None
    keep_going: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Continue even if more than 20 % of the last 50 prompts fail with the same error, or no answer "
            "conforms to the schema.",
        ),
    ] = False
    stall_after: Annotated[
        float, Parameter(help="Stop after this many seconds of waiting for the service without an answer or a failure.")
    ] = 3600.0


WRITING = OutputFlags()
SPENDING = BudgetFlags()
GOING_ON = ResumeFlags()
SESSION = SessionFlags()
"""Nothing but defaults."""


def run(
    source: Annotated[str, Parameter(name="INPUT")],
    /,
    *more: Annotated[str, Parameter(name="INPUT", show=False)],
    reading: InputFlags = READING,
    selecting: SelectionFlags = SELECTING,
    writing: OutputFlags = WRITING,
    spending: BudgetFlags = SPENDING,
    going_on: ResumeFlags = GOING_ON,
    session: SessionFlags = SESSION,
    asking: RunRequestFlags = ASKING_EACH,
    connecting: ConnectionFlags = CONNECTING,
    general: GeneralFlags = GENERAL,
) -> int:
    """Runs ``onellm-async run``.

    Args:
        source: File of prompts, or several as one run; `-` is standard input.
        more: Further files.
        reading: How it is read.
        selecting: Which prompts are sent, and how often.
        writing: Where answers go.
        spending: What may be spent.
        going_on: Which prompts of earlier sessions are sent again.
        session: How this session shares the rate limit, and when it ends early.
        asking: What is asked of every prompt.
        connecting: Where the service is.
        general: The environment, and how much is said.
    """
    with general.applied():
        sources = ["-" if each in STREAM else each for each in (source, *more)]
        output = "-" if writing.output is None or writing.output in STREAM else writing.output
        options = options_from(reading, selecting, writing, spending, going_on, session, asking)
        return _run(sources, output, options, reading, spending, asking, connecting)


def _run(
    sources: Sequence[str],
    output: str,
    options: "RunOptions",
    reading: InputFlags,
    spending: BudgetFlags,
    asking: RunRequestFlags,
    connecting: ConnectionFlags,
) -> int:
    import asyncio

    if spending.estimate:
        from onellm_async.cli.plan import estimate

        return estimate(sources, reading, asking, connecting, config=_config(output, asking.model, options, connecting))
    if output == "-":
        require_output()
    if spending.preflight is not None:
        _check_preflight(spending.preflight, sources, output)

    if not any(source == "-" or Path(source).is_fifo() for source in sources):  # these can be opened only once
        asyncio.run(_check_input(sources, reading, asking))

    from onellm_async.cli.run_display import RunDisplay

    invocation = _Session(sources, output, asking.model, options, connecting, RunDisplay(), spending.preflight)
    return asyncio.run(invocation.ended())


run_command: App = command(run, _EXAMPLES)


def options_from(
    reading: InputFlags,
    selecting: SelectionFlags,
    writing: OutputFlags,
    spending: BudgetFlags,
    going_on: ResumeFlags,
    session: SessionFlags,
    asking: RunRequestFlags,
) -> "RunOptions":
    """The flags as the options of `AsyncOneLLM.run`."""
    options: RunOptions = {
        "system": asking.system,
        "max_tokens": asking.max_tokens,
        "temperature": asking.temperature,
        "top_p": asking.top_p,
        "stop_sequences": asking.stop or None,
        "seed": asking.seed,
        "response_format": None if asking.response_format is None else {"type": asking.response_format},
        "extra": asking.extra,
        "response_model": asking.response_model,
        "corrections": asking.corrections,
        "fallback_model": asking.fallback_model(),
        "field": reading.field,
        "template": reading.template,
        "id_field": reading.id_field,
        "keep": reading.kept,
        "input_format": cast("InputFormatName | None", reading.format),
        "strict": reading.strict,
        "limit": selecting.limit,
        "samples": selecting.samples,
        "deduplicate": selecting.deduplicate,
        "cache": selecting.cache,
        "journal": writing.journal,
        "force": writing.force,
        "max_cost": spending.max_cost,
        "max_tokens_total": spending.max_tokens_total,
        "ambiguous": going_on.ambiguous,
        "retry_failed": going_on.retry_failed,
        "accept_removed": going_on.accept_removed,
        "stall_after": session.stall_after,
        "max_time": None if session.max_time is None else seconds_from("--max-time", session.max_time),
        "lane": session.lane,
    }
    if session.keep_going:
        options["max_failure_share"] = 1.0
    return options


async def _check_input(sources: Sequence[str], reading: InputFlags, asking: RunRequestFlags) -> None:
    """Refuses an input that cannot be used before a client is made, which needs a key."""
    from onellm_async.cli.reading import open_input

    async with open_input(sources, reading, asking):
        pass


def _config(output: str, model: str | None, options: "RunOptions", connecting: ConnectionFlags) -> "RunConfig":
    """The run that the flags describe, without a client."""
    from onellm_async.batch.config import RunConfig
    from onellm_async.catalog import PriceList
    from onellm_async.settings import resolve_base_url
    from onellm_async.wire import resolve_endpoints

    url = None if connecting.local else resolve_base_url(connecting.base_url, allow_insecure=connecting.allow_insecure)
    return RunConfig.from_options(
        output,
        model,
        options,
        limits=connecting.limits(),
        base_url=url or "local",
        dialect=connecting.dialect_name,
        endpoints=resolve_endpoints(connecting.endpoints),
        prices=PriceList.of(connecting.prices),
    )


def _check_preflight(number: int, sources: Sequence[str], output: str) -> None:
    if number < 2 or "-" in {*sources, output}:
        raise ConfigurationError(
            f"--preflight is {number}; it needs at least 2 prompts, an input file and an output file (-o)."
        )
    if any(Path(source).exists() and not Path(source).is_file() for source in sources):
        raise ConfigurationError("--preflight reads the input twice, so it needs a file and not a pipe.")


@frozen
class _Session:
    """One invocation of the command."""

    sources: Sequence[str]
    output: str
    model: str | None
    options: "RunOptions"
    connecting: ConnectionFlags
    display: "RunDisplay"
    preflight: int | None

    async def ended(self) -> int:
        """Runs it, says how it ended, and returns the exit code."""
        import asyncio

        from onellm_async.cli.signals import ending_on_signals

        stop, resumable = asyncio.Event(), self.output != "-"
        with ending_on_signals(stop, self.display.note) as caught:
            try:
                report = await self._reported(stop)
            except asyncio.CancelledError:
                if caught.number is None:
                    raise
                goes_on = " Run the same command again to resume." if resumable else ""
                print_error(f"ended at once; requests in flight may be billed.{goes_on}")
                return 128 + caught.number
        if report is None:
            say("Nothing more is sent; the answers are kept. Run the same command again to resume.")
            return ExitCode.OK
        self.display.tell(report, self.output if resumable else None)
        return exit_code(report, caught.number)

    async def _reported(self, stop: "asyncio.Event") -> "RunReport | None":
        """The report; None if the user does not want to continue after the preflight."""
        from attrs import evolve

        from onellm_async.cli.connection import connected
        from onellm_async.retry import RetryPolicy

        async with connected(self.connecting, retry=RetryPolicy(max_outage=_max_outage(self.options))) as client:
            started = monotonic()
            if self.preflight is None:
                return await self._run(client, stop, self.options)
            limit = self.options.get("limit")
            if limit is not None and limit <= self.preflight:  # the preflight is the run
                return await self._run(client, stop, self.options)
            report = await self._run(client, stop, {**self.options, "limit": self.preflight})
            if not report.limit_reached:
                return report
            self.display.tell_estimate(report, self.options.get("max_cost"))
            if not await self.display.confirm(stop):
                return evolve(report, interrupted=True) if stop.is_set() else None
            return await self._run(client, stop, {**self.options, "force": False, "max_time": self._time_left(started)})

    def _time_left(self, started: float) -> float | None:
        max_time = self.options["max_time"]
        return None if max_time is None else max(0.001, max_time - (monotonic() - started))

    async def _run(self, client: "AsyncOneLLM", stop: "asyncio.Event", options: "RunOptions") -> "RunReport":
        display = self.display
        async with display.showing(client, options, live=self.output != "-"):
            return await client.run(
                self.sources[0] if len(self.sources) == 1 else [Path(source) for source in self.sources],
                self.output,
                model=self.model,
                on_progress=display.show,
                on_bad_line=display.bad_line,
                on_message=display.message,
                stop=stop,
                **options,
            )


_LATER = 60.0
"""Seconds by which the client waits longer than the run, which tells more of what it waited for."""


def _max_outage(options: "RunOptions") -> float | None:
    """Seconds without an accepted request after which the client gives up; None where failures are outcomes."""
    return None if options.get("max_failure_share") == 1 else options["stall_after"] + _LATER


def exit_code(report: "RunReport", signal_number: int | None) -> int:
    """The exit code of a run.

    Args:
        report: How it ended.
        signal_number: Of the signal that ended it; None where none came.
    """
    if report.strict_error is not None:
        return ExitCode.USAGE
    if isinstance(report.stopped_by, BudgetExceededError):
        return ExitCode.BUDGET
    if report.stopped_by is not None:
        return ExitCode.BROKEN_PIPE if reader_left(report.stopped_by) else ExitCode.STOPPED
    if report.out_of_time:
        return ExitCode.TIME_OVER
    if report.interrupted:
        return ExitCode.INTERRUPTED if signal_number is None else 128 + signal_number
    return ExitCode.FAILED if report.progress.failed or report.progress.bad_lines else ExitCode.OK
