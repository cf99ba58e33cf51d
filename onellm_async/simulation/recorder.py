"""Writes a client's run down as it happens, and compares what the client says of itself with what it does."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

from onellm_async.events import Answered, Event, Failed, Granted, Queued
from onellm_async.limits.policy import Limits
from onellm_async.limits.snapshot import Snapshot
from onellm_async.simulation.token_account import TokenAccount
from onellm_async.simulation.trace import RESOLUTION, Cancelled, Left, Paused, Resumed, Retuned, Returned

__all__ = ["Recorder", "asked_until"]

asked_until: ContextVar[float | None] = ContextVar("asked_until")
"""Set where a single chat is asked: its deadline on the loop's clock. Unset in a fan-out."""


class Recorder:
    """A hook that writes everything down, and compares what the client says of itself with what it does.

    Args:
        limits: What the client is told at first.
        deadline: Seconds for each request of the fan-out; None for no end.
    """

    def __init__(self, limits: Limits, deadline: float | None = None) -> None:
        self._deadline = deadline
        self._slots = limits.max_concurrency
        self._paused = False
        self._tokens = TokenAccount(limits)
        self.events: list[Event] = []
        self.deadlines: dict[int, float] = {}
        self.singles: set[int] = set()
        self.phantoms: list[str] = []
        self.idle_waits: list[str] = []
        self._misbooked: list[str] = []
        self._request_of: dict[asyncio.Task[object], int] = {}
        self._waiting: set[int] = set()
        self._open: set[int] = set()
        self._under_way = 0

    def __call__(self, event: Event) -> None:
        """Takes note of what the client says it does."""
        self.note(event)
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

    def note(self, event: Event) -> None:
        """Takes note of what is done to the client, or of what else there is to see of it."""
        self.events.append(event)
        self._tokens.hear(event)
        match event:
            case Paused():
                self._paused = True
            case Resumed():
                self._paused = False
            case Retuned(limits=limits):
                self._slots = limits.max_concurrency

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
            self.note(Cancelled(request, "", _now(), request in self._waiting))
            self._waiting.discard(request)

    def left(self, size: int = 0) -> int:
        """The transport was given a request with a body of `size` bytes; returns the request's number."""
        task = asyncio.current_task()
        request = self._request_of[task] if task is not None else 0
        self._under_way += 1
        self.note(Left(request, "", _now(), size))
        return request

    def returned(self, request: int, *, arrived: bool) -> None:
        """The transport is done with a request."""
        self._under_way -= 1
        self.note(Returned(request, "", _now(), arrived))

    def look(self, said: Snapshot, ahead: float) -> None:
        """Takes note of what the client says when nothing is left to be done for `ahead` seconds."""
        now = _now()
        if said.in_flight != self._under_way:
            self.phantoms.append(f"at {now:.3f} s {said.in_flight} slots are taken by {self._under_way} requests")
        queued = sum(said.queued.values())
        if queued != len(self._waiting):
            self.phantoms.append(f"at {now:.3f} s {queued} are queued, but {len(self._waiting)} wait")
        if (said.paused, said.max_concurrency) != (self._paused, self._slots):
            self.phantoms.append(f"at {now:.3f} s the client does not know that it was paused, resumed or retuned")
        self._compare_tokens(said, now)
        if said.next_in is not None and not said.timer_set:
            self.idle_waits.append(f"at {now:.3f} s the next leaves in {said.next_in:g} s, but no timer is set")
        elif said.next_in is not None and ahead > said.next_in + RESOLUTION:
            self.idle_waits.append(f"at {now:.3f} s {ahead:g} s pass, but the next could leave in {said.next_in:g} s")

    def _compare_tokens(self, said: Snapshot, now: float) -> None:
        if said.tokens_level is None and not said.sent:
            return  # a client that was not asked anything yet has no level of anything
        if not self._tokens.agrees(said.tokens_level, now):
            there = self._tokens.level_at(now)
            self._misbooked.append(f"at {now:.3f} s {said.tokens_level} tokens are said to be there, not {there}")

    @property
    def token_errors(self) -> Sequence[str]:
        """Where tokens were used that were not there, or where client and observer count differently."""
        return [*self._tokens.overdrafts, *self._misbooked]


def _now() -> float:
    return asyncio.get_running_loop().time()
