"""The workers of a run: each takes one work item after another, asks, and delivers the outcome.

A failure is held back, in memory alone, until 50 more outcomes are there: if it turns out to be one of many that are
alike (`onellm_async.batch.health`), its prompt is retried when the service answers again. Until then the journal has
the prompt as never sent, and the output waits for it. What may have been billed stays in the journal as such.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from attrs import frozen

from onellm_async.batch.causes import shortened
from onellm_async.batch.deduplication import Deduplicator
from onellm_async.batch.delivery import Delivery
from onellm_async.batch.ending import Ending
from onellm_async.batch.health import FIRST_TRIAL, OF_THE_LAST, READ_AHEAD, AlikeFailures, HealthMonitor, Verdict
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.record import JournalRecord, UnstorableRowError
from onellm_async.batch.pool import Pool, spread
from onellm_async.batch.progress import ProgressTracker
from onellm_async.batch.protocols import RunClient, RunJournal
from onellm_async.batch.work_item import WorkItem
from onellm_async.errors import APIError, BatchError, OneLLMError, RequestCancelledError
from onellm_async.limits.permit import RequestGroup

__all__ = ["Workers"]

_TROUBLE_ADVICE = (
    "Fix the cause and run the same command again: it sends them once more. With --keep-going a failure is an outcome "
    "like any other, however many there are."
)


@frozen
class _Held:
    """A failure that is held back; `outcomes` and `answers` are those of the run when it came."""

    work_item: WorkItem
    settled: JournalRecord
    error: APIError
    outcomes: int
    answers: int


class Workers:
    """Ask what waits.

    Args:
        client: Makes the groups of requests.
        pool: Where they take from.
        journal: Where it becomes known that a request did not leave after all.
        deduplicator: Which requests are the same.
        delivery: Takes the outcomes.
        health: Watches the outcomes.
        ending: Ends the session for errors that would meet every prompt.
        tracker: Is told of failures that are held back, and of pauses.
        hold_ambiguous: Never retry what may have been billed.
        max_workers: So many at most.
        say: Told what a user should know, in a sentence.
        clock: Seconds that only go forward.

    Attributes:
        busy: Work items that are in flight or being delivered.
    """

    def __init__(
        self,
        client: RunClient,
        pool: Pool,
        *,
        journal: RunJournal,
        deduplicator: Deduplicator,
        delivery: Delivery,
        health: HealthMonitor,
        ending: Ending,
        tracker: ProgressTracker,
        hold_ambiguous: bool,
        max_workers: int,
        say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.busy: int = 0
        self._client = client
        self._pool = pool
        self._journal = journal
        self._deduplicator = deduplicator
        self._delivery = delivery
        self._health = health
        self._ending = ending
        self._tracker = tracker
        self._hold_ambiguous = hold_ambiguous
        self._max_workers = max_workers
        self._say = say
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._pausing: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._asking: set[WorkItem] = set()
        self._answers = 0
        self._held: deque[_Held] = deque()
        self._failed_before: dict[int, APIError] = {}
        self._retried: set[int] = set()
        self._left_open = self._stopped_for_failures = False

    # Tasks.

    def employ(self, tasks: asyncio.TaskGroup) -> None:
        """More workers than slots: some wait for the journal while the others' requests are in flight."""
        self._task_group = tasks
        slots = self._client.limits.max_concurrency
        if not self._health.paused:
            self._pool.capacity = self._capacity
        for _ in range(min(slots + max(4, slots // 4), self._max_workers) - len(self._tasks)):
            worker = tasks.create_task(self._work())
            self._tasks.add(worker)
            worker.add_done_callback(self._tasks.discard)

    @property
    def _capacity(self) -> int:
        return min(self._client.limits.max_concurrency, self._max_workers)

    async def finish(self) -> None:
        """Returns when everything that waits is done: nothing more will be put into the pool."""
        self._pool.input_ended = True
        while True:
            while not self._is_idle:
                self._idle.clear()
                await self._idle.wait()
            if not self._held:
                break
            await self._guarded(self._settle_held())
        if self._stopped_for_failures:
            await self._guarded(self._delivery.reopen(hold_ambiguous=self._hold_ambiguous))
        self._pool.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def look(self, *, output_waits: bool) -> None:
        """Delivers failures that are held back where the input is slow, and nothing more can be learned for now.

        Args:
            output_waits: Whether the input waits for the output, which waits for a failure that is held back.
        """
        if self._is_idle and not self._ending.over:
            await self._guarded(self._release(lambda held: output_waits or held.answers < self._answers))

    async def _work(self) -> None:
        while (work_item := await self._pool.take()) is not None:
            self.busy += 1
            try:
                await self._guarded(self._handle(work_item))
            finally:
                self.busy -= 1
                self._look_whether_idle()

    async def _guarded(self, work: Awaitable[object]) -> None:
        try:
            await work
        except BatchError as error:
            self._ending.stop_unwritten(error)

    @property
    def _is_idle(self) -> bool:
        return not self.busy and not len(self._pool) and self._pausing is None

    def _look_whether_idle(self) -> None:
        if self._is_idle:
            self._idle.set()

    # One work_item.

    async def _handle(self, work_item: WorkItem) -> None:
        if self._ending.over:
            self._ending.left_out = True
        elif work_item.copied is not None:
            await self._delivery.settle(work_item, work_item.copy_of(work_item.copied))
        elif work_item.cached is not None:
            await self._settle(work_item, work_item.reused(work_item.cached))
        else:
            await self._ask(work_item)

    async def _ask(self, work_item: WorkItem) -> bool | None:
        """Whether it was answered; None if it has no outcome."""
        group = self._ending.group
        self._asking.add(work_item)
        try:
            response = await self._client.send(
                work_item.item.request, lane="batch", group=group, attempt_hooks=work_item
            )
        except OneLLMError as error:
            return await self._failed(work_item, error, group)
        finally:
            self._asking.discard(work_item)
        self._answers += 1
        self._tracker.asked(work_item.item.request.model, None)
        first_failure = self._failed_before.pop(work_item.entry.index, None)
        if first_failure is None:
            self._health.answered()
        else:
            self._health.retried(first_failure, answered=True)
        await self._settle(work_item, work_item.answered(response))
        await self._release_old()
        return True

    async def _failed(self, work_item: WorkItem, error: OneLLMError, group: RequestGroup) -> bool | None:
        settled = work_item.failed(error)
        if isinstance(error, UnstorableRowError) and not work_item.intended:
            await self._leave_out(work_item, error)
            return None
        if isinstance(error, BatchError):
            self._ending.stop_unwritten(error)
        elif error.affects_every_prompt:
            self._ending.stop(error)
        may_repeat = not (self._hold_ambiguous and work_item.lost)
        # A run or trial that ends grants no retry any more, whatever the policy would say.
        ends = self._ending.over or group is not self._ending.group
        cut_short = isinstance(error, APIError) and error.retryable and ends and may_repeat
        if error.affects_every_prompt or isinstance(error, RequestCancelledError) or cut_short:
            # It is not this prompt's fault. What was surely not billed counts as never sent.
            await self._forget(work_item, error)
            if self._ending.over:
                self._ending.left_out = True
            else:
                self._pool.put_back(work_item)
            return None
        self._note(work_item, error)
        if isinstance(error, APIError) and may_repeat and self._health.watches:
            await self._forget(work_item, error)
            self._held.append(_Held(work_item, settled, error, self._health.outcomes, self._answers))
            self._tracker.failing = len(self._held)
        else:
            await self._deliver(work_item, settled)
        self._judge()
        await self._release_old()
        return False

    def _note(self, work_item: WorkItem, error: OneLLMError) -> None:
        """Counts a failure, and tells it if it is the first of its kind."""
        index, text = work_item.entry.index, shortened(f"{error.message} {error.advice}")
        if (first_failure := self._failed_before.get(index)) is not None:
            self._health.retried(first_failure, answered=False)
            return
        if isinstance(error, APIError):
            self._failed_before[index] = error
            self._health.failed(error)
        else:
            self._health.failed_unsent()
        if self._tracker.asked(work_item.item.request.model, text):
            self._say(f"{work_item.entry.source}:{work_item.entry.line} failed: {text}")

    async def _forget(self, work_item: WorkItem, error: OneLLMError) -> None:
        if work_item.intended and not work_item.lost:
            await self._journal.retract_intent(work_item.entry.index)
        work_item.start_over(error.attempts)

    async def _leave_out(self, work_item: WorkItem, error: OneLLMError) -> None:
        """Passes over an entry that the journal cannot hold. The first of those that follow it is asked instead."""
        entry, followers = work_item.entry, work_item.followers
        self._delivery.bad_line(entry, LineError(entry.source, entry.line, f"{error} Nothing was sent."))
        self._deduplicator.end(work_item)
        if followers:
            heir, *heir.followers = followers
            self._deduplicator.begin(heir)
            await self._ask(heir)

    async def _deliver(self, work_item: WorkItem, settled: JournalRecord) -> None:
        """Makes a failure an outcome."""
        self._failed_before.pop(work_item.entry.index, None)
        self._retried.discard(work_item.entry.index)
        try:
            if not work_item.intended:
                await work_item.intend()
        except UnstorableRowError as error:
            await self._leave_out(work_item, error)
        else:
            await self._settle(work_item, settled)

    async def _settle(self, work_item: WorkItem, settled: JournalRecord) -> None:
        row = await self._delivery.settle(work_item, settled)
        await self._delivery.settle_followers(work_item, row)
        self._deduplicator.end(work_item)

    # Failures that are held back.

    async def _release_old(self) -> None:
        if not self._health.paused:
            newest = self._health.outcomes - OF_THE_LAST
            await self._release(lambda held: held.outcomes <= newest)

    async def _release(self, fits: Callable[[_Held], bool]) -> None:
        while self._held and fits(self._held[0]):
            held = self._held.popleft()
            self._tracker.failing = len(self._held)
            await self._deliver(held.work_item, held.settled)

    async def _settle_held(self) -> None:
        """Everything was tried: the failures stand, unless they are half of all, or the run ended in trouble."""
        if self._held and not self._ending.over:
            alike = self._health.alike_in_all(self._journal.counts().answered)
            if alike is not None:
                self._stop_for(alike)
        if not self._left_open:
            self._leave_open_what_failed_like(self._ending.stopped_by)
            await self._release(lambda held: True)
        else:
            self._ending.left_out = True
            self._held.clear()
            self._tracker.failing = 0

    def _leave_open_what_failed_like(self, stopped_by: OneLLMError | None) -> None:
        """What ends the run, as it affects every prompt, is not the fault of those that met it just before."""
        others = [held for held in self._held if stopped_by is None or type(held.error) is not type(stopped_by)]
        if len(others) < len(self._held):
            self._ending.left_out = True
            self._held = deque(others)

    # Many failures that are alike.

    def _judge(self) -> None:
        if self._health.paused or self._ending.over or self._health.alike() is None:
            return
        undecided = sum(work_item.intended and self._is_untried(work_item) for work_item in self._asking)
        unsent = any(not work_item.intended and self._is_untried(work_item) for work_item in self._asking)
        verdict = self._health.verdict(
            undecided=undecided,
            untried=unsent or not self._pool.input_ended or self._pool.has(self._is_untried),
            others_answered=self._others_answered,
        )
        if verdict is Verdict.STOP and (alike := self._health.alike_since_resume(undecided)) is not None:
            self._stop_for(alike)
        elif verdict is Verdict.PAUSE and (alike := self._health.alike(undecided)) is not None:
            self._pause(alike)

    def _is_untried(self, work_item: WorkItem) -> bool:
        return (
            work_item.copied is None and work_item.cached is None and work_item.entry.index not in self._failed_before
        )

    @property
    def _others_answered(self) -> bool:
        return self._journal.counts().answered > 0

    def _stop_for(self, alike: AlikeFailures) -> None:
        self._left_open = self._stopped_for_failures = True
        self._ending.stop(BatchError(str(alike), advice=_TROUBLE_ADVICE))

    def _pause(self, alike: AlikeFailures) -> None:
        before, self._ending.group = (
            self._ending.group,
            RequestGroup(answered=self._others_answered, retry_ambiguous=not self._hold_ambiguous),
        )
        self._health.pause()
        self._pool.pause(READ_AHEAD)
        before.cancel()
        self._tracker.pause(str(alike), self._clock() + FIRST_TRIAL)
        self._say(f"Paused: {alike} The next single prompt is tried in {FIRST_TRIAL:.0f} s.")
        self._pausing = self._task_group.create_task(self._send_trials())

    async def _send_trials(self) -> None:
        """Sends one prompt at a time until one is answered, nothing is left to try, or the run is over."""
        answered = False
        try:
            answered = await self._has_answered_again()
        except BatchError as error:
            self._ending.stop_unwritten(error)
        finally:
            self._tracker.resume()
        await self._guarded(self._go_on(answered=answered))
        self._pausing = None
        self._look_whether_idle()

    async def _has_answered_again(self) -> bool:
        wait, number = FIRST_TRIAL, 0
        while not await self._ended_within(wait):
            self._tracker.trial_at = None
            work_item, wait = self._next_trial(number), FIRST_TRIAL
            if work_item is not None:
                number += 1
                if await self._ask(work_item):
                    return True
                failure = self._failed_before.get(work_item.entry.index)
                if failure is not None and not self._ending.over:
                    wait = self._health.trial_failed(left=len(self._pool) if self._pool.input_ended else None)
                    text = shortened(failure.message)
                    self._say(f"Still failing: {text} The next single prompt is tried in {wait:.0f} s.")
            elif self._pool.input_ended:
                return False
            self._tracker.trial_at = self._clock() + wait
        return False

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._ending.ended.wait()
        except TimeoutError:
            return False
        return True

    def _next_trial(self, number: int) -> WorkItem | None:
        work_item = self._pool.take_from_afar(number, self._is_untried)
        if work_item is not None or not self._held or (self._pool.input_ended and self._others_answered):
            return work_item
        place = int(spread(number) * len(self._held))
        held = self._held[place]
        del self._held[place]
        self._tracker.failing = len(self._held)
        return held.work_item

    async def _go_on(self, *, answered: bool) -> None:
        """Ends the pause. After an answer what failed meanwhile is retried, unless it was before."""
        if self._ending.over:
            self._left_open = True
            self._pool.resume(self._capacity)
            return
        again, stand = list[_Held](), list[_Held]()
        if answered:
            for held in self._held:
                (stand if held.work_item.entry.index in self._retried else again).append(held)
            self._held.clear()
            self._tracker.failing = 0
            self._retried.update(held.work_item.entry.index for held in again)
            retries = f" Failed prompts that are retried once: {len(again):,}." if again else ""
            self._say(f"Resumed: the service has answered.{retries}")
        self._health.resume(answered=answered)
        self._pool.resume(self._capacity, [held.work_item for held in again])
        for held in stand:
            await self._deliver(held.work_item, held.settled)
