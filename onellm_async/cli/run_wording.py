"""What a run says when it begins and when it ends, and the exit code that goes with it."""

from onellm_async.batch import RunCounts, RunReport
from onellm_async.batch.causes import outcome_lines
from onellm_async.cli.exit_codes import ExitCode, reader_left
from onellm_async.cli.flag_words import told_in_flags
from onellm_async.cli.progress import counted, summary
from onellm_async.cli.terminal import print_error, say
from onellm_async.errors import BudgetExceededError
from onellm_async.formatting import format_usd

__all__ = ["exit_code", "money_at_risk", "nothing_left", "resuming", "tell", "tell_outcomes"]


def money_at_risk(counts: RunCounts) -> str:
    """What attempts without an answer may have cost: at most, where ``max_tokens`` bounds them, else by experience."""
    lost = counts.in_flight + counts.possibly_billed
    if counts.at_risk or not lost:
        return f"at most {format_usd(counts.at_risk)} at risk"
    if not counts.answered or not counts.cost:
        return "the amount at risk is unknown without --max-tokens"
    return f"about {format_usd(lost * counts.cost / counts.answered)} at risk, as answers cost so far"


def resuming(counts: RunCounts, total: int | None = None) -> str:
    """What earlier sessions left.

    Args:
        counts: What the journal has.
        total: Prompts of the input; None if unknown.
    """
    lost = counts.in_flight + counts.possibly_billed
    risk = f" ({money_at_risk(counts)})" if lost else ""
    left = None if total is None else max(0, total - counts.answered - counts.failed)
    remaining = "" if left is None else f", {left:,} remaining"
    return (
        f"Resuming: {counts.answered:,} answered, {counts.failed:,} failed, {lost:,} possibly billed{risk}{remaining}."
        f" Spent: {format_usd(counts.cost)}."
    )


def nothing_left(counts: RunCounts, output: str) -> str:
    """What is said of a run that was complete before."""
    failed = " --retry-failed asks again what failed." if counts.failed else ""
    return (
        f"Nothing is left to do: {counted(counts.answered, 'prompt')} answered, {counts.failed:,} failed,"
        f" {format_usd(counts.cost)} spent; the answers are in {output}.{failed} --force begins anew."
    )


def tell_outcomes(report: RunReport) -> None:
    """Says why prompts failed, in all sessions, and which answers want a look."""
    for line in outcome_lines(report.failures, report.progress.notable):
        say(line)
    for model, (number, cause) in report.failed_models.items():
        say(f"All {number:,} prompts of {model} failed alike: {cause}")


def tell(report: RunReport, output: str | None) -> None:
    """Says how a session ended, and how to go on."""
    where = "" if output is None else f" Written to {output}{'' if report.input_ended else '.partial'}."
    say(summary(report.progress) + where)
    tell_outcomes(report)
    counts = report.counts
    if counts.possibly_billed or (counts.in_flight and output is not None):
        lost = counted(counts.possibly_billed + counts.in_flight, "attempt")
        say(f"Possibly billed without an answer: {lost}, {money_at_risk(counts)}.")
    if report.strict_error is not None:
        print_error(f"stopped at a bad line (--strict): {report.strict_error}")
    if report.stopped_by is not None:
        print_error(f"stopped early: {told_in_flags(report.stopped_by)}")
    if report.progress.held:
        held = counted(report.progress.held, "prompt")
        print_error(f"held back, because it may be billed: {held}. --ambiguous retry sends it again.")
    if not report.input_ended:
        total = report.progress.total
        left = None if total is None else total - report.progress.completed - report.progress.bad_lines
        again = "" if output is None else f" {_how_to_go_on(report)}"
        print_error(f"not asked yet: {'what was not read' if left is None else counted(left, 'prompt')}.{again}")


def _how_to_go_on(report: RunReport) -> str:
    if isinstance(report.stopped_by, BudgetExceededError):
        return "The same command with a larger budget goes on from here."
    return "The same command again goes on from here."


def exit_code(report: RunReport, signal_number: int | None) -> int:
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
    if report.interrupted:
        return ExitCode.INTERRUPTED if signal_number is None else 128 + signal_number
    return ExitCode.FAILED if report.progress.failed or report.progress.bad_lines else ExitCode.OK
