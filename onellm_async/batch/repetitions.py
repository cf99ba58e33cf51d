"""Identical requests: the first one is asked; the others follow it while it is under way, or copy its outcome."""

from onellm_async.batch.fingerprints import Fingerprints
from onellm_async.batch.journal.rows import JournalRecord, RecordState
from onellm_async.batch.passage import Passage
from onellm_async.batch.protocols import RunJournal

__all__ = ["Repetitions"]


class Repetitions:
    """Which requests of a run are the same.

    Args:
        journal: Has the outcomes of those that are not under way any more.
    """

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._seen = Fingerprints()
        self._under_way: dict[int, Passage] = {}

    def answered(self, row: JournalRecord) -> None:
        """Takes note of a request that an earlier session got an answer to."""
        self._seen.add(row.request_digest, row.index)

    def recognise(self, passage: Passage) -> bool:
        """Whether the same was asked before: the passage then follows that one, or copies its outcome."""
        first = self._seen.add(passage.item.request_digest, passage.entry.index)
        if first is None:
            return False
        leader = self._under_way.get(first)
        if leader is not None:
            if leader.item.request_digest != passage.item.request_digest:
                return False
            leader.followers.append(passage)
            return True
        row = self._journal.answer_of(first)
        if row is None or row.state is RecordState.IN_FLIGHT or row.request_digest != passage.item.request_digest:
            return False
        passage.copied = row
        return True

    def begin(self, passage: Passage) -> None:
        """From now on others may follow it."""
        self._under_way[passage.entry.index] = passage

    def end(self, passage: Passage) -> None:
        """It is settled; from now on others copy its outcome."""
        del self._under_way[passage.entry.index]
