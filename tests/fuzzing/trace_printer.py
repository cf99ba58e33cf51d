"""The trace of a run as lines of text: each event with its time, request, lane, level and phase."""

from collections.abc import Sequence

from attrs import fields, frozen

from onellm_async.events import Event, Queued
from onellm_async.simulation.scenario import Scenario
from tests.fuzzing.recorder import Recorder

AROUND = 25
"""Events shown before and after the moment of ``--around``."""
_SHOWN_ELSEWHERE = {"request", "model", "at", "lane"}


@frozen
class Moment:
    """An event, and the state of the client at its time.

    Attributes:
        client: Index of the client.
        event: The event.
        lane: Lane of the request; empty if it has none.
        level: Tokens in the client's bucket of requests; None without a limit.
        phase: What the client's rate control does.
    """

    client: int
    event: Event
    lane: str
    level: float | None
    phase: str


class TracingRecorder(Recorder):
    """A recorder that also notes the client's level and phase at each event.

    Args:
        scenario: The scenario.
        moments: Where the events of all clients are added, in their order.
        client: Index of the client.
    """

    def __init__(self, scenario: Scenario, moments: list[Moment], client: int) -> None:
        super().__init__(scenario.limits, scenario.deadline)
        self._moments = moments
        self._number = client
        self._lanes: dict[int, str] = {}

    def record(self, event: Event) -> None:
        """Records any event together with the client's state."""
        super().record(event)
        if isinstance(event, Queued):
            self._lanes[event.request] = event.lane
        assert self._client is not None
        core = getattr(self._client._sender._limiter, "core", None)  # there is none before the first request
        rate = None if core is None else core.rate
        lane = self._lanes.get(event.request, "")
        self._moments.append(Moment(self._number, event, lane, level_of(rate, event.at), phase_of(rate)))


def level_of(rate: object, now: float) -> float | None:
    """Tokens in the bucket of a rate control; None if it has no bucket."""
    bucket = getattr(rate, "_bucket", None)
    return None if bucket is None else bucket.level_at(now)


def phase_of(rate: object) -> str:
    """What a rate control does, in a word: the phase of an adaptive rate, or the kind of any other."""
    if rate is None:
        return ""
    phase: str = getattr(rate, "phase", type(rate).__name__)
    return phase


def moment_lines(moments: Sequence[Moment], *, around: float | None = None) -> list[str]:
    """One line for each event, under a line of headings.

    Args:
        moments: The events.
        around: Shows only the events before and after this virtual time; None for all of them.
    """
    if around is not None:
        index = next((number for number, each in enumerate(moments) if each.event.at >= around), len(moments))
        moments = moments[max(0, index - AROUND) : index + AROUND]
    clients = len({moment.client for moment in moments}) > 1
    rows = [("time", *(["client"] if clients else []), "request", "lane", "event", "level", "phase", "")]
    for moment in moments:
        event = moment.event
        rows.append(
            (
                f"{event.at:.5f}",
                *([str(moment.client)] if clients else []),
                str(event.request or ""),
                moment.lane,
                type(event).__name__,
                "" if moment.level is None else f"{moment.level:.2f}",
                moment.phase,
                _details(event),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _details(event: Event) -> str:
    names = [each.name for each in fields(type(event)) if each.name not in _SHOWN_ELSEWHERE]
    return " ".join(f"{name}={_shown(getattr(event, name))}" for name in names)


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
