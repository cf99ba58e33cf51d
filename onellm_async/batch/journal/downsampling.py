"""A bounded time series: when it is too long, every second point is removed and the interval doubles. Pure."""

from collections.abc import Iterator
from math import floor
from typing import TypeAlias

__all__ = ["MAX_SAMPLES", "Downsampler"]

MAX_SAMPLES = 4096
"""Points; twice as many as a wide screen can show. At 700 bytes each less than 3 MB."""

Write: TypeAlias = tuple[str, tuple[object, ...]]
"""A statement and its parameters."""

_LATEST = "INSERT INTO samples (id, at, sample) VALUES (0, ?, ?) ON CONFLICT (id) DO UPDATE SET at = excluded.at, \
sample = excluded.sample"
_KEEP = "INSERT INTO samples (at, sample) VALUES (?, ?)"
_HALVE = "DELETE FROM samples WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS place \
FROM samples WHERE id > 0) WHERE place % 2 = 0)"
_INTERVAL = "UPDATE run SET sample_interval = ?"


class Downsampler:
    """Chooses the points of a time series to keep.

    Args:
        interval: Seconds between two points that stay.
        kept: How many there are.
        most: How many there may be.

    Attributes:
        interval: It doubles each time the series is halved.
        kept: How many there are now.
    """

    def __init__(self, interval: float, kept: int, *, most: int = MAX_SAMPLES) -> None:
        self.interval: float = interval
        self.kept: int = kept
        self._most = most
        self._slot: int | None = None

    def take(self, at: float, sample: str) -> Iterator[Write]:
        """What is to be written for a point of the time `at`, in Unix seconds."""
        yield _LATEST, (at, sample)
        slot = floor(at / self.interval)
        if slot == self._slot:
            return
        if self.kept >= self._most:
            self.kept = (self.kept + 1) // 2
            self.interval *= 2
            slot = floor(at / self.interval)
            yield _HALVE, ()
            yield _INTERVAL, (self.interval,)
        self._slot = slot
        self.kept += 1
        yield _KEEP, (at, sample)
