"""One feeder and a number of workers: the tasks of a fan-out and of a run.

The feeder alone waits for the source, so a worker that is cancelled never ends it. A source that is never waited for
needs no feeder: each worker that is idle takes the next item from it. A cancelled worker is replaced at the next
`WorkerPool.resize`; one that ends with an exception is an error of the whole pool.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar, cast

T = TypeVar("T")

_GOLDEN_RATIO = (5**0.5 - 1) / 2


def spread(place: int) -> float:
    """Place number `place` of a sequence in [0, 1): any number of its first members lie evenly spread.

    Example:
        >>> [round(spread(place), 2) for place in range(5)]
        [0.5, 0.12, 0.74, 0.35, 0.97]
    """
    return (0.5 + place * _GOLDEN_RATIO) % 1


class WorkerPool(Generic[T]):
    """A bounded queue between one feeder and many workers, and the tasks of both.

    Args:
        work: Awaited with one item after another by each worker.
        capacity: Items that may wait for a worker. With 0 the feeder waits until a worker is idle.
        source: Items that need no feeder; None if there is one. It closes the pool at its end.
        on_worker_end: Called when a worker has ended, with its error if it is not a cancellation.

    Attributes:
        capacity: As given; it may be changed.
        input_ended: Whether the feeder has ended.
        busy: Items that workers are working on.
    """

    def __init__(
        self,
        work: Callable[[T], Awaitable[object]],
        *,
        capacity: int,
        source: Iterator[T] | None = None,
        on_worker_end: Callable[[BaseException | None], None] = lambda error: None,
    ) -> None:
        self.capacity: int = capacity
        self.input_ended: bool = False
        self.busy: int = 0
        self._work = work
        self._source = source
        self._on_worker_end = on_worker_end
        self._size = 0
        self._waiting: deque[T] = deque()
        self._takers: deque[asyncio.Future[T | None]] = deque()
        self._feeder: asyncio.Task[None] | None = None
        self._workers: set[asyncio.Task[None]] = set()
        self._room: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._ended = asyncio.Event()
        self._error: BaseException | None = None
        self._paused = self._closed = False

    def __len__(self) -> int:
        """Items that wait for a worker."""
        return len(self._waiting)

    # Tasks.

    def feed(self, feeding: Coroutine[object, object, None]) -> None:
        """Starts the feeder, which puts items until the source ends."""
        self._feeder = asyncio.create_task(feeding)
        self._feeder.add_done_callback(self._feeder_done)

    def resize(self, size: int) -> None:
        """Starts workers until there are `size`; with a smaller size those beyond it end after their item."""
        self._size = size
        while len(self._workers) < self._size and not self.has_ended:
            worker = asyncio.create_task(self._take_and_work())
            self._workers.add(worker)
            worker.add_done_callback(self._worker_done)

    @property
    def size(self) -> int:
        """Workers that there are."""
        return len(self._workers)

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to work on, and nothing will come."""
        return self._closed and not self._waiting

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and no worker works."""
        return not self.busy and not self._waiting

    def stop_feeding(self) -> None:
        """Cancels the feeder. What waits already is worked on."""
        if self._feeder is not None:
            self._feeder.cancel()

    async def wait_for_input(self) -> None:
        """Returns when the feeder has ended; raises its error, or that of a worker. Safe to cancel."""
        if self._feeder is not None:
            await asyncio.wait({self._feeder})
            if not self._feeder.cancelled():
                self._feeder.result()
        self._raise()

    async def wait_until_idle(self) -> None:
        """Returns when nothing waits and no worker works; raises the error of a worker. Safe to cancel."""
        while self._error is None and not self.is_idle:
            self._idle.clear()
            await self._idle.wait()
        self._raise()

    async def wait_until_ended(self) -> None:
        """Returns when all workers have ended after `close`; raises the error of a worker. Safe to cancel."""
        while self._error is None and (self._workers or not self.has_ended):
            self._ended.clear()
            await self._ended.wait()
        self._raise()

    async def aclose(self) -> None:
        """Cancels the feeder and all workers, and waits for them."""
        self._closed = True
        tasks = self._workers if self._feeder is None else {self._feeder, *self._workers}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _feeder_done(self, feeder: "asyncio.Task[None]") -> None:
        self.input_ended = True

    def _worker_done(self, worker: "asyncio.Task[None]") -> None:
        self._workers.discard(worker)
        error = None if worker.cancelled() else worker.exception()
        if error is not None and self._error is None:
            self._error = error
            self._idle.set()
            self.stop_feeding()
        self._ended.set()
        self._on_worker_end(error)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    async def _take_and_work(self) -> None:
        while True:
            if self._waiting and not self._paused:  # as `take` does, without another coroutine
                item = self._take_first()
            elif (taken := await self.take() if self._source is None else self._draw(self._source)) is None:
                return
            else:
                item = taken
            try:
                await self._work(item)
            finally:
                self.busy -= 1
                if not self.busy:
                    self._idle.set()
            if len(self._workers) > self._size:
                # At once, or all that find too many would end.
                self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))
                return

    @contextmanager
    def kept_busy(self) -> Iterator[None]:
        """Counts what runs within it as the work of a worker: the pool is not idle meanwhile."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            if not self.busy:
                self._idle.set()

    # The queue.

    @property
    def has_room(self) -> bool:
        """Whether an item may be put: fewer wait than may, or a worker is idle."""
        return len(self._waiting) < self.capacity or bool(self._takers and not self._paused)

    async def wait_for_room(self) -> None:
        """Returns when the feeder may put an item. Safe to cancel."""
        while not self.has_room:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def put(self, item: T) -> None:
        """Adds an item behind the others, when there is room for it. Safe to cancel."""
        await self.wait_for_room()
        self.put_nowait(item)

    def put_nowait(self, item: T) -> None:
        """Adds an item behind the others."""
        self._waiting.append(item)
        if self._takers:
            self._hand_out()

    def put_back(self, item: T) -> None:
        """Adds an item before the others; there is always room for it."""
        self._waiting.appendleft(item)
        self._hand_out()

    async def take(self) -> T | None:
        """The first item, when workers may have one; None when the pool was closed and is empty. Safe to cancel."""
        if self._waiting and not self._paused:
            return self._take_first()
        if self._closed:
            return None
        taker: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._takers.append(taker)
        self._make_room()
        try:
            return await taker
        except asyncio.CancelledError:
            if not taker.cancelled() and (handed := taker.result()) is not None:
                self.busy -= 1
                self.put_back(handed)  # handed out and cancelled at once
            raise

    def _draw(self, source: Iterator[T]) -> T | None:
        if self._closed or (item := next(source, None)) is None:
            return None
        self.busy += 1
        return item

    def _take_first(self) -> T:
        item = self._waiting.popleft()
        self.busy += 1
        if self._room is not None and len(self._waiting) <= self.capacity // 2:
            self._make_room()
        return item

    def has(self, fits: Callable[[T], bool]) -> bool:
        """Whether an item that fits waits."""
        return any(map(fits, self._waiting))

    def take_from_afar(self, number: int, fits: Callable[[T], bool]) -> T | None:
        """An item for trial number `number`, from a place far from those of other trials; None if none fits."""
        fitting = [place for place, item in enumerate(self._waiting) if fits(item)]
        if not fitting:
            return None
        place = fitting[int(spread(number) * len(fitting))]
        item = self._waiting[place]
        del self._waiting[place]
        self._make_room()
        if self.is_idle:
            self._idle.set()
        return item

    def pause(self, capacity: int) -> None:
        """Gives the workers nothing more until `resume`, and lets `capacity` items wait meanwhile."""
        self._paused, self.capacity = True, capacity
        self._make_room()

    def resume(self, capacity: int, last: Iterable[T] = ()) -> None:
        """Gives the workers what waits, in an order in which neighbors of the input lie far apart.

        Args:
            capacity: So many may wait from now on.
            last: Items to be added behind all others.
        """
        self._paused, self.capacity = False, capacity
        waiting = list(self._waiting)
        self._waiting = deque(waiting[place] for place in sorted(range(len(waiting)), key=spread))
        self._waiting.extend(last)
        self._hand_out()

    def clear(self) -> None:
        """Drops what waits."""
        self._waiting.clear()
        if self.is_idle:
            self._idle.set()

    def close(self) -> None:
        """Lets the workers end when nothing waits any more."""
        self._closed, self._paused = True, False
        self._hand_out()
        while self._takers:
            if not (taker := self._takers.popleft()).done():
                taker.set_result(None)
        self._ended.set()

    def _hand_out(self) -> None:
        if self._paused:
            return
        while self._waiting and self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                self.busy += 1
                taker.set_result(self._waiting.popleft())

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
