"""From the beginning of a run to all of it. Pure arithmetic.

After a warm-up (the burst is used up, the rate is found, the first wave of answers has spread) a run is in a steady
state: whatever decides, prompts leave at one pace. So the beginning is simulated, the pace is read off what
follows the warm-up, and the rest is multiplication.
"""

from bisect import bisect_right
from collections.abc import Sequence
from math import sqrt

from attrs import frozen

__all__ = ["SteadyState", "drawn_out", "settled_gaps", "steady_state"]

_FEWEST_MARKS = 3


@frozen
class SteadyState:
    """The pace of a run after its warm-up.

    Attributes:
        gap: Seconds from one prompt to the next.
        refusals: Per prompt.
        window: Prompts over which both were measured.
    """

    gap: float
    refusals: float
    window: int


def steady_state(left_at: Sequence[float], refused_at: Sequence[float], *, warm_up: int, tail: int) -> SteadyState:
    """The pace of a run without its warm-up and its end.

    While a rate is being found out, the pace swings between two refusals. A refusal says that the service's bucket is
    empty; from one empty bucket to another, what left is exactly what was refilled. So where there are refusals, the
    window reaches from one to another.

    Args:
        left_at: When each prompt left for the last time (whatever was refused or failed before), sorted.
        refused_at: When each refused request had left, sorted.
        warm_up: Prompts at the start that do not count; never more than half of them.
        tail: Prompts at the end that do not count: nobody comes after them to fill gaps.

    Example:
        >>> steady_state([0, 0, 0, 1, 2, 3, 4, 5], [], warm_up=4, tail=0).gap
        1.0
    """
    first = min(warm_up, len(left_at) // 2)
    last = max(first + 1, len(left_at) - 1 - tail)
    if last >= len(left_at):
        return SteadyState(0.0, 0.0, 0)
    start, end = left_at[first], left_at[last]
    marks = [time for time in refused_at if start < time <= end]
    if len(marks) >= _FEWEST_MARKS and marks[-1] > marks[0]:
        window = bisect_right(left_at, marks[-1]) - bisect_right(left_at, marks[0])
        if window:
            return SteadyState((marks[-1] - marks[0]) / window, (len(marks) - 1) / window, window)
    window = last - first
    return SteadyState((end - start) / window, len(marks) / window, window)


def settled_gaps(states: Sequence[SteadyState], more: int) -> list[float]:
    """The gaps of several runs, as they will be on average over `more` further prompts.

    A mean over many prompts varies less than one over few, with the root of their number; so the runs move towards
    their common mean.

    Example:
        >>> settled_gaps([SteadyState(1.0, 0, 100), SteadyState(3.0, 0, 100)], more=400)
        [1.5, 2.5]
    """
    mean = sum(state.gap for state in states) / len(states)
    return [mean + (state.gap - mean) * min(1.0, sqrt(state.window / more)) if more else mean for state in states]


def drawn_out(times: Sequence[float], gap: float, more: int, points: int) -> list[tuple[float, int]]:
    """When how many prompts were answered, with `more` prompts put in where the run was steady.

    Args:
        times: When each simulated prompt was answered, sorted.
        gap: Seconds from one further prompt to the next.
        more: Prompts that were not simulated.
        points: How many points are returned, evenly spaced in prompts.

    Returns:
        Pairs of seconds and prompts answered by then; the last one is the end.

    Example:
        >>> drawn_out([1, 2, 3, 4], gap=1.0, more=4, points=4)
        [(2, 2), (4.0, 4), (6.0, 6), (8.0, 8)]
    """
    total, middle = len(times) + more, len(times) // 2
    counts = sorted({round(total * point / points) for point in range(1, points + 1)} - {0})

    def at(count: int) -> float:
        if count <= middle:
            return times[count - 1]
        if count <= middle + more:
            return (times[middle - 1] if middle else 0.0) + (count - middle) * gap
        return times[count - more - 1] + more * gap

    return [(at(count), count) for count in counts]
