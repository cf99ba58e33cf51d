"""What gathers for the writer of a journal, and who waits for it, in the event loop.

Everything that one turn of the loop brings goes together, and so does what comes while a batch is being written. Those
who wait for a batch are all told in one turn.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from onellm_async.batch.journal.writer import Batch, JournalWriter, Totals, Unstorable
from onellm_async.errors import BatchError

__all__ = ["GroupCommit"]


class GroupCommit:
    """Between those who write into a journal and the thread that does it.

    Args:
        path: Of the journal.
        writer: Its thread.
        totals: What the journal has at the beginning.

    Attributes:
        totals: What it has by now.
        commits: How many batches became durable.
        closed: Whether nothing more is taken.
        full: Why nothing new may be begun: the disk is full, and what is written is written into the last reserve.
    """

    def __init__(self, path: Path, writer: JournalWriter, totals: Totals) -> None:
        self.totals: Totals = totals
        self.commits: int = 0
        self.closed: bool = False
        self.full: BatchError | None = None
        self._path = path
        self._writer = writer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batches = [Batch()]
        self._waiters: list[asyncio.Future[None]] = []
        self._handing_over = False
        self._failure: BatchError | None = None
        self._unwritten: BatchError | None = None

    def batch(self, *, beginning: bool = False) -> Batch:
        """Where the next row is to be put; `durable` follows at once.

        Args:
            beginning: Whether the row begins something, instead of ending what is in flight.

        Raises:
            BatchError: If nothing can be written any more, or nothing may be begun.
        """
        if self._failure is not None or (beginning and self.full is not None):
            raise self._failed()
        batch = self._batches[-1]
        if batch.forgotten:  # within a batch intents come first: what follows a withdrawal is another batch
            batch = Batch()
            self._batches.append(batch)
        return batch

    @property
    def owner(self) -> int:
        """The number, within its batch, of the next caller of `durable`."""
        return len(self._waiters)

    def durable(self) -> "asyncio.Future[None]":
        """Done when what was put into `batch` is on the disk, or could not be written.

        It ends with `UnstorableRowError` where only this row could not.
        """
        if (loop := self._loop) is None:
            loop = self._loop = asyncio.get_running_loop()
        if not self._handing_over:
            self._handing_over = True
            loop.call_soon(self._hand_over)
        waiter = loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def later(self, statement: str, parameters: tuple[object, ...]) -> None:
        """Has something written that no caller waits for; outside of an event loop at the end."""
        if self._failure is not None:
            return
        self._batches[-1].statements.append((statement, parameters))
        if self._loop is None:
            with suppress(RuntimeError):
                self._loop = asyncio.get_running_loop()
        if self._loop is not None and not self._handing_over:
            self._handing_over = True
            self._loop.call_soon(self._hand_over)

    async def aclose(self) -> None:
        """Has everything written, and the thread ended.

        Raises:
            BatchError: If something could not be written, and no caller was told.
        """
        if self.closed:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_resolve, ended)

        self._end(tell)
        await ended
        self._raise_unreported()

    def close(self, *, discard: bool = False) -> None:
        """Like `aclose`, but blocks; with `discard` the journal is removed."""
        if self.closed:
            return
        self._writer.discard = discard
        self._end(lambda: None)
        self._writer.join()
        self._raise_unreported()

    def _raise_unreported(self) -> None:
        if self._unwritten is not None:
            raise self._unwritten

    def _hand_over(self) -> None:
        if self.closed:
            return
        loop, waiters, batches = asyncio.get_running_loop(), self._waiters, self._batches
        self._waiters, self._batches = [], [Batch()]

        def answer(totals: Totals | None, failure: BatchError | None, unstorable: Unstorable) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile: no caller waits any more
                loop.call_soon_threadsafe(self._written, waiters, totals, failure, unstorable)

        self._writer.write(batches, answer)

    def _written(
        self,
        waiters: "list[asyncio.Future[None]]",
        totals: Totals | None,
        failure: BatchError | None,
        unstorable: Unstorable,
    ) -> None:
        if totals is None:
            self._failure = failure or self._failure
            for waiter in (*waiters, *self._waiters):
                if not waiter.done():
                    waiter.set_exception(self._failed())
            self._waiters = []
            return
        self.totals, self.full = totals, failure
        self.commits += 1
        for number, waiter in enumerate(waiters):
            _resolve(waiter, unstorable.get(number))
        if self._waiters or self._batches[0].statements:
            # Those just woken have their turn before it, and may have more to write.
            asyncio.get_running_loop().call_soon(self._hand_over)
        else:
            self._handing_over = False

    def _failed(self) -> BatchError:
        """The failure for one more that awaits: an error object collects the tracebacks of all who raise it."""
        failure = self._failure or self.full or BatchError(f"{self._path} cannot be written.")
        return BatchError(failure.message, advice=failure.advice)

    def _end(self, ended: Callable[[], None]) -> None:
        waiters, self._waiters = self._waiters, []
        loop, told_before, self.closed = self._loop, self._failure is not None, True

        def answer(totals: Totals | None, failure: BatchError | None, unstorable: Unstorable) -> None:
            self._unwritten = None if told_before or totals is not None else failure
            if totals is not None:
                self.totals = totals
            if loop is not None and waiters:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._written, waiters, totals, failure, unstorable)

        self._writer.write(self._batches, answer)
        self._batches = [Batch()]
        self._failure = self._failure or BatchError(f"{self._path} was closed.")
        self._writer.end(lambda *_: ended())


def _resolve(waiter: "asyncio.Future[None]", error: BatchError | None = None) -> None:
    if waiter.done():  # cancelled, but written
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
