"""The prompts of a run that wait for a worker: in input order, or spread over what was read ahead."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from onellm_async.batch.work_item import WorkItem

__all__ = ["Pool", "spread"]

_GOLDEN_RATIO = (5**0.5 - 1) / 2


def spread(place: int) -> float:
    """Place number `place` of a sequence in [0, 1): any number of its first members lie evenly spread.

    Example:
        >>> [round(spread(place), 2) for place in range(5)]
        [0.5, 0.12, 0.74, 0.35, 0.97]
    """
    return (0.5 + place * _GOLDEN_RATIO) % 1


class Pool:
    """A bounded queue between one feeder and many workers, which can be closed to the workers.

    Args:
        capacity: So many may wait before `put` does.

    Attributes:
        capacity: As given; it may be changed.
        input_ended: Whether nothing more will be put.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity: int = capacity
        self.input_ended: bool = False
        self._waiting: deque[WorkItem] = deque()
        self._takers: deque[asyncio.Future[None]] = deque()
        self._putters: deque[asyncio.Future[None]] = deque()
        self._paused = self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def put(self, work_item: WorkItem) -> None:
        """Adds a prompt behind the others, when there is room for it. Safe to cancel."""
        while len(self._waiting) >= self.capacity:
            await _wait_in(self._putters)
        self._waiting.append(work_item)
        if not self._paused:
            _wake(self._takers, 1)

    async def take(self) -> WorkItem | None:
        """The first prompt, when workers may have one; None when the pool was closed and is empty. Safe to cancel."""
        while self._paused or not self._waiting:
            if self._closed:
                return None
            await _wait_in(self._takers)
        work_item = self._waiting.popleft()
        self._make_room()
        return work_item

    def has(self, fits: Callable[[WorkItem], bool]) -> bool:
        """Whether a prompt that fits waits."""
        return any(map(fits, self._waiting))

    def take_from_afar(self, number: int, fits: Callable[[WorkItem], bool]) -> WorkItem | None:
        """A prompt for trial number `number`, from a place far from those of other trials; None if none fits."""
        fitting = [place for place, work_item in enumerate(self._waiting) if fits(work_item)]
        if not fitting:
            return None
        place = fitting[int(spread(number) * len(fitting))]
        work_item = self._waiting[place]
        del self._waiting[place]
        self._make_room()
        return work_item

    def put_back(self, work_item: WorkItem) -> None:
        """Adds a prompt before the others; there is always room for it."""
        self._waiting.appendleft(work_item)
        if not self._paused:
            _wake(self._takers, 1)

    def pause(self, capacity: int) -> None:
        """Gives the workers nothing more until `resume`, and lets `capacity` prompts wait meanwhile."""
        self._paused, self.capacity = True, capacity
        _wake(self._putters, capacity)

    def resume(self, capacity: int, last: Iterable[WorkItem] = ()) -> None:
        """Gives the workers what waits, in an order in which neighbors of the input lie far apart.

        Args:
            capacity: So many may wait from now on.
            last: Prompts to be added behind all others.
        """
        self._paused, self.capacity = False, capacity
        waiting = list(self._waiting)
        self._waiting = deque(waiting[place] for place in sorted(range(len(waiting)), key=spread))
        self._waiting.extend(last)
        _wake(self._takers, len(self._waiting))

    def close(self) -> None:
        """Tells the workers that nothing more will come."""
        self._closed, self._paused = True, False
        _wake(self._takers, len(self._takers))

    def _make_room(self) -> None:
        if len(self._waiting) < self.capacity:
            _wake(self._putters, 1)


async def _wait_in(line: "deque[asyncio.Future[None]]") -> None:
    waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    line.append(waker)
    try:
        await waker
    except asyncio.CancelledError:
        if waker.done() and not waker.cancelled():
            _wake(line, 1)  # woken and cancelled at once: the next one in line takes the turn
        raise


def _wake(line: "deque[asyncio.Future[None]]", number: int) -> None:
    while number and line:
        waker = line.popleft()
        if not waker.done():
            waker.set_result(None)
            number -= 1
