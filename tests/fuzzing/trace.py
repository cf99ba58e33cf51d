"""Everything that happened to one client in a simulated run, as values."""

from collections.abc import Mapping, Sequence

from attrs import field, frozen

from onellm_async.chat import ChatOutcome
from onellm_async.events import Event
from onellm_async.limits.policy import Limits
from onellm_async.retry import RetryPolicy

RESOLUTION = 1e-5
"""Seconds. What lies closer together happens at the same time."""


@frozen
class RequestSent(Event):
    """The transport got a request with a body of `size` bytes."""

    size: int = 0


@frozen
class ResponseReceived(Event):
    """The transport returned or raised; `arrived` unless the request certainly never reached the service."""

    arrived: bool


@frozen
class Cancelled(Event):
    """The caller cancelled the request; `queued` if it waited for admission then."""

    queued: bool


@frozen
class Paused(Event):
    """The client was paused. It concerns no request: the number is 0, here and in the next two."""


@frozen
class Resumed(Event):
    """The client was resumed."""


@frozen
class Retuned(Event):
    """The client got other limits."""

    limits: Limits


@frozen
class Finding:
    """Something wrong that was seen while the client ran.

    Attributes:
        at: Virtual time.
        text: What is wrong.
        request: Number of the request; None if it concerns no single one.
    """

    at: float
    text: str
    request: int | None = None


@frozen
class TrueLimit:
    """The service's bucket, where the client has it to itself and was told the truth about it."""

    per_second: float
    burst: float


@frozen(kw_only=True)
class Trace:
    """The run of one client, to be checked by `violations`.

    Attributes:
        limits: The client's limits at the start.
        retry: Its retry policy.
        true_limit: The limit that its sends must keep to; None if they cannot be checked.
        events: All events in their order.
        deadlines: Deadline of each request that has one, on the loop's clock.
        singles: Requests outside of the fan-out.
        prompts: Prompts of the fan-out, in their order.
        outcomes: Outcomes of the fan-out, in the order of completion.
        chat_answers: Prompt and answer of each single chat that was answered.
        billed: Number of requests that the service billed, per prompt.
        requests: Number of the request, per prompt; empty if unknown.
        state_mismatches: Where the client's snapshot differs from what was observed.
        missed_wakeups: Where time passed although the next request could have been sent.
        token_errors: Where tokens were used that were not available, or booked otherwise than they were used.
        leaks: What is left at the end: slots, queued requests, timers, tasks.
        accepted_at: When the service accepted a request of any client, sorted.
        finished: Whether the client came to an end.
        ended_at: Virtual time of the end of the run.
    """

    limits: Limits
    retry: RetryPolicy
    true_limit: TrueLimit | None
    events: Sequence[Event] = field(repr=False)
    deadlines: Mapping[int, float]
    singles: frozenset[int]
    prompts: Sequence[str]
    outcomes: Sequence[ChatOutcome] = field(repr=False)
    chat_answers: Sequence[tuple[str, str | None]]
    billed: Mapping[str, int]
    requests: Mapping[str, int] = field(factory=dict)
    state_mismatches: Sequence[Finding]
    missed_wakeups: Sequence[Finding]
    token_errors: Sequence[Finding] = ()
    leaks: Sequence[str]
    accepted_at: Sequence[float] = field(default=(), repr=False)
    finished: bool
    ended_at: float = 0.0
