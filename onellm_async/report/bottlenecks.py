"""Time by bottleneck over all sessions of a run, from the snapshots among its samples. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, fields

from onellm_async.chat import JSON
from onellm_async.limits.bottleneck_analysis import BottleneckAnalysis, analyze_bottlenecks
from onellm_async.limits.snapshot import Snapshot
from onellm_async.report.model import SessionSpan

_COUNTERS = ("answered", "rate_limited", "unanswered", "retried")


def analyze_sessions(
    sessions: Sequence[SessionSpan], samples: Sequence[tuple[float, JSON]]
) -> BottleneckAnalysis | None:
    """Time by bottleneck; None where there are too few snapshots.

    Args:
        sessions: In order.
        samples: Unix seconds and the sample that the run took then, in order.
    """
    analysis = analyze_bottlenecks(_end_to_end(sessions, samples))
    return analysis if analysis.shares else None


def _end_to_end(sessions: Sequence[SessionSpan], samples: Sequence[tuple[float, JSON]]) -> Iterator[Snapshot]:
    """The snapshots as if one client had worked without a break: each session has a clock and counters of its own."""
    worked, before = 0.0, dict.fromkeys(_COUNTERS, 0)
    for session in sessions:
        last = None
        for at, sample in samples:
            if session.started <= at <= session.ended and (last := _snapshot(sample) or last) is not None:
                counts = {name: getattr(last, name) + before[name] for name in _COUNTERS}
                yield evolve(last, at=worked + at - session.started, **counts)
        if last is not None:
            before = {name: getattr(last, name) + before[name] for name in _COUNTERS}
        worked += session.duration


def _snapshot(sample: JSON) -> Snapshot | None:
    """The snapshot in a sample; None where it lacks too much, as another version may have written it."""
    taken = sample.get("snapshot") if isinstance(sample, Mapping) else None
    if not isinstance(taken, Mapping) or not {"max_concurrency", "bottleneck", "in_flight"} <= taken.keys():
        return None
    return Snapshot(**{name: taken[name] for each in fields(Snapshot) if (name := each.name) in taken})
