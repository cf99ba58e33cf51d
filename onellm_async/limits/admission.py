"""The core of admission: (state, event, time) → who leaves now, and when to look again. Pure.

A ticket goes QUEUED → GRANTED → SETTLED; a request that is refused by the service goes back to QUEUED with its own
place. A grant takes a slot, a request of the rate and the estimated tokens, all together or none.
"""

from collections import defaultdict

from onellm_async.errors import DeadlineExceededError, QueueFullError
from onellm_async.limits.bottleneck import Bottleneck
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.gate import Gate
from onellm_async.limits.overload import Overload
from onellm_async.limits.policy import FIRST_LANE, LANES, PACED_LANE, Limits
from onellm_async.limits.queue import GRANTED, QUEUED, SETTLED, Queue, Ticket
from onellm_async.limits.rate_control import RateControl
from onellm_async.limits.rounding import Rounding
from onellm_async.limits.usual_latency import UsualLatency

__all__ = ["Admission"]

_NEVER = float("inf")
_KEPT = 3.0
"""Tokens that the other lanes leave for interactive requests, once there have been any: so many may come at the same
moment and leave at once. They are saved up once, which delays a batch by three refills, and used by whoever comes."""


class Admission:
    """Who may leave when.

    Args:
        limits: What the user declared.
        rate: Decides on the rate of requests.
        now: The current time, on the clock that all later calls use.

    Attributes:
        waiting: Tickets in the queue.
        pending: Of these, those that count toward `Limits.max_pending`.
        concurrency: Requests that may be in flight at once: `Limits.max_concurrency`, or fewer while the service is
            overloaded.
        hurried: Whether there has been an interactive request, so that tokens are kept for the next ones.
    """

    def __init__(self, limits: Limits, rate: RateControl, now: float) -> None:
        self.limits: Limits = limits
        self.rate: RateControl = rate
        self.queue: Queue = Queue(LANES)
        self.in_flight: int = 0
        self.waiting: int = 0
        self.pending: int = 0
        self.answers: int = 0
        self.rate_limited: int = 0
        self.unanswered: int = 0
        self.latency: UsualLatency = UsualLatency()
        self._in_flight_of: defaultdict[str | None, int] = defaultdict(int)
        self.tokens: TokenBucket | None = _token_bucket(limits, now)
        self.gate: Gate = Gate()
        self.overload: Overload = Overload()
        self.concurrency: int = limits.max_concurrency
        # A control, and a bucket of tokens, that came while requests were under way know nothing of those.
        self._counted_from = self._taken_from = -_NEVER
        self._rounding = Rounding()
        self._next_order = 0
        self.hurried: bool = False

    def take_over(self, earlier: "Admission", now: float) -> None:
        """Knows what `earlier` knew, which was of another event loop and perhaps of another clock.

        What waits and is in flight stays where it is. `earlier` has all that this knew before, if anything.
        """
        self.answers, self.rate_limited, self.unanswered = earlier.answers, earlier.rate_limited, earlier.unanswered
        if self.tokens is not earlier.tokens:
            self.tokens, self._taken_from = earlier.tokens, now
        self.latency, self.hurried = earlier.latency, earlier.hurried
        self.latency.forget_times(now)
        if self.tokens is not None:
            self.tokens.move_clock(now)
        self.gate.take_over(earlier.gate, now)
        self.overload = earlier.overload
        self.overload.forget_times()
        self._limit_concurrency()

    def _limit_concurrency(self) -> None:
        most, ceiling = self.limits.max_concurrency, self.overload.ceiling
        self.concurrency = most if ceiling is None else min(most, ceiling)

    def try_enter(self, ticket: Ticket, now: float) -> bool:
        """Grants `ticket` at once if nobody waits and everything is there."""
        if self.waiting or self._delay(ticket, now) > 0:
            return False
        if ticket.order < 0:
            self._number(ticket)
        self._grant(ticket, now)
        return True

    def enqueue(self, ticket: Ticket, now: float) -> None:
        """Lets `ticket` wait.

        Raises:
            QueueFullError: If `Limits.max_pending` pending tickets wait already, and this one would be another.
            DeadlineExceededError: If it cannot be sent early enough to be answered before its deadline.
        """
        returned = ticket.order >= 0
        if returned:
            ticket.pending = False
        self._shed(ticket, now)
        if not returned:
            self._number(ticket)
        ticket.since = now
        self.queue.push(ticket, returned=returned)
        self.waiting += 1
        self.pending += ticket.pending

    def _number(self, ticket: Ticket) -> None:
        if ticket.lane == FIRST_LANE:
            self.hurried = True
        ticket.order = self._next_order
        self._next_order += 1

    def _shed(self, ticket: Ticket, now: float) -> None:
        """Fails a ticket that would wait in vain: the queue is full, or its deadline cannot be met."""
        most = self.limits.max_pending
        full = most is not None and ticket.pending and self.pending >= most
        deadline = ticket.deadline
        if not full and deadline is None:
            return
        usual = self.latency.of(ticket.model, now)
        wait = self._estimated_wait(ticket, now, usual)
        if full:
            raise self._queue_full(wait)
        if deadline is None or now + wait + (usual or 0.0) <= deadline:
            return
        if not self.gate.paused or self.gate.retry_at >= deadline:
            raise self._too_late(deadline, wait, usual, now)

    def _too_late(self, deadline: float, wait: float, usual: float | None, now: float) -> DeadlineExceededError:
        cause = f"the queue takes about {wait:.1f} s"
        if self.gate.retry_at - now >= wait:
            cause = f"the service asked to wait {wait:.1f} s (Retry-After)"
        elif self.gate.probing and self.gate.probe_at - now >= wait:
            cause = f"the circuit is open for another {wait:.1f} s"
        answer = "" if usual is None else f" and an answer usually takes {usual:.1f} s"
        return DeadlineExceededError(
            f"The deadline is {max(0.0, deadline - now):.1f} s away, but {cause}{answer}.",
            advice="Allow more time, or ask less at once.",
        )

    def _queue_full(self, wait: float) -> QueueFullError:
        outlook = "The client is paused." if self.gate.paused else f"Estimated wait: {wait:.1f} s."
        cause = "1 request is queued" if self.pending == 1 else f"{self.pending} requests are queued"
        if not self.pending:
            cause = "no request may wait"
        return QueueFullError(
            f"Queue full: {cause} (Limits.max_pending). {outlook}",
            pending=self.pending,
            retry_after=wait,
            advice="Try again later, raise Limits.max_pending, or answer your own client with 503.",
        )

    def _estimated_wait(self, ticket: Ticket, now: float, usual: float | None) -> float:
        """Seconds that `ticket` would probably wait, if it joined the queue now; while paused, if the pause ended now.

        Args:
            ticket: One that is not in the queue.
            now: The current time.
            usual: Seconds that an answer of its model usually takes; None when not known.
        """
        ahead = 0 if ticket.order >= 0 else self.queue.ahead_of_newcomer(ticket.lane)
        paced = ticket.lane == PACED_LANE
        wait = max(self.rate.time_until(ahead + 1, now, paced=paced), self.gate.expected_at - now, 0.0)
        if not self.in_flight:  # of the tokens of others some may come back
            wait = max(wait, self._certain_wait(ticket.tokens, now))
        slots = self.concurrency
        releases = self.in_flight + int(ahead) + 1 - slots
        if releases > 0:
            wait = max(wait, self.latency.slot_wait(releases, self._in_flight_of, slots, usual))
        return wait

    def _certain_wait(self, tokens: float, now: float) -> float:
        """Seconds in which no request with so many tokens can be sent, if nothing is in flight and nothing paused."""
        wait = max(self.rate.time_until(1, now), self.gate.expected_at - now)
        if self.tokens is not None:
            wait = max(wait, self.tokens.time_until(min(tokens, self.tokens.capacity), now))
        return wait

    def dispatch(self, now: float) -> list[Ticket]:
        """Grants, in order, all waiting tickets that may leave now."""
        granted = []
        while self.waiting and (head := self.queue.head()) is not None and self._delay(head, now) <= 0:
            self.queue.pop(head)
            self._left_queue(head)
            self._grant(head, now)
            granted.append(head)
        return granted

    def expire(self, now: float) -> list[Ticket]:
        """Removes the tickets whose deadline has passed, or will before the service wants any request."""
        expired = list(self.queue.expire(max(now, self.gate.retry_at)))
        for ticket in expired:
            self._left_queue(ticket)
        return expired

    def expire_hopeless(self, now: float) -> list[Ticket]:
        """Removes the tickets that certainly cannot be granted before their deadline.

        That is certain while nothing is in flight: an answer may end an open circuit, or return tokens. The host asks
        in a turn of its own, so that what follows from the last answer has been done.
        """
        if self.in_flight or self.gate.paused or self.queue.next_deadline() is None:
            return []
        hopeless = list(self.queue.expire(now + self._certain_wait(0.0, now)))
        while ticket := self._hopeless_head(now):
            self.queue.withdraw(ticket)
            hopeless.append(ticket)
        for ticket in hopeless:
            self._left_queue(ticket)
        return hopeless

    def _hopeless_head(self, now: float) -> Ticket | None:
        if self.tokens is not None:
            for head in self.queue.heads().values():
                if head.deadline is not None and head.deadline <= now + self._certain_wait(head.tokens, now):
                    return head
        return None

    def deadline_error(self, ticket: Ticket, now: float) -> DeadlineExceededError:
        """Why `ticket` was removed by `expire` or `expire_hopeless` at `now`."""
        if ticket.deadline is None or ticket.deadline <= now:
            return DeadlineExceededError("The deadline passed while the request waited for admission.")
        wait = max(self.gate.retry_at - now, 0.0)
        if wait < ticket.deadline - now:
            wait = self._certain_wait(ticket.tokens, now)
        return self._too_late(ticket.deadline, wait, None, now)

    def _left_queue(self, ticket: Ticket) -> None:
        self.waiting -= 1
        self.pending -= ticket.pending

    def drain(self) -> list[Ticket]:
        """Removes all waiting tickets."""
        drained = list(self.queue.drain())
        self.waiting = self.pending = 0
        return drained

    def next_wake(self, now: float) -> float | None:
        """When to call `expire` and `dispatch` again if nothing happens before; None: never."""
        if not self.waiting:
            return None
        head = self.queue.head()
        delay = self._delay(head, now) if head is not None else _NEVER
        deadline = self.queue.next_deadline()
        if deadline is None:
            return None if delay == _NEVER else now + delay
        if not self.in_flight and not self.gate.paused:
            certain = now + self._certain_wait(0.0, now)
            if (now < deadline <= certain and certain > now) or self._hopeless_head(now) is not None:
                return now
        return min(now + delay, deadline)

    def bottlenecks(self, now: float) -> dict[str, Bottleneck]:
        """What the first in each lane waits for, for the lanes in which somebody waits."""
        return {lane: self._bottleneck(head, now) for lane, head in self.queue.heads().items()}

    def bottleneck(self, now: float) -> Bottleneck:
        """What the next request waits for."""
        head = self.queue.head()
        return "idle" if head is None else self._bottleneck(head, now)

    def _bottleneck(self, ticket: Ticket, now: float) -> Bottleneck:
        if self.gate.paused:
            return "paused"
        if self.gate.probing:
            return "circuit_open"
        if self.gate.retry_at > now:
            return "retry_after"
        if self.in_flight >= self.concurrency:
            return "concurrency"
        keep = self._kept_from(ticket) if self.hurried else 0.0
        rate = self.rate.time_until(1, now, keep, paced=ticket.lane == PACED_LANE and self._keeps_pace())
        delay = self._delay(ticket, now)
        if delay > rate:
            return "tokens"
        if delay <= 0:
            return "lane"
        return "backoff" if self.limits.mode == "unlimited" else "rate"

    def _delay(self, ticket: Ticket, now: float) -> float:
        """Seconds until `ticket` may leave; infinite while only an event can free it."""
        if self.in_flight >= self.concurrency:
            return _NEVER
        keep = self._kept_from(ticket) if self.hurried else 0.0
        paced = ticket.lane == PACED_LANE and self._keeps_pace()
        delay = self.rate.time_until(1, now, keep, paced=paced)
        if self.gate.opens_at > now + delay:
            delay = self.gate.opens_at - now
        if self.tokens is not None:
            # More than the bucket can hold runs alone, from a full bucket, and leaves a debt.
            delay = max(delay, self.tokens.time_until(min(ticket.tokens, self.tokens.capacity), now))
        return delay

    def _keeps_pace(self) -> bool:
        """Whether a batch keeps to the pace of its first burst: not while that would hold up another lane."""
        return not self.waiting or self.waiting == self.queue.length(PACED_LANE)

    def _kept_from(self, ticket: Ticket) -> float:
        """Tokens that are kept from `ticket` for those who will come in the first lane."""
        return 0.0 if ticket.lane == FIRST_LANE or self.queue.waits(FIRST_LANE) else _KEPT

    def _grant(self, ticket: Ticket, now: float) -> None:
        self.in_flight += 1
        self._in_flight_of[ticket.model] += 1
        self.rate.take(now)
        if self.tokens is not None:
            self.tokens.take(ticket.tokens, now)
        if self.gate.probing:
            self.gate.probed_by(ticket)
        ticket.state = GRANTED
        ticket.since = now
        ticket.answers_before = self.answers

    def withdraw(self, ticket: Ticket, now: float) -> bool:
        """Its caller has gone before sending: whatever it holds goes back. Harmless in any state.

        Returns:
            Whether that may let others leave sooner, so that the host has to look again.
        """
        if ticket.state == QUEUED:
            self.queue.withdraw(ticket)
            self._left_queue(ticket)
            return self.tokens is not None or not self.waiting
        self._undo(ticket, now)
        return True

    def give_back(self, ticket: Ticket, now: float) -> None:
        """It was granted, but never reached the service: slot, request and tokens go back."""
        if ticket.state == GRANTED:
            self.unanswered += 1
            self._undo(ticket, now)

    def _undo(self, ticket: Ticket, now: float) -> None:
        if ticket.state == GRANTED:
            if ticket.since >= self._counted_from:
                self.rate.give_back(now)
            self._return_tokens(ticket, 0, now)
            self._free(ticket)

    def settle(self, ticket: Ticket, now: float) -> None:
        """It was sent, and nobody knows how it fared: the slot is freed, the estimate of its tokens stands."""
        if ticket.state == GRANTED:
            self.unanswered += 1
            self._free(ticket)

    def answered(self, ticket: Ticket, now: float, tokens: float | None = None) -> None:
        """The service let it through: the slot is freed, tokens are corrected, rate and usual latency learn.

        Args:
            ticket: Whose request it was.
            now: The current time.
            tokens: What it used in fact; None when that is not known.
        """
        if ticket.state != GRANTED:
            return
        if tokens is not None:
            self._return_tokens(ticket, tokens, now)
        self.answers += 1
        if ticket.since >= self._counted_from:
            self.rate.answered(ticket.since, now)
        self._rounding.answered(ticket.since)
        self.latency.observe(ticket.model, now - ticket.since, now)
        if self.overload.ceiling is not None:
            self.overload.record_answer(self.limits.max_concurrency)
            self._limit_concurrency()
        self._free(ticket)

    def overloaded(self, ticket: Ticket, now: float) -> bool:
        """The service said that it is overloaded: slot and tokens go back, and fewer requests are sent at once.

        Returns:
            Whether the request was sent after concurrency was last taken away, so that this is an attempt of it.
        """
        if ticket.state != GRANTED:
            return True
        self.unanswered += 1
        counts = self.overload.record_fault(
            ticket.since, now, in_flight=self.in_flight, answered=self.answers - ticket.answers_before
        )
        self._limit_concurrency()
        self._return_tokens(ticket, 0, now)
        self._free(ticket)
        return counts

    def refused(self, ticket: Ticket, now: float, retry_after: float | None) -> None:
        """The service refused it by rate limit: the slot is freed, the tokens go back, the rate learns."""
        if ticket.state == GRANTED:
            self.rate_limited += 1
            if (
                retry_after
                and self.limits.mode == "discover"
                and not self._rounding.is_meant(ticket.since, now, retry_after, self.rate.rate)
            ):
                retry_after = None
            if ticket.since >= self._counted_from:
                self.rate.rate_limited(ticket.since, now, retry_after=retry_after)
            self._return_tokens(ticket, 0, now)
            self._free(ticket)
            if retry_after is not None:
                self.gate.wait_until(now + retry_after)

    def retune(self, limits: Limits, rate: RateControl, now: float) -> None:
        """Goes on with other limits and the rate control for them. Whoever waits or is under way is not touched.

        More may then be under way or wait than the new limits allow; nobody is added until it is fewer.
        """
        self.limits = limits
        self._limit_concurrency()
        if rate is not self.rate:
            self.rate, self._counted_from = rate, now
        per_minute = limits.tokens_per_minute
        if self.tokens is None or per_minute is None:
            self.tokens, self._taken_from = _token_bucket(limits, now), now
        else:
            self.tokens.retune(now, rate=per_minute / 60, capacity=per_minute)

    def _return_tokens(self, ticket: Ticket, used: float, now: float) -> None:
        if self.tokens is not None:
            taken = ticket.tokens if ticket.since >= self._taken_from else 0.0
            self.tokens.give_back(taken - used, now)

    def _free(self, ticket: Ticket) -> None:
        ticket.state = SETTLED
        self.in_flight -= 1
        self._in_flight_of[ticket.model] -= 1
        if not self._in_flight_of[ticket.model]:
            del self._in_flight_of[ticket.model]
        if ticket is self.gate.probe:
            self.gate.probe_ended()


def _token_bucket(limits: Limits, now: float) -> TokenBucket | None:
    per_minute = limits.tokens_per_minute
    return None if per_minute is None else TokenBucket(per_minute / 60, per_minute, updated_at=now)
