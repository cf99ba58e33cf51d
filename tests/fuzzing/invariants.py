"""What must hold in every run. Pure: each check reads a trace and yields what is wrong.

The numbers under which violations are reported:

1. No window of w seconds has more sends than burst + rate · w + 1.
2. Requests in flight are never fewer than 0 or more than the slots; at rest nothing is left.
3. Each granted permit is used at once.
4. A lane is first in, first out; a request with a 429 keeps its place.
5. With a free slot, a token and a queued request, no time passes without a grant.
6. Cancelling leaks nothing (seen as 2) and disturbs no other request (seen as 9 and 10).
7. No request is sent after its deadline or before a Retry-After has passed. While a rate is being discovered, a
   Retry-After of one second may be a rounded one.
8. No request has more attempts than the policy allows, and every possibly billed attempt is reported.
9. Each prompt has one outcome, which is its own.
10. Every run ends.
11. Nothing is sent while the client is paused.
12. No more tokens are used than the limit allows, and the client's account of them is right.
13. The service is not stormed: while it accepts nothing, a client gets no more 429s in a second than it has slots, and
    one; nine if it has few slots; 34 if it discovers the rate and has many. The first ten seconds do not count, nor a
    client whose rate 429s may not change.
"""

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from attrs import frozen

from onellm_async.events import Failed, Granted, RateLimited, Retrying, Sent
from onellm_async.failure_kinds import RULES, FailureKind
from tests.fuzzing.queue_waits import QueueWait, queue_waits
from tests.fuzzing.trace import (
    RESOLUTION,
    Cancelled,
    Finding,
    Paused,
    RequestSent,
    ResponseReceived,
    Resumed,
    Retuned,
    Trace,
)

_MAX_RETRY_AFTER = 300.0
"""Seconds. The client honors no longer Retry-After."""
_ROUNDED_RETRY_AFTER = 1.0
"""Seconds. While a rate is being discovered, a Retry-After this short may be a rounded one."""
_STARTUP = 10.0
"""Seconds from a client's first request in which it may still search for the limit."""
_MAX_429S = 34
"""429s in a second without an accepted request: the 32 requests that may be unconfirmed, and two knocks."""
_SHARE_OF_429S = 1 / 16
"""Likewise: so many of those accepted before, if that is more."""
_QUICK_429S = 9
"""429s in a second of a client with few slots. A discovered rate knocks quickly until there were six 429s. A declared
one of 50 per second needs eight, each of which takes three tenths of the rate, until the next is a second away."""
_MAX_OF_EACH = 3
"""Violations of each invariant that are reported."""


@frozen
class Violation:
    """A broken invariant.

    Attributes:
        invariant: Its number.
        at: Virtual time.
        text: What is wrong.
        request: Number of the request; None if it concerns no single one.
        client: Index of the client; None if there is only one.
    """

    invariant: int
    at: float
    text: str
    request: int | None = None
    client: int | None = None

    def __str__(self) -> str:
        client = "" if self.client is None else f"client {self.client}, "
        request = "" if self.request is None else f"request {self.request}, "
        return f"({self.invariant}) {client}{request}{self.at:.3f} s: {self.text}"


def violations(trace: Trace) -> list[Violation]:
    """All that is wrong with a run, the first few of each kind."""
    return [
        Violation(number, found.at, found.text, found.request)
        for number, check in enumerate(_CHECKS, 1)
        for found in islice(check(trace), _MAX_OF_EACH)
    ]


def sends_keep_to_the_limit(trace: Trace) -> Iterator[Finding]:
    """Replays the sends against a bucket of the true size. Requests that never arrived take nothing."""
    if trace.true_limit is None:
        return
    rate, burst = trace.true_limit.per_second, trace.true_limit.burst
    level, last = 0.0, 0.0
    for at, request in _arrived(trace):
        level = max(0.0, level - (at - last) * rate) + 1
        last = at
        if level > burst + 1 + 1e-6:
            text = f"sends exceed {burst:g} + {rate:g} w + 1 by {level - burst - 1:.3f}"
            yield Finding(at, text, request)


def _arrived(trace: Trace) -> list[tuple[float, int]]:
    """Time and number of each request that did not certainly fail on its way, sorted."""
    sent_at: dict[int, float] = {}
    arrived: list[tuple[float, int]] = []
    for event in trace.events:
        if isinstance(event, RequestSent):
            sent_at[event.request] = event.at
        elif isinstance(event, ResponseReceived) and event.arrived:
            arrived.append((sent_at[event.request], event.request))
    return sorted(arrived)


