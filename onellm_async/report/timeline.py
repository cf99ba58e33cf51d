"""From moments of the clock to slices of work: sessions are laid end to end and cut evenly. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import ceil

from attrs import evolve

from onellm_async.batch.journal.reader import Bucket
from onellm_async.report.looks import ProgressSample
from onellm_async.report.model import RunSession, TimeSlice

__all__ = ["bucket_width", "possible_answers", "slice_width", "slices_of"]

_MOST = 180
"""Slices of a run, about: as many as can be told apart on a screen."""
_WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400)
_DAY = 86_400.0


_FINE = 16
"""Buckets in a slice: an outcome is told at most a thirtieth of a slice too early or too late."""


def slice_width(worked: float) -> float:
    """Seconds of a slice of a run that worked so many seconds: a round number."""
    least = worked / _MOST
    return next((width for width in _WIDTHS if width >= least), ceil(least / _DAY) * _DAY)


def bucket_width(worked: float) -> float:
    """Seconds of the buckets from which the slices of a run are made that worked so many seconds."""
    return slice_width(worked) / _FINE


def slices_of(
    sessions: Sequence[RunSession], looks: Sequence[ProgressSample], buckets: Sequence[Bucket]
) -> tuple[TimeSlice, ...]:
    """The time of the sessions, cut into slices.

    All slices are equally long, but for the last of each session, which takes what is left (half a slice more or less).

    Args:
        sessions: In order.
        looks: In order.
        buckets: What was settled when, in order, each `bucket_width` long.
    """
    width = slice_width(sum(session.duration for session in sessions))
    times = [look.at for look in looks]
    middles = [bucket.at + width / _FINE / 2 for bucket in buckets]
    ends = [*(bisect_left(middles, session.started) for session in sessions[1:]), len(buckets)]
    settled = [buckets[first:last] for first, last in zip([0, *ends], ends, strict=False)]
    begun = 0.0
    made: list[TimeSlice] = []
    for place, session in enumerate(sessions):
        if session.duration > 0:
            noted = looks[bisect_left(times, session.started) : bisect_right(times, session.ended)]
            parts = _cut(place, session, begun, width, settled[place])
            made += _looked_into(parts, noted, session.requests_per_minute)
        begun += session.duration
    return tuple(_never_less(made))


def _cut(place: int, session: RunSession, begun: float, width: float, buckets: Sequence[Bucket]) -> list[TimeSlice]:
    number = max(1, round(session.duration / width))
    parts = [
        TimeSlice(
            session=place,
            start=begun + at * width,
            clock=session.started + at * width,
            width=width if at < number - 1 else session.duration - at * width,
        )
        for at in range(number)
    ]
    for bucket in buckets:
        at = max(0, min(number - 1, int((bucket.at + width / _FINE / 2 - session.started) / width)))
        part = parts[at]
        parts[at] = evolve(part, answered=part.answered + bucket.answered, failed=part.failed + bucket.failed)
    return parts


def _looked_into(
    parts: Sequence[TimeSlice], looks: Sequence[ProgressSample], declared: float | None
) -> Iterator[TimeSlice]:
    """Adds what was noted in each slice of a session; where nothing was, the look before still holds."""
    times = [look.at for look in looks]
    before, first = ProgressSample(at=0.0, limit=looks[0].limit if looks else declared), 0
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
            rate_limited=max(0, now.refused - before.refused),
            retries=max(0, now.repeated - before.repeated),
            cost=now.cost,
            input_tokens=now.input_tokens,
            output_tokens=now.output_tokens,
        )
        before, first = now, last


def _never_less(parts: Sequence[TimeSlice]) -> list[TimeSlice]:
    """A session that goes on counts anew what earlier ones spent; what is spent once stays spent."""
    costs = accumulate((part.cost for part in parts), max)
    inputs = accumulate((part.input_tokens for part in parts), max)
    outputs = accumulate((part.output_tokens for part in parts), max)
    return [
        evolve(part, cost=cost, input_tokens=tokens_in, output_tokens=tokens_out)
        for part, cost, tokens_in, tokens_out in zip(parts, costs, inputs, outputs, strict=True)
    ]


def possible_answers(sessions: Sequence[RunSession], slices: Sequence[TimeSlice]) -> float | None:
    """Requests that the limit let through in the time of the sessions: what it refilled, and a burst for each of them.

    None where the limit is not known throughout.
    """
    limits = [part.limit for part in slices]
    if not slices or any(limit is None for limit in limits):
        return None
    refilled = sum((limit or 0.0) / 60 * part.width for limit, part in zip(limits, slices, strict=True))
    return refilled + sum(session.burst or 0 for session in sessions)
