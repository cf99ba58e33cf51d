"""``onellm-async run --preflight``: what the first prompts tell about the others, and the question whether to go on."""

import asyncio
import sys
from itertools import takewhile

from onellm_async.batch import FileRun, JournalReader, RecordState
from onellm_async.batch.projection import Capacity, Projection, project
from onellm_async.cli.progress import clock_time, counted
from onellm_async.daemon_thread import in_daemon_thread
from onellm_async.formatting import format_usd
from onellm_async.limits.snapshot import Snapshot

__all__ = ["go_on", "projected", "wording"]


def projected(plan: FileRun, first: int, lines: int, limiter: Snapshot) -> str:
    """The projection of a run, in words. Blocks for the disk.

    Args:
        plan: The run.
        first: Entries that were asked.
        lines: Entries of the input.
        limiter: What the client is doing.

    Raises:
        BatchError: If the journal cannot be read.
    """
    capacity = Capacity(
        requests=None if limiter.rate is None else limiter.rate / 60,
        tokens=None if limiter.tokens_per_minute is None else limiter.tokens_per_minute / 60,
        concurrency=limiter.concurrency,
    )
    with JournalReader.open(plan.journal or plan.output or "") as journal:
        sample = list(takewhile(lambda row: row.index < first, journal.records()))
        counts = journal.counts()
    beyond = counts.answered + counts.failed - sum(row.state is not RecordState.IN_FLIGHT for row in sample)
    left = max(0, lines - first - beyond)  # an earlier session may have gone further
    return wording(project(sample, left, capacity), spent=counts.cost, most=plan.budget.max_cost)


def wording(projection: Projection, *, spent: float, most: float | None) -> str:
    """A projection in words.

    Args:
        projection: Of the prompts that are left.
        spent: USD so far.
        most: USD that the run may spend; None for no cap.
    """
    cost, seconds = projection.cost, projection.seconds
    text = f"Preflight: {counted(projection.asked, 'prompt')} asked, {format_usd(spent)} spent."
    text += f" The other {projection.left:,} "
    if cost is None:
        text += "will cost something unknown (the model has no list price)"
    else:
        text += (
            f"will cost about {format_usd(cost.expected)} (95 %: {format_usd(cost.least)} to {format_usd(cost.most)})"
        )
    if seconds is None:
        text += " and take unknown time: too few were answered."
    else:
        least, likely, longest = map(clock_time, (seconds.least, seconds.expected, seconds.most))
        spread = "" if least == longest else f" ({least} to {longest})"
        text += f" and take about {likely}{spread}; the {projection.bound_by} sets the pace."
    if cost is not None and most is not None and spent + cost.most > most:
        likely_or_not = "It is likely to" if spent + cost.expected > most else "It may"
        text += f" {likely_or_not} end before that at the budget of {format_usd(most, exact=True)}."
    return text


async def go_on(stop: asyncio.Event) -> bool:
    """Asks whether to go on, where there is a terminal to ask on; elsewhere the answer is yes.

    Args:
        stop: Set when a signal ends the run meanwhile; the answer is no then.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return not stop.is_set()
    print("Go on? [Y/n] ", end="", file=sys.stderr, flush=True)
    answering = asyncio.ensure_future(in_daemon_thread(sys.stdin.readline))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({answering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        # The end of the input gives "", and so does a terminal that is gone.
        answered = answering.done() and answering.exception() is None
        answer = answering.result().lower() if answered else ""
    finally:
        answering.cancel()
        stopping.cancel()
    return not stop.is_set() and answer.endswith("\n") and answer.strip() in {"", "y", "yes"}
