"""The histogram of latencies, of the fine bins of a journal. Pure."""

from collections.abc import Iterable, Sequence
from math import log10

from onellm_async.report.model import Latency

_STEPS = (20, 10, 5, 4, 2, 1)
"""Bins per decade that may be drawn, finest first. Each holds a whole number of fine bins."""
_FINE = 20
"""Fine bins per decade."""
_MAX_BINS = 20
"""Bins that are drawn: enough to see the shape, and few enough for a phone."""


def build_histogram(bins: Iterable[tuple[float, float, int]], percentiles: Sequence[float] | None = None) -> Latency:
    """The histogram of answers by their latency.

    Args:
        bins: Lower and upper bound in seconds, and the number of answers. The bounds are logarithmic: twenty bins
            make a factor of ten, and one bound is a second.
        percentiles: Seconds within which 50, 90 and 99 % of the answers came.
    """
    counts = {round(log10(low) * _FINE): count for low, _, count in bins if count}
    if not counts:
        return Latency()
    low, high = min(counts), max(counts)
    together = next(
        (fine for step in _STEPS if high // (fine := _FINE // step) - low // fine < _MAX_BINS),
        _FINE,
    )
    first, last = low // together, high // together + 1
    drawn = [0] * (last - first)
    for place, count in counts.items():
        drawn[place // together - first] += count
    p50, p90, p99 = percentiles or (None, None, None)
    return Latency(
        edges=tuple(float(10 ** (place * together / _FINE)) for place in range(first, last + 1)),
        counts=tuple(drawn),
        p50=p50,
        p90=p90,
        p99=p99,
    )
