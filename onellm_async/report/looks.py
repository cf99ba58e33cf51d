"""What a run noted of itself from time to time, as values. A sample is JSON of some version; what it lacks is None."""

from collections.abc import Iterable, Mapping

from attrs import field, frozen

from onellm_async.chat import JSON

__all__ = ["Look", "look_at", "looks_of"]


@frozen(kw_only=True)
class Look:
    """A run at one moment of a sitting.

    Attributes:
        at: Unix seconds.
        queued: Prompts waiting for admission, by lane.
        in_flight: Requests under way; None where nobody looked.
        limit: Requests per minute that the limiter keeps up, declared or learned; None without a limit.
        burst: Requests that the limit allows at once; None where nobody knows.
        refused: Refusals by rate limit since the sitting began.
        repeated: Requests sent again after a failure since the sitting began.
        total: Prompts of the input; None where nobody knows.
        budget: USD that may be spent; None without a budget.
    """

    at: float
    queued: Mapping[str, float] = field(factory=dict[str, float])
    in_flight: float | None = None
    limit: float | None = None
    burst: float | None = None
    refused: int = 0
    repeated: int = 0
    total: int | None = None
    budget: float | None = None


def look_at(at: float, sample: JSON) -> Look:
    """The look that a sample of the journal holds: a client's snapshot, and beside it the run's progress."""
    sample = _object(sample)
    progress = _object(sample.get("progress"))
    limiter = _object(sample.get("snapshot")) or sample
    queued = {str(lane): count for lane, text in _object(limiter.get("queued")).items() if (count := _number(text))}
    repeated = _number(limiter.get("repeated"))
    total = _number(progress.get("total", sample.get("total")))
    return Look(
        at=at,
        queued=queued,
        in_flight=_number(limiter.get("in_flight")),
        limit=_number(limiter.get("rate")),
        burst=_number(limiter.get("burst")),
        refused=int(_number(limiter.get("refused")) or 0),
        repeated=int(repeated if repeated is not None else _number(progress.get("retries")) or 0),
        total=None if total is None else int(total),
        budget=_number(progress.get("budget", sample.get("budget"))),
    )


def looks_of(samples: Iterable[tuple[float, JSON]]) -> list[Look]:
    """The looks in their order in time."""
    return sorted((look_at(at, sample) for at, sample in samples), key=lambda look: look.at)


def _object(value: JSON) -> Mapping[str, JSON]:
    return value if isinstance(value, Mapping) else {}


def _number(value: JSON) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
