"""The waits for admission in a run, derived from its events. Pure."""

from collections.abc import Iterable

from attrs import define

from onellm_async.events import Event, Failed, Granted, Queued, RateLimited, Retrying
from tests.fuzzing.trace import Cancelled


@define
class QueueWait:
    """One request's wait for one attempt.

    Attributes:
        request: Number of the request.
        lane: Its lane.
        place: Its position among all waits; after a 429 or a failure the request keeps it.
        since: When the wait began.
        until: When it ended, however; infinite if it never did.
        granted_at: When the permit was granted; None if it never was.
    """

    request: int
    lane: str
    place: int
    since: float
    until: float = float("inf")
    granted_at: float | None = None


def queue_waits(events: Iterable[Event]) -> list[QueueWait]:
    """All waits, in the order in which they began."""
    found: list[QueueWait] = []
    current: dict[int, QueueWait] = {}
    granted: dict[int, QueueWait] = {}
    kept_places: dict[int, int] = {}
    for event in events:
        match event:
            case Queued():
                place = kept_places.get(event.request, len(found))
                current[event.request] = QueueWait(event.request, event.lane, place, event.at)
                found.append(current[event.request])
            case Granted() if event.request in current:
                wait = granted[event.request] = current.pop(event.request)
                wait.until = wait.granted_at = event.at
            case RateLimited() | Retrying() if event.request in granted:
                kept_places[event.request] = granted[event.request].place
            case Failed() | Cancelled() if event.request in current:
                current.pop(event.request).until = event.at
    return found
