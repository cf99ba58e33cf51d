"""Where the time of a run went, over all its sessions, from the snapshots among its samples. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, fields

from onellm_async.chat import JSON
from onellm_async.limits.bottleneck import BOTTLENECK_LABELS
from onellm_async.limits.bottleneck_analysis import analyze_bottlenecks
from onellm_async.limits.snapshot import Snapshot
from onellm_async.report.model import RunSession, Share, Verdict

__all__ = ["verdict_of"]

_COUNTERS = ("answered", "rate_limited", "unanswered", "retried")
_LEAST = 0.001
"""Shares below a tenth of a percent would not be seen."""


def verdict_of(sessions: Sequence[RunSession], samples: Sequence[tuple[float, JSON]]) -> Verdict | None:
    """Where the time went; None where too few snapshots were taken to tell.

    Args:
        sessions: In order.
        samples: Unix seconds and what the run noted of itself then, in order.
    """
    told = analyze_bottlenecks(_one_after_another(sessions, samples))
    if not told.shares:
        return None
    return Verdict(
        told.summary,
        tuple(Share(BOTTLENECK_LABELS[name], share) for name, share in told.shares.items() if share >= _LEAST),
    )


def _one_after_another(sessions: Sequence[RunSession], samples: Sequence[tuple[float, JSON]]) -> Iterator[Snapshot]:
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
    """What a sample holds of a `Snapshot`; None where it holds too little, as another version may have written it."""
    taken = sample.get("snapshot") if isinstance(sample, Mapping) else None
    if not isinstance(taken, Mapping) or not {"max_concurrency", "bottleneck", "in_flight"} <= taken.keys():
        return None
    return Snapshot(**{name: taken[name] for each in fields(Snapshot) if (name := each.name) in taken})
