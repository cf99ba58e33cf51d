"""An outcome on its way out: durable first, then counted, then on its place in the output."""

import asyncio
import time
from collections.abc import Callable

from onellm_async.batch.inputs.items import Entry, LineError
from onellm_async.batch.journal.binding import UnstorableRowError
from onellm_async.batch.journal.rows import Intent, JournalRecord, RecordState, Settled
from onellm_async.batch.outputs.outlet import Outlet
from onellm_async.batch.passage import Passage
from onellm_async.batch.progress import Tally
from onellm_async.batch.protocols import RunJournal

__all__ = ["Delivery"]

_AT_ONCE = 256
"""Rows of one transaction when failures are taken back."""


class Delivery:
    """Delivers the outcomes of a run.

    Args:
        journal: Where they become durable.
        tally: Counts them.
        outlet: Where they leave.
        encode: Makes the output of a row.
        on_bad_line: Told of each bad line.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        journal: RunJournal,
        tally: Tally,
        outlet: Outlet,
        *,
        encode: Callable[[JournalRecord], bytes],
        on_bad_line: Callable[[LineError], None],
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._tally = tally
        self._outlet = outlet
        self._encode = encode
        self._on_bad_line = on_bad_line
        self._clock = clock
        self._failed: list[int] = []

    async def settle(self, passage: Passage, settled: Settled, result: bytes) -> JournalRecord:
        """Delivers the outcome of a passage; gives the row that the journal has of it.

        Raises:
            BatchError: If the journal cannot be written.
        """
        try:
            await self._journal.settle(settled)
        except UnstorableRowError as error:
            settled = passage.unstorable(settled, error)
            result = settled.result
            await self._journal.settle(settled)
        row = passage.row(settled, result)
        if row.state is RecordState.FAILED:
            self._failed.append(row.index)
        self._tally.settled(row, self._clock())
        self._outlet.put(row.index, self._encode(row))
        return row

    async def settle_followers(self, passage: Passage, row: JournalRecord) -> None:
        """Delivers `row`, the outcome of a passage, to all that follow it, and to those that join meanwhile."""
        while passage.followers:
            followers, passage.followers = passage.followers, []
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
            rows = [row for index in some if (row := self._journal.answer_of(index)) is not None]
            rows = [row for row in rows if not (hold_ambiguous and row.possibly_billed)]
            await asyncio.gather(*(self._journal.intend(_intent_again(row)) for row in rows))
            await asyncio.gather(*(self._journal.forget(row.index) for row in rows))
            self._tally.reopened(len(rows))

    def pass_on(self, row: JournalRecord) -> None:
        """Delivers what an earlier session left."""
        self._tally.resumed(row, held=row.state is RecordState.IN_FLIGHT)
        self._outlet.put(row.index, self._encode(row))

    def bad_line(self, entry: Entry, error: LineError) -> None:
        """Leaves a line without an outcome out."""
        self._outlet.put(entry.index, b"")
        self._tally.bad_line()
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
