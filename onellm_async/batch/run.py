"""A durable run: entries → what is not done yet → intent → POST → result → the order of the input → sink.

::

    _feed         draws entries; what the journal has is passed on, the others go to the workers
    _work         a worker: one passage after another
     _ask         through the client; before each attempt its intent is durable (see `Passage`)
     _settle      the result is durable; only then it leaves for the sink
    _watch        once a second: commands from other terminals, a point of the time series, signs of a stall

The journal is the only truth; whatever the sink holds was committed before.
"""

import asyncio
import sys
import time
from collections.abc import Callable

from attrs import asdict, evolve, frozen

from onellm_async.batch.budget import Account, Budget, Charge
from onellm_async.batch.fingerprints import Fingerprints
from onellm_async.batch.health import Health, HealthPolicy
from onellm_async.batch.inputs.items import Entry, LineError
from onellm_async.batch.journal.rows import Command, Counts, Row, Settled, State
from onellm_async.batch.outputs.outlet import LineSink, Outlet
from onellm_async.batch.passage import Passage
from onellm_async.batch.policy import RunPolicy
from onellm_async.batch.progress import RunProgress, Tally
from onellm_async.batch.protocols import AnswerLookup, EntrySource, RunClient, RunJournal
from onellm_async.batch.purse import Purse
from onellm_async.chat import JSON
from onellm_async.errors import (
    BatchError,
    BudgetExceededError,
    ClientClosedError,
    InvalidRequestError,
    OneLLMError,
    WithdrawnError,
)
from onellm_async.fanout import close_iterator, concerns_every_prompt
from onellm_async.limits.saving import rate_state_to_dict
from onellm_async.limits.snapshot import Snapshot

__all__ = ["BatchReport", "run_batch"]

_EVERY = 1.0
"""Seconds between two looks at commands and health."""
_ROWS = 1000
"""Journal rows read at once while a run is resumed."""
_SYSTEMIC_ADVICE = "Find out why, then run the same command with --retry-failed; --keep-going does not stop for this."
_STALLED_ADVICE = "The same command goes on where this one ended."


@frozen
class BatchReport:
    """How a sitting of a run ended.

    Attributes:
        progress: The counts at its end.
        counts: What the journal has, all sittings together.
        interrupted: Whether `stop` ended it before its input.
        stopped_by: The error that ended it before its input: a spent budget, an unknown key, a full disk; else None.
        strict_error: The bad line that ended it, where the run was strict.
        partial: Whether it was told to ask only the first entries, and did.
    """

    progress: RunProgress
    counts: Counts
    interrupted: bool = False
    stopped_by: OneLLMError | None = None
    strict_error: LineError | None = None
    partial: bool = False

    @property
    def complete(self) -> bool:
        """Whether the whole input was read and every prompt in it has an outcome."""
        return not (self.interrupted or self.partial or self.stopped_by or self.strict_error)


