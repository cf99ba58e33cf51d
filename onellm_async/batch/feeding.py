"""From the input to the workers: what the journal has is passed on, what is asked already follows, the rest waits."""

import sys
from collections.abc import Callable

from onellm_async.batch.budget_gate import BudgetGate
from onellm_async.batch.deduplication import Deduplicator
from onellm_async.batch.delivery import Delivery
from onellm_async.batch.ending import Ending
from onellm_async.batch.inputs.entry import Entry, LineError
from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.batch.outputs.outlet import OrderedWriter
from onellm_async.batch.policy import RunPolicy
from onellm_async.batch.pool import Pool
from onellm_async.batch.protocols import AnswerLookup, EntrySource, RunJournal
from onellm_async.batch.work_item import WorkItem
from onellm_async.errors import BatchError, InvalidRequestError
from onellm_async.fanout import close_iterator

__all__ = ["Feeder"]

_ROWS = 1000
"""Journal rows read at once while a run is resumed."""


class Feeder:
    """Draws the entries of an input, as fast as the workers take them and the output leaves.

    Args:
        journal: Has what earlier sessions did.
        pool: Where the workers take from.
        policy: What is done with doubtful, failed and repeated prompts.
        budget_gate: The money of the run.
        cache: Answers of earlier runs.
        deduplicator: Which requests are the same.
        outlet: How far the input may be ahead of the output.
        delivery: Takes what needs no worker.
        ending: Ends the session where the input cannot be used.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        journal: RunJournal,
        pool: Pool,
        *,
        policy: RunPolicy,
        budget_gate: BudgetGate,
        cache: AnswerLookup | None,
        deduplicator: Deduplicator,
        outlet: OrderedWriter,
        delivery: Delivery,
        ending: Ending,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._pool = pool
        self._policy = policy
        self._budget = budget_gate.account.budget
        self._budget_gate = budget_gate
        self._cache = cache
        self._deduplicator = deduplicator
        self._outlet = outlet
        self._delivery = delivery
        self._ending = ending
        self._clock = clock

    async def feed(self, source: EntrySource) -> None:
        """Draws all entries, or as many as the policy allows."""
        known, entries = _Known(self._journal), aiter(source)
        try:
            async for entry in entries:
                if self._policy.first is not None and entry.index >= self._policy.first:
                    self._ending.limit_reached = True
                    break
                await self._outlet.room_for(entry.index)
                row = known.of(entry)
                if row is None or not self._stands(row):
                    await self._take(entry, row)
                    continue
                self._delivery.pass_on(row)
                if row.custom_id is not None:
                    source.reserve_custom_id(row.custom_id)
            self._ending.read_all = True
        except BatchError as error:
            self._ending.stop(error)
        finally:
            await close_iterator(entries)

    def _stands(self, row: JournalRecord) -> bool:
        """Whether it needs no asking."""
        hold = self._policy.ambiguous == "hold"
        if row.state is RecordState.IN_FLIGHT and not hold:
            return False
        if row.state is RecordState.FAILED and self._policy.retry_failed and not (hold and row.possibly_billed):
            return False
        if row.state is RecordState.ANSWERED and self._policy.deduplicate:
            self._deduplicator.answered(row)
        return True

    async def _take(self, entry: Entry, row: JournalRecord | None) -> None:
        item = entry.item()
        if isinstance(item, LineError):
            self._bad_line(entry, item)
            return
        try:
            bound = self._budget.bound(item.request)
        except InvalidRequestError as error:
            self._bad_line(entry, LineError(entry.source, entry.line, str(error)))
            return
        work_item = WorkItem(
            entry,
            item,
            earlier=row,
            bound=bound,
            budget_gate=self._budget_gate,
            journal=self._journal,
            clock=self._clock,
        )
        if not self._policy.deduplicate or not self._deduplicator.recognise(work_item):
            if self._cache is not None:
                work_item.cached = self._cache.answer_to(item.request_digest)
            self._deduplicator.begin(work_item)
            await self._pool.put(work_item)
        elif work_item.copied is not None:
            await self._pool.put(work_item)

    def _bad_line(self, entry: Entry, error: LineError) -> None:
        self._delivery.bad_line(entry, error)
        if self._policy.strict:
            self._ending.refuse(error)


class _Known:
    """The rows of the journal in the order of the input, a thousand at a time."""

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._rows: dict[int, JournalRecord] = {}
        self._end = 0 if journal.resumed else sys.maxsize

    def of(self, entry: Entry) -> JournalRecord | None:
        if entry.index >= self._end:
            self._rows = {row.index: row for row in self._journal.records(entry.index, entry.index + _ROWS - 1)}
            self._end = entry.index + _ROWS
        row = self._rows.get(entry.index)
        if row is not None and row.line_digest != entry.digest:
            raise BatchError(
                f"{entry.source}:{entry.line} is not what it was when this run began.",
                advice="Give the run its old input back, or begin another one with another output.",
            )
        return row
