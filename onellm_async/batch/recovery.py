"""Many prompts that fail alike: failures that are held back, the pause, its trials, and the resume.

A failure is held back, in memory alone, until 50 more outcomes are there. If it turns out to be one of many that are
alike (`onellm_async.batch.health`), its prompt is retried when the service answers again. Until then the journal has
the prompt as never sent, and the output waits for it. What may have been billed stays in the journal as such.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from attrs import frozen

from onellm_async.batch.causes import shortened
from onellm_async.batch.health import FIRST_TRIAL, OF_THE_LAST, READ_AHEAD, AlikeFailures, HealthMonitor, Verdict
from onellm_async.batch.journal.record import JournalRecord
from onellm_async.batch.progress import ProgressTracker
from onellm_async.batch.run_report import StopReason
from onellm_async.batch.work_item import WorkItem
from onellm_async.errors import APIError, BatchError, OneLLMError, StructureError
from onellm_async.worker_pool import spread

if TYPE_CHECKING:
    from onellm_async.batch.engine import RunEngine

_ADVICE = (
    "Fix the cause and run the same command again: it sends them once more. With max_failure_share=1 a failure is an "
    "outcome like any other, however many there are."
)
_UNFIT_ADVICE = (
    "The output has these answers, with what is wrong. Change the schema, the model or the prompts and start another "
    "run; or run the same command again with retry_failed=True to send these prompts again, or with "
    "max_failure_share=1 to send the others whatever comes."
)


@frozen
class _HeldFailure:
    """A failure that is held back; `outcomes` and `answers` are those of the run when it came."""

    work_item: WorkItem
    outcome: JournalRecord
    error: APIError
    outcomes: int
    answers: int


class Recovery:
    """Holds failures back, and pauses the run while many prompts fail alike.

    Args:
        engine: The run; it sends the trials and records the failures that stand.
        health: Decides.
        tracker: Shows failures that are held back, and pauses.
        say: Called with what a user should know, in a sentence.
        clock: Seconds that only go forward.

    Attributes:
        answers: Prompts that were answered so far.
        stopped_for_failures: Whether the run was stopped because too many prompts failed alike.
    """

    def __init__(
        self,
        engine: "RunEngine",
        health: HealthMonitor,
        *,
        tracker: ProgressTracker,
        say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.answers: int = 0
        self.stopped_for_failures: bool = False
        self._engine = engine
        self._pool = engine.pool
        self._health = health
        self._tracker = tracker
        self._say = say
        self._clock = clock
        self._pause: asyncio.Task[None] | None = None
        self._held: deque[_HeldFailure] = deque()
        self._failed_before: dict[int, APIError] = {}
        self._retried: set[int] = set()
        self._left_open = False

    @property
    def holds_any(self) -> bool:
        """Whether a failure is held back."""
        return bool(self._held)

    @property
    def is_pausing(self) -> bool:
        """Whether the run is paused."""
        return self._pause is not None

    async def wait_for_resume(self) -> None:
        """Returns when the run is not paused. Safe to cancel."""
        if self._pause is not None:
            await asyncio.wait({self._pause})

    async def aclose(self) -> None:
        """Ends a pause at once."""
        if self._pause is not None:
            self._pause.cancel()
            await asyncio.wait({self._pause})

    # Outcomes.

    def answered(self, work_item: WorkItem) -> None:
        """Counts an answer."""
        self.answers += 1
        self._tracker.asked(work_item.item.request.model, None)
        first_failure = self._failed_before.pop(work_item.entry.index, None)
        if first_failure is None:
            self._health.answered()
        else:
            self._health.retried(first_failure, answered=True)

    def failed(self, work_item: WorkItem, error: OneLLMError) -> None:
        """Counts a failure, and says so if it is the first of its cause."""
        index, text = work_item.entry.index, shortened(f"{error.message} {error.advice}")
        if isinstance(error, StructureError):
            self.answers += 1
            if (first_failure := self._failed_before.pop(index, None)) is not None:
                self._health.retried(first_failure, answered=True)
            else:
                self._health.unfit(error)
        elif (first_failure := self._failed_before.get(index)) is not None:
            self._health.retried(first_failure, answered=False)
            return
        elif isinstance(error, APIError):
            self._failed_before[index] = error
            self._health.failed(error)
        else:
            self._health.failed_unsent()
        if self._tracker.asked(work_item.item.request.model, text):
            self._say(f"{work_item.entry.source}:{work_item.entry.line} failed: {text}")

    def hold(self, work_item: WorkItem, outcome: JournalRecord, error: APIError) -> None:
        """Holds a failure back."""
        self._held.append(_HeldFailure(work_item, outcome, error, self._health.outcomes, self.answers))
        self._tracker.failing = len(self._held)

    def forget(self, index: int) -> None:
        """The failure of an entry is an outcome now."""
        self._failed_before.pop(index, None)
        self._retried.discard(index)

    async def release_old(self) -> None:
        """Makes failures outcomes that were held back long enough."""
        if not self._health.paused:
            newest = self._health.outcomes - OF_THE_LAST
            await self._release(lambda held: held.outcomes <= newest)

    async def release_unless_needed(self, *, input_waits: bool) -> None:
        """Makes failures outcomes where the input is slow, and nothing more can be learned for now.

        Args:
            input_waits: Whether the input waits for the outcome of a prompt, which may be a failure held back.
        """
        await self._release(lambda held: input_waits or held.answers < self.answers)

    async def _release(self, fits: Callable[[_HeldFailure], bool]) -> None:
        while self._held and fits(self._held[0]):
            held = self._held.popleft()
            self._tracker.failing = len(self._held)
            await self._engine.record_failure(held.work_item, held.outcome)

    async def settle(self) -> None:
        """Everything was tried: the failures stand, unless they are half of all, or the run ended in trouble."""
        if self._held and not self._engine.is_stopping:
            alike = self._health.alike_in_all(self._engine.answered)
            if alike is not None:
                self._stop_for(alike)
        if not self._left_open:
            self._leave_open_what_failed_like(self._engine.stop_error)
            await self._release(lambda held: True)
        else:
            self._engine.leave_unfinished()
            self._held.clear()
            self._tracker.failing = 0

    def _leave_open_what_failed_like(self, stopped_by: OneLLMError | None) -> None:
        """What ends the run, as it affects every prompt, is not the fault of those that met it just before."""
        others = [held for held in self._held if stopped_by is None or type(held.error) is not type(stopped_by)]
        if len(others) < len(self._held):
            self._engine.leave_unfinished()
            self._held = deque(others)

    # Many failures that are alike.

    def review(self) -> None:
        """Pauses or stops the run, if too many prompts failed alike, or too many answers do not conform."""
        if self._health.paused or self._engine.is_stopping:
            return
        if self._health.alike() is None and self._health.too_many_unfit(0) is None:
            return
        in_flight = [item for item in self._engine.in_flight if self._is_untried(item)]
        undecided = sum(item.intended for item in in_flight)
        untried = undecided < len(in_flight) or not self._pool.input_ended or self._pool.has(self._is_untried)
        if untried and (unfit := self._health.too_many_unfit(undecided)) is not None:
            self._engine.stop(StopReason(BatchError(str(unfit), advice=_UNFIT_ADVICE)))
            return
        verdict = self._health.verdict(undecided=undecided, untried=untried, others_answered=self._engine.answered > 0)
        if verdict is Verdict.STOP and (alike := self._health.alike_since_resume(undecided)) is not None:
            self._stop_for(alike)
        elif verdict is Verdict.PAUSE and (alike := self._health.alike(undecided)) is not None:
            self._start_pause(alike)

    def _is_untried(self, work_item: WorkItem) -> bool:
        unsent = work_item.copied_from is not None or work_item.cached_answer is not None
        return not unsent and work_item.entry.index not in self._failed_before

    def _stop_for(self, alike: AlikeFailures) -> None:
        self._left_open = self.stopped_for_failures = True
        self._engine.stop(StopReason(BatchError(str(alike), advice=_ADVICE)))

    def _start_pause(self, alike: AlikeFailures) -> None:
        self._health.pause()
        self._pool.pause(READ_AHEAD)
        self._engine.cancel_queued()
        self._tracker.pause(str(alike), self._clock() + FIRST_TRIAL)
        self._say(f"Paused: {alike} The next single prompt is tried in {FIRST_TRIAL:.0f} s.")
        self._pause = self._engine.start_task(self._send_trials())

    async def _send_trials(self) -> None:
        """Sends one prompt at a time until one is answered, nothing is left to try, or the run is over."""
        answered = False
        try:
            answered = await self._has_answered_again()
        except BatchError as error:
            self._engine.stop_unwritten(error)
        except asyncio.CancelledError:
            self._engine.stop(StopReason(BatchError("The task that sends single prompts was cancelled by other code.")))
            raise
        finally:
            self._tracker.resume()
            self._pause = None
            await self._guarded(self._resume(answered=answered))

    async def _guarded(self, work: Awaitable[object]) -> None:
        try:
            await work
        except BatchError as error:
            self._engine.stop_unwritten(error)

    async def _has_answered_again(self) -> bool:
        wait, number = FIRST_TRIAL, 0
        while not await self._engine.stops_within(wait):
            self._tracker.trial_at = None
            work_item, wait = self._next_trial(number), FIRST_TRIAL
            if work_item is not None:
                number += 1
                if await self._engine.send(work_item):
                    return True
                failure = self._failed_before.get(work_item.entry.index)
                if failure is not None and not self._engine.is_stopping:
                    wait = self._health.trial_failed(left=len(self._pool) if self._pool.input_ended else None)
                    text = shortened(failure.message)
                    self._say(f"Still failing: {text} The next single prompt is tried in {wait:.0f} s.")
            elif self._pool.input_ended:
                return False
            self._tracker.trial_at = self._clock() + wait
        return False

    def _next_trial(self, number: int) -> WorkItem | None:
        work_item = self._pool.take_from_afar(number, self._is_untried)
        if work_item is not None or not self._held or (self._pool.input_ended and self._engine.answered):
            return work_item
        place = int(spread(number) * len(self._held))
        held = self._held[place]
        del self._held[place]
        self._tracker.failing = len(self._held)
        return held.work_item

    async def _resume(self, *, answered: bool) -> None:
        """Ends the pause. After an answer what failed meanwhile is retried, unless it was before."""
        if self._engine.is_stopping:
            self._left_open = True
            self._pool.resume(self._engine.capacity)
            return
        again, stand = list[_HeldFailure](), list[_HeldFailure]()
        if answered:
            for held in self._held:
                (stand if held.work_item.entry.index in self._retried else again).append(held)
            self._held.clear()
            self._tracker.failing = 0
            self._retried.update(held.work_item.entry.index for held in again)
            retries = f" Failed prompts that are retried once: {len(again):,}." if again else ""
            self._say(f"Resumed: the service has answered.{retries}")
        self._health.resume(answered=answered)
        self._pool.resume(self._engine.capacity, [held.work_item for held in again])
        for held in stand:
            await self._engine.record_failure(held.work_item, held.outcome)