async def run_batch(
    client: RunClient,
    source: EntrySource,
    *,
    journal: RunJournal,
    sink: LineSink,
    encode: Callable[[Row], bytes],
    cache: AnswerLookup | None = None,
    budget: Budget | None = None,
    policy: RunPolicy | None = None,
    health: HealthPolicy | None = None,
    stop: asyncio.Event | None = None,
    tally: Tally | None = None,
    say: Callable[[str], None] = lambda text: None,
    on_bad_line: Callable[[LineError], None] = lambda error: None,
    clock: Callable[[], float] = time.monotonic,
) -> BatchReport:
    """Answers every entry of `source`, each of them once, through crashes and restarts.

    What `journal` has is not asked again. A failed prompt is an outcome like any other. An error that would meet every
    prompt (an unknown key, a spent balance or budget, a full disk) ends the sitting: nothing more is sent, requests
    under way finish and are written down. The same happens when `stop` is set. Cancelling ends it at once; requests
    under way are then possibly billed, and the journal knows them.

    Args:
        client: Asks, within its limits.
        source: The entries, such as an `onellm_async.batch.Source`.
        journal: Remembers, such as an `onellm_async.batch.Journal`.
        sink: Takes the output from its beginning, also when a run is resumed; it is not closed.
        encode: Makes the output of a row, such as `onellm_async.batch.RecordWriter.line`.
        cache: Answers of earlier runs, such as an `onellm_async.batch.AnswerCache`: what is there is not asked.
        budget: What all sittings together may spend. Default: anything.
        policy: What is done with doubtful, failed and repeated prompts.
        health: When a run that gets nowhere ends.
        stop: Set it to end the sitting in good order.
        tally: Counts; give one that also is a hook of the client to learn of refusals while the run goes on.
        say: Told what a user should know while the run goes on, in a sentence.
        on_bad_line: Told of each bad line.
        clock: Seconds that only go forward.

    Returns:
        How it ended. Errors that ended it early are in it, not raised.

    Example:
        ::

            with Journal.open("answers.jsonl.journal", identity) as journal:
                report = await run_batch(client, source, journal=journal, sink=sink, encode=writer.line)
    """
    policy = policy or RunPolicy()
    run = _Run(
        client,
        journal,
        Outlet(sink, policy.window),
        encode=encode,
        cache=cache,
        account=_account(budget or Budget(), journal.counts()),
        policy=policy,
        health=Health(health or HealthPolicy(), clock()),
        tally=tally or Tally(clock()),
        say=say,
        on_bad_line=on_bad_line,
        clock=clock,
    )
    return await run.through(source, stop or asyncio.Event())


def _account(budget: Budget, before: Counts) -> Account:
    tokens = before.input_tokens + before.output_tokens + before.at_risk_tokens
    return Account(budget, Charge(before.cost + before.at_risk, tokens))


