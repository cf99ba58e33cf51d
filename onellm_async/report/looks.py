"""What a run noted of itself from time to time, as values. A sample is JSON of some version; what it lacks is None."""

from collections.abc import Iterable, Mapping

from attrs import field, frozen

from onellm_async.chat import JSON

__all__ = ["ProgressSample", "looks_of", "parse_sample"]


@frozen(kw_only=True)
class ProgressSample:
    """A run at one moment of a session.

    Attributes:
        at: Unix seconds.
        queued: Prompts waiting for admission, by lane.
        in_flight: Requests in flight; None without a sample.
        limit: Requests per minute that the limiter keeps up, declared or learned; None without a limit.
        declared: Requests per minute as declared; None where they are not.
        burst: Requests that the limit allows at once; None if unknown.
        refused: Refusals by rate limit since the session began.
        repeated: Requests sent again after a failure since the session began.
        total: Prompts of the input; None if unknown.
        bad_lines: Lines without a usable prompt that the session has met.
        cost: USD spent on what the session knows, earlier sessions included.
        input_tokens: Tokens of prompts, likewise.
        output_tokens: Tokens of answers, likewise.
    """

    at: float
    queued: Mapping[str, float] = field(factory=dict[str, float])
    in_flight: float | None = None
    limit: float | None = None
    declared: float | None = None
    burst: float | None = None
    refused: int = 0
    repeated: int = 0
    total: int | None = None
    bad_lines: int = 0
    cost: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


def parse_sample(at: float, sample: JSON) -> ProgressSample:
    """The look that a sample of the journal holds: a client's snapshot, and beside it the run's progress."""
    sample = _object(sample)
    progress = _object(sample.get("progress"))
    limiter = _object(sample.get("snapshot")) or sample
    queued = {str(lane): count for lane, text in _object(limiter.get("queued")).items() if (count := _number(text))}
    repeated = _number(limiter.get("retried"))
    total = _number(progress.get("total", sample.get("total")))
    return ProgressSample(
        at=at,
        queued=queued,
        in_flight=_number(limiter.get("in_flight")),
        limit=_number(limiter.get("rate")),
        declared=_number(limiter.get("declared_rate")),
        burst=_number(limiter.get("burst")),
        refused=int(_number(limiter.get("rate_limited")) or 0),
        repeated=int(repeated if repeated is not None else _number(progress.get("retries")) or 0),
        total=None if total is None else int(total),
        bad_lines=int(_number(progress.get("bad_lines")) or 0),
        cost=_number(progress.get("cost")) or 0.0,
        input_tokens=int(_number(progress.get("input_tokens")) or 0),
        output_tokens=int(_number(progress.get("output_tokens")) or 0),
    )


def looks_of(samples: Iterable[tuple[float, JSON]]) -> list[ProgressSample]:
    """The looks, in the order of the samples."""
    return [parse_sample(at, sample) for at, sample in samples]


def _object(value: JSON) -> Mapping[str, JSON]:
    return value if isinstance(value, Mapping) else {}


def _number(value: JSON) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