def in_flight_keeps_to_the_slots(trace: Trace) -> Iterator[Finding]:
    """Counts the requests in flight, and reads what is left at the end."""
    in_flight, slots, retuned_at, slots_before = 0, trace.limits.max_concurrency, float("-inf"), 0
    for event in trace.events:
        match event:
            case Retuned():
                slots_before = max(slots, slots_before if event.at <= retuned_at + RESOLUTION else 0)
                slots, retuned_at = event.limits.max_concurrency, event.at
            case RequestSent():
                in_flight += 1
                allowed = slots if event.at > retuned_at + RESOLUTION else max(slots, slots_before)
                if in_flight > allowed:
                    yield Finding(event.at, f"{in_flight} requests in flight, {allowed} allowed", event.request)
            case ResponseReceived():
                in_flight -= 1
                if in_flight < 0:
                    yield Finding(event.at, f"{in_flight} requests in flight", event.request)
    yield from trace.state_mismatches
    yield from (Finding(trace.ended_at, text) for text in trace.leaks)


def granted_permits_are_used(trace: Trace) -> Iterator[Finding]:
    """Seen from outside, no granted permit can be given back: the request must be sent at the same moment."""
    granted: dict[int, float] = {}
    for event in trace.events:
        match event:
            case Granted():
                granted[event.request] = event.at
            case RequestSent() if abs(granted.pop(event.request, -1.0) - event.at) > RESOLUTION:
                yield Finding(event.at, "sent without a permit", event.request)
            case ResponseReceived() if event.request in granted:
                yield Finding(event.at, "granted twice", event.request)
    yield from (Finding(at, "granted, and never sent", request) for request, at in granted.items())


def lanes_are_first_in_first_out(trace: Trace) -> Iterator[Finding]:
    """Looks for requests that were sent before an earlier one of their lane that was still queued."""
    found = queue_waits(trace.events)
    for lane in {wait.lane: None for wait in found}:
        yield from _overtakings([wait for wait in found if wait.lane == lane])


def _overtakings(lane: Sequence[QueueWait]) -> Iterator[Finding]:
    granted = sorted((wait for wait in lane if wait.granted_at is not None), key=lambda wait: wait.granted_at or 0.0)
    queued: list[QueueWait] = []
    to_come = sorted(lane, key=lambda wait: wait.since, reverse=True)
    for wait in granted:
        now = wait.granted_at or 0.0
        while to_come and to_come[-1].since < now - RESOLUTION:
            queued.append(to_come.pop())
        queued = [other for other in queued if other.until > now + RESOLUTION]
        for other in queued:
            if other.place < wait.place:
                yield Finding(now, f"overtook request {other.request} in lane {wait.lane}", wait.request)


def queued_requests_are_sent_as_soon_as_possible(trace: Trace) -> Iterator[Finding]:
    """Reads what was seen whenever time passed."""
    yield from trace.missed_wakeups


def cancelling_leaves_nothing(trace: Trace) -> Iterator[Finding]:
    """A cancelled request has no further events."""
    cancelled: set[int] = set()
    for event in trace.events:
        if isinstance(event, Cancelled):
            cancelled.add(event.request)
        elif event.request in cancelled:
            yield Finding(event.at, f"{type(event).__name__} after it was cancelled", event.request)


def deadlines_and_retry_after_are_kept(trace: Trace) -> Iterator[Finding]:
    """Compares each send with its deadline and with every Retry-After before it."""
    open_from = received_at = float("-inf")
    limits = trace.limits
    for event in trace.events:
        rounded = _ROUNDED_RETRY_AFTER if limits.mode == "discover" else 0.0
        match event:
            case Retuned():
                limits = event.limits
            case RateLimited(retry_after=float() | int() as seconds) if seconds > rounded:
                open_from, received_at = max(open_from, event.at + min(seconds, _MAX_RETRY_AFTER)), event.at
            case Sent():
                if open_from > event.at + RESOLUTION and event.at > received_at + RESOLUTION:
                    yield Finding(event.at, f"sent before the Retry-After passed at {open_from:.3f} s", event.request)
                deadline = trace.deadlines.get(event.request)
                if deadline is not None and event.at > deadline + RESOLUTION:
                    yield Finding(event.at, f"sent after its deadline at {deadline:.3f} s", event.request)


def attempts_keep_to_the_policy(trace: Trace) -> Iterator[Finding]:
    """Counts attempts. A request of a fan-out waits for an unreachable service, however many attempts it takes.

    An overload counts only if the request was sent after the last overload before it, which took concurrency away.
    """
    sent_at: dict[int, float] = {}
    uncounted: Counter[int] = Counter()
    overloaded_at = float("-inf")
    for event in trace.events:
        match event:
            case Sent():
                sent_at[event.request] = event.at
            case Retrying() | Failed() if event.error.kind is FailureKind.OVERLOADED:
                uncounted[event.request] += sent_at.get(event.request, 0.0) <= overloaded_at
                overloaded_at = event.at
        match event:
            case Retrying():
                waits = RULES[event.error.kind].retry == "wait for ready" and event.request not in trace.singles
                counted = event.attempt - uncounted[event.request]
                if counted >= trace.retry.max_attempts and not waits:
                    yield Finding(event.at, f"retried after {counted} attempts", event.request)
    yield from _unreported_bills(trace)


