"""A run that remembers nothing, for output that goes into a stream: what was written there cannot be resumed."""

from collections.abc import Sequence
from typing import Protocol

from onellm_async.batch.causes import CauseCounts, cause_of
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.commands import Command
from onellm_async.batch.journal.record import JournalRecord, RecordState, RunCounts, RunningCounts, Step, after_step
from onellm_async.chat import JSON


class NullJournal:
    """Stands in for a journal. It counts, and keeps the records of what is in flight alone."""

    resumed: bool = False
    last_entry: int = -1

    def __init__(self) -> None:
        self._completed = RunningCounts()
        self._in_flight: dict[int, JournalRecord] = {}
        self._causes = CauseCounts()

    async def record_intent(self, record: JournalRecord) -> None:
        """Keeps what an attempt can cost until its outcome comes."""
        self._apply(Step.INTENT, record.index, record)

    async def record_outcome(self, record: JournalRecord) -> None:
        """Counts an outcome."""
        self._apply(Step.OUTCOME, record.index, record)
        if record.state is RecordState.FAILED and record.result:
            self._causes.add(cause_of(record.result))

    async def retract_intent(self, index: int) -> None:
        """Takes an intent back."""
        self._apply(Step.RETRACT, index, None)

    def _apply(self, step: Step, index: int, record: JournalRecord | None) -> None:
        after = after_step(step, self._in_flight.pop(index, None), record)
        if after is None:
            return
        if after.completed:
            self._completed.replace(None, after)
        else:
            self._in_flight[index] = after

    def bad_line(self, error: LineError) -> None:
        """Keeps nothing."""

    def sample(self, at: float, sample: JSON) -> None:
        """Keeps nothing."""

    def counts(self) -> RunCounts:
        """The totals so far."""
        return self._completed.counts.replacing_all((None, record) for record in self._in_flight.values())

    def records(self, first: int, last: int) -> Sequence[JournalRecord]:
        """None are kept."""
        return ()

    def record(self, index: int) -> JournalRecord | None:
        """None is kept: a duplicate is sent, unless the first request is still in flight."""
        return None

    def commands(self) -> Sequence[Command]:
        """None: no terminal can reach it."""
        return ()

    def refuse(self, command: Command, reason: str) -> None:
        """No command comes."""

    def sent_since(self, at: float) -> Sequence[float]:
        """Nothing: there was no earlier session."""
        return ()

    def failure_causes(self) -> Sequence[tuple[str, int]]:
        """Causes of failures and their numbers, the most frequent cause first."""
        return self._causes.ranked()


class RunJournal(Protocol):
    """Where intents and results become durable; `onellm_async.batch.Journal` is the one that survives a crash."""

    @property
    def resumed(self) -> bool:
        """Whether it existed before."""

    @property
    def last_entry(self) -> int:
        """Index of the last entry that earlier sessions have a record of; -1 without one."""

    async def record_intent(self, record: JournalRecord) -> None:
        """Returns when it is durable that a request is about to be sent."""

    async def record_outcome(self, record: JournalRecord) -> None:
        """Returns when an outcome is durable."""

    async def retract_intent(self, index: int) -> None:
        """Returns when it is durable that the last attempt of an entry was not sent."""

    def bad_line(self, error: LineError) -> None:
        """Keeps a bad line for the report."""

    def sample(self, at: float, sample: JSON) -> None:
        """Keeps a point of the time series."""

    def counts(self) -> RunCounts:
        """The totals so far."""

    def records(self, first: int, last: int) -> Sequence[JournalRecord]:
        """The records of the entries from index `first` to `last`, both included, in order."""

    def record(self, index: int) -> JournalRecord | None:
        """The record of one entry."""

    def commands(self) -> Sequence[Command]:
        """The commands of other terminals since the last call."""

    def refuse(self, command: Command, reason: str) -> None:
        """Rejects a command, with the reason."""

    def sent_since(self, at: float) -> Sequence[float]:
        """When attempts were sent from `at` on, in Unix seconds, those of earlier sessions among them."""

    def failure_causes(self) -> Sequence[tuple[str, int]]:
        """Causes of failures and their numbers, all sessions together, the most frequent cause first."""
