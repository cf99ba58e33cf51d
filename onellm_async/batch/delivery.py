"""An outcome on its way out: durable first, then counted, then on its place in the output."""

import asyncio
import time
from collections.abc import Callable

from onellm_async.batch.inputs.entry import Entry, LineError
from onellm_async.batch.journal.binding import UnstorableRowError
from onellm_async.batch.journal.record import Intent, JournalRecord, RecordState, Settled
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

    async def settle(self, work_item: WorkItem, settled: Settled, result: bytes) -> JournalRecord:
        """Delivers the outcome of a work item; gives the row that the journal has of it.

        Raises:
            BatchError: If the journal cannot be written.
        """
        try:
            await self._journal.record_outcome(settled)
        except UnstorableRowError as error:
            settled = work_item.unstorable(settled, error)
            result = settled.result
            await self._journal.record_outcome(settled)
        row = work_item.row(settled, result)
        if row.state is RecordState.FAILED:
            self._failed.append(row.index)
        self._tracker.settled(row, self._clock())
        self._outlet.put(row.index, self._encode(row))
        return row

    async def settle_followers(self, work_item: WorkItem, row: JournalRecord) -> None:
        """Delivers `row`, the outcome of a work item, to all that follow it, and to those that join meanwhile."""
        while work_item.followers:
            followers, work_item.followers = work_item.followers, []
            await asyncio.gather(*(self.settle(follower, follower.copy_of(row), row.result) for follower in followers))

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


def _intent_again(row: JournalRecord) -> Intent:
    return Intent(
        index=row.index,
        line=row.line,
        digest=row.digest,
        custom_id=row.custom_id,
        request_digest=row.request_digest,
        reserved=row.reserved,
        reserved_tokens=row.reserved_tokens,
        at=time.time(),
    )
