"""An outcome on its way out: durable first, then counted, then on its place in the output."""

import asyncio
import time
from collections.abc import Callable

from onellm_async.batch.inputs.entry import Entry, LineError
from onellm_async.batch.journal.record import JournalRecord, RecordState, UnstorableRowError
from onellm_async.batch.outputs.outlet import OrderedWriter
from onellm_async.batch.progress import ProgressTracker
from onellm_async.batch.protocols import RunJournal
from onellm_async.batch.work_item import WorkItem

__all__ = ["Delivery"]

_AT_ONCE = 256
"""Rows of one transaction when failures are taken back."""


class Delivery:
    """Delivers the outcomes of a run.

    Args:
        journal: Where they become durable.
        tracker: Counts them.
        outlet: Where they leave.
        encode: Makes the output of a row.
        on_bad_line: Told of each bad line.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        journal: RunJournal,
        tracker: ProgressTracker,
        outlet: OrderedWriter,
        *,
        encode: Callable[[JournalRecord], bytes],
        on_bad_line: Callable[[LineError], None],
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._tracker = tracker
        self._outlet = outlet
        self._encode = encode
        self._on_bad_line = on_bad_line
        self._clock = clock
        self._failed: list[int] = []

    async def settle(self, work_item: WorkItem, record: JournalRecord) -> JournalRecord:
        """Delivers the outcome of a work item; gives the record that the journal has of it.

        Raises:
            BatchError: If the journal cannot be written.
        """
        try:
            await self._journal.record_outcome(record)
        except UnstorableRowError as error:
            record = work_item.unstorable(record, error)
            await self._journal.record_outcome(record)
        if record.state is RecordState.FAILED:
            self._failed.append(record.index)
        self._tracker.settled(record, self._clock())
        self._outlet.put(record.index, self._encode(record))
        return record

    async def settle_followers(self, work_item: WorkItem, record: JournalRecord) -> None:
        """Delivers `record`, the outcome of a work item, to all that follow it, and to those that join meanwhile."""
        while work_item.followers:
            followers, work_item.followers = work_item.followers, []
            await asyncio.gather(*(self.settle(follower, follower.copy_of(record)) for follower in followers))

    async def reopen(self, *, hold_ambiguous: bool) -> None:
        """Makes what failed in this session never sent, so that the next session asks it again.

        Args:
            hold_ambiguous: Leave out what may have been billed.

        Raises:
            BatchError: If the journal cannot be written.
        """
        while self._failed:
            some, self._failed = self._failed[:_AT_ONCE], self._failed[_AT_ONCE:]
            rows = [row for index in some if (row := self._journal.record(index)) is not None]
            rows = [row for row in rows if not (hold_ambiguous and row.possibly_billed)]
            await asyncio.gather(*(self._journal.record_intent(_intent_again(row)) for row in rows))
            await asyncio.gather(*(self._journal.retract_intent(row.index) for row in rows))
            self._tracker.reopened(len(rows))

    def pass_on(self, row: JournalRecord) -> None:
        """Delivers what an earlier session left."""
        self._tracker.resumed(row, held=row.state is RecordState.IN_FLIGHT)
        self._outlet.put(row.index, self._encode(row))

    def bad_line(self, entry: Entry, error: LineError) -> None:
        """Leaves a line without an outcome out."""
        self._outlet.put(entry.index, b"")
        self._tracker.bad_line()
        self._journal.bad_line(error)
        self._on_bad_line(error)


def _intent_again(record: JournalRecord) -> JournalRecord:
    return JournalRecord(
        index=record.index,
        line=record.line,
        line_digest=record.line_digest,
        request_digest=record.request_digest,
        custom_id=record.custom_id,
        reserved=record.reserved,
        reserved_tokens=record.reserved_tokens,
        sent_at=time.time(),
        possibly_billed=record.possibly_billed + 1,
    )
