"""``onellm-async status``: the progress of a run, from any terminal."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.flag_words import arguments_in_flags
from onellm_async.cli.terminal import print_error, put

if TYPE_CHECKING:
    from onellm_async.batch import JournalReader
    from onellm_async.chat import JSON

_EXAMPLES = """\
Examples:
  onellm-async status answers.jsonl
  onellm-async status answers.jsonl --json | jq .counts.answered
  watch -n 5 onellm-async status answers.jsonl

It works on an active run and after its end.
"""


def status(
    run: Annotated[str, Parameter(name="RUN", help="Output of the run, or its journal.")],
    /,
    *,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print JSON.")] = False,
) -> int:
    """Runs ``onellm-async status``.

    Args:
        run: Output of the run, or its journal.
        json: Print JSON.
    """
    from onellm_async.batch import JournalReader
    from onellm_async.wire import dump_json

    with JournalReader.open(run) as journal:
        found = _found(journal)
        put(dump_json(found).decode() if json else _text(found))
        if journal.warning is not None:
            print_error(journal.warning)
        complete = journal.complete and not found["counts"]["failed"] and not found["bad_lines"]
    return ExitCode.OK if complete else ExitCode.FAILED


status_command: App = command(
    status,
    _EXAMPLES,
    {
        ExitCode.OK: "complete, and everything was answered",
        ExitCode.FAILED: "not complete, or some prompts failed, or some lines were bad",
    },
)


def _found(journal: "JournalReader") -> "dict[str, JSON]":
    sessions, sample = journal.sessions(), journal.latest_sample()
    first_bad_line = next(iter(journal.bad_lines(1)), None)
    return {
        "input": journal.identity.input,
        "lines": journal.identity.lines,
        "samples": journal.identity.samples or 1,
        "state": "complete" if journal.complete else "running" if journal.running else "interrupted",
        "log_missing": journal.log_missing,
        "end_reason": sessions[-1].end_reason if sessions else None,
        "sessions": len(sessions),
        "counts": journal.counts().to_dict(),
        "failures": dict(journal.failure_causes()),
        "bad_lines": journal.bad_line_count(),
        "first_bad_line": None if first_bad_line is None else str(first_bad_line),
        "sampled_at": None if sample is None else sample.at,
        "sample": None if sample is None else sample.sample,
    }


_SHOWN = frozenset(
    ("answered", "failed", "in_flight", "possibly_billed", "cost", "input_tokens", "output_tokens", "at_risk")
)
"""Totals that have lines of their own."""
_HIDDEN = frozenset(("at_risk_tokens",))
"""Totals that matter to a token cap alone; they are in the JSON."""


def _text(found: "dict[str, JSON]") -> str:
    from onellm_async.batch.causes import outcome_lines
    from onellm_async.formatting import format_duration, format_rate, format_usd, pluralize
    from onellm_async.limits.bottleneck import BOTTLENECK_LABELS

    counts, lines, sample = found["counts"], found["lines"], found["sample"] or {}
    progress, limiter = sample.get("progress", {}), sample.get("snapshot", {})
    running = found["state"] == "running"
    completed = counts["answered"] + counts["failed"]
    of = "" if lines is None else f" of {lines * found['samples']:,}"
    rows = [
        f"{found['input']}: {found['state']}, {completed:,}{of} completed in {pluralize(found['sessions'], 'session')}",
        _row("answered", f"{counts['answered']:,}"),
        _row("failed", f"{max(counts['failed'], progress.get('failed', 0) if running else 0):,}"),
        *(_row("", line) for line in outcome_lines(found["failures"], progress.get("notable") or {})),
        *_bad_lines(found),
        *_in_flight(counts, limiter, running=running),
        _row("spent", format_usd(counts["cost"])),
        _row("tokens", f"{counts['input_tokens']:,} input + {counts['output_tokens']:,} output"),
        *_other_totals(counts),
    ]
    if running and limiter:
        limit = None if limiter["rate"] is None else limiter["rate"] / 60
        rows.append(_row("rate", format_rate(progress["rate"], limit)))
        bottleneck = sample.get("waits_for") or BOTTLENECK_LABELS.get(limiter["bottleneck"], limiter["bottleneck"])
        rows.append(_row("bottleneck", "pause; continue with `resume`" if limiter["paused"] else bottleneck))
        if progress.get("eta") is not None:
            rows.append(_row("time left", format_duration(progress["eta"])))
    elif found["state"] == "interrupted":
        if lines is not None:
            rows.append(_row("remaining", f"{max(0, (lines - found['bad_lines']) * found['samples'] - completed):,}"))
        rows.append(_row("ended", _ending(arguments_in_flags(found["end_reason"] or "killed"))))
    return "\n".join(rows)


def _ending(reason: str) -> str:
    """How the last session ended, with the next step; an error has its own advice, except that of a reached cap."""
    from onellm_async.batch.run_report import ENDED_AT_CAP

    if reason.startswith(ENDED_AT_CAP):
        return f"{reason}. Run its `run` command with a higher cost cap to resume."
    return reason if reason.endswith(".") else f"{reason}. Run its `run` command again to resume."


def _bad_lines(found: "dict[str, JSON]") -> list[str]:
    """The number of bad lines, and the first one; nothing where there are none."""
    if not found["bad_lines"]:
        return []
    first = found["first_bad_line"]
    return [
        _row("bad lines", f"{found['bad_lines']:,}"),
        *([] if first is None else [_row("", arguments_in_flags(str(first)))]),
    ]


def _row(label: str, value: str) -> str:
    return f"  {label:<16} {value}"


def _other_totals(counts: "dict[str, JSON]") -> list[str]:
    """A line for every other total of the journal that is not zero."""
    from onellm_async.batch.journal.record import TOTALS
    from onellm_async.formatting import format_usd

    return [
        _row(TOTALS[name].label, format_usd(value) if TOTALS[name].unit == "usd" else f"{value:,}")
        for name, value in counts.items()
        if value and name not in _SHOWN | _HIDDEN
    ]


def _in_flight(counts: "JSON", limiter: "JSON", *, running: bool) -> list[str]:
    """Requests in flight, and attempts that may have been billed without an answer."""
    from attrs import evolve

    from onellm_async.batch import RunCounts
    from onellm_async.batch.run_report import money_at_risk

    known = RunCounts(**counts | {"at_risk": counts["at_risk"] or 0.0})  # None where it is unknown
    if running:
        # The journal has every request of the run; after a 500 one waits for a retry, neither in flight nor billed.
        in_flight = min(known.in_flight, limiter.get("in_flight", known.in_flight))
        rows = [_row("in flight", f"{in_flight:,}")]
        if waiting := limiter.get("backing_off"):
            rows.append(_row("to be retried", f"{waiting:,}"))
        known = evolve(known, in_flight=in_flight)
    else:
        rows = [_row("in flight", "0")]
    attempts = known.possibly_billed + (0 if running else known.in_flight)
    at_its_end = f" ({known.in_flight:,} in flight at its end)" if known.in_flight and not running else ""
    risk = f", {money_at_risk(known)}" if attempts or known.in_flight else ""
    return [*rows, _row("possibly billed", f"{attempts:,}{at_its_end}{risk}")]
