"""What happened to the requests of one client in a simulated run, written down as it happens."""

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import ContextVar

from attrs import field, frozen

from onellm_async.chat import ChatOutcome
from onellm_async.events import Answered, Event, Failed, Granted, Queued
from onellm_async.limits.policy import Limits
from onellm_async.limits.snapshot import Snapshot
from onellm_async.retry import RetryPolicy

__all__ = ["Cancelled", "Left", "Recorder", "Returned", "Trace", "TrueLimit", "asked_until"]

RESOLUTION = 1e-5
"""Seconds; what lies closer together happens at the same time."""

asked_until: ContextVar[float | None] = ContextVar("asked_until")
"""Set where a single chat is asked: its deadline on the loop's clock. Unset in a fan-out."""


@frozen
class Left(Event):
    """The transport was given a request."""


@frozen
class Returned(Event):
    """The transport is done with it; `arrived` unless it surely never reached the service."""

    arrived: bool


@frozen
class Cancelled(Event):
    """Whoever asked has gone; `waiting` if the request was waiting for admission then."""

    waiting: bool


@frozen
class TrueLimit:
    """The service's bucket, where the client was told the truth about it and has it to itself."""

    per_second: float
    burst: float


@frozen(kw_only=True)
class Trace:
    """One client's run, for `violations` to judge.

    Attributes:
        limits: What the client was told.
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
    left_over: Sequence[str]
    complete: bool


class Recorder:
    """A hook that writes everything down, and compares what the client says of itself with what it does.

    Args:
        deadline: Seconds for each request of the fan-out; None for no end.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self.events: list[Event] = []
        self.deadlines: dict[int, float] = {}
        self.singles: set[int] = set()
        self.phantoms: list[str] = []
        self.idle_waits: list[str] = []
        self._request_of: dict[asyncio.Task[object], int] = {}
        self._waiting: set[int] = set()
        self._open: set[int] = set()
        self._under_way = 0

    def __call__(self, event: Event) -> None:
        """Takes note of what the client says it does."""
        self.events.append(event)
        match event:
            case Queued(request=request):
                self._waiting.add(request)
                if request not in self._open:
                    self._opened(request, event.at)
            case Granted(request=request):
                self._waiting.discard(request)
            case Answered(request=request) | Failed(request=request):
                self._waiting.discard(request)
                self._open.discard(request)

    def _opened(self, request: int, now: float) -> None:
        self._open.add(request)
        until = asked_until.get(...)
        if until is not ...:
            self.singles.add(request)
        elif self._deadline is not None:
            until = now + self._deadline
        if isinstance(until, float):
            self.deadlines[request] = until
        task = asyncio.current_task()
        if task is not None:
            if task not in self._request_of:
                task.add_done_callback(self._task_done)
            self._request_of[task] = request

    def _task_done(self, task: "asyncio.Task[object]") -> None:
        request = self._request_of.pop(task)
        if request in self._open:
            self._open.discard(request)
            self.events.append(Cancelled(request, "", _now(), request in self._waiting))
            self._waiting.discard(request)

    def left(self) -> int:
        """The transport was given a request; returns its number."""
        task = asyncio.current_task()
        request = self._request_of[task] if task is not None else 0
        self._under_way += 1
        self.events.append(Left(request, "", _now()))
        return request

    def returned(self, request: int, *, arrived: bool) -> None:
        """The transport is done with a request."""
        self._under_way -= 1
        self.events.append(Returned(request, "", _now(), arrived))

    def look(self, said: Snapshot, ahead: float) -> None:
        """Takes note of what the client says when nothing is left to be done for `ahead` seconds."""
        now = _now()
        if said.in_flight != self._under_way:
            self.phantoms.append(f"at {now:.3f} s {said.in_flight} slots are taken by {self._under_way} requests")
        queued = sum(said.queued.values())
        if queued != len(self._waiting):
            self.phantoms.append(f"at {now:.3f} s {queued} are queued, but {len(self._waiting)} wait")
        if said.next_in is not None and not said.timer_set:
            self.idle_waits.append(f"at {now:.3f} s the next leaves in {said.next_in:g} s, but no timer is set")
        elif said.next_in is not None and ahead > said.next_in + RESOLUTION:
            self.idle_waits.append(f"at {now:.3f} s {ahead:g} s pass, but the next could leave in {said.next_in:g} s")


def _now() -> float:
    return asyncio.get_running_loop().time()
