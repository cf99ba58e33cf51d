"""What must be true of every run, whatever the weather. Pure: each function reads a trace and yields what is wrong.

The numbers are those under which violations are reported:

1. No window of w seconds sees more sends than burst + rate · w + 1.
2. Requests under way are never fewer than none or more than the slots; at rest nothing is left.
3. What is granted is sent or given back.
4. First in, first out within a lane; a refused request keeps its place.
5. A free slot, a token and a waiter: a grant without time passing.
6. Cancelling leaks nothing (seen as 2) and spoils nobody else's run (seen as 9 and 10).
7. Nothing leaves after its deadline, or while the service asked everybody to wait; while a rate is looked for, a second
   that was asked for may have been rounded up.
8. No more attempts than the policy allows, and none that is billed unsaid.
9. One outcome for each prompt, and it is that prompt's.
10. Every run ends.
11. Nothing leaves while the client is paused.
12. No more tokens are used than the limit allows, and the client's book of them is right.

Limits are those in force: they may change during a run. What is under way when they do goes on.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from onellm_async.events import Granted, Refused, Retrying, Sent
from onellm_async.failure_kinds import RULES
from onellm_async.limits.rounding import Rounding
from onellm_async.simulation.trace import RESOLUTION, Cancelled, Left, Paused, Resumed, Retuned, Returned, Trace
from onellm_async.simulation.waits import Wait, waits

__all__ = ["violations"]

_LONGEST_RETRY_AFTER = 300.0
"""Seconds; the client waits no longer, whatever the service says."""
_MOST_OF_EACH = 3


def violations(trace: Trace) -> list[str]:
    """Everything that is wrong with a run, a few examples of each kind."""
    found: list[str] = []
    for number, check in enumerate(_CHECKS, 1):
        found += [f"({number}) {text}" for text in islice(check(trace), _MOST_OF_EACH)]
    return found


def sends_keep_to_the_limit(trace: Trace) -> Iterator[str]:
    """Holds the sends against a bucket of the true size; those that never arrived used nothing."""
    if trace.true_limit is None:
        return
    rate, burst = trace.true_limit.per_second, trace.true_limit.burst
    level, last = 0.0, 0.0
    for at in _arrived(trace):
        level = max(0.0, level - (at - last) * rate) + 1
        last = at
        if level > burst + 1 + 1e-6:
            yield f"at {at:.3f} s more than {burst:g} + {rate:g} w + 1 requests have left, by {level - burst - 1:.3f}"


def _arrived(trace: Trace) -> list[float]:
    """When each request left that did not surely fail on its way, in order."""
    left: dict[int, float] = {}
    times: list[float] = []
    for event in trace.events:
        if isinstance(event, Left):
            left[event.request] = event.at
        elif isinstance(event, Returned) and event.arrived:
            times.append(left[event.request])
    return sorted(times)


def slots_bound_what_is_under_way(trace: Trace) -> Iterator[str]:
    """Counts the requests under way, which the client must know of, and reads what is left over in the end."""
    under_way, slots, retuned_at, slots_before = 0, trace.limits.max_concurrency, float("-inf"), 0
    for event in trace.events:
        match event:
            case Retuned():
                slots_before = max(slots, slots_before if event.at <= retuned_at + RESOLUTION else 0)
                slots, retuned_at = event.limits.max_concurrency, event.at
            case Left():
                under_way += 1
                most = slots if event.at > retuned_at + RESOLUTION else max(slots, slots_before)
                if under_way > most:
                    yield f"{under_way} of {most} requests under way at {event.at:.3f} s"
            case Returned():
                under_way -= 1
                if under_way < 0:
                    yield f"{under_way} requests under way at {event.at:.3f} s"
    yield from trace.phantoms
    yield from trace.left_over


def what_is_granted_is_sent(trace: Trace) -> Iterator[str]:
    """From outside, nothing that was granted can be given back: it must leave in the same moment."""
    granted: dict[int, float] = {}
    for event in trace.events:
        match event:
            case Granted():
                granted[event.request] = event.at
            case Left() if abs(granted.pop(event.request, -1.0) - event.at) > RESOLUTION:
                yield f"request {event.request} left at {event.at:.3f} s without leave"
            case Returned() if event.request in granted:
                yield f"request {event.request} was granted twice"
    yield from (f"request {request} was granted at {at:.3f} s, and never left" for request, at in granted.items())


def lanes_are_first_in_first_out(trace: Trace) -> Iterator[str]:
    """Looks for a request that left although one in front of it in its lane went on waiting."""
    found = waits(trace.events)
    for lane in {wait.lane: None for wait in found}:
        yield from _overtakings([wait for wait in found if wait.lane == lane])


def _overtakings(lane: Sequence[Wait]) -> Iterator[str]:
    passed = sorted((wait for wait in lane if wait.granted_at is not None), key=lambda wait: wait.granted_at or 0.0)
    waiting: list[Wait] = []
    still_to_come = sorted(lane, key=lambda wait: wait.since, reverse=True)
    for wait in passed:
        now = wait.granted_at or 0.0
        while still_to_come and still_to_come[-1].since < now - RESOLUTION:
            waiting.append(still_to_come.pop())
        waiting = [other for other in waiting if other.until > now + RESOLUTION]
        for other in waiting:
            if other.place < wait.place:
                yield f"request {wait.request} overtook request {other.request} in {wait.lane} at {now:.3f} s"


def waiters_leave_as_soon_as_they_may(trace: Trace) -> Iterator[str]:
    """Reads what was seen whenever nothing was left to be done for a while."""
    yield from trace.idle_waits


def cancelling_leaves_nothing(trace: Trace) -> Iterator[str]:
    """A cancelled request is never heard of again."""
    gone: set[int] = set()
    for event in trace.events:
        if isinstance(event, Cancelled):
            gone.add(event.request)
        elif event.request in gone:
            yield f"request {event.request} was cancelled, and there is a {type(event).__name__} at {event.at:.3f} s"


def nothing_leaves_late_or_while_told_to_wait(trace: Trace) -> Iterator[str]:
    """Compares each send with its deadline and with every Retry-After before it."""
    open_from = told_at = float("-inf")
    limits = trace.limits
    for event in trace.events:
        rounded = Rounding.LONGEST if limits.mode == "discover" else 0.0
        match event:
            case Retuned():
                limits = event.limits
            case Refused(retry_after=float() | int() as asked) if asked > rounded:
                told = min(event.retry_after or 0.0, _LONGEST_RETRY_AFTER)
                open_from, told_at = max(open_from, event.at + told), event.at
            case Sent():
                if open_from > event.at + RESOLUTION and event.at > told_at + RESOLUTION:
                    yield f"request {event.request} left at {event.at:.3f} s, told to wait until {open_from:.3f} s"
                deadline = trace.deadlines.get(event.request)
                if deadline is not None and event.at > deadline + RESOLUTION:
                    yield f"request {event.request} left at {event.at:.3f} s, after its deadline {deadline:.3f} s"


def attempts_keep_to_the_policy(trace: Trace) -> Iterator[str]:
    """Counts attempts. A request of a fan-out waits for a service that it cannot reach, whatever its attempts."""
    for event in trace.events:
        match event:
            case Retrying():
                waits = RULES[event.error.kind].retry == "wait for ready" and event.request not in trace.singles
                if event.attempt >= trace.retry.max_attempts and not waits:
                    yield f"request {event.request} is repeated after {event.attempt} attempts"
    yield from _unsaid_bills(trace)


def _unsaid_bills(trace: Trace) -> Iterator[str]:
    for outcome in trace.outcomes:
        prompt = str(outcome.prompt)
        answer = outcome.response or outcome.error
        said = (answer.possibly_billed if answer is not None else 0) + (outcome.response is not None)
        if trace.billed.get(prompt, 0) > said:
            yield f"prompt {prompt} was billed {trace.billed[prompt]} times, and the client speaks of {said}"


def every_prompt_has_one_outcome_that_is_its_own(trace: Trace) -> Iterator[str]:
    """Holds the outcomes against the prompts; the service says each prompt again."""
    told = Counter(outcome.index for outcome in trace.outcomes)
    yield from (f"prompt {index} has {count} outcomes" for index, count in told.items() if count > 1)
    if trace.complete:
        missing = [index for index in range(len(trace.asked)) if index not in told]
        yield from (f"prompt {index} has no outcome" for index in missing)
    for outcome in trace.outcomes:
        if outcome.prompt != trace.asked[outcome.index]:
            yield f"outcome {outcome.index} is of prompt {outcome.prompt}"
        elif outcome.response is not None and outcome.response.content != outcome.prompt:
            yield f"prompt {outcome.prompt} has the answer {outcome.response.content!r}"
        elif (outcome.response is None) == (outcome.error is None):
            yield f"prompt {outcome.prompt} has neither an answer nor an error, or both"
    yield from (f"chat {asked} has the answer {said!r}" for asked, said in trace.single_answers if asked != said)


def the_run_ends(trace: Trace) -> Iterator[str]:
    """Whatever went wrong has an end in every scenario, so the run has one, too."""
    if not trace.complete:
        yield f"{len(trace.asked) - len(trace.outcomes)} prompts were still open when the run was given up"


def nothing_leaves_while_paused(trace: Trace) -> Iterator[str]:
    """What was granted in the very moment of the pause may still leave."""
    paused_at: float | None = None
    for event in trace.events:
        match event:
            case Paused() if paused_at is None:
                paused_at = event.at
            case Resumed():
                paused_at = None
            case Sent() | Left() if paused_at is not None and event.at > paused_at + RESOLUTION:
                yield f"request {event.request} left at {event.at:.3f} s, after the pause at {paused_at:.3f} s"


def tokens_keep_to_the_limit(trace: Trace) -> Iterator[str]:
    """Reads where client and observer disagreed about its tokens, and where it used some that were not there."""
    yield from trace.token_errors


_CHECKS: Sequence[Callable[[Trace], Iterator[str]]] = (
    sends_keep_to_the_limit,
    slots_bound_what_is_under_way,
    what_is_granted_is_sent,
    lanes_are_first_in_first_out,
    waiters_leave_as_soon_as_they_may,
    cancelling_leaves_nothing,
    nothing_leaves_late_or_while_told_to_wait,
    attempts_keep_to_the_policy,
    every_prompt_has_one_outcome_that_is_its_own,
    the_run_ends,
    nothing_leaves_while_paused,
    tokens_keep_to_the_limit,
)
