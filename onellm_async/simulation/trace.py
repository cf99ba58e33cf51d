"""What happened to one client in a simulated run, as values."""

from collections.abc import Mapping, Sequence

from attrs import field, frozen

from onellm_async.chat import ChatOutcome
from onellm_async.events import Event
from onellm_async.limits.policy import Limits
from onellm_async.retry import RetryPolicy

__all__ = ["RESOLUTION", "Cancelled", "Left", "Paused", "Resumed", "Retuned", "Returned", "Trace", "TrueLimit"]

RESOLUTION = 1e-5
"""Seconds; what lies closer together happens at the same time."""


@frozen
class Left(Event):
    """The transport was given a request, whose body has `size` bytes."""

    size: int = 0


@frozen
class Returned(Event):
    """The transport is done with it; `arrived` unless it surely never reached the service."""

    arrived: bool


@frozen
class Cancelled(Event):
    """Whoever asked has gone; `waiting` if the request was waiting for admission then."""

    waiting: bool


@frozen
class Paused(Event):
    """Somebody paused the client, which is no matter of a request: its number is 0, here and in the next two."""


@frozen
class Resumed(Event):
    """Somebody ended the pause."""


@frozen
class Retuned(Event):
    """Somebody gave the client other limits."""

    limits: Limits


@frozen
class TrueLimit:
    """The service's bucket, where the client was told the truth about it and has it to itself."""

    per_second: float
    burst: float


@frozen(kw_only=True)
class Trace:
    """One client's run, for `violations` to judge.

    Attributes:
        limits: What the client was told at first.
        retry: Its policy.
        true_limit: What its sends are held against; None when they cannot be.
        events: Everything in its order.
        deadlines: Of the requests that had one, on the loop's clock.
        singles: Requests outside of the fan-out.
        asked: Prompts of the fan-out, in their order.
        outcomes: Of the fan-out, in the order in which they were there.
        single_answers: What single chats asked and were answered, of those that were answered.
        billed: How often the service billed which prompt.
        phantoms: Where the client took more or fewer for under way or waiting than there were.
        idle_waits: Where time passed although the next could have left.
        token_errors: Where tokens were used that were not there, or are booked otherwise than they were used.
        left_over: What was still there in the end: slots, waiters, timers, tasks.
        complete: Whether the run came to its end.
    """

    limits: Limits
    retry: RetryPolicy
    true_limit: TrueLimit | None
    events: Sequence[Event] = field(repr=False)
    deadlines: Mapping[int, float]
    singles: frozenset[int]
    asked: Sequence[str]
    outcomes: Sequence[ChatOutcome] = field(repr=False)
    single_answers: Sequence[tuple[str, str | None]]
    billed: Mapping[str, int]
    phantoms: Sequence[str]
    idle_waits: Sequence[str]
    token_errors: Sequence[str] = ()
    left_over: Sequence[str]
    complete: bool
