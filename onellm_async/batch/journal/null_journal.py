"""A run that remembers nothing, for output that goes into a stream: what was written there cannot be resumed."""

from collections.abc import Sequence

from onellm_async.batch.causes import CauseCounts, cause_of
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.commands import Command
from onellm_async.batch.journal.record import JournalRecord, RecordState, RunCounts, RunningCounts, Step, after_step
from onellm_async.chat import JSON


class NullJournal:
    """Stands in for a journal. It counts, and keeps the records of what is in flight alone."""

    resumed: bool = False

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
        """What there is so far."""
        return self._completed.counts.replacing_all((None, record) for record in self._in_flight.values())

    def records(self, first: int, last: int) -> Sequence[JournalRecord]:
        """None are kept."""
        return ()

    def record(self, index: int) -> JournalRecord | None:
        """None is kept: a repetition is asked again, unless the first is still in flight."""
        return None

    def commands(self) -> Sequence[Command]:
        """No terminal can reach it."""
        return ()

    def refuse(self, command: Command, reason: str) -> None:
        """No command comes."""

    def failure_causes(self) -> Sequence[tuple[str, int]]:
        """What failures say and how many there are; those of identical requests count once."""
        return self._causes.ranked()
