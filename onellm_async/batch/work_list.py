"""What a run would send: the one list from which `plan` and the estimate after a preflight both start."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from onellm_async.batch.answer_cache import AnswerCache
from onellm_async.batch.config import RunPolicy
from onellm_async.batch.inputs.entry import Entry, EntrySource, LineError
from onellm_async.batch.inputs.samples import sampled
from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.batch.seen_keys import SeenKeys
from onellm_async.chat import ChatRequest
from onellm_async.fanout import close_iterator


class EarlierRecords(Protocol):
    """What earlier sessions of a run have left."""

    def records(self) -> Iterator[JournalRecord]:
        """The records, in input order."""


class WorkList:
    """The requests that a run would send, in input order. Iterate over it once; nothing is sent.

    Args:
        source: The entries.
        policy: Which prompts are sent.
        earlier: Outcomes of earlier sessions of the run; None where there are none.
        cache: Answers of earlier runs.
        on_bad_line: Called for each line that holds no usable prompt.

    Attributes:
        requests: Requests so far.
        completed: Entries with an outcome of an earlier session.
        duplicates: Entries whose request is identical to one before.
        cached: Entries whose answer is in the cache.
        bad_lines: Lines that hold no usable prompt.
    """

    def __init__(
        self,
        source: EntrySource,
        policy: RunPolicy,
        *,
        earlier: EarlierRecords | None = None,
        cache: AnswerCache | None = None,
        on_bad_line: Callable[[LineError], None] = lambda error: None,
    ) -> None:
        self.requests: int = 0
        self.completed: int = 0
        self.duplicates: int = 0
        self.cached: int = 0
        self.bad_lines: int = 0
        self._source = sampled(source, policy.samples)
        self._policy = policy
        self._earlier = earlier
        self._cache = cache
        self._on_bad_line = on_bad_line
        self._seen = SeenKeys()

    @property
    def left(self) -> int:
        """Entries without an outcome so far, duplicates and cached ones included."""
        return self.requests + self.duplicates + self.cached

    async def __aiter__(self) -> AsyncIterator[ChatRequest]:
        """The requests.

        Raises:
            BatchError: If the input or the journal cannot be read.
        """
        records = _Merged(iter(()) if self._earlier is None else self._earlier.records())
        entries, end = aiter(self._source), self._policy.end
        try:
            async for entry in entries:
                if end is not None and entry.index >= end:
                    break
                if (request := self._request_of(entry, records.at(entry.index))) is not None:
                    self.requests += 1
                    yield request
        finally:
            await close_iterator(entries)

    def _request_of(self, entry: Entry, record: JournalRecord | None) -> ChatRequest | None:
        if record is not None and self._policy.is_complete(record):
            self.completed += 1
            if record.state is RecordState.ANSWERED:
                self._seen.add(record.request_digest, record.index)
            return None
        item = entry.item()
        if isinstance(item, LineError):
            if entry.sample in {None, 1}:
                self.bad_lines += 1
                self._on_bad_line(item)
            return None
        if self._policy.deduplicates(item.request) and self._seen.add(item.request_digest, entry.index) is not None:
            self.duplicates += 1
            return None
        if self._cache is not None and self._cache.answer_to(item.request_digest) is not None:
            self.cached += 1
            return None
        return item.request


class _Merged:
    """Records in order of their entries, read along with these."""

    def __init__(self, records: Iterator[JournalRecord]) -> None:
        self._records = records
        self._next = next(records, None)

    def at(self, index: int) -> JournalRecord | None:
        while self._next is not None and self._next.index < index:
            self._next = next(self._records, None)
        return self._next if self._next is not None and self._next.index == index else None
