"""Many prompts, a bounded number of tasks: the window that turns a source into outcomes.

A `WorkerPool` reads the source and works on one prompt per worker, so there are never more tasks than the window has
places and the feeder, however long the source is. A consumer that is slower than the answers holds the workers back.

Every prompt that was drawn has an outcome, whatever ends its worker, unless the fan-out ends with an error.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from types import GeneratorType
from typing import Generic, Self, TypeAlias

from attrs import frozen

from onellm_async.chat import ChatOutcome, ChatRequest, ChatResponse, Message, Parsed, Prompt
from onellm_async.errors import InvalidRequestError, OneLLMError, RequestCancelledError
from onellm_async.formatting import pluralize
from onellm_async.validation import truncated_repr
from onellm_async.worker_pool import WorkerPool

__all__ = ["FanOut", "FanoutProgress", "Progress", "Source", "check_source", "close_iterator"]

_log = logging.getLogger("onellm_async")

Source: TypeAlias = Iterable[Prompt] | AsyncIterable[Prompt]


@frozen
class FanoutProgress:
    """Progress of a fan-out.

    Attributes:
        done: Outcomes so far, failures included.
        failed: Of these, failures.
        total: Number of prompts; None if the source has no length.
        elapsed: Seconds since the start.
        cost: USD of the answers so far; answers without a known price count as 0.
    """

    done: int
    failed: int
    total: int | None
    elapsed: float
    cost: float


Progress: TypeAlias = Callable[[FanoutProgress], None]


def check_source(source: object) -> None:
    """Refuses what is a single prompt, whose letters or turns would be asked one by one, or no prompts at all.

    Raises:
        InvalidRequestError: Naming the value.
    """
    if isinstance(source, str | bytes | Mapping | Message | ChatRequest):
        raise InvalidRequestError(
            f"The prompts are {truncated_repr(source)}, which is a single {type(source).__name__}.",
            advice="Pass a list of prompts, or use chat for a single one.",
        )
    if hasattr(source, "columns") or hasattr(source, "column_names"):
        raise InvalidRequestError(
            f"The prompts are a {type(source).__name__}, which gives the names of its columns.",
            advice='Pass a column of it, such as table["prompt"], or the table to run.',
        )
    if not isinstance(source, Iterable | AsyncIterable):
        raise InvalidRequestError(f"The prompts are {truncated_repr(source)}; they must be an (async) iterable.")


async def close_iterator(iterator: AsyncIterator[object]) -> None:
    """Closes an async generator that may not be exhausted; other iterators need no closing."""
    if (close := getattr(iterator, "aclose", None)) is not None:
        await close()


class FanOut(Generic[Parsed]):
    """One run over a source. Iterate over it once, inside ``async with``.

    Leaving the block in any way cancels the requests in flight and waits for them to end.

    Args:
        source: The prompts; a sync or async iterable of any length.
        answer: Turns one prompt into its response, or raises `OneLLMError`.
        window: Returns how many prompts may be in flight or queued; called after each outcome, as it may grow.
        withdraw: Ends the waits of `answer` with `RequestCancelledError`; called once when the run is stopped.
        stop_on_error: Draw nothing more from the source after the first failure of any kind.
        buffered: Finished outcomes that may wait for the consumer; None for any number.
        on_progress: Called after each outcome.
        clock: Seconds, for `FanoutProgress.elapsed`.
    """

    def __init__(
        self,
        source: Source,
        answer: Callable[[Prompt], Awaitable[ChatResponse[Parsed]]],
        *,
        window: Callable[[], int],
        withdraw: Callable[[], None] = lambda: None,
        stop_on_error: bool = False,
        buffered: int | None = None,
        on_progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_source(source)
        self._sync = iter(source) if isinstance(source, Iterable) else None
        self._async = aiter(source) if isinstance(source, AsyncIterable) else None
        self._total = len(source) if isinstance(source, list | tuple) else None
        self._window = window
        self._answer = answer
        self._withdraw = withdraw
        self._stop_on_error = stop_on_error
        self._buffered = buffered
        self._on_progress = on_progress
        self._clock = clock
        self._started = clock()
        self._done = self._failed = 0
        self._cost = 0.0
        self._progress_errors = 0
        self._leaving = False
        self._finished: deque[ChatOutcome[Parsed]] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        # A source is read only when a worker is idle.
        self._pool: WorkerPool[tuple[int, Prompt]] = WorkerPool(
            self._work,
            capacity=0,
            source=self._numbered(source) if isinstance(source, Iterable) else None,
            on_worker_end=self._worker_ended,
        )
        self.stopped_by: Exception | None = None
        """Why nothing more is read although the source has more; None if the source has ended."""

    async def __aenter__(self) -> Self:
        if self._async is not None:
            self._pool.feed(self._feed(self._async))
        self._resize()
        return self

    def _resize(self) -> None:
        if self._leaving or self._pool.has_ended:
            return
        # Even an empty list needs a worker, which finds its end.
        self._pool.resize(self._window() if self._total is None else min(self._window(), self._total or 1))

    async def __aexit__(self, *_: object) -> None:
        self._leaving = True
        try:
            await self._pool.aclose()
        finally:
            if self._async is not None:
                await close_iterator(self._async)
            if isinstance(self._sync, GeneratorType):
                self._sync.close()
            if self._progress_errors > 1:
                times = self._progress_errors
                _log.error("on_progress raised %d times in this fan-out; the first is logged above.", times)

    def __aiter__(self) -> AsyncIterator[ChatOutcome[Parsed]]:
        return self

    async def __anext__(self) -> ChatOutcome[Parsed]:
        """Returns the next outcome, in the order of completion."""
        # Only the consumer starts workers: a worker that started others would recurse under an eager task factory, and
        # while the loop shuts down, which cancels all tasks, nothing may be started.
        while not self._finished:
            self._resize()  # the window may have grown, or other code may have cancelled a worker
            if self._finished:
                break
            if self._pool.has_ended and not self._pool.size:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        outcome = self._finished.popleft()
        self._room.set()
        return outcome

    def _worker_ended(self, error: BaseException | None) -> None:
        self._news.set()
        if isinstance(error, Exception):
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Reads no more prompts and cancels the queued ones."""
        if self.stopped_by is None:
            self.stopped_by = error
            self._pool.stop_feeding()
            self._pool.clear()
            self._pool.close()
            self._withdraw()

    def _numbered(self, source: Iterable[Prompt]) -> Iterator[tuple[int, Prompt]]:
        try:
            yield from enumerate(source)
        except Exception as error:  # whatever the source raises ends the iteration
            self._end_source(error)
        finally:
            self._end_input()

    async def _feed(self, source: AsyncIterator[Prompt]) -> None:
        pool, drawn = self._pool, 0
        try:
            await pool.wait_for_room()
            async for prompt in source:
                pool.put_nowait((drawn, prompt))
                drawn += 1
                if not pool.has_room:
                    await pool.wait_for_room()
        except asyncio.CancelledError as error:
            if self._leaving or self.stopped_by is not None:
                raise
            # Something inside the source was cancelled, or this task by other code: the source cannot go on.
            self._end_source(_source_cancelled(drawn, error))
        except Exception as error:  # whatever the source raises ends the iteration
            self._end_source(error)
        finally:
            self._end_input()

    def _end_source(self, error: Exception) -> None:
        """Reads no more prompts after a failure of the source; those already read get their answers."""
        if self.stopped_by is None:
            self.stopped_by = error

    def _end_input(self) -> None:
        self._pool.close()
        self._news.set()

    async def _work(self, drawn: tuple[int, Prompt]) -> None:
        index, prompt = drawn
        try:
            outcome = ChatOutcome(index, prompt, await self._answer(prompt))
        except OneLLMError as error:
            if isinstance(error, RequestCancelledError) and not error.attempts:
                return
            outcome = ChatOutcome(index, prompt, error=error)
        except asyncio.CancelledError:
            if not self._leaving:
                self._deliver(ChatOutcome(index, prompt, error=_task_cancelled()))
            raise
        self._deliver(outcome)
        while self._buffered is not None and len(self._finished) >= self._buffered:
            self._room.clear()
            await self._room.wait()

    def _deliver(self, outcome: ChatOutcome[Parsed]) -> None:
        self._done += 1
        error = outcome.error
        if error is not None:
            self._failed += 1
            if self._stop_on_error or error.affects_every_prompt:
                self._stop(error)
        elif outcome.response is not None and outcome.response.cost is not None:
            self._cost += outcome.response.cost
        self._finished.append(outcome)
        self._news.set()
        if self._on_progress is not None:
            self._report_progress(self._on_progress)

    def _report_progress(self, on_progress: Progress) -> None:
        elapsed = self._clock() - self._started
        try:
            on_progress(FanoutProgress(self._done, self._failed, self._total, elapsed, self._cost))
        except Exception:
            self._progress_errors += 1
            if self._progress_errors == 1:
                _log.exception("on_progress raised; the fan-out goes on.")


def _task_cancelled() -> RequestCancelledError:
    error = RequestCancelledError(
        "The task of this request was cancelled by other code.", advice="It may be billed if it was in flight."
    )
    error.possibly_billed = 1
    return error


def _source_cancelled(drawn: int, cause: BaseException) -> RequestCancelledError:
    error = RequestCancelledError(f"The source of the prompts was cancelled after {pluralize(drawn, 'prompt')}.")
    error.__cause__ = cause
    return error
