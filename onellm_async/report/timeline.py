"""From moments of the clock to slices of work: sittings are laid end to end and cut evenly. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import ceil

from attrs import evolve, frozen

from onellm_async.report.looks import Look
from onellm_async.report.model import Sitting, TimeSlice

__all__ = ["Bucket", "BucketsOf", "possible_answers", "slice_width", "slices_of"]

_MOST = 180
"""Slices of a run, about: as many as can be told apart on a screen."""
_WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400)
_DAY = 86_400.0


@frozen
class Bucket:
    """Outcomes of a stretch of time.

    Attributes:
        start: Its beginning in Unix seconds.
        answered: Prompts answered in it.
        failed: Prompts failed in it.
        cost: USD spent in it.
        input_tokens: Tokens of prompts answered in it.
        output_tokens: Tokens of answers in it.
    """

    start: float
    answered: int = 0
    failed: int = 0
    cost: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


BucketsOf = Callable[[float, float, float], Iterable[Bucket]]
"""Outcomes from one moment to another (Unix seconds) in buckets of so many seconds; empty ones may be left out."""


def slice_width(worked: float) -> float:
    """Seconds of a slice of a run that worked so many seconds: a round number."""
    least = worked / _MOST
    return next((width for width in _WIDTHS if width >= least), ceil(least / _DAY) * _DAY)


def slices_of(sittings: Sequence[Sitting], looks: Sequence[Look], buckets: BucketsOf) -> tuple[TimeSlice, ...]:
    """The time of the sittings, cut into slices.

    All slices are equally long, but for the last of each sitting, which takes what is left (half a slice more or less).

    Args:
        sittings: In order.
        looks: In order.
        buckets: Tells what was settled when.
    """
    width = slice_width(sum(sitting.duration for sitting in sittings))
    times = [look.at for look in looks]
    begun = 0.0
    made: list[TimeSlice] = []
    for place, sitting in enumerate(sittings):
        if sitting.duration > 0:
            noted = looks[bisect_left(times, sitting.started) : bisect_right(times, sitting.ended)]
            parts = _cut(place, sitting, begun, width, buckets)
            made += _looked_into(parts, noted, sitting.requests_per_minute)
        begun += sitting.duration
    return tuple(_accumulated(made))


def _cut(place: int, sitting: Sitting, begun: float, width: float, buckets: BucketsOf) -> list[TimeSlice]:
    number = max(1, round(sitting.duration / width))
    parts = [
        TimeSlice(
            sitting=place,
            start=begun + at * width,
            clock=sitting.started + at * width,
            width=width if at < number - 1 else sitting.duration - at * width,
        )
        for at in range(number)
    ]
    for bucket in buckets(sitting.started, sitting.ended, width):
        at = max(0, min(number - 1, int((bucket.start - sitting.started + width / 1e6) / width)))
        part = parts[at]
        parts[at] = evolve(
            part,
            answered=part.answered + bucket.answered,
            failed=part.failed + bucket.failed,
            cost=part.cost + bucket.cost,
            input_tokens=part.input_tokens + bucket.input_tokens,
            output_tokens=part.output_tokens + bucket.output_tokens,
        )
    return parts


def _looked_into(parts: Sequence[TimeSlice], looks: Sequence[Look], declared: float | None) -> Iterator[TimeSlice]:
    """Adds what was noted in each slice of a sitting; where nothing was, the look before still holds."""
    times = [look.at for look in looks]
    before, first = Look(at=0.0, limit=looks[0].limit if looks else declared), 0
    for part in parts:
        last = len(looks) if part is parts[-1] else bisect_left(times, part.clock + part.width)
        seen = looks[first:last]
        now = seen[-1] if seen else before
        flying = [look.in_flight for look in seen if look.in_flight is not None]
        yield evolve(
            part,
            limit=now.limit,
            queued=now.queued,
            in_flight=sum(flying) / len(flying) if flying else now.in_flight,
            refusals=max(0, now.refused - before.refused),
            retries=max(0, now.repeated - before.repeated),
        )
        before, first = now, last


def _accumulated(parts: Sequence[TimeSlice]) -> list[TimeSlice]:
    """Cost and tokens from the beginning of the run on."""
    costs = accumulate(part.cost for part in parts)
    inputs = accumulate(part.input_tokens for part in parts)
    outputs = accumulate(part.output_tokens for part in parts)
    return [
        evolve(part, cost=cost, input_tokens=tokens_in, output_tokens=tokens_out)
        for part, cost, tokens_in, tokens_out in zip(parts, costs, inputs, outputs, strict=True)
    ]


def possible_answers(sittings: Sequence[Sitting], slices: Sequence[TimeSlice]) -> float | None:
    """Requests that the limit let through in the time of the sittings: what it refilled, and a burst for each of them.

    None where the limit is not known throughout.
    """
    limits = [part.limit for part in slices]
    if not slices or any(limit is None for limit in limits):
        return None
    refilled = sum((limit or 0.0) / 60 * part.width for limit, part in zip(limits, slices, strict=True))
    return refilled + sum(sitting.burst or 0 for sitting in sittings)
