"""Records a client's run as it happens, and compares the client's snapshots with what it observes."""

import asyncio
from collections.abc import Mapping, Sequence
from math import inf

from onellm_async import AsyncOneLLM
from onellm_async.events import Answered, Event, Failed, Granted, Queued, Retrying
from onellm_async.limits.policy import Limits
from onellm_async.simulation.simulated_client import single_chat_deadline
from onellm_async.wire import parse_json
from tests.fuzzing.token_account import TokenAccount
from tests.fuzzing.trace import (
    RESOLUTION,
    Cancelled,
    Finding,
    Paused,
    RequestSent,
    ResponseReceived,
    Resumed,
    Retuned,
)


class Recorder:
    """An observer of one simulated client.

    Args:
        limits: The client's limits at the start.
        deadline: Seconds for each request of the fan-out; None for no deadline.
    """

    def __init__(self, limits: Limits, deadline: float | None = None) -> None:
        self._deadline = deadline
        self._max_concurrency = limits.max_concurrency
        self._paused = False
        self._tokens = TokenAccount(limits)
        self._client: AsyncOneLLM | None = None
        self.events: list[Event] = []
        self.deadlines: dict[int, float] = {}
        self.singles: set[int] = set()
        self.state_mismatches: list[Finding] = []
        self.missed_wakeups: list[Finding] = []
        self._misbooked: list[Finding] = []
        self._request_of: dict[asyncio.Task[object], int] = {}
        self._bodies: dict[int, bytes] = {}
        self._queued: set[int] = set()
        self._open: set[int] = set()
        self._in_flight = 0
        self._compared = -1
        self._next_at = -inf

    def started(self, client: AsyncOneLLM) -> None:
        """Remembers the client, to take its snapshots."""
        self._client = client

    def __call__(self, event: Event) -> None:
        """Records an event of the client."""
        self.record(event)
        match event:
            case Queued(request=request):
                self._queued.add(request)
                if request not in self._open:
                    self._request_opened(request, event.at)
            case Granted(request=request) | Retrying(request=request):  # an open circuit empties the queue
                self._queued.discard(request)
            case Answered(request=request) | Failed(request=request):
                self._queued.discard(request)
                self._open.discard(request)

    def record(self, event: Event) -> None:
        """Records any event."""
        self.events.append(event)
        self._tokens.record(event)

    def _request_opened(self, request: int, now: float) -> None:
        self._open.add(request)
        until = single_chat_deadline.get(...)
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
            self.record(Cancelled(request, "", _now(), request in self._queued))
            self._queued.discard(request)

    def request_sent(self, body: bytes) -> None:
        """Records that the transport got the request of the current task."""
        request = self._current_request()
        self._in_flight += 1
        self._bodies.setdefault(request, body)
        self.record(RequestSent(request, "", _now(), len(body)))

    def response_received(self, *, arrived: bool) -> None:
        """Records that the transport is done with the request of the current task."""
        self._in_flight -= 1
        self.record(ResponseReceived(self._current_request(), "", _now(), arrived))

    def _current_request(self) -> int:
        task = asyncio.current_task()
        return self._request_of[task] if task is not None else 0

    def paused(self) -> None:
        """Records a pause."""
        self._paused = True
        self.record(Paused(0, "", _now()))

    def resumed(self) -> None:
        """Records a resume."""
        self._paused = False
        self.record(Resumed(0, "", _now()))

    def retuned(self, limits: Limits) -> None:
        """Records a retune."""
        self._max_concurrency = limits.max_concurrency
        self.record(Retuned(0, "", _now(), limits))

    def idle(self, seconds: float) -> None:
        """Compares the client's snapshot with what was observed, before the clock jumps.

        Where nothing happened since it was compared, and no request is due, there is nothing new to compare. That is so
        at most jumps, and a snapshot takes longer than the rest of the simulation between two.
        """
        assert self._client is not None
        now = _now()
        if len(self.events) == self._compared and now + seconds <= self._next_at:
            return
        snapshot = self._client.snapshot()
        self._compared = len(self.events)
        self._next_at = inf if snapshot.next_in is None else now + snapshot.next_in
        if snapshot.in_flight != self._in_flight:
            self._mismatch(now, f"{snapshot.in_flight} slots are taken by {self._in_flight} requests")
        queued = sum(snapshot.queued.values())
        if queued != len(self._queued):
            self._mismatch(now, f"{queued} requests are queued, observed: {len(self._queued)}")
        if (snapshot.paused, snapshot.max_concurrency) != (self._paused, self._max_concurrency):
            self._mismatch(now, "the client does not know that it was paused, resumed or retuned")
        if snapshot.tokens_level is not None or snapshot.sent:  # an unused client has no level
            self._reconcile_tokens(snapshot.tokens_level, now)
        if snapshot.next_in is not None and not snapshot.timer_set:
            text = f"the next request may be sent in {snapshot.next_in:g} s, but no timer is set"
            self.missed_wakeups.append(Finding(now, text))
        elif snapshot.next_in is not None and seconds > snapshot.next_in + RESOLUTION:
            text = f"{seconds:g} s pass, but the next request may be sent in {snapshot.next_in:g} s"
            self.missed_wakeups.append(Finding(now, text))

    def _mismatch(self, now: float, text: str) -> None:
        self.state_mismatches.append(Finding(now, text))

    def _reconcile_tokens(self, level: float | None, now: float) -> None:
        if not self._tokens.reconcile(level, now):
            text = f"the client has {level} tokens, observed: {self._tokens.level_at(now)}"
            self._misbooked.append(Finding(now, text))

    @property
    def token_errors(self) -> Sequence[Finding]:
        """Where tokens were used that were not available, or where client and observer count differently."""
        return [*self._tokens.overdrafts, *self._misbooked]

    def requests(self) -> Mapping[str, int]:
        """Number of the request of each prompt that was sent."""
        return {parse_json(body)["messages"][-1]["content"]: request for request, body in self._bodies.items()}


def _now() -> float:
    return asyncio.get_running_loop().time()
