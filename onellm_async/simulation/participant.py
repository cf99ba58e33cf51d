"""One simulated client and what it is asked: a fan-out, single chats between, and a trace of it all."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing

from attrs import frozen

from onellm_async.chat import ChatOutcome
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import OneLLMError
from onellm_async.limits.policy import Limits
from onellm_async.retry import RetryPolicy
from onellm_async.simulation.controls import Control, schedule
from onellm_async.simulation.recorder import Recorder, asked_until
from onellm_async.simulation.trace import Trace, TrueLimit

__all__ = ["Participant", "Silence", "SingleChat", "Task"]

_MODEL = "GPT-5-Nano"


@frozen(kw_only=True)
class SingleChat:
    """A chat that somebody asks while a fan-out runs.

    Attributes:
        at: When, in seconds.
        lane: Where it waits.
        deadline: Seconds for everything together; None for no end.
        cancelled_after: Seconds after which whoever asked goes away; None: never.
    """

    at: float
    lane: str = "interactive"
    deadline: float | None = None
    cancelled_after: float | None = None


@frozen(kw_only=True)
class Silence:
    """The source of a fan-out has nothing for `seconds`, and then goes on with the prompt of index `before`."""

    before: int
    seconds: float


@frozen(kw_only=True)
class Task:
    """What one client is asked.

    Attributes:
        prompts: Of the fan-out.
        lane: Of the fan-out.
        deadline: Seconds for each prompt of the fan-out; None for no end.
        consumer_pause: Seconds that the consumer takes for each outcome.
        chats: Asked beside the fan-out.
        silences: When the prompts of the fan-out are long in coming.
        controls: What is done to the client meanwhile.
    """

    prompts: Sequence[str]
    lane: str = "batch"
    deadline: float | None = None
    consumer_pause: float = 0.0
    chats: Sequence[SingleChat] = ()
    silences: Sequence[Silence] = ()
    controls: Sequence[Control] = ()


class Participant:
    """A client at work.

    Args:
        client: Has `recorder` among its hooks.
        recorder: Hears of everything.
        task: What it is asked.
    """

    def __init__(self, client: AsyncOneLLM, recorder: Recorder, task: Task) -> None:
        self.client: AsyncOneLLM = client
        self._recorder = recorder
        self._task = task
        self._single_answers: list[tuple[str, str | None]] = []
        self._complete = False
        self.outcomes: list[ChatOutcome] = []
        self.answered_at: list[float] = []

    async def work(self) -> None:
        """Asks everything."""
        async with self.client:
            self.client.group(answered=True)  # an outage at the beginning is no wrong address
            controls = schedule(self._task.controls, self.client, self._recorder)
            chats = [
                asyncio.create_task(self._ask(chat, f"{number}/{self._task.prompts[0]}"))
                for number, chat in enumerate(self._task.chats)
            ]
            try:
                await self._fan_out()
                if chats:
                    await asyncio.wait(chats)
                self._complete = True
            finally:
                for timer in controls:
                    timer.cancel()
                for chat in chats:
                    chat.cancel()
        for chat in chats:
            chat.result()

    async def _fan_out(self) -> None:
        task, loop = self._task, asyncio.get_running_loop()
        prompts = self._with_silences() if task.silences else task.prompts
        source = self.client.iter_chats(prompts, model=_MODEL, lane=task.lane, deadline=task.deadline)
        async with aclosing(source) as outcomes:
            async for outcome in outcomes:
                self.outcomes.append(outcome)
                if outcome.response is not None:
                    self.answered_at.append(loop.time())
                if task.consumer_pause:
                    await asyncio.sleep(task.consumer_pause)

    async def _with_silences(self) -> AsyncIterator[str]:
        silences = {silence.before: silence.seconds for silence in self._task.silences}
        for index, prompt in enumerate(self._task.prompts):
            await asyncio.sleep(silences.get(index, 0.0))
            yield prompt

    async def _ask(self, chat: SingleChat, prompt: str) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(chat.at - loop.time())
        asked_until.set(None if chat.deadline is None else loop.time() + chat.deadline)
        asking = asyncio.create_task(
            self.client.chat(prompt, model=_MODEL, lane=chat.lane, deadline=chat.deadline), name=prompt
        )
        try:
            await asyncio.wait({asking}, timeout=chat.cancelled_after)
        finally:
            asking.cancel()
        await asyncio.wait({asking})
        if asking.cancelled() or isinstance(asking.exception(), OneLLMError):
            return
        self._single_answers.append((prompt, asking.result().content))

    def look(self, ahead: float) -> None:
        """Compares what the client says of itself with what it does; see `Recorder.look`."""
        self._recorder.look(self.client.snapshot(), ahead)

    def trace(
        self,
        limits: Limits,
        retry: RetryPolicy,
        true_limit: TrueLimit | None,
        billed: Mapping[str, int],
        left_over: Sequence[str],
    ) -> Trace:
        """Everything that happened, once it is over."""
        said, recorder = self.client.snapshot(), self._recorder
        own = [] if said.at_rest else [f"the client is not at rest: {said}"]
        return Trace(
            limits=limits,
            retry=retry,
            true_limit=true_limit,
            events=recorder.events,
            deadlines=recorder.deadlines,
            singles=frozenset(recorder.singles),
            asked=self._task.prompts,
            outcomes=self.outcomes,
            single_answers=self._single_answers,
            billed=Counter(billed),
            phantoms=recorder.phantoms,
            idle_waits=recorder.idle_waits,
            token_errors=recorder.token_errors,
            left_over=[*own, *left_over],
            complete=self._complete,
        )
