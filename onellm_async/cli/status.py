"""``onellm-async status``: how a run stands, from any terminal."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.terminal import complain, put

if TYPE_CHECKING:
    from onellm_async.batch import JournalReader
    from onellm_async.chat import JSON

__all__ = ["status", "status_command"]

_EXAMPLES = """\
Examples:
  onellm-async status answers.jsonl
  onellm-async status answers.jsonl --json | jq .counts.answered
  watch -n 5 onellm-async status answers.jsonl

It works while the run is under way and after it. Exit code 0: complete; 1: not
complete, or some prompts failed.
"""


def status(
    run: Annotated[str, Parameter(name="RUN", help="Output of the run, or its journal.")],
    /,
    *,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print it as JSON.")] = False,
) -> int:
    """Runs ``onellm-async status``.

    Args:
        run: Output of the run, or its journal.
        json: Print it as JSON.
    """
    from onellm_async.batch import JournalReader
    from onellm_async.wire import dump_json

    with JournalReader.open(run) as journal:
        found = _found(journal)
        put(dump_json(found).decode() if json else _text(found))
        if journal.warning is not None:
            complain(journal.warning)
        complete = journal.complete and not found["counts"]["failed"]
    return ExitCode.OK if complete else ExitCode.FAILED


status_command: App = command(status, _EXAMPLES)


def _found(journal: "JournalReader") -> "dict[str, JSON]":
    from attrs import asdict

    sittings, sample = journal.sittings(), journal.latest_sample()
    return {
        "input": journal.identity.input,
        "lines": journal.identity.lines,
        "state": "complete" if journal.complete else "running" if journal.running else "interrupted",
        "log_missing": journal.log_missing,
        "how": sittings[-1].how if sittings else None,
        "sittings": len(sittings),
        "counts": asdict(journal.counts()),
        "sampled_at": None if sample is None else sample.at,
        "sample": None if sample is None else sample.sample,
    }


def _text(found: "dict[str, JSON]") -> str:
    from onellm_async.batch import Counts
    from onellm_async.cli.progress import clock_time, counted
    from onellm_async.cli.run_wording import money_at_risk
    from onellm_async.formatting import format_usd

    counts, lines = found["counts"], found["lines"]
    running = found["state"] == "running"
    settled = counts["answered"] + counts["failed"]
    of = "" if lines is None else f" of {lines:,}"
    head = f"{found['input']}: {found['state']}, {settled:,}{of} settled in {counted(found['sittings'], 'sitting')}"
    rows = [
        head,
        f"  answered         {counts['answered']:,}",
        f"  failed           {counts['failed']:,}",
        f"  under way        {counts['sent']:,}" + (" (possibly billed)" if counts["sent"] and not running else ""),
        f"  spent            {format_usd(counts['cost'])}, {money_at_risk(Counts(**counts))}",
        f"  tokens           {counts['input_tokens']:,} input + {counts['output_tokens']:,} output",
    ]
    if running and found["sample"]:
        progress, limiter = found["sample"]["progress"], found["sample"]["snapshot"]
        possible = "" if limiter["rate"] is None else f" of {limiter['rate'] / 60:.1f}"
        rows.append(f"  rate             {progress['rate']:.1f}{possible} requests/s")
        rows.append(f"  waiting for      {'to be resumed (paused)' if limiter['paused'] else limiter['bottleneck']}")
        if progress["eta"] is not None:
            rows.append(f"  left             {clock_time(progress['eta'])}")
    elif found["state"] == "interrupted":
        rows.append(f"  ended            {found['how'] or 'killed'}; its run command, given again, goes on from there")
    return "\n".join(rows)
