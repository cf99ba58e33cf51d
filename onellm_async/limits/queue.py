"""Who is next: lanes that share by weight, first in first out within a lane. Pure.

Each lane has a meter that runs by 1/weight with every ticket it sends; the waiting lane whose meter is lowest is next
(stride scheduling). That interleaves lanes smoothly, where deficit round robin would serve them in blocks, and none
starves: a lane's meter stands still until it is the lowest. A lane that was idle starts at the common level, so that it
cannot hoard.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import islice

from onellm_async.errors import ConfigurationError

__all__ = ["GRANTED", "QUEUED", "SETTLED", "WITHDRAWN", "Queue", "Ticket"]

QUEUED, GRANTED, SETTLED, WITHDRAWN = range(4)
_SMALL = 64
"""Entries that are not worth being compacted."""


class Ticket:
    """One request's claim on admission.

    Attributes:
        lane: Where it waits.
        tokens: Its estimated tokens.
        model: The model it asks; None when its host does not say.
        deadline: When it must have been granted, on the limiter's clock; None if ever.
        order: Position among all tickets, given once; -1 until then. A request that comes back keeps it.
        pending: Whether it counts toward `Limits.max_pending` while it waits; one that comes back never does.
        state: ``QUEUED``, ``GRANTED``, ``SETTLED`` or ``WITHDRAWN``.
        since: When it came into that state: since when it waits, or when it was granted, which is when the request
            leaves.
        answers_before: Answers of the service before it was granted.
    """

    __slots__ = ("answers_before", "deadline", "lane", "model", "order", "pending", "since", "state", "tokens")

    def __init__(
        self,
        lane: str,
        tokens: float = 0.0,
        deadline: float | None = None,
        order: int = -1,
        model: str | None = None,
    ) -> None:
        self.lane: str = lane
        self.tokens: float = tokens
        self.model: str | None = model
        self.deadline: float | None = deadline
        self.order: int = order
        self.pending: bool = True
        self.state: int = QUEUED
        self.since: float = 0.0
        self.answers_before: int = 0

    def __lt__(self, other: "Ticket") -> bool:
        return self.order < other.order


class _Lane:
    __slots__ = ("fresh", "live", "meter", "returned", "stride")

    def __init__(self, weight: float) -> None:
        self.stride = 1 / weight
        self.meter = 0.0
        self.live = 0
        self.fresh: deque[Ticket] = deque()
        self.returned: list[Ticket] = []  # heap: sent before, so ahead of all that came later

    def head(self) -> Ticket | None:
        returned, fresh = self.returned, self.fresh
        while returned and returned[0].state != QUEUED:
            heappop(returned)
        while fresh and fresh[0].state != QUEUED:
            fresh.popleft()
        return returned[0] if returned else fresh[0] if fresh else None

    def waiting_since(self) -> float:
        """Since when the longest-waiting ticket has waited. A request that comes back begins a new wait."""
        return min(ticket.since for ticket in (*self.returned[:1], *islice(self.fresh, 1)))

    def pop(self) -> None:
        self.live -= 1
        if self.returned:
            heappop(self.returned)
        else:
            self.fresh.popleft()

    def compact(self) -> None:
        """Drops withdrawn tickets once they are the majority, which keeps a withdrawal O(1) on average."""
        if len(self.fresh) > _SMALL and len(self.fresh) > 2 * self.live:
            self.fresh = deque(ticket for ticket in self.fresh if ticket.state == QUEUED)
        if len(self.returned) > _SMALL and len(self.returned) > 2 * self.live:
            self.returned = [ticket for ticket in self.returned if ticket.state == QUEUED]
            heapify(self.returned)


class Queue:
    """Waiting tickets in lanes.

    Args:
        weights: The lanes and their shares.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._lanes = {name: _Lane(weight) for name, weight in weights.items()}
        self._level = 0.0
        self._deadlines: list[tuple[float, int, Ticket]] = []

    def __len__(self) -> int:
        return sum(lane.live for lane in self._lanes.values())

    def waits(self, name: str) -> bool:
        """Whether somebody waits in that lane."""
        return self._lanes[name].live > 0

    def length(self, name: str) -> int:
        """Waiting tickets in one lane."""
        return self._lanes[name].live

    def lengths(self) -> dict[str, int]:
        """Waiting tickets in each lane."""
        return {name: lane.live for name, lane in self._lanes.items()}

    def heads(self) -> dict[str, Ticket]:
        """Who is next in each lane in which somebody waits."""
        return {name: head for name, lane in self._lanes.items() if (head := lane.head()) is not None}

    def waiting_since(self) -> dict[str, float]:
        """Since when somebody has waited in each lane in which somebody waits."""
        return {name: self._lanes[name].waiting_since() for name in self.heads()}

    def check_lane(self, name: object) -> None:
        """Refuses a lane that does not exist.

        Raises:
            ConfigurationError: Naming the lanes there are.
        """
        if not isinstance(name, str) or name not in self._lanes:
            raise ConfigurationError(f"lane is {name!r}; it must be one of {', '.join(self._lanes)}.")

    def push(self, ticket: Ticket, *, returned: bool = False) -> None:
        """Puts a new ticket at the end of its lane, or a returned one back in front of all that came later."""
        lane = self._lanes[ticket.lane]
        if lane.live == 0:
            lane.meter = max(lane.meter, self._level)
        lane.live += 1
        ticket.state = QUEUED
        if returned:
            heappush(lane.returned, ticket)
        else:
            lane.fresh.append(ticket)
        if ticket.deadline is not None:
            heappush(self._deadlines, (ticket.deadline, ticket.order, ticket))

    def head(self) -> Ticket | None:
        """The ticket that is next; None when nobody waits."""
        best: _Lane | None = None
        for lane in self._lanes.values():
            if lane.live and (best is None or lane.meter < best.meter):
                best = lane
        return best.head() if best is not None else None

    def pop(self, ticket: Ticket) -> None:
        """Removes `ticket`, which is the head."""
        lane = self._lanes[ticket.lane]
        self._level = lane.meter
        lane.meter += lane.stride
        lane.pop()
        if len(self._deadlines) > _SMALL:
            self._compact_deadlines(left=ticket)

    def withdraw(self, ticket: Ticket) -> None:
        """Removes a queued ticket from wherever it stands."""
        ticket.state = WITHDRAWN
        lane = self._lanes[ticket.lane]
        lane.live -= 1
        lane.compact()
        if len(self._deadlines) > _SMALL:
            self._compact_deadlines()

    def _compact_deadlines(self, left: Ticket | None = None) -> None:
        """Drops the deadlines of tickets that wait no longer, once they are the majority."""
        if len(self._deadlines) > 2 * len(self):
            self._deadlines = [entry for entry in self._deadlines if entry[2].state == QUEUED and entry[2] is not left]
            heapify(self._deadlines)

    def ahead_of_newcomer(self, name: str) -> float:
        """How many tickets would leave before one that joined lane `name` now, by the lanes' shares."""
        own = self._lanes[name]
        competing = sum(1 / lane.stride for lane in self._lanes.values() if lane.live or lane is own)
        return min(own.live * competing * own.stride, float(len(self)))

    def next_deadline(self) -> float | None:
        """The earliest deadline of a waiting ticket."""
        while self._deadlines and self._deadlines[0][2].state != QUEUED:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now: float) -> Iterator[Ticket]:
        """Removes and yields the waiting tickets whose deadline is not in the future."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, _, ticket = heappop(self._deadlines)
            self.withdraw(ticket)
            yield ticket

    def drain(self) -> Iterator[Ticket]:
        """Removes and yields all waiting tickets."""
        while (ticket := self.head()) is not None:
            self.pop(ticket)
            ticket.state = WITHDRAWN
            yield ticket
