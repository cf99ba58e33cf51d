"""The waits for admission in a run, found in its events. Pure."""

from collections.abc import Iterable

from attrs import define

from onellm_async.events import Event, Failed, Granted, Queued, Refused, Retrying
from onellm_async.simulation.trace import Cancelled

__all__ = ["Wait", "waits"]


@define
class Wait:
    """One request's wait for one attempt.

    Attributes:
        request: Whose.
        lane: Where.
        place: Its position among all that ever queued; after a 429 or a failure it keeps the place it had.
        since: When it began.
        until: When it ended, in whatever way; infinite if it never did.
        granted_at: When it was let go, if it was.
    """

    request: int
    lane: str
    place: int
    since: float
    until: float = float("inf")
    granted_at: float | None = None


def waits(events: Iterable[Event]) -> list[Wait]:
    """All waits, in the order in which they began."""
    found: list[Wait] = []
    current: dict[int, Wait] = {}
    granted: dict[int, Wait] = {}
    kept: dict[int, int] = {}
    for event in events:
        match event:
            case Queued():
                place = kept.get(event.request, len(found))
                current[event.request] = Wait(event.request, event.lane, place, event.at)
                found.append(current[event.request])
            case Granted() if event.request in current:
                wait = granted[event.request] = current.pop(event.request)
                wait.until = wait.granted_at = event.at
            case Refused() | Retrying() if event.request in granted:
                kept[event.request] = granted[event.request].place
            case Failed() | Cancelled() if event.request in current:
                current.pop(event.request).until = event.at
    return found
