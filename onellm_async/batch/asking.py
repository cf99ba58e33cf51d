"""The workers of a run: each takes one passage after another, asks, and delivers the outcome."""

import asyncio
from collections.abc import Callable

from onellm_async.batch.delivery import Delivery
from onellm_async.batch.ending import Ending
from onellm_async.batch.health import Health
from onellm_async.batch.inputs.items import LineError
from onellm_async.batch.journal.binding import UnstorableRowError
from onellm_async.batch.journal.rows import Settled
from onellm_async.batch.passage import Passage
from onellm_async.batch.protocols import RunJournal
from onellm_async.batch.repetitions import Repetitions
from onellm_async.errors import BatchError, BudgetExceededError, ClientClosedError, OneLLMError, RequestCancelledError
from onellm_async.fanout import concerns_every_prompt
from onellm_async.request_group import RequestGroup

__all__ = ["Workers"]

_SYSTEMIC_ADVICE = "Find out why, then run the same command with --retry-failed; --keep-going does not stop for this."


class Workers:
    """Ask what waits.

    Args:
        group: Asks, within the limits of its client.
        waiting: Where they take from; None after the last.
        journal: Where it becomes known that a request did not leave after all.
        repetitions: Which requests are the same.
        delivery: Takes the outcomes.
        health: Watches the outcomes.
        ending: Ends the sitting for errors that would meet every prompt.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        group: RequestGroup,
        waiting: asyncio.Queue[Passage | None],
        *,
        journal: RunJournal,
        repetitions: Repetitions,
        delivery: Delivery,
        health: Health,
        ending: Ending,
        clock: Callable[[], float],
    ) -> None:
        self._group = group
        self._waiting = waiting
        self._journal = journal
        self._repetitions = repetitions
        self._delivery = delivery
        self._health = health
        self._ending = ending
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    def employ(self, tasks: asyncio.TaskGroup, slots: int) -> None:
        """More workers than slots: some wait for the journal while the others' requests are under way."""
        for _ in range(slots + max(4, slots // 4) - len(self._tasks)):
            worker = tasks.create_task(self._work())
            self._tasks.add(worker)
            worker.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Returns when everything that waits is done."""
        await self._waiting.put(None)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _work(self) -> None:
        while (passage := await self._waiting.get()) is not None:
            if self._ending.over:
                self._ending.left_out = True
                continue
            try:
                if passage.copied is not None:
                    await self._delivery.settle(passage, passage.copy_of(passage.copied), passage.copied.result)
                elif passage.cached is not None:
                    await self._settle(passage, passage.reused(passage.cached))
                else:
                    await self._ask(passage)
            except BatchError as error:
                self._ending.stop_unwritten(error)
        self._waiting.put_nowait(None)

    async def _ask(self, passage: Passage) -> None:
        try:
            response = await self._group.send(
                passage.item.request, before_sending=passage.before_sending, after_failing=passage.after_failing
            )
        except OneLLMError as error:
            await self._failed(passage, error)
        else:
            self._health.answered(self._clock())
            await self._settle(passage, passage.answered(response))

    async def _failed(self, passage: Passage, error: OneLLMError) -> None:
        settled = passage.failed(error)
        if isinstance(error, UnstorableRowError) and not passage.intended:
            await self._leave_out(passage, error)
            return
        everybody = concerns_every_prompt(error) or isinstance(error, BatchError | BudgetExceededError)
        if isinstance(error, BatchError):
            self._ending.stop_unwritten(error)
        elif everybody:
            self._ending.stop(error)
        if everybody or isinstance(error, RequestCancelledError | ClientClosedError):
            # It is not this prompt's fault. What was surely not billed counts as never sent.
            self._ending.left_out = True
            if passage.intended and not passage.lost:
                await self._journal.forget(passage.entry.index)
            return
        self._health.failed(error, self._clock())
        if not passage.intended:
            await passage.intend()
        await self._settle(passage, settled)
        if (reason := self._health.systemic_failure()) is not None:
            self._ending.stop(BatchError(f"{reason}.", advice=_SYSTEMIC_ADVICE))

    async def _leave_out(self, passage: Passage, error: OneLLMError) -> None:
        """Passes over an entry that the journal cannot hold. The first of those that follow it is asked instead."""
        entry, followers = passage.entry, passage.followers
        self._delivery.bad_line(entry, LineError(entry.source, entry.line, f"{error} Nothing was sent."))
        self._repetitions.end(passage)
        if followers:
            heir, *heir.followers = followers
            self._repetitions.begin(heir)
            await self._ask(heir)

    async def _settle(self, passage: Passage, settled: Settled) -> None:
        row = await self._delivery.settle(passage, settled, settled.result)
        await self._delivery.settle_followers(passage, row)
        self._repetitions.end(passage)