def _unreported_bills(trace: Trace) -> Iterator[Finding]:
    for outcome in trace.outcomes:
        prompt = str(outcome.prompt)
        result = outcome.response or outcome.error
        reported = (result.possibly_billed if result is not None else 0) + (outcome.response is not None)
        billed = trace.billed.get(prompt, 0)
        if billed > reported:
            yield _of_prompt(trace, prompt, f"was billed {billed} times, reported: {reported}")


def _of_prompt(trace: Trace, prompt: str, text: str) -> Finding:
    """A finding about a prompt, at the last event of its request."""
    request = trace.requests.get(prompt)
    at = max((event.at for event in trace.events if event.request == request), default=trace.ended_at)
    return Finding(at, f"prompt {prompt[:40]} {text}", request)


def every_prompt_has_one_outcome_of_its_own(trace: Trace) -> Iterator[Finding]:
    """Compares outcomes and prompts; the service echoes each prompt."""
    counts = Counter(outcome.index for outcome in trace.outcomes)
    for index, prompt in enumerate(trace.prompts):
        if counts[index] > 1:
            yield _of_prompt(trace, prompt, f"has {counts[index]} outcomes")
        elif trace.finished and not counts[index]:
            yield _of_prompt(trace, prompt, "has no outcome")
    for outcome in trace.outcomes:
        prompt = trace.prompts[outcome.index]
        if outcome.prompt != prompt:
            yield _of_prompt(trace, prompt, f"has the outcome of prompt {outcome.prompt}")
        elif outcome.response is not None and outcome.response.content != prompt:
            yield _of_prompt(trace, prompt, f"has the answer {outcome.response.content!r}")
        elif (outcome.response is None) == (outcome.error is None):
            yield _of_prompt(trace, prompt, "has neither an answer nor an error, or both")
    for prompt, answer in trace.chat_answers:
        if prompt != answer:
            yield _of_prompt(trace, prompt, f"has the answer {answer!r}")


def the_run_ends(trace: Trace) -> Iterator[Finding]:
    """Every scenario comes to an end, so the run must, too."""
    if not trace.finished:
        unfinished = len(trace.prompts) - len(trace.outcomes)
        yield Finding(trace.ended_at, f"{unfinished} prompts had no outcome when the run was given up")


def nothing_is_sent_while_paused(trace: Trace) -> Iterator[Finding]:
    """What was granted at the very moment of the pause may still be sent."""
    paused_at: float | None = None
    for event in trace.events:
        match event:
            case Paused() if paused_at is None:
                paused_at = event.at
            case Resumed():
                paused_at = None
            case Sent() | RequestSent() if paused_at is not None and event.at > paused_at + RESOLUTION:
                yield Finding(event.at, f"sent after the pause at {paused_at:.3f} s", event.request)


def tokens_keep_to_the_limit(trace: Trace) -> Iterator[Finding]:
    """Reads where client and observer disagreed, and where tokens were used that were not available."""
    yield from trace.token_errors


def the_service_is_not_stormed(trace: Trace) -> Iterator[Finding]:
    """Counts the 429s in each second in which no request of any client was accepted."""
    in_force = [trace.limits, *(event.limits for event in trace.events if isinstance(event, Retuned))]
    if any(limits.mode in {"off", "unlimited"} for limits in in_force):
        return
    bound = max(_QUICK_429S, 1 + max(limits.max_concurrency for limits in in_force))
    is_discovered = all(limits.mode == "discover" for limits in in_force)
    sent_at = next((event.at for event in trace.events if isinstance(event, RequestSent)), 0.0)
    recent: deque[tuple[float, int]] = deque()
    for event in trace.events:
        if not isinstance(event, RateLimited) or event.at < sent_at + _STARTUP:
            continue
        accepted = bisect_right(trace.accepted_at, event.at)
        recent.append((event.at, accepted))
        while recent[0][0] < event.at - 1 or recent[0][1] != accepted:
            recent.popleft()
        most = min(bound, max(_MAX_429S, int(_SHARE_OF_429S * accepted))) if is_discovered else bound
        if len(recent) > most:
            yield Finding(event.at, f"{len(recent)} 429s within 1 s, nothing accepted between", event.request)


_CHECKS: Sequence[Callable[[Trace], Iterator[Finding]]] = (
    sends_keep_to_the_limit,
    in_flight_keeps_to_the_slots,
    granted_permits_are_used,
    lanes_are_first_in_first_out,
    queued_requests_are_sent_as_soon_as_possible,
    cancelling_leaves_nothing,
    deadlines_and_retry_after_are_kept,
    attempts_keep_to_the_policy,
    every_prompt_has_one_outcome_of_its_own,
    the_run_ends,
    nothing_is_sent_while_paused,
    tokens_keep_to_the_limit,
    the_service_is_not_stormed,
)
