"""A durable run: entries → what is not done yet → intent → POST → result → the order of the input → sink.

::

    Feeder        draws entries; what the journal has is passed on, the others wait for a worker
    Workers       one work item after another
      WorkItem     through the client; before each attempt its intent is durable
      Delivery    the result is durable; only then it leaves for the sink
    Watch         once a second: commands from other terminals, a point of the time series, signs of a stall
    Ending        what ends it before its input

The journal is the only truth; whatever the sink holds was committed before.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from onellm_async.batch.asking import Workers
from onellm_async.batch.budget import Account, Budget, Charge
from onellm_async.batch.budget_gate import BudgetGate
from onellm_async.batch.callbacks import guarded
from onellm_async.batch.deduplication import Deduplicator
from onellm_async.batch.delivery import Delivery
from onellm_async.batch.ending import Ending, RunReport
from onellm_async.batch.feeding import Feeder
from onellm_async.batch.health import HealthMonitor, HealthPolicy
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.record import JournalRecord, RunCounts
from onellm_async.batch.monitor import Watch
from onellm_async.batch.outputs.outlet import LineSink, OrderedWriter
from onellm_async.batch.policy import RunPolicy
from onellm_async.batch.pool import Pool
from onellm_async.batch.progress import ProgressTracker
from onellm_async.batch.protocols import AnswerLookup, EntrySource, RunClient, RunJournal
from onellm_async.errors import BatchError
from onellm_async.limits.permit import RequestGroup

__all__ = ["run_batch"]

_log = logging.getLogger("onellm_async")


async def run_batch(
    client: RunClient,
    source: EntrySource,
    *,
    journal: RunJournal,
    sink: LineSink,
    encode: Callable[[JournalRecord], bytes],
    cache: AnswerLookup | None = None,
    budget: Budget | None = None,
    policy: RunPolicy | None = None,
    health: HealthPolicy | None = None,
    stop: asyncio.Event | None = None,
    tracker: ProgressTracker | None = None,
    say: Callable[[str], None] = lambda text: None,
    on_bad_line: Callable[[LineError], None] = lambda error: None,
    clock: Callable[[], float] = time.monotonic,
) -> RunReport:
    """Answers every entry of `source`, each of them once, through crashes and restarts.

    What `journal` has is not asked again. A failed prompt is an outcome like any other. An error that would meet every
    prompt (an unknown key, a spent balance or budget, a full disk) ends the session: nothing more is sent, requests
    in flight finish and are written down. The same happens when `stop` is set. Cancelling ends it at once; requests
    in flight are then possibly billed, and the journal knows them.

    Args:
        client: Asks, within its limits.
        source: The entries, such as an `onellm_async.batch.InputFile`.
        journal: Remembers, such as an `onellm_async.batch.Journal`.
        sink: Takes the output from its beginning, also when a run is resumed; it is not closed.
        encode: Makes the output of a row, such as `onellm_async.batch.OutputFormat.encode`. If it raises, the run stops
            gracefully: the journal keeps the answers, and the output is written anew when the run is resumed.
        cache: Answers of earlier runs, such as an `onellm_async.batch.AnswerCache`: what is there is not asked.
        budget: What all sessions together may spend. Default: anything.
        policy: What is done with doubtful, failed and repeated prompts.
        health: When a run that gets nowhere ends.
        stop: Set it to end the session gracefully.
        tracker: Counts; give one that also is a hook of the client to learn of refusals while the run goes on.
        say: Told what a user should know while the run goes on, in a sentence. What it raises is logged.
        on_bad_line: Told of each bad line. What it raises is logged.
        clock: Seconds that only go forward.

    Returns:
        How it ended. Errors that ended it early are in it, not raised.

    Example:
        ::

            with Journal.open("answers.jsonl.journal", identity) as journal:
                report = await run_batch(client, source, journal=journal, sink=sink, encode=writer.line)
    """
    say, on_bad_line = guarded(say, "say"), guarded(on_bad_line, "on_bad_line")
    policy, tracker = policy or RunPolicy(), tracker or ProgressTracker(clock())
    watched = HealthMonitor(health or HealthPolicy(), clock())
    outlet, group = (
        OrderedWriter(sink, policy.window),
        RequestGroup(answered=journal.counts().answered > 0, retry_ambiguous=policy.ambiguous != "hold"),
    )
    pool = Pool(client.limits.max_concurrency)
    ending, deduplicator = Ending(group, outlet), Deduplicator(journal)
    delivery = Delivery(journal, tracker, outlet, encode=_encoder(encode, ending), on_bad_line=on_bad_line, clock=clock)
    feeder = Feeder(
        journal,
        pool,
        policy=policy,
        budget_gate=BudgetGate(_account(budget or Budget(), journal.counts()), say),
        cache=cache,
        deduplicator=deduplicator,
        outlet=outlet,
        delivery=delivery,
        ending=ending,
        clock=clock,
    )
    workers = Workers(
        client,
        pool,
        journal=journal,
        deduplicator=deduplicator,
        delivery=delivery,
        health=watched,
        ending=ending,
        tracker=tracker,
        hold_ambiguous=policy.ambiguous == "hold",
        max_workers=policy.window,
        say=say,
        clock=clock,
    )
    watch = Watch(
        client, journal, workers, outlet, tracker=tracker, health=watched, ending=ending, say=say, clock=clock
    )
    async with asyncio.TaskGroup() as tasks:

        def employ() -> None:
            workers.employ(tasks)

        tasks.create_task(_write(outlet, ending))
        beside = [
            tasks.create_task(_interrupt_when(stop or asyncio.Event(), ending)),
            tasks.create_task(watch.watch(obeyed=employ)),
        ]
        ending.feeding = feeding = tasks.create_task(feeder.feed(source))
        employ()
        await asyncio.wait({feeding})
        await workers.finish()
        for task in beside:
            task.cancel()
        outlet.close()
    watch.sample()
    return ending.report(tracker, journal, clock())


def _account(budget: Budget, before: RunCounts) -> Account:
    tokens = before.input_tokens + before.output_tokens + before.at_risk_tokens
    return Account(budget, Charge(before.cost + before.at_risk, tokens))


def _encoder(encode: Callable[[JournalRecord], bytes], ending: Ending) -> Callable[[JournalRecord], bytes]:
    """`encode`, whose exceptions stop the run instead of cancelling the requests in flight."""

    def encoded(row: JournalRecord) -> bytes:
        try:
            return encode(row)
        except Exception as error:
            _log.exception("The output of entry %d cannot be made.", row.index)
            ending.stop(BatchError(f"The output of entry {row.index} cannot be made: {error!r}."))
            return b""

    return encoded


async def _write(outlet: OrderedWriter, ending: Ending) -> None:
    try:
        await outlet.drain_into_sink()
    except BatchError as error:
        ending.stop(error)


async def _interrupt_when(stop: asyncio.Event, ending: Ending) -> None:
    await stop.wait()
    ending.interrupt()
