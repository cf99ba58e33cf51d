"""``onellm-async status``: how a run stands, from any terminal."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.terminal import print_error, put

if TYPE_CHECKING:
    from onellm_async.batch import JournalReader
    from onellm_async.chat import JSON

__all__ = ["status", "status_command"]

_EXAMPLES = """\
Examples:
  onellm-async status answers.jsonl
  onellm-async status answers.jsonl --json | jq .counts.answered
  watch -n 5 onellm-async status answers.jsonl

It works on an active run and after its end. Exit code 0: complete; 1: not
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
            print_error(journal.warning)
        complete = journal.complete and not found["counts"]["failed"]
    return ExitCode.OK if complete else ExitCode.FAILED


status_command: App = command(status, _EXAMPLES)


def _found(journal: "JournalReader") -> "dict[str, JSON]":
    from attrs import asdict

    sessions, sample = journal.sessions(), journal.latest_sample()
    return {
        "input": journal.identity.input,
        "lines": journal.identity.lines,
        "state": "complete" if journal.complete else "running" if journal.running else "interrupted",
        "log_missing": journal.log_missing,
        "end_reason": sessions[-1].end_reason if sessions else None,
        "sessions": len(sessions),
        "counts": asdict(journal.counts()),
        "failures": dict(journal.failure_causes()),
        "sampled_at": None if sample is None else sample.at,
        "sample": None if sample is None else sample.sample,
    }


def _text(found: "dict[str, JSON]") -> str:
    from onellm_async.batch.causes import outcome_lines
    from onellm_async.cli.run_display import clock_time, counted
    from onellm_async.formatting import format_usd
    from onellm_async.limits.bottleneck import BOTTLENECK_LABELS

    counts, lines, sample = found["counts"], found["lines"], found["sample"] or {}
    progress, limiter = sample.get("progress", {}), sample.get("snapshot", {})
    running = found["state"] == "running"
    settled = counts["answered"] + counts["failed"]
    of = "" if lines is None else f" of {lines:,}"
    rows = [
        f"{found['input']}: {found['state']}, {settled:,}{of} settled in {counted(found['sessions'], 'session')}",
        f"  answered         {counts['answered']:,}",
        f"  failed           {max(counts['failed'], progress.get('failed', 0) if running else 0):,}",
        *(f"                   {line}" for line in outcome_lines(found["failures"], progress.get("notable") or {})),
        *_unsettled(counts, limiter, running=running),
        f"  spent            {format_usd(counts['cost'])}",
        f"  tokens           {counts['input_tokens']:,} input + {counts['output_tokens']:,} output",
    ]
    if running and limiter:
        possible = "" if limiter["rate"] is None else f" of {limiter['rate'] / 60:.1f}"
        rows.append(f"  rate             {progress['rate']:.1f}{possible} requests/s")
        waits_for = sample.get("waits_for") or BOTTLENECK_LABELS.get(limiter["bottleneck"], limiter["bottleneck"])
        rows.append(f"  waiting for      {'to be resumed (paused)' if limiter['paused'] else waits_for}")
        if progress["eta"] is not None:
            rows.append(f"  left             {clock_time(progress['eta'])}")
    elif found["state"] == "interrupted":
        how = found["end_reason"] or "killed"
        go_on = "" if how.endswith(".") else "; its run command, given again, goes on from there"
        rows.append(f"  ended            {how}{go_on}")
    return "\n".join(rows)


def _unsettled(counts: "JSON", limiter: "JSON", *, running: bool) -> list[str]:
    """What is in flight, and what may have been billed without an answer."""
    from attrs import evolve

    from onellm_async.batch import RunCounts
    from onellm_async.batch.run_report import money_at_risk

    known = RunCounts(**counts)
    if running:
        # The journal has all that was begun; after a 500 it waits for a retry, which is neither in flight nor billed.
        in_flight = min(known.in_flight, limiter.get("in_flight", known.in_flight))
        rows = [f"  in flight        {in_flight:,}"]
        if waiting := limiter.get("backing_off"):
            rows.append(f"  to be retried    {waiting:,}")
        known = evolve(known, in_flight=in_flight)
    else:
        rows = [f"  in flight        {known.in_flight:,}" + (" (possibly billed)" if known.in_flight else "")]
    lost = known.possibly_billed + (0 if running else known.in_flight)
    rows.append(f"  possibly billed  {lost:,}" + (f", {money_at_risk(known)}" if lost or known.in_flight else ""))
    return rows
