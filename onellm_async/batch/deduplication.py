"""Identical requests: the first one is asked; the others follow it while it is in flight, or copy its outcome."""

from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.batch.protocols import RunJournal
from onellm_async.batch.seen_keys import SeenKeys
from onellm_async.batch.work_item import WorkItem

__all__ = ["Deduplicator"]


class Deduplicator:
    """Which requests of a run are the same.

    Args:
        journal: Has the outcomes of those that are not in flight any more.
    """

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._seen = SeenKeys()
        self._under_way: dict[int, WorkItem] = {}

    def answered(self, row: JournalRecord) -> None:
        """Takes note of a request that an earlier session got an answer to."""
        self._seen.add(row.request_digest, row.index)

    def recognise(self, work_item: WorkItem) -> bool:
        """Whether the same was asked before: the work item then follows that one, or copies its outcome."""
        first = self._seen.add(work_item.item.request_digest, work_item.entry.index)
        if first is None:
            return False
        leader = self._under_way.get(first)
        if leader is not None:
            if leader.item.request_digest != work_item.item.request_digest:
                return False
            leader.followers.append(work_item)
            return True
        row = self._journal.record(first)
        if row is None or row.state is RecordState.IN_FLIGHT or row.request_digest != work_item.item.request_digest:
            return False
        work_item.copied = row
        return True

    def begin(self, work_item: WorkItem) -> None:
        """From now on others may follow it."""
        self._under_way[work_item.entry.index] = work_item

    def end(self, work_item: WorkItem) -> None:
        """It is settled; from now on others copy its outcome."""
        del self._under_way[work_item.entry.index]
