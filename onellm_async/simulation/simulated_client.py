"""One client at work in a simulation: its fan-out, the single chats beside it, its pauses and retunes."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Protocol

from attrs import frozen

from onellm_async.chat import ChatOutcome
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import APIConnectionError, FailureKind, OneLLMError
from onellm_async.events import Event
from onellm_async.limits.permit import RequestGroup
from onellm_async.limits.policy import Lane, Limits
from onellm_async.simulation.scenario import Control, Pause, SingleChat, SourceGap
from onellm_async.transport import RawReply, Transport

_MODEL = "GPT-5-Nano"

single_chat_deadline: ContextVar[float | None] = ContextVar("single_chat_deadline")
"""Deadline of the current single chat on the loop's clock, None for no deadline; unset in a fan-out.

Observers read it in the task of the request.
"""


class Observer(Protocol):
    """Watches one simulated client from outside. It is also a hook of the client.

    All methods are called in the event loop and must neither block nor schedule anything.
    """

    def started(self, client: AsyncOneLLM) -> None:
        """The client is about to start."""

    def __call__(self, event: Event, /) -> None:
        """Receives each event of the client."""

    def request_sent(self, body: bytes) -> None:
        """The transport gets a request, in the task of the request."""

    def response_received(self, *, arrived: bool) -> None:
        """The transport returns or raises, in the task of the request.

        Args:
            arrived: False if the request certainly never reached the service.
        """

    def paused(self) -> None:
        """The client was paused."""

    def resumed(self) -> None:
        """The client is about to be resumed."""

    def retuned(self, limits: Limits) -> None:
        """The client is about to get other limits."""

    def idle(self, seconds: float) -> None:
        """The clock is about to jump by `seconds`, because no callback or task is ready."""


class ObservedTransport:
    """Shows an observer when requests are sent and responses received.

    Args:
        transport: The transport that does the work.
        observer: The observer.
    """

    def __init__(self, transport: Transport, observer: Observer) -> None:
        self._transport = transport
        self._observer = observer

    async def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> RawReply:
        """Posts `body`; see `Transport.post`."""
        self._observer.request_sent(body)
        arrived = True
        try:
            return await self._transport.post(body, headers)
        except APIConnectionError as error:
            arrived = error.kind is not FailureKind.CANNOT_CONNECT
            raise
        finally:
            self._observer.response_received(arrived=arrived)

    async def aclose(self) -> None:
        """Closes the transport."""
        await self._transport.aclose()


@frozen(kw_only=True)
class ClientWorkload:
    """Everything that one client does.

    Attributes:
        prompts: Prompts of the fan-out.
        lane: Lane of the fan-out.
        deadline: Seconds for each prompt of the fan-out; None for no deadline.
        consumer_pause: Seconds that the consumer takes for each outcome.
        chats: Single chats beside the fan-out.
        source_gaps: Stalls of the prompt source.
        controls: Pauses and retunes.
    """

    prompts: Sequence[str]
    lane: Lane = "batch"
    deadline: float | None = None
    consumer_pause: float = 0.0
    chats: Sequence[SingleChat] = ()
    source_gaps: Sequence[SourceGap] = ()
    controls: Sequence[Control] = ()


class SimulatedClient:
    """Works through a `ClientWorkload` and keeps what came of it.

    Args:
        client: The client. It is closed at the end.
        workload: What it does.
        observer: Watches it; None for no observer.
    """

    def __init__(self, client: AsyncOneLLM, workload: ClientWorkload, observer: Observer | None = None) -> None:
        self.client: AsyncOneLLM = client
        self.workload: ClientWorkload = workload
        self._observer = observer
        self.chat_answers: list[tuple[str, str | None]] = []
        """Prompt and answer of each single chat that was answered."""
        self.outcomes: list[ChatOutcome] = []
        """Outcomes of the fan-out, in the order of completion."""
        self.answered_at: list[float] = []
        """Virtual time of each answer of the fan-out."""
        self.finished: bool = False
        """Whether all prompts and chats came to an end."""

    async def work(self) -> None:
        """Sends everything and waits for all outcomes."""
        if self._observer is not None:
            self._observer.started(self.client)
        async with self.client:
            # An outage at the start does not count as a wrong URL.
            self.client._sender.join(RequestGroup(answered=True))  # noqa: SLF001
            controls = self._schedule_controls()
            chats = [
                asyncio.create_task(self._chat(chat, f"{number}/{self.workload.prompts[0]}"))
                for number, chat in enumerate(self.workload.chats)
            ]
            try:
                await self._fan_out()
                if chats:
                    await asyncio.wait(chats)
                self.finished = True
            finally:
                for timer in controls:
                    timer.cancel()
                for task in chats:
                    task.cancel()
        for task in chats:
            task.result()

    def report_idle(self, seconds: float) -> None:
        """Tells the observer that the clock is about to jump by `seconds`."""
        if self._observer is not None:
            self._observer.idle(seconds)

    async def _fan_out(self) -> None:
        workload, loop = self.workload, asyncio.get_running_loop()
        prompts = self._prompts_with_gaps() if workload.source_gaps else workload.prompts
        source = self.client.iter_chats(prompts, model=_MODEL, lane=workload.lane, deadline=workload.deadline)
        async with aclosing(source) as outcomes:
            async for outcome in outcomes:
                self.outcomes.append(outcome)
                if outcome.response is not None:
                    self.answered_at.append(loop.time())
                if workload.consumer_pause:
                    await asyncio.sleep(workload.consumer_pause)

    async def _prompts_with_gaps(self) -> AsyncIterator[str]:
        gaps = {gap.before: gap.seconds for gap in self.workload.source_gaps}
        for index, prompt in enumerate(self.workload.prompts):
            await asyncio.sleep(gaps.get(index, 0.0))
            yield prompt

    async def _chat(self, chat: SingleChat, prompt: str) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(chat.at - loop.time())
        single_chat_deadline.set(None if chat.deadline is None else loop.time() + chat.deadline)
        request = asyncio.create_task(
            self.client.chat(prompt, model=_MODEL, lane=chat.lane, deadline=chat.deadline), name=prompt
        )
        try:
            await asyncio.wait({request}, timeout=chat.cancelled_after)
        finally:
            request.cancel()
        await asyncio.wait({request})
        if request.cancelled() or isinstance(request.exception(), OneLLMError):
            return
        self.chat_answers.append((prompt, request.result().content))

    def _schedule_controls(self) -> list[asyncio.TimerHandle]:
        loop, timers = asyncio.get_running_loop(), list[asyncio.TimerHandle]()
        for control in self.workload.controls:
            if isinstance(control, Pause):
                timers.append(loop.call_at(control.at, self._pause))
                timers.append(loop.call_at(control.at + control.seconds, self._resume))
            else:
                timers.append(loop.call_at(control.at, self._retune, control.limits))
        return timers

    def _pause(self) -> None:
        self.client.pause()
        if self._observer is not None:
            self._observer.paused()

    def _resume(self) -> None:
        if self._observer is not None:
            self._observer.resumed()
        self.client.resume()

    def _retune(self, limits: Limits) -> None:
        if self._observer is not None:
            self._observer.retuned(limits)
        self.client.retune(limits)
