"""From fine bins of latencies to a histogram that can be read, and its percentiles. Pure."""

from collections.abc import Mapping
from math import ceil, floor, log10

from onellm_async.report.model import Latency

__all__ = ["BINS_PER_DECADE", "bin_of", "latency_of"]

BINS_PER_DECADE = 60
"""Fine bins are 3.9 % wide: a percentile read off them is at most that far off."""
_STEPS = (60, 20, 12, 10, 6, 4, 3, 2, 1)
"""Bins per decade of what is drawn, finest first."""
_MOST = 20
_LEAST = 1e-4


def bin_of(latency: float) -> int:
    """The fine bin of a latency in seconds, on a logarithmic scale."""
    return floor(log10(max(latency, _LEAST)) * BINS_PER_DECADE + 1e-9)


def latency_of(counts: Mapping[int, int]) -> Latency:
    """The histogram of answers by `bin_of` their latency.

    Neighbouring bins are put together until there are at most twenty, enough to see the shape on a phone.
    """
    taken = {place: count for place, count in counts.items() if count}
    if not taken:
        return Latency()
    low, high = min(taken), max(taken) + 1
    together = next(
        width for step in _STEPS if (ceil(high / (width := BINS_PER_DECADE // step)) - floor(low / width)) <= _MOST
    )
    first, last = floor(low / together), ceil(high / together)
    drawn = [0] * (last - first)
    for place, count in taken.items():
        drawn[floor(place / together) - first] += count
    return Latency(
        edges=tuple(10 ** (place * together / BINS_PER_DECADE) for place in range(first, last + 1)),
        counts=tuple(drawn),
        p50=_percentile(taken, 0.5),
        p90=_percentile(taken, 0.9),
        p99=_percentile(taken, 0.99),
    )


def _percentile(counts: Mapping[int, int], share: float) -> float:
    """Interpolated within its bin, on the logarithmic scale."""
    wanted, reached = share * sum(counts.values()), 0
    for place in sorted(counts):
        if reached + counts[place] >= wanted:
            return float(10 ** ((place + (wanted - reached) / counts[place]) / BINS_PER_DECADE))
        reached += counts[place]
    return float(10 ** ((max(counts) + 1) / BINS_PER_DECADE))
