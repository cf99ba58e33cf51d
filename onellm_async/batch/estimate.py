"""What the rest of a run will cost and take, by the prompts that were sent first. Pure.

The intervals are those within which 95 % of all estimates hold, if the prompts that were sent are like the others:
a sum of future draws spreads by itself, and about a mean that is known only from the sample (Student's t).
"""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist, fmean, stdev

from attrs import frozen

from onellm_async.batch.journal.record import JournalRecord, RecordState

_CONFIDENCE = 0.95


@frozen
class Interval:
    """A figure and how sure it is.

    Attributes:
        expected: What is to be expected.
        low: The least it is likely to be.
        high: The most it is likely to be.
    """

    expected: float
    low: float
    high: float


@frozen
class Capacity:
    """How fast a run can be.

    Attributes:
        requests: Per second, in the long run; None if unknown, or there is no limit.
        tokens: Per second, in the long run; likewise.
        concurrency: Maximum number of requests in flight.
    """

    requests: float | None
    tokens: float | None
    concurrency: int


@frozen
class RunEstimate:
    """What the rest of a run probably costs and takes.

    Attributes:
        based_on: Prompts with an outcome that it is based on.
        left: Prompts without an outcome.
        requests: Requests that will be sent for these; fewer where some are identical, or have their answer in a cache.
        cost: USD that these will cost; None where the price of an answer is unknown, or fewer than two are known.
        seconds: That they will take; None with fewer than two answers.
        bound_by: What sets the pace: ``"rate"``, ``"tokens"`` or ``"concurrency"``.
    """

    based_on: int
    left: int
    requests: int
    cost: Interval | None
    seconds: Interval | None
    bound_by: str


def estimate_run(
    records: Iterable[JournalRecord], requests: int, capacity: Capacity, *, left: int | None = None
) -> RunEstimate:
    """What the rest of a run will cost and take.

    Args:
        records: What the journal has of the prompts sent first.
        requests: How many requests will be sent for the others.
        capacity: How fast the run can be.
        left: How many prompts these are; None if no two are identical.

    Example:
        >>> estimate_run([], 10, Capacity(requests=2.0, tokens=None, concurrency=4)).cost is None
        True
    """
    outcomes = [record for record in records if record.state is not RecordState.IN_FLIGHT]
    sent = [record for record in outcomes if record.attempts]
    answered = [record for record in sent if record.state is RecordState.ANSWERED]
    known = len(sent) > 1 and all(record.cost is not None for record in answered)
    latencies = [record.latency for record in answered if record.latency is not None]
    tokens = [(record.input_tokens or 0) + (record.output_tokens or 0) for record in answered]
    seconds, bound_by = _pace(requests, latencies, tokens, capacity)
    return RunEstimate(
        based_on=len(outcomes),
        left=requests if left is None else left,
        requests=requests,
        cost=_sum_of(requests, [record.cost or 0.0 for record in sent]) if known else None,
        seconds=seconds,
        bound_by=bound_by,
    )


def _sum_of(number: float, sample: Sequence[float]) -> Interval:
    """The sum of so many future draws from what `sample` was drawn from."""
    expected, size = number * fmean(sample), len(sample)
    spread = _student(size - 1) * stdev(sample) * math.sqrt(number + number * number / size)
    return Interval(expected, max(0.0, expected - spread), expected + spread)


def _pace(
    sent: float, latencies: Sequence[float], tokens: Sequence[int], capacity: Capacity
) -> tuple[Interval | None, str]:
    if len(latencies) < 2:
        return None, "concurrency"
    busy = _sum_of(sent, latencies)
    paces = {"concurrency": _scaled(busy, 1 / capacity.concurrency)}
    if capacity.tokens is not None:
        paces["tokens"] = _scaled(_sum_of(sent, tokens), 1 / capacity.tokens)
    if capacity.requests is not None:
        paces["rate"] = Interval(*3 * [sent / capacity.requests])
    slowest = max(paces, key=lambda name: paces[name].expected)
    last = fmean(latencies)  # the last request is sent, and its answer is still to come
    found = [max(getattr(pace, bound) for pace in paces.values()) + last for bound in ("expected", "low", "high")]
    return Interval(*found), slowest


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(interval.expected * factor, interval.low * factor, interval.high * factor)


def _student(freedom: int) -> float:
    """The two-sided quantile of Student's t: exact for 1 and 2 degrees of freedom, else within 0.2 %."""
    share = (1 + _CONFIDENCE) / 2
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) / math.sqrt(2 * share * (1 - share))
    z = NormalDist().inv_cdf(share)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )
