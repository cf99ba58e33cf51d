"""A run that remembers nothing, for output that goes into a stream: what was written there cannot be resumed."""

from collections.abc import Sequence

from attrs import evolve

from onellm_async.batch.causes import CauseCounts, cause_of
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.record import Command, Intent, JournalRecord, RecordState, RunCounts, Settled
from onellm_async.chat import JSON

__all__ = ["NullJournal"]


class NullJournal:
    """Stands in for a journal, and only counts."""

    resumed: bool = False

    def __init__(self) -> None:
        self._counts = RunCounts()
        self._reserved: dict[int, Intent] = {}
        self._causes = CauseCounts()

    async def record_intent(self, intent: Intent) -> None:
        """Remembers what an attempt can cost, until it is settled."""
        self._reserved[intent.index] = intent

    async def record_outcome(self, settled: Settled) -> None:
        """Counts an outcome."""
        intent = self._reserved.pop(settled.index, None)
        reserved = 0.0 if intent is None else intent.reserved or 0.0
        reserved_tokens = 0 if intent is None else intent.reserved_tokens or 0
        counts, answered = self._counts, settled.state is RecordState.ANSWERED
        if not answered and settled.result:
            self._causes.add(cause_of(settled.result))
        unpriced = answered and settled.cost is None
        lost = settled.possibly_billed + unpriced
        self._counts = evolve(
            counts,
            answered=counts.answered + answered,
            failed=counts.failed + (not answered),
            deduplicated=counts.deduplicated + (settled.copy_of is not None),
            possibly_billed=counts.possibly_billed + settled.possibly_billed,
            rate_limited=counts.rate_limited + settled.rate_limited,
            cost=counts.cost + (settled.cost or 0.0),
            unpriced=counts.unpriced + unpriced,
            input_tokens=counts.input_tokens + (settled.input_tokens or 0),
            output_tokens=counts.output_tokens + (settled.output_tokens or 0),
            at_risk=counts.at_risk + lost * reserved,
            at_risk_tokens=counts.at_risk_tokens + lost * reserved_tokens,
        )

    async def retract_intent(self, index: int) -> None:
        """Forgets an intent."""
        self._reserved.pop(index, None)

    def bad_line(self, error: LineError) -> None:
        """Keeps nothing."""

    def sample(self, at: float, sample: JSON) -> None:
        """Keeps nothing."""

    def counts(self) -> RunCounts:
        """What there is so far."""
        return evolve(self._counts, in_flight=len(self._reserved))

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
