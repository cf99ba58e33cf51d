"""Identical requests: the first one is sent; the others wait for its outcome, or copy it."""

import asyncio

from onellm_async.batch.journal.null_journal import RunJournal
from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.batch.seen_keys import SeenKeys
from onellm_async.batch.work_item import WorkItem

_MAX_WAITING = 4096
"""Duplicates that may wait for outcomes before the input does: each is held in memory."""


class Deduplicator:
    """Which requests of a run are the same.

    Args:
        journal: Has the outcomes of those that are not in flight any more.
    """

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._seen = SeenKeys()
        self._in_flight: dict[int, WorkItem] = {}
        self._waiting = 0
        self._room = asyncio.Event()
        self._waited_for = False

    def answered(self, record: JournalRecord) -> None:
        """Adds a request that an earlier session got an answer to."""
        self._seen.add(record.request_digest, record.index)

    def claim(self, work_item: WorkItem) -> bool:
        """Whether the same was sent before: the work item then waits for that one, or copies its outcome."""
        first = self._seen.add(work_item.item.request_digest, work_item.entry.index)
        if first is None:
            return False
        original = self._in_flight.get(first)
        if original is not None:
            if original.item.request_digest != work_item.item.request_digest:
                return False
            self.attach(original, [work_item])
            return True
        record = self._journal.record(first)
        if (
            record is None
            or record.state is RecordState.IN_FLIGHT
            or record.request_digest != work_item.item.request_digest
        ):
            return False
        work_item.copied_from = record
        return True

    def register(self, work_item: WorkItem) -> None:
        """From now on duplicates may wait for it."""
        self._in_flight[work_item.entry.index] = work_item

    def attach(self, original: WorkItem, duplicates: list[WorkItem]) -> None:
        """Lets duplicates wait for the outcome of `original`."""
        original.duplicates += duplicates
        self._waiting += len(duplicates)

    def detach(self, original: WorkItem) -> list[WorkItem]:
        """The duplicates that wait for `original`, which wait no more."""
        duplicates, original.duplicates = original.duplicates, []
        self._waiting -= len(duplicates)
        if duplicates:
            self._room.set()
        return duplicates

    def resolve(self, work_item: WorkItem) -> None:
        """It has its outcome; from now on duplicates copy it."""
        del self._in_flight[work_item.entry.index]

    @property
    def is_waited_for(self) -> bool:
        """Whether the input waits in `wait_for_space`."""
        return self._waited_for

    async def wait_for_space(self) -> None:
        """Returns when another duplicate may wait. Safe to cancel."""
        while self._waiting >= _MAX_WAITING:
            self._room.clear()
            self._waited_for = True
            try:
                await self._room.wait()
            finally:
                self._waited_for = False