class _Run:
    def __init__(
        self,
        client: RunClient,
        journal: RunJournal,
        outlet: Outlet,
        *,
        encode: Callable[[Row], bytes],
        cache: AnswerLookup | None,
        account: Account,
        policy: RunPolicy,
        health: Health,
        tally: Tally,
        say: Callable[[str], None],
        on_bad_line: Callable[[LineError], None],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._journal = journal
        self._outlet = outlet
        self._encode = encode
        self._cache = cache
        self._purse = Purse(account)
        self._policy = policy
        self._health = health
        self._tally = tally
        self._say = say
        self._on_bad_line = on_bad_line
        self._clock = clock
        self._group = client.group()
        self._seen = Fingerprints()
        self._under_way: dict[int, Passage] = {}
        self._waiting: asyncio.Queue[Passage | None] = asyncio.Queue(client.limits.max_concurrency)
        self._workers: set[asyncio.Task[None]] = set()
        self._feeding: asyncio.Task[None] | None = None
        self._ended = False
        self._interrupted = self._partial = False
        self._read_all = False
        self._left_out = False
        self._stopped_by: OneLLMError | None = None
        self._strict_error: LineError | None = None

    async def through(self, source: EntrySource, stop: asyncio.Event) -> BatchReport:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            beside = [tasks.create_task(self._end_when(stop)), tasks.create_task(self._watch(tasks))]
            self._feeding = tasks.create_task(self._feed(source))
            self._employ(tasks)
            await asyncio.wait({self._feeding})
            await self._waiting.put(None)
            while self._workers:
                await asyncio.wait(self._workers)
            for task in beside:
                task.cancel()
            self._outlet.close()
        # Told to stop when there was nothing left to stop: that is a run like any other.
        interrupted = self._interrupted and (self._left_out or not self._read_all)
        return BatchReport(
            progress=self._tally.snapshot(self._clock()),
            counts=self._journal.counts(),
            interrupted=interrupted,
            stopped_by=self._stopped_by,
            strict_error=self._strict_error,
            partial=self._partial and not (interrupted or self._stopped_by or self._strict_error),
        )

    def _employ(self, tasks: asyncio.TaskGroup) -> None:
        """More workers than slots: some wait for the journal while the others' requests are under way."""
        slots = self._client.limits.max_concurrency
        for _ in range(slots + max(4, slots // 4) - len(self._workers)):
            worker = tasks.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    # How it ends.

    def _end(self, error: OneLLMError | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        self._stopped_by = error
        self._group.withdraw()
        if self._feeding is not None:
            self._feeding.cancel()

    def _end_unwritten(self, error: BatchError) -> None:
        """Where the journal cannot grow the output may not take what space is left; it is written anew next time."""
        self._outlet.abandon()
        self._end(error)

    async def _end_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._interrupted = not self._ended
        self._end()

    async def _write(self) -> None:
        try:
            await self._outlet.drain_into_sink()
        except BatchError as error:
            self._end(error)

    # What there is to ask.

    async def _feed(self, source: EntrySource) -> None:
        known, entries = _Known(self._journal), aiter(source)
        try:
            async for entry in entries:
                if self._policy.first is not None and entry.index >= self._policy.first:
                    self._partial = True
                    break
                await self._outlet.room_for(entry.index)
                row = known.of(entry)
                if row is None or not self._stands(row):
                    await self._take(entry, row)
                elif row.custom_id is not None:
                    source.saw(row.custom_id)
            self._read_all = True
        except BatchError as error:
            self._end(error)
        finally:
            await close_iterator(entries)

    def _stands(self, row: Row) -> bool:
        """Passes on what needs no asking."""
        hold = self._policy.ambiguous == "hold"
        if row.state is State.SENT and not hold:
            return False
        if row.state is State.FAILED and self._policy.retry_failed and not (hold and row.possibly_billed):
            return False
        if row.state is State.ANSWERED and self._policy.deduplicate:
            self._seen.add(row.request_digest, row.index)
        self._tally.resumed(row, held=row.state is State.SENT)
        self._outlet.put(row.index, self._encode(row))
        return True

    async def _take(self, entry: Entry, row: Row | None) -> None:
        item = entry.item()
        if isinstance(item, LineError):
            self._bad_line(entry, item)
            return
        try:
            charge = self._purse.account.budget.worst_case(item.request)
        except InvalidRequestError as error:
            self._bad_line(entry, LineError(entry.source, entry.line, str(error)))
            return
        passage = Passage(
            entry,
            item,
            earlier=row,
            charge=charge,
            purse=self._purse if self._purse.account.budget.capped else None,
            journal=self._journal,
            clock=self._clock,
        )
        if not self._policy.deduplicate or not self._repeats(passage):
            if self._cache is not None:
                passage.cached = self._cache.answer_to(item.request_digest)
            self._under_way[entry.index] = passage
            await self._waiting.put(passage)
        elif passage.copied is not None:
            await self._waiting.put(passage)

    def _repeats(self, passage: Passage) -> bool:
        """Whether the same was asked before: the passage then follows that one, or copies its outcome."""
        first = self._seen.add(passage.item.request_digest, passage.entry.index)
        if first is None:
            return False
        leader = self._under_way.get(first)
        if leader is not None:
            if leader.item.request_digest != passage.item.request_digest:
                return False
            leader.followers.append(passage)
            return True
        row = self._journal.answer_of(first)
        if row is None or row.state is State.SENT or row.request_digest != passage.item.request_digest:
            return False
        passage.copied = row
        return True

    def _bad_line(self, entry: Entry, error: LineError) -> None:
        self._outlet.put(entry.index, b"")
        self._tally.bad_line()
        self._journal.bad_line(error)
        self._on_bad_line(error)
        if self._policy.strict and not self._ended:
            self._strict_error = error
            self._end()

    # One after another.

    async def _work(self) -> None:
        while (passage := await self._waiting.get()) is not None:
            if self._ended:
                self._left_out = True
                continue
            try:
                if passage.copied is not None:
                    await self._settle(passage, passage.copy_of(passage.copied), passage.copied.result)
                elif passage.cached is not None:
                    settled = passage.reused(passage.cached)
                    await self._settle_followers(passage, await self._settle(passage, settled, settled.result))
                else:
                    await self._ask(passage)
            except BatchError as error:
                self._end_unwritten(error)
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
            settled = passage.answered(response)
            await self._settle_followers(passage, await self._settle(passage, settled, settled.result))

    async def _failed(self, passage: Passage, error: OneLLMError) -> None:
        settled = passage.failed(error)
        everybody = concerns_every_prompt(error) or isinstance(error, BatchError | BudgetExceededError)
        if isinstance(error, BatchError):
            self._end_unwritten(error)
        elif everybody:
            self._end(error)
        if everybody or isinstance(error, WithdrawnError | ClientClosedError):
            # It is not this prompt's fault. What was surely not billed counts as never sent.
            self._left_out = True
            if passage.intended and not passage.lost:
                await self._journal.forget(passage.entry.index)
            return
        self._health.failed(error, self._clock())
        if not passage.intended:
            await passage.intend()
        await self._settle_followers(passage, await self._settle(passage, settled, settled.result))
        if (reason := self._health.systemic_failure()) is not None:
            self._end(BatchError(f"{reason}.", advice=_SYSTEMIC_ADVICE))

    async def _settle(self, passage: Passage, settled: Settled, result: bytes) -> Row:
        await self._journal.settle(settled)
        row = passage.row(settled, result)
        self._tally.settled(row, self._clock())
        self._outlet.put(row.index, self._encode(row))
        return row

    async def _settle_followers(self, passage: Passage, row: Row) -> None:
        while passage.followers:
            followers, passage.followers = passage.followers, []
            await asyncio.gather(*(self._settle(follower, follower.copy_of(row), row.result) for follower in followers))
        del self._under_way[row.index]

    # Beside it.

    async def _watch(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            for command in self._journal.commands():
                self._obey(command)
                self._employ(tasks)
            snapshot, now = self._client.snapshot(), self._clock()
            self._journal.sample(time.time(), self._sample(snapshot, now))
            if snapshot.paused:
                self._health.waits(now)
            if (quiet := self._health.quiet_for(now)) is not None:
                self._say(f"No outcome for {quiet / 60:.0f} min; the next request waits for: {snapshot.bottleneck}.")
            if self._health.stalled(now):
                self._end(BatchError("Nothing has come back for too long.", advice=_STALLED_ADVICE))

    def _sample(self, snapshot: Snapshot, now: float) -> JSON:
        learned = self._client.rate_state
        return {
            "progress": asdict(self._tally.snapshot(now)),
            "snapshot": asdict(snapshot),
            "rate_state": None if learned is None else rate_state_to_dict(learned),
        }

    def _obey(self, command: Command) -> None:
        match command.name:
            case "pause":
                self._client.pause()
            case "resume":
                self._client.resume()
            case "retune":
                self._client.retune(evolve(self._client.limits, **command.argument))
            case "stop":
                self._interrupted = not self._ended
                self._end()
        self._say(f"From another terminal: {command.name}.")


class _Known:
    """The rows of the journal in the order of the input, a thousand at a time."""

    def __init__(self, journal: RunJournal) -> None:
        self._journal = journal
        self._rows: dict[int, Row] = {}
        self._end = 0 if journal.resumed else sys.maxsize

    def of(self, entry: Entry) -> Row | None:
        if entry.index >= self._end:
            self._rows = {row.index: row for row in self._journal.rows(entry.index, entry.index + _ROWS - 1)}
            self._end = entry.index + _ROWS
        row = self._rows.get(entry.index)
        if row is not None and row.digest != entry.digest:
            raise BatchError(
                f"{entry.source}:{entry.line} is not what it was when this run began.",
                advice="Give the run its old input back, or begin another one with another output.",
            )
        return row
