"""Answers of earlier runs, by request, from the journals of those runs."""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from onellm_async.batch.identity import redact_url
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.batch.seen_keys import SeenKeys
from onellm_async.errors import BatchError

__all__ = ["AnswerCache"]


class AnswerCache:
    """The answers in other runs' journals.

    Requests are the same if all of model, messages, instruction and parameters are.
    It keeps 23 to 46 bytes in memory for each answer, and changes no file. Opening one blocks for the disk, about three
    seconds for a million answers. It may then be used in another thread.

    Args:
        paths: Of outputs or journals. Where several have an answer, that of the first one is used.
        base_url: Where the requests of the run go; None where that does not matter.

    Attributes:
        hits: Answers found so far.

    Raises:
        BatchError: If one is missing or no journal, or its answers came from another service.

    Example:
        .. code-block:: python

            with AnswerCache(["monday.jsonl"]) as cache:
                answer = cache.answer_to(item.request_digest)
    """

    def __init__(self, paths: Iterable[str], *, base_url: str | None = None) -> None:
        self.hits: int = 0
        self._paths = list(paths)
        self._open: dict[int, JournalReader] = {}
        self._places = SeenKeys()
        for number, path in enumerate(self._paths):
            with JournalReader.open(path) as journal:
                theirs = journal.identity.base_url
                mine = None if base_url is None else redact_url(base_url)
                if mine is not None and theirs != mine:
                    raise BatchError(
                        f"The answers in {path} came from {theirs}, and this run sends to {mine}.",
                        advice="Omit that cache.",
                    )
                for row in journal.records():
                    if row.state is RecordState.ANSWERED and row.copy_of is None:
                        self._places.add(row.request_digest, row.index * len(self._paths) + number)

    def answer_to(self, request_digest: bytes) -> JournalRecord | None:
        """The record of an answered request of an earlier run; None without one.

        Raises:
            BatchError: If a journal cannot be read.
        """
        place = self._places.find(request_digest)
        if place is None:
            return None
        index, number = divmod(place, len(self._paths))
        if number not in self._open:
            self._open[number] = JournalReader.open(self._paths[number])
        row = self._open[number].record(index)
        if row is None or row.state is not RecordState.ANSWERED or row.request_digest != request_digest:
            return None
        self.hits += 1
        return row

    def close(self) -> None:
        """Closes the journals."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
