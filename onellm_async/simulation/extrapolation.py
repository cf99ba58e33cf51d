"""From the beginning of a run to all of it. Pure arithmetic.

After a warm-up a run is in a steady state: the burst is spent, the rate is discovered, the first wave of answers has
spread, and prompts are sent at one pace. So `plan` simulates the beginning, measures the pace after the warm-up, and
multiplies.
"""

from bisect import bisect_right
from collections.abc import Sequence
from math import sqrt

from attrs import frozen

_MIN_RATE_LIMITED = 3
"""429s in the measured window from which it is cut at a 429 on both sides."""


@frozen
class SteadyState:
    """The pace of a run after its warm-up.

    Attributes:
        gap: Seconds from one prompt to the next.
        rate_limited: 429s per prompt.
        window: Prompts over which both were measured.
    """

    gap: float
    rate_limited: float
    window: int


def steady_state(sent_at: Sequence[float], rate_limited_at: Sequence[float], *, warm_up: int, tail: int) -> SteadyState:
    """The pace of a run without its warm-up and its end.

    While a rate is being discovered, the pace varies between two 429s. At a 429 the service's bucket is empty, and from
    one empty bucket to another exactly the refill is spent. So with 429s the window reaches from one 429 to another.

    Args:
        sent_at: Time of each prompt's last attempt, sorted.
        rate_limited_at: Time at which each request with a 429 was sent, sorted.
        warm_up: Prompts to skip at the start, at most half of them.
        tail: Prompts to skip at the end, where no further prompts fill the gaps.

    Example:
        >>> steady_state([0, 0, 0, 1, 2, 3, 4, 5], [], warm_up=4, tail=0).gap
        1.0
    """
    first = min(warm_up, len(sent_at) // 2)
    last = max(first + 1, len(sent_at) - 1 - tail)
    if last >= len(sent_at):
        return SteadyState(0.0, 0.0, 0)
    start, end = sent_at[first], sent_at[last]
    samples = [time for time in rate_limited_at if start < time <= end]
    if len(samples) >= _MIN_RATE_LIMITED and samples[-1] > samples[0]:
        window = bisect_right(sent_at, samples[-1]) - bisect_right(sent_at, samples[0])
        if window:
            return SteadyState((samples[-1] - samples[0]) / window, (len(samples) - 1) / window, window)
    window = last - first
    return SteadyState((end - start) / window, len(samples) / window, window)


def shrink_to_mean(states: Sequence[SteadyState], more: int) -> list[float]:
    """The expected mean gap of each of several runs over `more` further prompts.

    The mean over n prompts varies with 1 / sqrt(n). So the gap of each run moves towards the mean of all runs.

    Example:
        >>> shrink_to_mean([SteadyState(1.0, 0, 100), SteadyState(3.0, 0, 100)], more=400)
        [1.5, 2.5]
    """
    mean = sum(state.gap for state in states) / len(states)
    return [mean + (state.gap - mean) * min(1.0, sqrt(state.window / more)) if more else mean for state in states]


def extrapolate(times: Sequence[float], gap: float, more: int, points: int) -> list[tuple[float, int]]:
    """The progress of a run with `more` prompts inserted in its middle, where it is steady.

    Args:
        times: Time of each simulated outcome, sorted.
        gap: Seconds from one inserted prompt to the next.
        more: Prompts that were not simulated.
        points: Number of points to return, evenly spaced in prompts.

    Returns:
        Pairs of seconds and prompts completed by then; the last pair is the end.

    Example:
        >>> extrapolate([1, 2, 3, 4], gap=1.0, more=4, points=4)
        [(2, 2), (4.0, 4), (6.0, 6), (8.0, 8)]
    """
    total, middle = len(times) + more, len(times) // 2
    counts = sorted({round(total * point / points) for point in range(1, points + 1)} - {0})

    def completed_at(count: int) -> float:
        if count <= middle:
            return times[count - 1]
        if count <= middle + more:
            return (times[middle - 1] if middle else 0.0) + (count - middle) * gap
        return times[count - more - 1] + more * gap

    return [(completed_at(count), count) for count in counts]
