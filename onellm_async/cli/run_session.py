"""One session of ``onellm-async run``: from the survey of its input to what is said at the end.

With ``--preflight`` it asks the first prompts, tells what the others will cost, and goes on if that is wanted.
"""

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from time import monotonic

from attrs import evolve
from rich.console import Console

from onellm_async.batch import (
    FileRun,
    InputFile,
    InputScan,
    LineError,
    ProgressTracker,
    RunCounts,
    RunReport,
    RunWatch,
    learned_rate,
    run_file,
    survey,
)
from onellm_async.batch.file_run import check_budget
from onellm_async.cli.connection import connected
from onellm_async.cli.options import ConnectionFlags
from onellm_async.cli.preflight import go_on, projected
from onellm_async.cli.progress import Display, note
from onellm_async.cli.run_wording import exit_code, nothing_left, resuming, tell, tell_outcomes
from onellm_async.cli.signals import ending_on_signals
from onellm_async.cli.terminal import print_error, say
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import BatchError, ConfigurationError
from onellm_async.events import Event
from onellm_async.retry import RetryPolicy

__all__ = ["RunSession"]

_LATER = 60.0
"""Seconds by which the client waits longer than the run, which tells more of what it waited for."""


def _max_outage(plan: FileRun) -> float | None:
    """Seconds without an accepted request after which the client gives up; None where failures are outcomes."""
    return plan.health.stalled_after + _LATER if plan.health.most_alike < 1 else None


class RunSession:
    """One invocation of the command.

    Args:
        plan: What is to be run.
        connecting: Where the service is.
        preflight: Ask so many prompts first, and then whether to go on; None to go on without.
    """

    def __init__(self, plan: FileRun, connecting: ConnectionFlags, *, preflight: int | None = None) -> None:
        self._plan = plan
        self._connecting = connecting
        self._preflight = preflight
        self._console = Console(stderr=True)
        self._stop = asyncio.Event()
        self._tracker = self._new_tracker()
        self._begun = self._idle = self._declined = False
        self._noted_line = 0

    async def ended(self, source: InputFile, again: Callable[[], InputFile]) -> int:
        """Runs it, says how it ended, and returns the exit code.

        Args:
            source: The input.
            again: Opens the input once more.
        """
        with ending_on_signals(self._stop, self._note) as caught:
            try:
                report = await self._through(source, again)
            except asyncio.CancelledError:
                if caught.number is None:
                    raise
                goes_on = "" if self._plan.output is None else " The same command again goes on from here."
                print_error(f"ended at once; requests in flight may be billed.{goes_on}")
                return 128 + caught.number
        if self._declined:
            say("Nothing more is asked; what was answered is kept. The same command again goes on from here.")
            return 0
        if self._idle:
            tell_outcomes(report)
        else:
            tell(report, self._plan.output)
        return exit_code(report, caught.number)

    async def _through(self, source: InputFile, again: Callable[[], InputFile]) -> RunReport:
        plan = self._plan
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(source)
            if plan.output is not None and source.is_file(plan.output):
                raise BatchError(f"{plan.output} is the input itself.", advice="Name another output.")
            surveyed = await survey(source, strict=plan.policy.strict)
            check_budget(plan.budget, source, surveyed)
            # What may have been billed is not asked again by itself where the user wants it held back.
            retry = RetryPolicy(
                ambiguous="never" if plan.policy.ambiguous == "hold" else "retry", max_outage=_max_outage(plan)
            )
            learned = await asyncio.to_thread(learned_rate, plan)
            connection = connected(self._connecting, hooks=(self._hear,), retry=retry, rate_state=learned)
            client = await stack.enter_async_context(connection)
            if self._preflight is not None:
                if surveyed is None:
                    raise ConfigurationError("--preflight reads the input twice, so it needs a file and not a pipe.")
                first = evolve(plan, policy=evolve(plan.policy, first=self._preflight))
                report = await self._asked(client, source, surveyed, first)
                if not report.limit_reached:
                    return report
                if not await self._wanted(client, surveyed):
                    self._declined = not self._stop.is_set()
                    return evolve(report, interrupted=not self._declined)
                plan = evolve(plan, force=False)
                source = await stack.enter_async_context(again())
                surveyed = await survey(source, strict=False)
            return await self._asked(client, source, surveyed, plan)

    async def _asked(
        self, client: AsyncOneLLM, source: InputFile, surveyed: InputScan | None, plan: FileRun
    ) -> RunReport:
        self._tracker = tracker = self._new_tracker()
        tracker.total = None if surveyed is None else surveyed.lines
        watch = RunWatch(
            tracker=tracker,
            stop=self._stop,
            began=self._began,
            nothing_left=self._nothing_left,
            say=self._note,
            on_bad_line=self._bad_line,
        )
        display = Display(
            self._console,
            lambda: tracker.snapshot(monotonic()),
            client.snapshot,
            budget=plan.budget,
            live=self._console.is_terminal and not (plan.output is None and sys.stdout.isatty()),
        )
        async with display:
            return await run_file(client._sender, source, surveyed, plan, watch)  # noqa: SLF001

    async def _wanted(self, client: AsyncOneLLM, surveyed: InputScan) -> bool:
        """Tells what the rest will take, and asks whether to continue."""
        text = await asyncio.to_thread(projected, self._plan, self._preflight or 0, surveyed.lines, client.snapshot())
        say(text)
        return await go_on(self._stop)

    def _new_tracker(self) -> ProgressTracker:
        rate = self._connecting.limits().declared_rate
        return ProgressTracker(monotonic(), ceiling=None if rate is None else rate / 60)

    def _hear(self, event: Event) -> None:
        self._tracker(event)

    def _began(self, counts: RunCounts | None) -> None:
        if counts is not None and not self._begun:
            self._note(resuming(counts, self._tracker.total))
        self._begun = True

    def _nothing_left(self, counts: RunCounts) -> None:
        self._idle = True
        self._note(nothing_left(counts, self._plan.output or ""))

    def _bad_line(self, error: LineError) -> None:
        if error.line > self._noted_line:  # after a preflight the first lines are read once more
            self._noted_line = error.line
            self._note(str(error))

    def _note(self, text: str) -> None:
        note(self._console, text)
