"""The core of admission: (state, event, time) → grants, and the next wake-up. Pure.

A ticket goes QUEUED → GRANTED → RELEASED, or from QUEUED to CANCELLED. A grant takes from every dimension (a slot, a
request of the rate, the estimated tokens), all or none.
"""

from collections import Counter
from collections.abc import Hashable
from operator import itemgetter

from onellm_async.errors import DeadlineExceededError, QueueFullError
from onellm_async.limits.bottleneck import Bottleneck
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.dimensions import DIMENSIONS, Concurrency, Dimension, Requests, Tokens, dimension_of
from onellm_async.limits.gate import Gate
from onellm_async.limits.policy import LANES, PACED_LANE, RESERVED_LANE, Limits
from onellm_async.limits.queue import GRANTED, QUEUED, RELEASED, Queue, Ticket
from onellm_async.limits.rate_control import RateControl
from onellm_async.limits.usual_latency import UsualLatency

_NEVER = float("inf")
INTERACTIVE_RESERVE = 3.0
"""Tokens that the other lanes leave in the bucket once there was an interactive request. So many interactive requests
may come at the same moment and be sent at once. They are saved once, which delays a batch by three refills."""
FLOW_SHARE = 8
"""Tickets that a flow may have pending for each free place in the queue, as with the dynamic thresholds of packet
switches. So one flow alone fills 8/9 of it, two fill 8/17 each, and there is always room for another."""
MAX_ROUNDED = 1.0
"""Seconds of a Retry-After that may have been rounded up."""


