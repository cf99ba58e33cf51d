"""When requests were sent that the service accepted, as far as that is known. Pure.

A request counts as accepted until its 429 arrives.
"""

from bisect import bisect_right
from collections.abc import Sequence


class SendLog:
    """The times of accepted requests, in order.

    Args:
        size: Maximum number of times that are kept; the oldest are dropped.

    Attributes:
        times: When accepted requests were sent, in order.
        dropped: Number of older ones.
    """

    __slots__ = ("_size", "dropped", "times")

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self.dropped: int = 0
        self.times: list[float] = []

    @property
    def total(self) -> int:
        """Number of accepted requests."""
        return self.dropped + len(self.times)

    def sent(self, now: float) -> None:
        """Records that a request is sent."""
        times = self.times
        times.append(now)
        if len(times) > self._size:
            cut = self._size // 4
            del times[:cut]
            self.dropped += cut

    def remove(self, sent_at: float) -> bool:
        """Removes a request that was not accepted. Returns whether it was there."""
        times = self.times
        index = bisect_right(times, sent_at) - 1
        if index < 0 or times[index] != sent_at:
            return False
        del times[index]
        return True

    def nearest(self, at: float) -> float:
        """The logged time that is nearest to `at`; `at` itself if there is none."""
        times = self.times
        index = bisect_right(times, at)
        return min(times[max(0, index - 1) : index + 1], key=lambda time: abs(time - at), default=at)

    def accepted_until(self, at: float) -> int:
        """Number of accepted requests that were sent until `at`, those sent then included."""
        return self.dropped + bisect_right(self.times, at)

    def count(self, until: float, seconds: float) -> int:
        """Number of accepted requests in the `seconds` before `until`."""
        return bisect_right(self.times, until) - bisect_right(self.times, until - seconds)

    def last(self, number: int) -> float | None:
        """When the `number`-th last request was sent; None if there were fewer."""
        return self.times[-number] if 0 < number <= len(self.times) else None

    def last_until(self, at: float, number: int) -> float | None:
        """When the `number`-th last of those sent until `at` was sent; None if there were fewer."""
        index = bisect_right(self.times, at) - number
        return self.times[index] if 0 <= index < len(self.times) else None

    def max_count(self, seconds: float, until: float) -> int:
        """The most requests that were accepted within `seconds`, of those sent until `until`."""
        return most_within(seconds, self.times, bisect_right(self.times, until))

    def between(self, after: float, until: float) -> list[float]:
        """When requests were sent after one moment and until another one."""
        return self.times[bisect_right(self.times, after) : bisect_right(self.times, until)]

    def curve(self, until: float) -> list[tuple[int, float]]:
        """Numbers of the last requests until then, each with the seconds since the first of them was sent."""
        end, points, number = bisect_right(self.times, until), [], 1
        while number <= end:
            points.append((number, until - self.times[end - number]))
            number = max(number + 1, number * 5 // 4)
        return points

    def forget(self, until: float) -> None:
        """Drops the times until then."""
        cut = bisect_right(self.times, until)
        del self.times[:cut]
        self.dropped += cut

    def move_clock(self) -> None:
        """Drops the times: the clock may have been set back."""
        self.dropped += len(self.times)
        self.times.clear()


def most_within(seconds: float, times: Sequence[float], end: int | None = None) -> int:
    """The most of the first `end` sorted times that lie within `seconds`."""
    most = first = 0
    for index in range(len(times) if end is None else end):
        at = times[index] - seconds
        while times[first] < at:
            first += 1
        if index - first >= most:
            most = index - first + 1
    return most
