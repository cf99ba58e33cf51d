"""Lanes: which queued ticket is next. Pure.

Lanes share by weight, with stride scheduling. Each lane has a pass value that advances by 1/weight with every ticket it
sends. The lane with queued tickets and the lowest pass value is next. That interleaves lanes smoothly, where deficit
round robin would serve them in blocks, and no lane starves: a pass value stands still until it is the lowest. A lane
that was empty starts at the common pass value, so that it saves nothing up.

Within a lane the order is first in, first out, unless tickets have a *flow*, for example their user. The flows of a
lane are served round robin, one ticket each; tickets without one are another flow together. A flow that had nothing
queued starts at the end of the round.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import chain, islice, zip_longest

from onellm_async.errors import ConfigurationError

QUEUED, GRANTED, RELEASED, CANCELLED = range(4)
"""States of a ticket. A rate-limited request is queued again as a new ticket with the same `Ticket.order`."""
_MIN_COMPACTED = 64
"""Entries from which a list is compacted."""


class Ticket:
    """The claim of one request on admission.

    Attributes:
        lane: The lane it waits in.
        tokens: Estimated tokens of the request and its reply.
        model: The model of the request; None if the host does not say.
        flow: What takes turns with other flows of the lane; None is first in, first out with all others of None.
        deadline: Latest time of the grant on the limiter's clock; None without a deadline.
        order: Position among all tickets, assigned once; -1 until then. A requeued or retried request keeps it.
        pending: Whether it counts toward `Limits.max_pending` while queued. A requeued or retried one never does.
        state: ``QUEUED``, ``GRANTED``, ``RELEASED`` or ``CANCELLED``.
        since: When it was queued or granted. The request is sent when it is granted.
        answers_before: Answers of the service before the grant.
        reserve: Requests of the rate that it leaves for the interactive lane now.
        paced: Whether it belongs to a first burst that is paced now.
    """

    __slots__ = (
        "answers_before",
        "deadline",
        "flow",
        "lane",
        "model",
        "order",
        "paced",
        "pending",
        "reserve",
        "since",
        "state",
        "tokens",
    )

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
        self.flow: Hashable = None
        self.deadline: float | None = deadline
        self.order: int = order
        self.pending: bool = True
        self.state: int = QUEUED
        self.since: float = 0.0
        self.answers_before: int = 0
        self.reserve: float = 0.0
        self.paced: bool = False

    def __lt__(self, other: "Ticket") -> bool:
        return self.order < other.order


class _Lane:
    __slots__ = ("entries", "flows", "pass_value", "requeued", "size", "stride")

    def __init__(self, weight: float) -> None:
        self.stride = 1 / weight
        self.pass_value = 0.0
        self.size = 0
        self.flows: OrderedDict[Hashable, deque[Ticket]] = OrderedDict()  # the first is next
        self.entries = 0  # in the flows, cancelled ones included
        self.requeued: list[Ticket] = []  # a heap by order: these were sent before, so they go first

    def push(self, ticket: Ticket) -> None:
        self.entries += 1
        arrivals = self.flows.get(ticket.flow)
        if arrivals is None:
            self.flows[ticket.flow] = deque((ticket,))
        else:
            arrivals.append(ticket)

    def head(self) -> Ticket | None:
        requeued, flows = self.requeued, self.flows
        while requeued and requeued[0].state != QUEUED:
            heappop(requeued)
        if requeued:
            return requeued[0]
        while flows:
            flow, arrivals = next(iter(flows.items()))
            while arrivals and arrivals[0].state != QUEUED:
                arrivals.popleft()
                self.entries -= 1
            if arrivals:
                return arrivals[0]
            del flows[flow]
        return None

    def in_turn(self) -> Iterator[Ticket]:
        """The queued tickets that were never sent, in the order in which they will be."""
        queued = ((ticket for ticket in flow if ticket.state == QUEUED) for flow in self.flows.values())
        return (ticket for ticket in chain.from_iterable(zip_longest(*queued)) if ticket is not None)

    def waiting_since(self) -> float:
        """Enqueue time of the longest-waiting ticket. A 429 or a retry restarts the wait."""
        first = (next((ticket for ticket in flow if ticket.state == QUEUED), None) for flow in self.flows.values())
        return min(ticket.since for ticket in (*self.requeued[:1], *first) if ticket is not None)

    def pop(self) -> None:
        """Removes the head."""
        self.size -= 1
        if self.requeued:
            heappop(self.requeued)
            return
        flow, arrivals = next(iter(self.flows.items()))
        arrivals.popleft()
        self.entries -= 1
        if not arrivals:
            del self.flows[flow]
        elif len(self.flows) > 1:
            self.flows.move_to_end(flow)

    def ahead_of(self, newcomer: Hashable) -> int:
        """Number of queued tickets that are sent before a new one of a flow."""
        if self.flows.keys() <= {newcomer}:
            return self.size
        own = len(self.flows.get(newcomer, ()))
        ahead = sum(min(len(arrivals), own + (flow != newcomer)) for flow, arrivals in self.flows.items())
        return min(self.size, len(self.requeued) + ahead)

    def compact(self) -> None:
        """Drops cancelled tickets once they are the majority, which keeps `cancel` O(1) on average."""
        if self.entries > _MIN_COMPACTED and self.entries > 2 * self.size:
            for flow, arrivals in list(self.flows.items()):
                queued = deque(ticket for ticket in arrivals if ticket.state == QUEUED)
                self.entries -= len(arrivals) - len(queued)
                if queued:
                    self.flows[flow] = queued
                else:
                    del self.flows[flow]
        if len(self.requeued) > _MIN_COMPACTED and len(self.requeued) > 2 * self.size:
            self.requeued = [ticket for ticket in self.requeued if ticket.state == QUEUED]
            heapify(self.requeued)


class Queue:
    """Queued tickets in lanes.

    Args:
        weights: The lanes and their shares.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._lanes = {name: _Lane(weight) for name, weight in weights.items()}
        self._pass_value = 0.0
        self._deadlines: list[tuple[float, int, Ticket]] = []

    def __len__(self) -> int:
        return sum(lane.size for lane in self._lanes.values())

    def length(self, name: str) -> int:
        """Number of queued tickets in one lane."""
        return self._lanes[name].size

    def lengths(self) -> dict[str, int]:
        """Number of queued tickets in each lane."""
        return {name: lane.size for name, lane in self._lanes.items()}

    def heads(self) -> dict[str, Ticket]:
        """The next ticket of each lane that is not empty."""
        return {name: head for name, lane in self._lanes.items() if (head := lane.head()) is not None}

    def upcoming(self, name: str, count: int) -> list[Ticket]:
        """The next tickets of a lane, at most `count`."""
        lane = self._lanes[name]
        first = [ticket for ticket in lane.requeued[:count] if ticket.state == QUEUED]
        return first + list(islice(lane.in_turn(), count - len(first)))

    def waiting_since(self) -> dict[str, float]:
        """Enqueue time of the longest-waiting ticket of each lane that is not empty."""
        return {name: self._lanes[name].waiting_since() for name in self.heads()}

    def check_lane(self, name: object) -> None:
        """Rejects a lane that does not exist.

        Raises:
            ConfigurationError: With the names of the lanes.
        """
        if not isinstance(name, str) or name not in self._lanes:
            raise ConfigurationError(f"lane is {name!r}; it must be one of {', '.join(self._lanes)}.")

    def push(self, ticket: Ticket, *, requeued: bool = False) -> None:
        """Queues a ticket at the end of its flow.

        Args:
            ticket: The ticket.
            requeued: Whether it was sent before. It is then queued before all tickets with a higher `Ticket.order`.
        """
        lane = self._lanes[ticket.lane]
        if lane.size == 0:
            lane.pass_value = max(lane.pass_value, self._pass_value)
        lane.size += 1
        ticket.state = QUEUED
        if requeued:
            heappush(lane.requeued, ticket)
        else:
            lane.push(ticket)
        if ticket.deadline is not None:
            heappush(self._deadlines, (ticket.deadline, ticket.order, ticket))

    def head(self) -> Ticket | None:
        """The next ticket; None if the queue is empty."""
        best: _Lane | None = None
        for lane in self._lanes.values():
            if lane.size and (best is None or lane.pass_value < best.pass_value):
                best = lane
        return best.head() if best is not None else None

    def pop(self, ticket: Ticket) -> None:
        """Removes `ticket`, which is the head."""
        lane = self._lanes[ticket.lane]
        self._pass_value = lane.pass_value
        lane.pass_value += lane.stride
        lane.pop()
        if len(self._deadlines) > _MIN_COMPACTED:
            self._compact_deadlines(popped=ticket)

    def cancel(self, ticket: Ticket) -> None:
        """Removes a queued ticket from any position."""
        ticket.state = CANCELLED
        lane = self._lanes[ticket.lane]
        lane.size -= 1
        lane.compact()
        if len(self._deadlines) > _MIN_COMPACTED:
            self._compact_deadlines()

    def _compact_deadlines(self, popped: Ticket | None = None) -> None:
        """Drops the deadlines of tickets that are not queued any more, once they are the majority."""
        if len(self._deadlines) > 2 * len(self):
            self._deadlines = [
                entry for entry in self._deadlines if entry[2].state == QUEUED and entry[2] is not popped
            ]
            heapify(self._deadlines)

    def ahead_of_newcomer(self, name: str, flow: Hashable = None) -> float:
        """Number of tickets that would be sent before a new one of `flow` in lane `name`, by the lanes' shares."""
        own = self._lanes[name]
        competing = sum(1 / lane.stride for lane in self._lanes.values() if lane.size or lane is own)
        return min(own.ahead_of(flow) * competing * own.stride, float(len(self)))

    def next_deadline(self) -> float | None:
        """The earliest deadline of a queued ticket."""
        while self._deadlines and self._deadlines[0][2].state != QUEUED:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now: float) -> Iterator[Ticket]:
        """Removes and yields the queued tickets whose deadline is not in the future."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, _, ticket = heappop(self._deadlines)
            self.cancel(ticket)
            yield ticket

    def drain(self) -> Iterator[Ticket]:
        """Removes and yields all queued tickets."""
        while (ticket := self.head()) is not None:
            self.pop(ticket)
            ticket.state = CANCELLED
            yield ticket
