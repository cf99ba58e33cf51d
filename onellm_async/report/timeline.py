"""The active time of a run: sessions laid end to end, cut into slices of equal length. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import ceil

from attrs import evolve

from onellm_async.batch.journal.reader import Bucket
from onellm_async.report.model import ProgressSample, SessionSpan, TimeSlice

_MAX_SLICES = 180
"""About the number of slices of a run: as many as a screen can show."""
_WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400)
_USUAL_OUTCOMES = 10
"""Outcomes of a slice on average, where that leaves `_FEW_SLICES` or more."""
_FEW_SLICES = 30
_DAY = 86_400.0
_FINE = 16
"""Buckets in a slice: an outcome is shown at most a thirtieth of a slice too early or too late."""


def slice_width(worked: float, outcomes: int | None = None) -> float:
    """Seconds of a slice of a run that worked for `worked` seconds: a round number.

    Few outcomes are cut into few slices. In narrow ones the throughput would jump between nothing and many times the
    limit.

    Args:
        worked: Seconds.
        outcomes: Of the run; None for enough.
    """
    narrowest = worked / _MAX_SLICES
    if outcomes is not None:
        narrowest = max(narrowest, worked * min(_USUAL_OUTCOMES / max(1, outcomes), 1 / _FEW_SLICES))
    return next((width for width in _WIDTHS if width >= narrowest), ceil(narrowest / _DAY) * _DAY)


def bucket_width(worked: float, outcomes: int | None = None) -> float:
    """Seconds of the buckets from which `cut_slices` makes slices; the arguments are those of `slice_width`."""
    return slice_width(worked, outcomes) / _FINE


def cut_slices(
    sessions: Sequence[SessionSpan],
    samples: Sequence[ProgressSample],
    buckets: Sequence[Bucket],
    outcomes: int | None = None,
) -> tuple[TimeSlice, ...]:
    """The time of the sessions, cut into slices.

    All slices have the same length, except the last one of each session, which may be half a slice longer or shorter.

    Args:
        sessions: In order.
        samples: In order.
        buckets: Outcomes over time, in order, each `bucket_width` long.
        outcomes: As for `slice_width`.
    """
    width = slice_width(sum(session.duration for session in sessions), outcomes)
    times = [sample.at for sample in samples]
    middles = [bucket.at + width / _FINE / 2 for bucket in buckets]
    ends = [*(bisect_left(middles, session.started) for session in sessions[1:]), len(buckets)]
    settled = [buckets[first:last] for first, last in zip([0, *ends], ends, strict=False)]
    begun = 0.0
    made: list[TimeSlice] = []
    for place, session in enumerate(sessions):
        if session.duration > 0:
            noted = samples[bisect_left(times, session.started) : bisect_right(times, session.ended)]
            parts = _cut(place, session, begun, width, settled[place])
            made += _with_samples(parts, noted, session.requests_per_minute)
        begun += session.duration
    return tuple(_running_max(made))


def _cut(place: int, session: SessionSpan, begun: float, width: float, buckets: Sequence[Bucket]) -> list[TimeSlice]:
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


def _with_samples(
    parts: Sequence[TimeSlice], samples: Sequence[ProgressSample], declared: float | None
) -> Iterator[TimeSlice]:
    """Adds the samples of each slice of a session. A slice without one has the values of the sample before it."""
    times = [sample.at for sample in samples]
    before, first = ProgressSample(at=0.0, limit=samples[0].limit if samples else declared), 0
    for part in parts:
        last = len(samples) if part is parts[-1] else bisect_left(times, part.clock + part.width)
        seen = samples[first:last]
        now = seen[-1] if seen else before
        flying = [sample.in_flight for sample in seen if sample.in_flight is not None]
        yield evolve(
            part,
            limit=now.limit,
            queued=now.queued,
            in_flight=sum(flying) / len(flying) if flying else now.in_flight,
            rate_limited=max(0, now.rate_limited - before.rate_limited),
            retries=max(0, now.retries - before.retries),
            cost=now.cost,
            input_tokens=now.input_tokens,
            output_tokens=now.output_tokens,
        )
        before, first = now, last


def _running_max(parts: Sequence[TimeSlice]) -> list[TimeSlice]:
    """A resumed session counts again what earlier ones spent, so money and tokens never decrease over the run."""
    costs = accumulate((part.cost for part in parts), max)
    inputs = accumulate((part.input_tokens for part in parts), max)
    outputs = accumulate((part.output_tokens for part in parts), max)
    return [
        evolve(part, cost=cost, input_tokens=tokens_in, output_tokens=tokens_out)
        for part, cost, tokens_in, tokens_out in zip(parts, costs, inputs, outputs, strict=True)
    ]


def allowed_answers(sessions: Sequence[SessionSpan], slices: Sequence[TimeSlice]) -> float | None:
    """Requests that the limit allowed in the time of the sessions: its refill, and a burst for each session.

    None if the limit is not known throughout.
    """
    limits = [part.limit for part in slices]
    if not slices or any(limit is None for limit in limits):
        return None
    refilled = sum((limit or 0.0) / 60 * part.width for limit, part in zip(limits, slices, strict=True))
    return refilled + sum(session.burst or 0 for session in sessions)
