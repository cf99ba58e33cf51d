"""``onellm-async shard``: split an input for many machines, run its shards, merge their answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from onellm_async.cli import groups
from onellm_async.cli.exit_codes import ExitCode, exit_codes_help
from onellm_async.cli.flag_words import arguments_in_flags
from onellm_async.cli.general import GENERAL, GeneralFlags
from onellm_async.cli.options import ASKING_EACH, CONNECTING, ConnectionFlags, RunRequestFlags
from onellm_async.cli.reading import READING, SELECTING, InputFlags, SelectionFlags
from onellm_async.cli.run import (
    GOING_ON,
    SESSION,
    SPENDING,
    WRITING,
    BudgetFlags,
    OutputFlags,
    ResumeFlags,
    SessionFlags,
    options_from,
)
from onellm_async.cli.stream import STREAM
from onellm_async.cli.terminal import print_error, put, say
from onellm_async.errors import ConfigurationError
from onellm_async.formatting import pluralize

if TYPE_CHECKING:
    from onellm_async.batch import RunOptions, ShardResult, ShardStatus

_EXAMPLES = """\
Examples:
  onellm-async shard prompts.jsonl -d shards --prompts 5000
  onellm-async shard run shards/shard-00007.jsonl --quota redis://10.0.0.5:6379
  onellm-async shard status shards
  onellm-async shard merge shards -o answers.jsonl