class Admission:
    """Decides which request may be sent when.

    Args:
        limits: As declared.
        rate: Controls the rate of requests.
        now: The current time in seconds, on the clock that all later calls use.

    Attributes:
        waiting: Number of queued tickets.
        pending: Of these, the number that count toward `Limits.max_pending`.
        slots: The dimension of concurrency.
        requests: The dimension of the rate.
        advertised: Limit of requests and number remaining, as a reply last said in its headers.
        costs_differ: Whether there is a limit beside these two, of which one request needs more than another.
        interactive_seen: Whether there was an interactive request, so that the reserve applies.
    """

    def __init__(self, limits: Limits, rate: RateControl, now: float) -> None:
        self.limits: Limits = limits
        self.queue: Queue = Queue(LANES)
        self.waiting: int = 0
        self.pending: int = 0
        self._pending_of: Counter[Hashable] = Counter()
        self.answers: int = 0
        self.rate_limited_requests: int = 0
        self.unanswered: int = 0
        self.advertised: tuple[float | None, float | None] = (None, None)
        self.latency: UsualLatency = UsualLatency()
        self._all = tuple(kind(limits, now) for kind in DIMENSIONS)
        self.slots: Concurrency = dimension_of(self._all, Concurrency)
        self.requests: Requests = dimension_of(self._all, Requests)
        self.requests.control(rate)
        self.slots.control = rate
        self._tokens: Tokens = dimension_of(self._all, Tokens)
        self._limited: tuple[Dimension, ...]
        self._further: tuple[Dimension, ...]
        self.costs_differ: bool
        self._leave_out_unlimited()
        self.gate: Gate = Gate()
        self._anyone = Ticket(RESERVED_LANE)
        """The request that must wait least."""
        self._next_order = 0
        self.interactive_seen: bool = False

    def _leave_out_unlimited(self) -> None:
        self._limited = tuple(dimension for dimension in self._all if dimension.is_limited)
        # Concurrency and rate always take part. Each chat passes them, so they are called by name: in a loop over
        # objects of several classes, Python looks each method up anew.
        self._further = tuple(
            dimension for dimension in self._limited if dimension is not self.slots and dimension is not self.requests
        )
        self.costs_differ = bool(self._further)

    @property
    def in_flight(self) -> int:
        """Number of requests in flight."""
        return self.slots.in_flight

    @property
    def concurrency(self) -> int:
        """Maximum number of requests in flight now."""
        return self.slots.allowed

    @property
    def rate(self) -> RateControl:
        """Controls the rate of requests."""
        return self.requests.rate

    @property
    def tokens(self) -> TokenBucket | None:
        """Tokens per minute; None without a limit."""
        return self._tokens.bucket

    def restore_from(self, earlier: "Admission", now: float) -> None:
        """Takes what `earlier` knows, which belongs to another event loop and perhaps to another clock.

        Queued requests and requests in flight stay where they are.
        """
        self.answers, self.rate_limited_requests, self.unanswered = (
            earlier.answers,
            earlier.rate_limited_requests,
            earlier.unanswered,
        )
        if self.tokens is not earlier.tokens:
            self._tokens.use(earlier.tokens, now)
        self.latency, self.interactive_seen = earlier.latency, earlier.interactive_seen
        self.advertised = earlier.advertised
        self.latency.forget_times(now)
        if self.tokens is not None:
            self.tokens.move_clock(now)
        self.gate.restore_from(earlier.gate, now)
        self.slots.overload = earlier.slots.overload
        self.slots.overload.forget_times()
        self.slots.found = earlier.slots.found
        if self.slots.found is not None:
            self.slots.found.move_clock()
        self.slots.resize()
        self._leave_out_unlimited()

    def try_enter(self, ticket: Ticket, now: float) -> bool:
        """Grants `ticket` at once if the queue is empty and nothing delays it. Returns whether it did."""
        if self.waiting or self._delay(ticket, now) > 0:
            return False
        if ticket.order < 0:
            self._number(ticket)
        self._grant(ticket, now)
        return True

    def enqueue(self, ticket: Ticket, now: float) -> None:
        """Queues `ticket`.

        Raises:
            QueueFullError: If the ticket is pending and `Limits.max_pending` tickets are pending already.
            DeadlineExceededError: If it cannot be sent early enough to be answered before its deadline.
        """
        requeued = ticket.order >= 0
        if requeued:
            ticket.pending = False
        self._shed(ticket, now)
        if not requeued:
            self._number(ticket)
        ticket.since = now
        self.queue.push(ticket, requeued=requeued)
        self.waiting += 1
        self.pending += ticket.pending
        if ticket.flow is not None:
            self._pending_of[ticket.flow] += ticket.pending

    def _number(self, ticket: Ticket) -> None:
        if ticket.lane == RESERVED_LANE:
            self.interactive_seen = True
        ticket.order = self._next_order
        self._next_order += 1

    def _shed(self, ticket: Ticket, now: float) -> None:
        """Sheds a ticket if the queue is full or its deadline cannot be met."""
        full = ticket.pending and self._is_full(ticket.flow)
        deadline = ticket.deadline
        if not full and deadline is None:
            return
        usual = self.latency.of(ticket.model, now)
        wait = self._estimated_wait(ticket, now, usual)
        if full:
            raise self._queue_full(ticket.flow, wait)
        if deadline is None or now + wait + (usual or 0.0) <= deadline:
            return
        if not self.gate.paused or self.gate.retry_at >= deadline:
            raise self._too_late(deadline, wait, usual, now)

    def _is_full(self, flow: Hashable) -> bool:
        max_pending = self.limits.max_pending
        if max_pending is None:
            return False
        free = max_pending - self.pending
        return free <= 0 if flow is None else self._pending_of[flow] >= FLOW_SHARE * free

    def _too_late(self, deadline: float, wait: float, usual: float | None, now: float) -> DeadlineExceededError:
        cause = f"the queue takes about {wait:.1f} s"
        if self.gate.retry_at - now >= wait:
            cause = f"the service asked to wait {wait:.1f} s (Retry-After)"
        elif self.gate.half_open and self.gate.trial_at - now >= wait:
            cause = f"the circuit is open for another {wait:.1f} s"
        answer = "" if usual is None else f" and an answer usually takes {usual:.1f} s"
        return DeadlineExceededError(
            f"The deadline is {max(0.0, deadline - now):.1f} s away, but {cause}{answer}.",
            advice="Allow more time, or ask less at once.",
        )

    def _queue_full(self, flow: Hashable, wait: float) -> QueueFullError:
        outlook = "The client is paused." if self.gate.paused else f"Estimated wait: {wait:.1f} s."
        cause = "1 request is queued" if self.pending == 1 else f"{self.pending} requests are queued"
        if not self.pending:
            cause = "no request may wait"
        elif flow is not None:
            cause += f", {self._pending_of[flow]} of them of this group"
        return QueueFullError(
            f"Queue full: {cause} (Limits.max_pending). {outlook}",
            pending=self.pending,
            retry_after=wait,
            advice="Try again later, raise Limits.max_pending, or answer your own client with 503.",
        )

    def _estimated_wait(self, ticket: Ticket, now: float, usual: float | None) -> float:
        """Seconds that `ticket` would probably wait if it was queued now; without the pause, if there is one.

        Args:
            ticket: A ticket that is not queued.
            now: The current time.
            usual: Usual latency of its model in seconds; None if not known.
        """
        ahead = 0 if ticket.order >= 0 else self.queue.ahead_of_newcomer(ticket.lane, ticket.flow)
        wait = max(self._rate_wait(ahead + 1, ticket.lane, now), self.gate.expected_at - now, 0.0)
        if not self.in_flight:  # requests in flight may give tokens back
            wait = max(wait, self._certain_wait(ticket, now))
        slots = self.slots.allowed
        releases = self.in_flight + int(ahead) + 1 - slots
        if releases > 0:
            wait = max(wait, self.latency.slot_wait(releases, self.slots.of_model, slots, usual))
        return wait

    def _rate_wait(self, requests: float, lane: str, now: float) -> float:
        return self.rate.time_until(requests, now, paced=lane == PACED_LANE)

    def _certain_wait(self, ticket: Ticket, now: float) -> float:
        """Seconds in which `ticket` certainly cannot be sent, if nothing is in flight and there is no pause."""
        wait = self.gate.expected_at - now
        ticket.reserve, ticket.paced = 0.0, False
        for dimension in self._limited:
            if dimension is not self.slots:
                wait = max(wait, dimension.time_until(ticket, now))
        return wait

    def dispatch(self, now: float) -> list[Ticket]:
        """Grants, in order, all queued tickets that may be sent now."""
        granted = []
        while self.waiting and (head := self.queue.head()) is not None and self._delay(head, now) <= 0:
            self.queue.pop(head)
            self._count_removed(head)
            self._grant(head, now)
            granted.append(head)
        return granted

    def expire(self, now: float) -> list[Ticket]:
        """Removes and returns the tickets whose deadline is over now, or before the end of a Retry-After."""
        expired = list(self.queue.expire(max(now, self.gate.retry_at)))
        for ticket in expired:
            self._count_removed(ticket)
        return expired

    def expire_unreachable(self, now: float) -> list[Ticket]:
        """Removes and returns the tickets that certainly cannot be granted before their deadline.

        That is certain only while nothing is in flight, because an answer may close the circuit or give tokens back.
        The host calls this in a turn of the loop of its own, when the consequences of the last answer are done.
        """
        if self.in_flight or self.gate.paused or self.queue.next_deadline() is None:
            return []
        unreachable = list(self.queue.expire(now + self._certain_wait(self._anyone, now)))
        while ticket := self._unreachable_head(now):
            self.queue.cancel(ticket)
            unreachable.append(ticket)
        for ticket in unreachable:
            self._count_removed(ticket)
        return unreachable

    def _unreachable_head(self, now: float) -> Ticket | None:
        if self.costs_differ:
            for head in self.queue.heads().values():
                if head.deadline is not None and head.deadline <= now + self._certain_wait(head, now):
                    return head
        return None

    def deadline_error(self, ticket: Ticket, now: float) -> DeadlineExceededError:
        """The error for a `ticket` that `expire` or `expire_unreachable` removed at `now`."""
        if ticket.deadline is None or ticket.deadline <= now:
            return DeadlineExceededError("The deadline passed while the request waited for admission.")
        wait = max(self.gate.retry_at - now, 0.0)
        if wait < ticket.deadline - now:
            wait = self._certain_wait(ticket, now)
        return self._too_late(ticket.deadline, wait, None, now)

    def _count_removed(self, ticket: Ticket) -> None:
        self.waiting -= 1
        self.pending -= ticket.pending
        if ticket.flow is not None:
            self._pending_of[ticket.flow] -= ticket.pending
            if self._pending_of[ticket.flow] <= 0:
                del self._pending_of[ticket.flow]

    def drain(self) -> list[Ticket]:
        """Removes and returns all queued tickets."""
        drained = list(self.queue.drain())
        self.waiting = self.pending = 0
        self._pending_of.clear()
        return drained

    def next_wake(self, now: float) -> float | None:
        """When to call `expire` and `dispatch` again if nothing happens before; None if only an event can help."""
        if not self.waiting:
            return None
        head = self.queue.head()
        delay = self._delay(head, now) if head is not None else _NEVER
        deadline = self.queue.next_deadline()
        if deadline is None:
            return None if delay == _NEVER else now + delay
        if not self.in_flight and not self.gate.paused:
            certain = now + self._certain_wait(self._anyone, now)
            if (now < deadline <= certain and certain > now) or self._unreachable_head(now) is not None:
                return now
        return min(now + delay, deadline)

    def bottlenecks(self, now: float) -> dict[str, Bottleneck]:
        """The bottleneck of the first ticket of each lane that is not empty."""
        return {lane: self._bottleneck(head, now) for lane, head in self.queue.heads().items()}

    def _bottleneck(self, ticket: Ticket, now: float) -> Bottleneck:
        if self.gate.paused:
            return "paused"
        if self.gate.half_open:
            return "circuit_open"
        if self.gate.retry_at > now:
            return "retry_after"
        self._set_lane_terms(ticket)
        waits = [(dimension.time_until(ticket, now), dimension.name) for dimension in self._limited]
        longest = max(waits, key=itemgetter(0))  # the first of equal ones
        return longest[1] if longest[0] > 0 else "lane"

    def _delay(self, ticket: Ticket, now: float) -> float:
        """Seconds until `ticket` may be sent; infinite while only an event can help."""
        if self.interactive_seen or ticket.lane == PACED_LANE:  # else the terms are those of a new ticket
            self._set_lane_terms(ticket)
        delay = self.slots.time_until(ticket, now)
        if delay == _NEVER:
            return delay
        wait = self.requests.time_until(ticket, now)
        if wait > delay:  # noqa: PLR1730  # `max` takes as long as the rest, and this runs for each request
            delay = wait
        for dimension in self._further:
            delay = max(delay, dimension.time_until(ticket, now))
        return self.gate.opens_at - now if self.gate.opens_at > now + delay else delay

    def _keeps_pace(self) -> bool:
        """Whether a batch is paced in its first burst: not while that would delay another lane."""
        return not self.waiting or self.waiting == self.queue.length(PACED_LANE)

    def _set_lane_terms(self, ticket: Ticket) -> None:
        """Notes on `ticket` what its lane leaves to others now."""
        lane = ticket.lane
        ticket.reserve = 0.0
        if self.interactive_seen and lane != RESERVED_LANE and not self.queue.length(RESERVED_LANE):
            ticket.reserve = INTERACTIVE_RESERVE
        ticket.paced = lane == PACED_LANE and self._keeps_pace()

    def _grant(self, ticket: Ticket, now: float) -> None:
        self.slots.take(ticket, now)
        self.requests.take(ticket, now)
        for dimension in self._further:
            dimension.take(ticket, now)
        if self.gate.half_open:
            self.gate.start_trial(ticket)
        ticket.state = GRANTED
        ticket.since = now
        ticket.answers_before = self.answers

    def cancel(self, ticket: Ticket, now: float) -> bool:
        """Cancels a request that is not sent: everything that it holds is given back. Harmless in any state.

        Returns:
            Whether another request may now be sent sooner, so that the host has to dispatch.
        """
        if ticket.state == QUEUED:
            self.queue.cancel(ticket)
            self._count_removed(ticket)
            return self.costs_differ or not self.waiting
        self._undo(ticket, now)
        return True

    def give_back(self, ticket: Ticket, now: float) -> None:
        """Records that a granted request never reached the service: slot, request and tokens are given back."""
        if ticket.state == GRANTED:
            self.unanswered += 1
            self._undo(ticket, now)

    def _undo(self, ticket: Ticket, now: float) -> None:
        if ticket.state == GRANTED:
            for dimension in self._limited:
                dimension.give_back(ticket, now)
            self.slots.ended(ticket)
            self._end(ticket)

    def release(self, ticket: Ticket, now: float) -> None:
        """Records that a request is over with an unknown result: the slot is released, the estimated tokens stand."""
        if ticket.state == GRANTED:
            self.unanswered += 1
            self._release_rate(ticket, now)
            self._settle(ticket, None, now)

    def _release_rate(self, ticket: Ticket, now: float) -> None:
        self.slots.ended(ticket)
        if ticket.since >= self.requests.counted_from:
            self.rate.released(ticket.since, now)

    def answered(self, ticket: Ticket, now: float, tokens: float | None = None) -> None:
        """Records that the service accepted a request: the slot is released, its tokens are settled.

        Args:
            ticket: The ticket of the request.
            now: The current time.
            tokens: Tokens that it used; None if not known.
        """
        if ticket.state != GRANTED:
            return
        self.answers += 1
        requests, slots = self.requests, self.slots
        if ticket.since >= requests.counted_from:
            requests.rate.answered(ticket.since, now)
        self.latency.observe(ticket.model, now - ticket.since, now)
        if slots.found is not None:
            slots.answered(ticket, now)
        if slots.overload.ceiling is not None:
            slots.overload.record_answer(slots.declared, sent_at=ticket.since, in_flight=slots.in_flight)
            slots.resize()
        slots.settle(ticket, tokens, now)
        for dimension in self._further:
            dimension.settle(ticket, tokens, now)
        ticket.state = RELEASED
        if ticket is self.gate.trial:
            self.gate.end_trial()

    def overloaded(self, ticket: Ticket, now: float) -> bool:
        """Records that the service is overloaded: slot and tokens are given back, concurrency is reduced.

        Returns:
            Whether the request was sent after the last reduction, so that the fault is an attempt of it.
        """
        if ticket.state != GRANTED:
            return True
        self.unanswered += 1
        counts = self._cut_concurrency(ticket, now)
        self._release_rate(ticket, now)
        self._settle(ticket, 0.0, now)
        return counts

    def rate_limited(self, ticket: Ticket, now: float, retry_after: float | None) -> None:
        """Records a 429: the slot is released, the tokens are given back, the rate control gets a sample."""
        if ticket.state == GRANTED:
            self.rate_limited_requests += 1
            if retry_after is not None and self._is_rounded_up(retry_after):
                retry_after = None
            if self._is_of_concurrency(ticket, now):
                self.slots.ended(ticket)
            elif self._asks_for_slots and self.slots.rate_limited(
                ticket, now, is_rate_known=self.limits.mode != "unlimited"
            ):
                pass
            elif ticket.since >= self.requests.counted_from:
                self.rate.rate_limited(ticket.since, now, retry_after=retry_after)
            self._settle(ticket, 0.0, now)
            if retry_after is not None:
                self.gate.honor_retry_after(now + retry_after)

    def _is_rounded_up(self, retry_after: float) -> bool:
        """Whether a Retry-After of a second is one because the header has whole seconds, and the next token is near.

        Discovering a rate provokes 429s. At 200 requests per second, each second that is honored costs 200 requests.
        """
        return self.limits.mode == "discover" and retry_after <= MAX_ROUNDED and self.rate.rate * retry_after > 1

    @property
    def _asks_for_slots(self) -> bool:
        """Whether a 429 may say how much is accepted at once, and the rate control does not ask for that itself."""
        mode = self.limits.mode
        return mode == "correct" or (mode == "unlimited" and not self.slots.grows)

    @property
    def limit_found(self) -> str | None:
        """What 429s have shown of the limit, in words; None if nothing is certain."""
        return ", ".join(filter(None, (self.rate.found, self.slots.limit_found(self.rate.rate)))) or None

    def _is_of_concurrency(self, ticket: Ticket, now: float) -> bool:
        """Whether a 429 says that too much was in flight, so that it takes concurrency away.

        That is asked only while the concurrency is found out. Where a rate is declared or discovered, a 429 is of the
        rate, and ends the doubling. Without a rate it is of the concurrency if all slots were in use.
        """
        slots = self.slots
        if not slots.grows:
            return False
        slots.overload.is_growing = slots.overload.is_growing and self.limits.mode == "unlimited"
        if self.limits.mode != "unlimited" or slots.size == 1:
            return False
        if not slots.overload.is_before_cut(ticket.since) and slots.in_flight < slots.size:
            return False
        self._cut_concurrency(ticket, now)
        return True

    def _cut_concurrency(self, ticket: Ticket, now: float) -> bool:
        answered = self.answers - ticket.answers_before
        counts = self.slots.overload.record_fault(ticket.since, now, in_flight=self.slots.in_flight, answered=answered)
        self.slots.resize()
        return counts

    def retune(self, limits: Limits, rate: RateControl, now: float) -> None:
        """Continues with other limits and the rate control for them.

        Queued requests and requests in flight stay. If these are more than the new limits allow, none is added until
        they are fewer.
        """
        self.limits = limits
        if rate is not self.rate:
            self.requests.control(rate, now)
            self.slots.control = rate
        for dimension in self._all:
            dimension.reconfigure(limits, now)
        self._leave_out_unlimited()

    def _settle(self, ticket: Ticket, used: float | None, now: float) -> None:
        for dimension in self._limited:
            dimension.settle(ticket, used, now)
        self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        ticket.state = RELEASED
        if ticket is self.gate.trial:
            self.gate.end_trial()
