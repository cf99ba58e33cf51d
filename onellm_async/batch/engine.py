"""The run engine: the tasks of one session of a durable run, and what ends it.

::

    feeder       entry → replay its record | attach it to a duplicate | WorkItem into the pool
    worker       send, with the WorkItem as attempt hooks → record the outcome → put its line
    writer       lines in input order → sink
    monitor      once a second: commands, one sample, stall check

`RunEngine.stop` is the only way to end early: it cancels what is queued, stops the feeder, and lets the requests in
flight finish. The journal is the only truth: whatever the sink holds was committed before.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from onellm_async.batch.answer_cache import AnswerCache
from onellm_async.batch.budget import Budget, BudgetGate, Cost
from onellm_async.batch.callbacks import guarded
from onellm_async.batch.config import RunPolicy
from onellm_async.batch.deduplication import Deduplicator
from onellm_async.batch.health import HealthMonitor, HealthPolicy
from onellm_async.batch.inputs.entry import Entry, EntrySource, LineError
from onellm_async.batch.inputs.samples import sampled
from onellm_async.batch.journal.null_journal import NullJournal, RunJournal
from onellm_async.batch.journal.record import JournalRecord, RecordState, RunCounts, UnstorableRowError
from onellm_async.batch.monitor import Monitor
from onellm_async.batch.outputs.ordered_writer import WINDOW, LineSink, OrderedWriter
from onellm_async.batch.progress import ProgressTracker
from onellm_async.batch.recovery import Recovery
from onellm_async.batch.run_report import RunReport, StopReason
from onellm_async.batch.work_item import WorkItem
from onellm_async.chat import ChatRequest, ChatResponse
from onellm_async.errors import (
    APIError,
    BatchError,
    InvalidRequestError,
    OneLLMError,
    RequestCancelledError,
    StructureError,
)
from onellm_async.fanout import close_iterator
from onellm_async.formatting import pluralize
from onellm_async.limits.permit import RequestGroup
from onellm_async.limits.policy import AUTO
from onellm_async.sender import Sender
from onellm_async.structured_output import Shape, fitting_answer
from onellm_async.worker_pool import WorkerPool

_BAD_LINES = 10_000
"""Records of bad lines after which those that were written are dropped."""

_log = logging.getLogger("onellm_async")
_MAX_WORKERS = 4096
"""Tasks, however high the concurrency: each takes memory."""
_MIN_SPARE_WORKERS = 4
_RECORDS = 1000
"""Journal records that are read at once while a run is resumed."""
_REOPENED_AT_ONCE = 256
"""Records of one transaction when failures are taken back."""


class RunEngine:
    """Answers every entry of a source once, through crashes and restarts. Use it once.

    What the journal has is not sent again. A failed prompt is an outcome like any other. An error that affects every
    prompt (an unknown key, a spent balance or budget, a full disk) stops the session: nothing more is sent, requests in
    flight finish and are recorded.

    Args:
        sender: Sends, within its limits.
        source: The entries.
        journal: Remembers.
        sink: Takes the output from its beginning, also when a run is resumed; it is not closed.
        encode: Makes the output of a record. If it raises, the run stops: the journal keeps the answers, and the output
            is written anew when the run is resumed.
        header: What stands before the first line of the output.
        encode_bad_line: Makes the output of a bad line, from its index, its bytes and what is wrong with it; without it
            bad lines have none.
        cache: Answers of earlier runs: what is there is not sent.
        budget: What all sessions together may spend; by default anything.
        policy: What happens to possibly billed, failed and duplicate prompts.
        health: When a run that gets nowhere pauses and ends.
        shape: What an answer has to be; the requests have its schema. None for any text.
        corrections: How many times an answer that does not fit is sent back.
        stop: Set it to end the session gracefully.
        tracker: Counts; add it to the hooks of the client to count 429s and retries.
        say: Called with what a user should know while the run is active, in a sentence. What it raises is logged.
        on_bad_line: Called for each bad line. What it raises is logged.
        clock: Seconds that only go forward.
        window: How far the newest prompt may be ahead of the oldest one without an outcome, without a journal.

    Attributes:
        pool: The workers, and the prompts that wait for them.
        in_flight: Prompts that workers are sending.
    """

    def __init__(
        self,
        sender: Sender,
        source: EntrySource,
        *,
        journal: RunJournal,
        sink: LineSink,
        encode: Callable[[JournalRecord], bytes],
        header: bytes = b"",
        encode_bad_line: Callable[[int, bytes, str], bytes] | None = None,
        cache: AnswerCache | None = None,
        budget: Budget | None = None,
        policy: RunPolicy | None = None,
        health: HealthPolicy | None = None,
        shape: Shape[object] | None = None,
        corrections: int = 0,
        stop: asyncio.Event | None = None,
        tracker: ProgressTracker | None = None,
        say: Callable[[str], None] = lambda text: None,
        on_bad_line: Callable[[LineError], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
        window: int = WINDOW,
    ) -> None:
        self.pool: WorkerPool[WorkItem] = WorkerPool(self._work, capacity=_slots_of(sender))
        self.in_flight: set[WorkItem] = set()
        self._sender = sender
        self._journal = journal
        self._cache = cache
        self._budget = budget or Budget()
        self._policy = policy or RunPolicy()
        self._source = sampled(source, self._policy.samples)
        self._shape = shape
        self._corrections = 0 if shape is None else corrections
        self._hold_ambiguous = self._policy.ambiguous == "hold"
        self._stop_requested = stop or asyncio.Event()
        self._tracker = tracker or ProgressTracker(clock())
        self._on_bad_line = guarded(on_bad_line, "on_bad_line")
        self._clock = clock
        say = guarded(say, "say")
        self._encode = self._stopping_on_error(encode)
        self._encode_bad_line = encode_bad_line
        self._bad_lines: dict[int, bytes] = {}  # those that the writer may have to read again
        # Without a journal no line can be read again, so a window bounds how many are held.
        read = None if isinstance(journal, NullJournal) else self._read_again
        self._writer = OrderedWriter(sink, window=window, read=read, header=header)
        self._deduplicator = Deduplicator(journal)
        self._budget_gate = BudgetGate(self._budget, _spent(journal.counts()), say)
        self._health = HealthMonitor(health or HealthPolicy(), clock())
        self._recovery = Recovery(self, self._health, tracker=self._tracker, say=say, clock=clock)
        self._monitor = Monitor(self, sender, journal, tracker=self._tracker, health=self._health, say=say, clock=clock)
        self._group = self._new_group()
        self._tasks: asyncio.TaskGroup | None = None
        self._slots = 0
        self._failures_of_session: list[int] = []
        self._stopped = asyncio.Event()
        self._stop_reason = StopReason()
        self._input_ended = self._unfinished = self._limit_reached = False

    async def run(self) -> RunReport:
        """Runs the session. Errors that end it early are in the report, not raised.

        Safe to cancel: requests in flight are then possibly billed, and the journal knows them.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._write())
            ends = (self._stop_when_requested(), self._stop_when_time_is_over(), self._monitor.run())
            beside = [tasks.create_task(each) for each in ends]
            try:
                self._count_earlier_sends()
                self.pool.feed(self._feed())
                self.resize()
                await self.pool.wait_for_input()
                await self._finish()
            finally:
                await self._recovery.aclose()
                await self.pool.aclose()
            for task in beside:
                task.cancel()
            self._writer.close()
        self._monitor.sample()
        return self._report()

    def start_task(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        """Starts a task that ends before the run does; its error is one of the run."""
        assert self._tasks is not None  # noqa: S101  # see `run`
        return self._tasks.create_task(work)

    # The end.

    @property
    def is_stopping(self) -> bool:
        """Whether something ended the run before its input."""
        return self._stopped.is_set()

    @property
    def stop_error(self) -> OneLLMError | None:
        """The error that ended the run before its input."""
        return self._stop_reason.error

    def stop(self, reason: StopReason) -> None:
        """Ends the run early, unless it is ending: nothing more is sent, requests in flight finish."""
        if self.is_stopping:
            return
        self._stop_reason = reason
        self._stopped.set()
        self._group.cancel()
        self.pool.stop_feeding()

    def stop_unwritten(self, error: BatchError) -> None:
        """Ends the run where the journal cannot be written. What space the disk has left is not for the output."""
        self._writer.discard()
        self.stop(StopReason(error))

    def leave_unfinished(self) -> None:
        """A prompt that was read stays without an outcome."""
        self._unfinished = True

    async def stops_within(self, seconds: float) -> bool:
        """Whether something ends the run within so many seconds. Safe to cancel."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True

    async def _stop_when_requested(self) -> None:
        await self._stop_requested.wait()
        self.stop(StopReason(interrupted=True))

    async def _stop_when_time_is_over(self) -> None:
        if self._policy.max_time is not None:
            await asyncio.sleep(self._tracker.started + self._policy.max_time - self._clock())
            self.stop(StopReason(out_of_time=True))

    async def _finish(self) -> None:
        """Returns when every prompt that was read has an outcome, or the run is stopping."""
        if not (self._input_ended or self.is_stopping):
            self.stop(StopReason(BatchError("The task that reads the input was cancelled by other code.")))
        while True:
            while not self.is_idle:
                await self.pool.wait_until_idle()
                await self._recovery.wait_for_resume()
            if not self._recovery.holds_any:
                break
            await self._guarded(self._recovery.settle())
        if self._recovery.stopped_for_failures:
            await self._guarded(self._reopen_failures())
        self.pool.close()
        await self.pool.wait_until_ended()

    def _report(self) -> RunReport:
        reason = self._stop_reason
        # Told to stop when there was nothing left to stop: that is a run like any other.
        something_left = self._unfinished or not self._input_ended
        interrupted, out_of_time = reason.interrupted and something_left, reason.out_of_time and something_left
        error = reason.error
        if self._unfinished and not self.is_stopping:
            error = BatchError("A prompt has no outcome, as other code cancelled its task.")
        ended_early = interrupted or out_of_time or error is not None or reason.bad_line is not None
        return RunReport(
            progress=self._tracker.snapshot(self._clock()),
            counts=self._journal.counts(),
            interrupted=interrupted,
            out_of_time=out_of_time,
            stopped_by=error,
            strict_error=reason.bad_line,
            limit_reached=self._limit_reached and not ended_early,
            failures=self._failures(),
            failed_models=self._tracker.failed_models(),
        )

    def _failures(self) -> dict[str, int]:
        try:
            return dict(self._journal.failure_causes())
        except BatchError:  # it cannot be read any more, which has ended the session
            return {}

    async def _guarded(self, work: Awaitable[object]) -> None:
        try:
            await work
        except BatchError as error:
            self.stop_unwritten(error)

    # The writer.

    async def _write(self) -> None:
        try:
            await self._writer.write_all()
        except BatchError as error:
            self.stop(StopReason(error))
        except Exception as error:  # of a caller's sink, and the requests in flight are paid for
            _log.exception("The output cannot be written.")
            self.stop(StopReason(_caused(f"The output cannot be written: {error!r}.", error)))

    def _read_again(self, first: int, last: int) -> Sequence[bytes]:
        lines = {record.index: self._encode(record) for record in self._journal.records(first, last)}
        lines |= {index: self._bad_lines.pop(index) for index in range(first, last + 1) if index in self._bad_lines}
        return [lines[index] for index in sorted(lines)]

    def _stopping_on_error(self, encode: Callable[[JournalRecord], bytes]) -> Callable[[JournalRecord], bytes]:
        def encoded(record: JournalRecord) -> bytes:
            try:
                return encode(record)
            except Exception as error:
                _log.exception("The output of entry %d cannot be made.", record.index)
                self.stop(StopReason(BatchError(f"The output of entry {record.index} cannot be made: {error!r}.")))
                return b""

        return encoded

    # The feeder.

    async def _feed(self) -> None:
        """Reads all entries, or as many as the policy allows."""
        earlier, entries, count = _EarlierRecords(self._journal), aiter(self._source), 0
        try:
            async for entry in entries:
                if self._policy.end is not None and entry.index >= self._policy.end:
                    self._limit_reached = True
                    break
                count = entry.index + 1
                await self._writer.wait_for_space(entry.index)
                await self._deduplicator.wait_for_space()
                record = earlier.of(entry)
                if record is None or not self._policy.is_complete(record):
                    await self._take(entry, record)
                    continue
                self._replay(record)
            if not self._limit_reached:
                self._refuse_shorter(count)
            self._input_ended = True
        except BatchError as error:
            self.stop(StopReason(error))
        except Exception as error:  # of a caller's iterable, and the requests in flight are paid for
            _log.exception("The input cannot be read.")
            self.stop(StopReason(_caused(f"The input cannot be read any further: {error!r}.", error)))
        finally:
            await close_iterator(entries)

    def _refuse_shorter(self, count: int) -> None:
        """Refuses the end of a pipe that came too early: what was there of the output stays.

        Raises:
            BatchError: With the number of its entries, and how to insist.
        """
        samples = self._policy.samples
        if count <= self._journal.last_entry:
            before = self._journal.last_entry // samples + 1
            raise BatchError(
                f"The input ended after {count // samples:,} of the {pluralize(before, 'prompt')} that it had. "
                "The output was not replaced.",
                advice="If its producer failed, run the same command again. If this is meant, save it to a file (or "
                "make it a list) and add accept_removed=True.",
            )

    def _replay(self, record: JournalRecord) -> None:
        """Delivers an outcome of an earlier session."""
        if record.state is RecordState.ANSWERED and self._policy.deduplicate is not False:
            self._deduplicator.answered(record)
        self._tracker.resumed(record, held=record.state is RecordState.IN_FLIGHT)
        self._writer.put(record.index, self._encode(record))
        if record.custom_id is not None:
            self._source.reserve_custom_id(record.custom_id)

    async def _take(self, entry: Entry, record: JournalRecord | None) -> None:
        item = entry.item()
        if isinstance(item, LineError):
            self._take_bad_line(entry, item)
            return
        try:
            bound = self._budget.bound(item.request, self._corrections)
        except InvalidRequestError as error:
            self._take_bad_line(entry, LineError(entry.source, entry.line, str(error)))
            return
        work_item = WorkItem(
            entry,
            item,
            earlier=record,
            bound=bound,
            budget_gate=self._budget_gate,
            journal=self._journal,
            clock=self._clock,
            corrections=None if self._shape is None else self._corrections,
        )
        if not (self._policy.deduplicates(item.request) and self._deduplicator.claim(work_item)):
            if self._cache is not None:
                work_item.cached_answer = self._cache.answer_to(item.request_digest)
            self._deduplicator.register(work_item)
            await self.pool.put(work_item)
        elif work_item.copied_from is not None:
            await self.pool.put(work_item)

    def _take_bad_line(self, entry: Entry, error: LineError) -> None:
        self._skip(entry, error)
        if self._policy.strict:
            self.stop(StopReason(bad_line=error))

    def _skip(self, entry: Entry, error: LineError) -> None:
        """Passes over a line that holds no usable prompt."""
        if entry.sample is not None and entry.sample > 1:  # the first sample has told it
            self._writer.put(entry.index, b"")
            return
        line = b"" if self._encode_bad_line is None else self._encode_bad_line(entry.index, entry.raw, str(error))
        if line:
            if len(self._bad_lines) >= _BAD_LINES:
                written = self._writer.written
                self._bad_lines = {index: kept for index, kept in self._bad_lines.items() if index >= written}
            self._bad_lines[entry.index] = line
        self._writer.put(entry.index, line)
        self._tracker.bad_line()
        self._journal.bad_line(error)
        self._on_bad_line(error)

    def _count_earlier_sends(self) -> None:
        """Counts in the declared windows what earlier sessions have sent, or a resumed run would exceed them."""
        windows = [rate.per for rate in self._sender.limits.declared_rates if rate.is_window]
        now = time.time()
        if windows and (sent := self._journal.sent_since(now - max(windows))):
            self._sender.count_earlier([now - at for at in sent])

    # The workers.

    @property
    def capacity(self) -> int:
        """Prompts that may wait for a worker."""
        return min(_slots_of(self._sender), _MAX_WORKERS)

    @property
    def is_idle(self) -> bool:
        """Whether no prompt waits, is in flight or is being recorded."""
        return self.pool.is_idle and not self._recovery.is_pausing

    @property
    def answered(self) -> int:
        """Prompts of the run that were answered, earlier sessions included."""
        return self._journal.counts().answered

    def resize(self) -> None:
        """Adjusts the workers to the limits: more than slots, as some wait for the journal."""
        slots = self._slots = _slots_of(self._sender)
        if not self._health.paused:
            self.pool.capacity = self.capacity
        self.pool.resize(min(slots + max(_MIN_SPARE_WORKERS, slots // 4), _MAX_WORKERS))

    async def release_failures(self) -> None:
        """Makes failures outcomes that are held back although nothing can be learned for now."""
        if self.is_idle and not self.is_stopping:
            input_waits = self._writer.is_waited_for or self._deduplicator.is_waited_for
            with self.pool.kept_busy():  # or the run could end before the failures are recorded
                await self._guarded(self._recovery.release_unless_needed(input_waits=input_waits))

    def _new_group(self) -> RequestGroup:
        return RequestGroup(answered=self.answered > 0, retry_ambiguous=not self._hold_ambiguous)

    def cancel_queued(self) -> None:
        """Cancels what is queued or in backoff; later requests are of a new group."""
        before, self._group = self._group, self._new_group()
        before.cancel()

    async def _work(self, work_item: WorkItem) -> None:
        try:
            await self._guarded(self._handle(work_item))
        except asyncio.CancelledError:
            self._unfinished = True  # the journal has it as possibly billed, if it was sent
            raise

    async def _handle(self, work_item: WorkItem) -> None:
        if self.is_stopping:
            self._unfinished = True
        elif work_item.copied_from is not None:
            await self._record(work_item, work_item.copy_of(work_item.copied_from))
        elif work_item.cached_answer is not None:
            await self._resolve(work_item, work_item.reused(work_item.cached_answer))
        else:
            await self.send(work_item)

    async def send(self, work_item: WorkItem) -> bool | None:
        """Sends a prompt. Returns whether it was answered, fit or unfit; None if it has no outcome."""
        group = self._group
        self.in_flight.add(work_item)
        try:
            response = await self._ask(work_item, group)
        except OneLLMError as error:
            return await self._failed(work_item, error, group)
        finally:
            self.in_flight.discard(work_item)
        self._recovery.answered(work_item)
        if _slots_of(self._sender) != self._slots:
            self.resize()  # the concurrency that the service accepts was found to be another one
        await self._resolve(work_item, work_item.answered(response))
        await self._recovery.release_old()
        return True

    async def _ask(self, work_item: WorkItem, group: RequestGroup) -> ChatResponse[object]:
        """Sends a prompt, and its corrections where the answer has to conform to a schema."""

        async def send(request: ChatRequest) -> ChatResponse:
            reply = await self._sender.send(
                request, lane=self._policy.lane, deadline=None, group=group, attempt_hooks=work_item
            )
            work_item.turn_answered(reply)
            return reply

        if self._shape is None:
            return await send(work_item.item.request)
        return await fitting_answer(send, work_item.item.request, self._shape, self._corrections)

    async def _failed(self, work_item: WorkItem, error: OneLLMError, group: RequestGroup) -> bool | None:
        outcome = work_item.failed(error)
        if isinstance(error, StructureError) and error.correction_error is not None:
            error = error.correction_error  # it tells whose fault it is, as for every other request
        if isinstance(error, UnstorableRowError) and not work_item.intended:
            await self._leave_out(work_item, error)
            return None
        if isinstance(error, BatchError):
            self.stop_unwritten(error)
        elif error.affects_every_prompt:
            self.stop(StopReason(error))
        may_retry = not (self._hold_ambiguous and work_item.lost)
        # A run or trial that ends grants no retry any more, whatever the policy would say.
        ends = self.is_stopping or group is not self._group
        cut_short = isinstance(error, APIError) and error.retryable and ends and may_retry
        if error.affects_every_prompt or isinstance(error, RequestCancelledError) or cut_short:
            # It is not this prompt's fault. What was surely not billed counts as never sent.
            await self._retract(work_item, error)
            if self.is_stopping:
                self._unfinished = True
            else:
                self.pool.put_back(work_item)
            return None
        self._recovery.failed(work_item, error)
        if isinstance(error, APIError) and may_retry and self._health.watches:
            await self._retract(work_item, error)
            self._recovery.hold(work_item, outcome, error)
        else:
            await self.record_failure(work_item, outcome)
        self._recovery.review()
        await self._recovery.release_old()
        return isinstance(error, StructureError)

    # Outcomes.

    async def record_failure(self, work_item: WorkItem, outcome: JournalRecord) -> None:
        """Makes a failure an outcome.

        Raises:
            BatchError: If the journal cannot be written.
        """
        self._recovery.forget(work_item.entry.index)
        try:
            if not work_item.intended:
                await work_item.intend()
        except UnstorableRowError as error:
            await self._leave_out(work_item, error)
        else:
            await self._resolve(work_item, outcome)

    async def _resolve(self, work_item: WorkItem, outcome: JournalRecord) -> None:
        """Records the outcome of a prompt, and of its duplicates, those included that join meanwhile."""
        record = await self._record(work_item, outcome)
        while duplicates := self._deduplicator.detach(work_item):
            await asyncio.gather(*(self._record(each, each.copy_of(record)) for each in duplicates))
        self._deduplicator.resolve(work_item)

    async def _record(self, work_item: WorkItem, record: JournalRecord) -> JournalRecord:
        """Makes an outcome durable, then counts it, then puts its line. Returns the record that the journal has."""
        try:
            await self._journal.record_outcome(record)
        except UnstorableRowError as error:
            record = work_item.unstorable(record, error)
            await self._journal.record_outcome(record)
        if record.state is RecordState.FAILED:
            self._failures_of_session.append(record.index)
        self._tracker.settled(record, self._clock())
        self._writer.put(record.index, self._encode(record))
        return record

    async def _retract(self, work_item: WorkItem, error: OneLLMError) -> None:
        if work_item.intended and work_item.has_paid:
            await self._journal.record_intent(work_item.unfinished())
        elif work_item.intended and not work_item.lost:
            await self._journal.retract_intent(work_item.entry.index)
        work_item.start_over(error.attempts)

    async def _leave_out(self, work_item: WorkItem, error: OneLLMError) -> None:
        """Passes over an entry that the journal cannot store. The first of its duplicates is sent instead."""
        entry, duplicates = work_item.entry, self._deduplicator.detach(work_item)
        self._skip(entry, LineError(entry.source, entry.line, f"{error} Nothing was sent."))
        self._deduplicator.resolve(work_item)
        if duplicates:
            heir, *others = duplicates
            self._deduplicator.register(heir)
            self._deduplicator.attach(heir, others)
            await self.send(heir)

    async def _reopen_failures(self) -> None:
        """Makes what failed in this session never sent, so that the next session sends it again."""
        failures = self._failures_of_session
        while some := failures[:_REOPENED_AT_ONCE]:
            del failures[:_REOPENED_AT_ONCE]
            records = [record for index in some if (record := self._journal.record(index)) is not None]
            records = [record for record in records if not (self._hold_ambiguous and record.possibly_billed)]
            records = [record for record in records if not record.is_paid]  # an answer that does not fit stands
            await asyncio.gather(*(self._journal.record_intent(_intent_again(record)) for record in records))
            await asyncio.gather(*(self._journal.retract_intent(record.index) for record in records))
            self._tracker.reopened(len(records))


def _caused(text: str, cause: Exception) -> BatchError:
    error = BatchError(text)
    error.__cause__ = cause
    return error


class _EarlierRecords:
    """The records of earlier sessions in input order, read a thousand at a time."""

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._records: dict[int, JournalRecord] = {}
        self._end = 0 if journal.resumed else sys.maxsize

    def of(self, entry: Entry) -> JournalRecord | None:
        if entry.index >= self._end:
            found = self._journal.records(entry.index, entry.index + _RECORDS - 1)
            self._records = {record.index: record for record in found}
            self._end = entry.index + _RECORDS
        record = self._records.get(entry.index)
        if record is not None and record.line_digest != entry.digest:
            raise BatchError(
                f"{entry.source}:{entry.line} is not what it was when this run began.",
                advice="A pipe or a generator is compared with the journal while it is read. Save it to a file, or "
                "make it a list: then only what is new is sent.",
            )
        return record


def _spent(before: RunCounts) -> Cost:
    """What earlier sessions spent, what they put at risk included."""
    tokens = before.input_tokens + before.output_tokens + before.at_risk_tokens
    return Cost(before.cost + before.at_risk, tokens)


def _intent_again(record: JournalRecord) -> JournalRecord:
    return JournalRecord(
        index=record.index,
        line=record.line,
        line_digest=record.line_digest,
        request_digest=record.request_digest,
        custom_id=record.custom_id,
        sample=record.sample,
        kept=record.kept,
        reserved=record.reserved,
        reserved_tokens=record.reserved_tokens,
        sent_at=time.time(),
        possibly_billed=record.possibly_billed + 1,
    )


def _slots_of(sender: Sender) -> int:
    """Requests that may be in flight: as declared, or as many as the client has found out."""
    declared = sender.limits.max_concurrency
    return sender.snapshot().concurrency if declared == AUTO else declared
