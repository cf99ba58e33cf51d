"""How a session ends: with its input, or before it, and then for the reason that came first."""

import asyncio
from collections.abc import Mapping

from attrs import field, frozen

from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.record import RunCounts
from onellm_async.batch.outputs.outlet import OrderedWriter
from onellm_async.batch.progress import ProgressTracker, RunProgress
from onellm_async.batch.protocols import RunJournal
from onellm_async.errors import BatchError, OneLLMError
from onellm_async.limits.permit import RequestGroup

__all__ = ["Ending", "RunReport"]


@frozen
class RunReport:
    """How a session of a run ended.

    Attributes:
        progress: The counts at its end.
        counts: What the journal has, all sessions together.
        interrupted: Whether `stop` ended it before its input.
        stopped_by: The error that ended it before its input: a spent budget, an unknown key, a full disk; else None.
        strict_error: The bad line that ended it, where the run was strict.
        limit_reached: Whether it was told to ask only the first entries, and did.
        failures: What the failed prompts of all sessions failed with, and how many: the most frequent cause first.
        failed_models: Models of which all prompts of this session failed alike, with their number and the cause; empty
            where all prompts were asked of one model.
    """

    progress: RunProgress
    counts: RunCounts
    interrupted: bool = False
    stopped_by: OneLLMError | None = None
    strict_error: LineError | None = None
    limit_reached: bool = False
    failures: Mapping[str, int] = field(factory=dict[str, int], hash=False)
    failed_models: Mapping[str, tuple[int, str]] = field(factory=dict[str, tuple[int, str]], hash=False)

    @property
    def complete(self) -> bool:
        """Whether the whole input was read and every prompt in it has an outcome."""
        return self.input_ended and not self.progress.held

    @property
    def input_ended(self) -> bool:
        """Whether the whole input was read and every prompt in it has an outcome, or is held back without one."""
        return not (self.interrupted or self.limit_reached or self.stopped_by or self.strict_error)


class Ending:
    """The end of a session. Whatever ends it, nothing more is sent, and what is in flight finishes.

    Args:
        group: The requests of the run; those that still wait are withdrawn.
        outlet: Where its output leaves.

    Attributes:
        group: As given; the run may go on with another one.
        feeding: The task that reads the input, which is cancelled.
        ended: Set when something ends it before its input.
        read_all: Whether it read its input, or as much as it was told to.
        left_out: Whether a prompt that was read has no outcome.
        limit_reached: Whether it was told to ask only the first entries, and there are more.
    """

    def __init__(self, group: RequestGroup, outlet: OrderedWriter) -> None:
        self.group: RequestGroup = group
        self.feeding: asyncio.Task[None] | None = None
        self.ended: asyncio.Event = asyncio.Event()
        self.read_all: bool = False
        self.left_out: bool = False
        self.limit_reached: bool = False
        self._outlet = outlet
        self._interrupted = False
        self._stopped_by: OneLLMError | None = None
        self._strict_error: LineError | None = None

    @property
    def stopped_by(self) -> OneLLMError | None:
        """The error that ended it."""
        return self._stopped_by

    @property
    def over(self) -> bool:
        """Whether something ended it before its input."""
        return self.ended.is_set()

    def stop(self, error: OneLLMError | None = None) -> None:
        """Ends it for `error`, unless it is over."""
        if self.over:
            return
        self.ended.set()
        self._stopped_by = error
        self.group.cancel()
        if self.feeding is not None:
            self.feeding.cancel()

    def stop_unwritten(self, error: BatchError) -> None:
        """Where the journal cannot grow the output may not take what space is left; it is written anew next time."""
        self._outlet.abandon()
        self.stop(error)

    def interrupt(self) -> None:
        """Ends it because a user wants it, unless it is over."""
        if not self.over:
            self._interrupted = True
            self.stop()

    def refuse(self, error: LineError) -> None:
        """Ends it for a bad line, unless it is over."""
        if not self.over:
            self._strict_error = error
            self.stop()

    def report(self, tracker: ProgressTracker, journal: RunJournal, now: float) -> RunReport:
        """How it ended, now that nothing is in flight any more."""
        # Told to stop when there was nothing left to stop: that is a run like any other.
        interrupted = self._interrupted and (self.left_out or not self.read_all)
        return RunReport(
            progress=tracker.snapshot(now),
            counts=journal.counts(),
            interrupted=interrupted,
            stopped_by=self._stopped_by,
            strict_error=self._strict_error,
            limit_reached=self.limit_reached and not (interrupted or self._stopped_by or self._strict_error),
            failures=_failures(journal),
            failed_models=tracker.failed_models(),
        )


def _failures(journal: RunJournal) -> dict[str, int]:
    try:
        return dict(journal.failure_causes())
    except BatchError:  # it cannot be read any more, which has ended the session
        return {}
