"""How a run ends: why it ended early, and what is reported."""

from collections.abc import Mapping

from attrs import field, frozen

from onellm_async import serialization
from onellm_async.batch.estimate import RunEstimate
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.record import RunCounts
from onellm_async.batch.progress import RunProgress
from onellm_async.chat import JSON
from onellm_async.errors import OneLLMError
from onellm_async.formatting import format_usd

ENDED_AT_CAP = "stopped at its cap: "
"""How the end of a session begins in the journal where a cap ended it: the same command alone cannot resume it."""


@frozen
class StopReason:
    """Why a run ended before its input.

    Attributes:
        error: An error that affects every prompt; None for any other reason.
        bad_line: The bad line at which a strict run ends.
        interrupted: Whether a user ended it.
        out_of_time: Whether its time was over.
    """

    error: OneLLMError | None = None
    bad_line: LineError | None = None
    interrupted: bool = False
    out_of_time: bool = False


@frozen
class RunReport:
    """How a session of a run ended.

    Attributes:
        progress: The counts at its end.
        counts: What the journal has, all sessions together.
        interrupted: Whether `stop` ended it before its input.
        stopped_by: The error that ended it before its input: a spent budget, an unknown key, a full disk; else None.
        strict_error: The bad entry that ended a strict run whose input can be read only once, such as a pipe or a
            generator. A file, a table or a list with a bad entry is refused with `BatchError` instead.
        out_of_time: Whether ``max_time`` ended it before its input. A later session continues it.
        limit_reached: Whether only the first entries were to be sent, and were.
        already_complete: Whether an earlier session had completed the run, so that this one had nothing to do.
        estimate: What the rest of the run costs and takes, where `limit_reached`; None where that is unknown.
        failures: What the failed prompts of all sessions failed with, and how many: the most frequent cause first.
        failed_models: Models of which all prompts of this session failed alike, with their number and the cause; empty
            where all prompts have one model.
    """

    progress: RunProgress
    counts: RunCounts
    interrupted: bool = False
    stopped_by: OneLLMError | None = None
    strict_error: LineError | None = None
    out_of_time: bool = False
    limit_reached: bool = False
    already_complete: bool = False
    estimate: RunEstimate | None = None
    failures: Mapping[str, int] = field(factory=dict[str, int], hash=False)
    failed_models: Mapping[str, tuple[int, str]] = field(factory=dict[str, tuple[int, str]], hash=False)

    def to_dict(self) -> dict[str, JSON]:
        """Returns the report as a dict that JSON can hold, without what is not set."""
        found = {"complete": self.complete} | serialization.to_dict(self)
        return found | {"counts": self.counts.to_dict(), "progress": self.progress.to_dict()}

    @property
    def complete(self) -> bool:
        """Whether the whole input was read and every prompt in it has an outcome: an answer or a failure.

        It does not say that all went well: see `failures`, and `bad_lines`, which hold no prompt.
        """
        return self.input_ended and not self.progress.held

    @property
    def bad_lines(self) -> int:
        """Lines, rows or entries that held no usable prompt, so that nothing was sent for them in this session."""
        return self.progress.bad_lines

    @property
    def input_ended(self) -> bool:
        """Whether the whole input was read and every prompt in it has an outcome, or is held back without one."""
        ended_early = self.interrupted or self.out_of_time or self.limit_reached
        return not (ended_early or self.stopped_by or self.strict_error)


def money_at_risk(counts: RunCounts) -> str:
    """What attempts without an answer may have cost: at most, where ``max_tokens`` bounds them, else by experience."""
    lost = counts.in_flight + counts.possibly_billed
    if not lost or counts.usd_at_risk is not None:
        return f"at most {format_usd(counts.at_risk)} at risk"
    if not counts.answered or not counts.cost:
        return f"the amount at risk is unknown without {'a list price' if counts.at_risk_tokens else '--max-tokens'}"
    return f"about {format_usd(lost * counts.cost / counts.answered)} at risk, as answers cost so far"


def resuming_text(counts: RunCounts, total: int | None = None) -> str:
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