Each shard is a run of its own, with a journal. The same `shard run` again, on
any machine that reaches the files, resumes it; nothing answered is sent again.
"""


def split(
    source: Annotated[Path, Parameter(name="INPUT", help="The input, in any format that `run` reads.")],
    /,
    *,
    directory: Annotated[Path, Parameter(name=["--directory", "-d"], help="Where the shards are written.")],
    prompts: Annotated[int, Parameter(help="Prompts of each shard.")] = 1000,
    shape: Annotated[
        str | None,
        Parameter(
            name="--format",
            help="How the input is written: text, jsonl, json, openai-batch, csv, tsv, parquet, arrow. "
            "[default: as its name and its first line say]",
        ),
    ] = None,
) -> int:
    """Split an input into shards for many machines; run, show and merge them.

    Args:
        source: The input.
        directory: Where the shards are written.
        prompts: Prompts of each shard.
        shape: How the input is written.
    """
    from onellm_async.batch import split_input

    shards = split_input(source, directory, prompts=prompts, input_format=shape)
    say(f"{pluralize(len(shards), 'shard')} in {directory}, {pluralize(prompts, 'prompt')} each.")
    for shard in shards:
        put(str(shard))
    return ExitCode.OK


def run(
    shard: Annotated[Path, Parameter(name="SHARD", help="The shard.")],
    /,
    *,
    lock_wait: Annotated[
        float,
        Parameter(group=groups.SHARD, help="Seconds to wait for an earlier attempt at the shard that is still alive."),
    ] = 600.0,
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
    """Run a shard, or resume it, with the flags of `run`. Print how it stands as JSON.

    Args:
        shard: The shard.
        lock_wait: Seconds to wait for an earlier attempt.
        reading: How it is read.
        selecting: Which prompts are sent, and how often.
        writing: Where answers go; by default beside the shard.
        spending: What may be spent.
        going_on: Which prompts of earlier sessions are sent again.
        session: How this session shares the rate limit, and when it ends early.
        asking: What is asked of every prompt.
        connecting: Where the service is.
        general: The environment, and how much is said.
    """
    import asyncio

    from onellm_async.wire import dump_json

    if spending.preflight is not None or spending.estimate or writing.output in STREAM:
        raise ConfigurationError("A shard takes no --preflight, no --estimate, and no standard output.")
    if not shard.exists():
        raise ConfigurationError(f"{shard} does not exist.", advice="Split an input first: onellm-async shard.")
    with general.applied():
        options = options_from(reading, selecting, writing, spending, going_on, session, asking)
        if reading.format is None:
            del options["input_format"]  # that of the shards
        output = None if writing.output is None else Path(writing.output)
        found = asyncio.run(_run(shard, output, asking.model, lock_wait, options, connecting))
    if isinstance(found, int):
        return found
    result, signal = found
    put(dump_json(result).decode())
    if signal is not None and not result["complete"]:
        return 128 + signal
    if result["error"]:
        say(arguments_in_flags(result["error"]))
        return ExitCode.STOPPED
    flawless = result["complete"] and not result["failed"] and not result["bad_lines"]
    return ExitCode.OK if flawless else ExitCode.FAILED


def status(
    directory: Annotated[Path, Parameter(name="DIRECTORY", help="The shards.")],
    /,
    *,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print it as JSON.")] = False,
) -> int:
    """Show the progress and cost of all shards.

    Args:
        directory: The shards.
        json: Print it as JSON.
    """
    from onellm_async.batch import read_shard_statuses

    statuses = read_shard_statuses(directory)
    put(_as_json(statuses) if json else _as_text(statuses))
    return ExitCode.OK if all(each.state == "complete" for each in statuses) else ExitCode.FAILED


def merge(
    directory: Annotated[Path, Parameter(name="DIRECTORY", help="The shards.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="File for the answers.")],
    shape: Annotated[
        str | None,
        Parameter(
            name="--format",
            help="How it is written: jsonl, openai-batch, csv, tsv, parquet. [default: as its name says]",
        ),
    ] = None,
    partial: Annotated[
        bool, Parameter(negative="", show_default=False, help="Write what is there although shards are not complete.")
    ] = False,
    force: Annotated[bool, Parameter(negative="", show_default=False, help="Replace an existing file.")] = False,
) -> int:
    """Write the answers of all shards into one file, in input order.

    Args:
        directory: The shards.
        output: File for the answers.
        shape: How it is written.
        partial: Write what is there although shards are not complete.
        force: Replace an existing file.
    """
    import asyncio

    from onellm_async.batch import merge_shards

    written = asyncio.run(merge_shards(directory, output, format=shape, partial=partial, force=force))
    say(f"{pluralize(written, 'record')} written to {output}.")
    return ExitCode.OK


_SPLIT_CODES = exit_codes_help({ExitCode.OK: "the shards were written; each subcommand has its own codes"})
_RUN_CODES = exit_codes_help(
    {
        ExitCode.OK: "everything was answered",
        ExitCode.FAILED: "some prompts failed or some lines were bad, or it is not complete",
        ExitCode.STOPPED: "stopped early, as the message says: also at its budget",
        ExitCode.HANGUP: "terminal closed (SIGHUP)",
        ExitCode.TERMINATED: "terminated",
    }
)
_STATUS_CODES = exit_codes_help({ExitCode.OK: "all shards are complete", ExitCode.FAILED: "some are not complete"})
_MERGE_CODES = exit_codes_help({ExitCode.OK: "the answers were written, failures included"})

shard_command: App = App(name="shard", help_format="plaintext", help_epilogue=f"{_EXAMPLES}\n{_SPLIT_CODES}")
shard_command.default(split)
for _command, _codes in ((run, _RUN_CODES), (status, _STATUS_CODES), (merge, _MERGE_CODES)):
    shard_command.command(_command, help_epilogue=f"{_EXAMPLES}\n{_codes}")


async def _run(
    shard: Path,
    output: Path | None,
    model: str | None,
    lock_wait: float,
    options: "RunOptions",
    connecting: ConnectionFlags,
) -> "tuple[ShardResult, int | None] | int":
    import asyncio

    from onellm_async.batch import run_shard
    from onellm_async.cli.connection import connected
    from onellm_async.cli.signals import ending_on_signals

    stop = asyncio.Event()
    async with connected(connecting) as client:
        with ending_on_signals(stop, say) as caught:
            try:
                result = await run_shard(client, shard, output, model=model, lock_wait=lock_wait, stop=stop, **options)
            except asyncio.CancelledError:
                if caught.number is None:
                    raise
                print_error("ended at once; requests in flight may be billed. Run the same command again to resume.")
                return 128 + caught.number
    return result, caught.number


def _as_json(statuses: "list[ShardStatus]") -> str:
    from attrs import asdict

    from onellm_async.batch.shards import sum_counts, sum_failures
    from onellm_async.wire import dump_json

    return dump_json(
        {
            "entries": sum(each.entries for each in statuses),
            "complete": sum(each.state == "complete" for each in statuses),
            "bad_lines": sum(each.bad_lines for each in statuses),
            "counts": sum_counts(statuses).to_dict(),
            "failures": sum_failures(statuses),
            "shards": [asdict(each) | {"counts": each.counts.to_dict()} for each in statuses],
        }
    ).decode()


def _as_text(statuses: "list[ShardStatus]") -> str:
    from collections import Counter

    from onellm_async.batch.run_report import money_at_risk
    from onellm_async.batch.shards import sum_counts, sum_failures
    from onellm_async.formatting import format_duration, format_usd

    totals, states = sum_counts(statuses), Counter(each.state for each in statuses)
    prompts = sum(each.prompts for each in statuses)
    lines = [
        f"{pluralize(len(statuses), 'shard')}: "
        + (", ".join(f"{count:,} {state}" for state, count in states.items()) or "none"),
        f"  prompts          {totals.answered:,} of {prompts:,} answered, {totals.failed:,} failed",
        f"  tokens           {totals.input_tokens:,} + {totals.output_tokens:,}",
        f"  cost             {format_usd(totals.cost)}",
    ]
    if spans := [each.time_span for each in statuses if each.time_span is not None]:
        seconds = max(end for _, end in spans) - min(start for start, _ in spans)
        lines.append(f"  time             {format_duration(seconds)} from the first activity to the last")
    if bad_lines := sum(each.bad_lines for each in statuses):
        lines.append(f"  bad lines        {bad_lines:,}")
    if totals.possibly_billed or totals.in_flight:
        lost = pluralize(totals.possibly_billed + totals.in_flight, "attempt")
        lines.append(f"  possibly billed  {lost}, those in flight included ({money_at_risk(totals)})")
    for cause, number in sum_failures(statuses).items():
        lines.append(f"  failed           {number:,} × {cause}")
    for each in statuses:
        if each.state != "complete" or each.counts.failed or each.bad_lines:
            failed = f", {each.counts.failed:,} failed" if each.counts.failed else ""
            bad = f", {pluralize(each.bad_lines, 'bad line')}" if each.bad_lines else ""
            answered = f"{each.counts.answered:,} of {each.prompts:,} answered"
            lines.append(f"  {each.name}  {each.state}: {answered}{failed}{bad}")
    return "\n".join(lines)
