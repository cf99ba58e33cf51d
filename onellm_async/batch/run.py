"""One run: source → items → outcomes → input order → sink.

The source is drawn from only as requests may leave and as the output keeps up, so memory is bounded by the window and
not by the input.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing
from typing import Protocol

from attrs import frozen

from onellm_async.batch.items import Entry, Item, LineError
from onellm_async.batch.progress import RunProgress, Tally
from onellm_async.batch.reorder import InOrder
from onellm_async.batch.sinks import Sink
from onellm_async.chat import ChatOutcome, ChatRequest
from onellm_async.errors import BatchError, ClientClosedError, OneLLMError
from onellm_async.fanout import concerns_every_prompt

__all__ = ["WINDOW", "Asker", "RunReport", "run_prompts"]

WINDOW = 4096
"""How far the newest prompt drawn may be ahead of the oldest one without an outcome. At 2 kB an answer, 8 MB."""


class Asker(Protocol):
    """What a run needs of `onellm_async.AsyncOneLLM`."""

    def iter_chats(self, source: AsyncIterable[ChatRequest], /) -> AsyncGenerator[ChatOutcome, None]:
        """Outcomes in the order of completion."""

    async def drain(self) -> None:
        """Ends every wait with `ClientClosedError`, unsent, and waits for what is under way."""


@frozen
class RunReport:
    """How a run ended.

    Attributes:
        progress: The counts at its end.
        unsent: Prompts that were read and never sent, because the run ended early.
        interrupted: Whether `stop` ended it before its input.
        stopped_by: The error that ended it before its input, such as an unknown key; None where there is none.
        strict_error: The bad line that ended it, where the run was strict.
    """

    progress: RunProgress
    unsent: int
    interrupted: bool
    stopped_by: OneLLMError | None
    strict_error: LineError | None

    @property
    def complete(self) -> bool:
        """Whether the whole input was read and every prompt in it has an outcome."""
        return not self.interrupted and self.stopped_by is None and self.strict_error is None


async def run_prompts(
    client: Asker,
    source: AsyncIterable[Entry | Item | LineError],
    *,
    sink: Sink,
    encode: Callable[[Item, ChatOutcome], bytes],
    stop: asyncio.Event | None = None,
    strict: bool = False,
    window: int = WINDOW,
    tally: Tally | None = None,
    on_bad_line: Callable[[LineError], None] = lambda error: None,
    clock: Callable[[], float] = time.monotonic,
) -> RunReport:
    """Answers every item of `source` and writes the outcomes to `sink` in the order of the source.

    A failed prompt is an outcome like any other. An error that would meet every prompt (an unknown key, a spent
    balance) ends the run: nothing more is sent, requests under way finish and are written. The same happens when
    `stop` is set. Cancelling ends it at once; what had been answered by then is still written.

    When the run ends early, the client is drained: waiting requests end unsent, those under way finish.

    Args:
        client: Asks, within its limits.
        source: Items and bad lines, such as an `onellm_async.batch.Source`.
        sink: Takes the lines; it is not closed.
        encode: Makes the output line of an outcome, such as `onellm_async.batch.RecordWriter.line`.
        stop: Set it to end the run in good order.
        strict: End the run at the first bad line.
        window: Outcomes held back for the sake of order, at most: while the oldest unanswered prompt is this many
            prompts behind, nothing more is drawn from `source`.
        tally: Counts; give one that also is a hook of the client to learn of refusals while the run goes on.
        on_bad_line: Told of each bad line.
        clock: Seconds, for the counts.

    Returns:
        How it ended. Errors that ended it early (a sink that cannot be written is one) are in it, not raised.
    """
    run = _Run(
        client,
        sink,
        encode=encode,
        window=window,
        strict=strict,
        tally=tally or Tally(clock()),
        on_bad_line=on_bad_line,
        clock=clock,
    )
    watcher = asyncio.create_task(run.end_when(stop or asyncio.Event()))
    try:
        async with aclosing(client.iter_chats(run.requests(source))) as outcomes:
            async for outcome in outcomes:
                await run.settle(outcome)
    except OneLLMError as error:
        run.ended_by(error)
    finally:
        watcher.cancel()
        await asyncio.wait({watcher})
        await run.finish()
    return run.report()


class _Run:
    def __init__(
        self,
        client: Asker,
        sink: Sink,
        *,
        encode: Callable[[Item, ChatOutcome], bytes],
        window: int,
        strict: bool,
        tally: Tally,
        on_bad_line: Callable[[LineError], None],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._sink = sink
        self._encode = encode
        self._window = window
        self._strict = strict
        self._tally = tally
        self._on_bad_line = on_bad_line
        self._clock = clock
        self._items: dict[int, Item] = {}
        self._order: InOrder[bytes] = InOrder()
        self._unsent = 0
        self._ended = asyncio.Event()
        self._room = asyncio.Event()
        self._interrupted = False
        self._stopped_by: OneLLMError | None = None
        self._strict_error: LineError | None = None
        self._sink_lost = False
        self._closing: asyncio.Task[None] | None = None

    async def end_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._interrupted = True
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self._room.set()
        if self._closing is None:
            self._closing = asyncio.create_task(self._client.drain())

    # Upstream: what may be sent.

    async def requests(self, source: AsyncIterable[Entry | Item | LineError]) -> AsyncIterator[ChatRequest]:
        position = 0
        entries = _Interruptible(aiter(source), self._ended)
        try:
            async for entry in entries:
                item = entry.item() if isinstance(entry, Entry) else entry
                if isinstance(item, LineError):
                    self._bad_line(item)
                    continue
                while position - self._order.next_position >= self._window and not self._ended.is_set():
                    self._room.clear()
                    await self._room.wait()
                if self._ended.is_set():
                    self._unsent += 1
                    return
                self._items[position] = item
                position += 1
                yield item.request
        finally:
            await entries.aclose()

    def _bad_line(self, error: LineError) -> None:
        self._tally.bad_line()
        self._on_bad_line(error)
        if self._strict:
            self._strict_error = error
            self._end()

    # Downstream: what has come.

    async def settle(self, outcome: ChatOutcome) -> None:
        item = self._items.pop(outcome.index)
        error = outcome.error
        if isinstance(error, ClientClosedError) and error.attempts == 0:
            self._unsent += 1
            lines = self._order.put(outcome.index, b"")
        else:
            self._tally.settled(outcome, self._clock())
            lines = self._order.put(outcome.index, self._encode(item, outcome))
            if error is not None and concerns_every_prompt(error) and not self._ended.is_set():
                self._stopped_by = error
                self._end()
        self._room.set()
        await self._write(lines)

    def ended_by(self, error: OneLLMError) -> None:
        if not self._ended.is_set():
            self._stopped_by = error

    async def finish(self) -> None:
        await self._write(self._order.drain())
        if self._closing is not None:
            await self._closing

    async def _write(self, lines: list[bytes]) -> None:
        text = b"".join(lines)
        if not text or self._sink_lost:
            return
        try:
            await self._sink.write(text)
        except BatchError as error:
            self._sink_lost = True
            self._stopped_by = error
            self._end()

    def report(self) -> RunReport:
        return RunReport(
            progress=self._tally.snapshot(self._clock()),
            unsent=self._unsent,
            interrupted=self._interrupted,
            stopped_by=self._stopped_by,
            strict_error=self._strict_error,
        )


class _Interruptible:
    """An async iterator that ends as soon as an event is set, even while the next entry is awaited."""

    def __init__(self, entries: AsyncIterator[Entry | Item | LineError], ended: asyncio.Event) -> None:
        self._entries = entries
        self._ended = ended
        self._waiting = asyncio.ensure_future(ended.wait())

    def __aiter__(self) -> "_Interruptible":
        return self

    async def __anext__(self) -> Entry | Item | LineError:
        if self._ended.is_set():
            raise StopAsyncIteration
        pull = asyncio.ensure_future(_next(self._entries))
        try:
            await asyncio.wait({pull, self._waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not pull.done():
                pull.cancel()
                await asyncio.wait({pull})
        if pull.cancelled() or (entry := pull.result()) is None:
            raise StopAsyncIteration
        return entry

    async def aclose(self) -> None:
        self._waiting.cancel()
        await asyncio.wait({self._waiting})
        if (close := getattr(self._entries, "aclose", None)) is not None:
            await close()


async def _next(entries: AsyncIterator[Entry | Item | LineError]) -> Entry | Item | LineError | None:
    return await anext(entries, None)
