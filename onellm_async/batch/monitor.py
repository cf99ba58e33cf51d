"""Beside a run, once a second: commands from other terminals, a point of the time series, signs of a stall."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import asdict

from onellm_async.batch.health import HealthMonitor
from onellm_async.batch.journal.commands import Command
from onellm_async.batch.journal.null_journal import RunJournal
from onellm_async.batch.progress import ProgressTracker, RunProgress
from onellm_async.batch.run_report import StopReason
from onellm_async.chat import JSON
from onellm_async.errors import BatchError, OneLLMError
from onellm_async.formatting import format_duration
from onellm_async.limits.bottleneck import BOTTLENECK_LABELS
from onellm_async.limits.policy import Limits, change_limits
from onellm_async.limits.snapshot import Snapshot
from onellm_async.sender import Sender

if TYPE_CHECKING:
    from onellm_async.batch.engine import RunEngine

_EVERY = 1.0
"""Seconds between two looks at commands and health."""
_NEARLY = 0.99
"""A rate that is lower than this share of the declared one was lowered by 429s."""
_STALLED_ADVICE = "Run the same command again to resume."


class Monitor:
    """Watches an active run.

    Args:
        engine: The run; it is stopped where it gets nowhere, or on command.
        sender: Follows the commands of other terminals.
        journal: Has the commands, and keeps the time series.
        tracker: Has counted.
        health: Knows whether the run gets anywhere.
        say: Called with what a user should know.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        engine: "RunEngine",
        sender: Sender,
        journal: RunJournal,
        *,
        tracker: ProgressTracker,
        health: HealthMonitor,
        say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._sender = sender
        self._journal = journal
        self._tracker = tracker
        self._health = health
        self._say = say
        self._clock = clock
        self._open_since: float | None = None
        self._was_paused = False
        self._limits_before: Limits | None = None

    async def run(self) -> None:
        """Watches until it is cancelled. What commands changed in the client then ends, as others may use it."""
        try:
            await self._watch()
        finally:
            if self._was_paused:
                self._sender.resume()
            if self._limits_before is not None:
                self._sender.retune(self._limits_before)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            for command in self._commands():
                self._apply_command(command)
            self._engine.resize()
            snapshot, now = self._sender.snapshot(), self._clock()
            self.sample(snapshot)
            self._check_health(snapshot, now)
            await self._engine.release_failures()

    def _commands(self) -> Sequence[Command]:
        try:
            return self._journal.commands()
        except BatchError as error:  # its file has gone, for example: what is in flight is still answered
            self._engine.stop(StopReason(error))
            return ()

    def sample(self, snapshot: Snapshot | None = None) -> None:
        """Keeps a point of the time series."""
        snapshot, learned = snapshot or self._sender.snapshot(), self._sender.rate_state
        progress = self._tracker.snapshot(self._clock())
        in_trouble = progress.trouble is not None or snapshot.last_error is not None
        point: JSON = {
            "progress": asdict(progress, recurse=False) | {"counts": progress.counts.to_dict()},
            "snapshot": asdict(snapshot, recurse=False),
            "rate_state": None if learned is None else learned.to_dict(),
            "waits_for": self._why(snapshot) if in_trouble else None,
        }
        self._journal.sample(time.time(), point)

    def _check_health(self, snapshot: Snapshot, now: float) -> None:
        was_open = self._open_since is not None
        self._open_since = _since(self._open_since, snapshot.trial_in is not None)
        if (self._open_since is not None) != was_open:
            self._say("Circuit closed: the service answers again." if was_open else self._why(snapshot))
        busy = bool(self._engine.pool.busy) or self._health.paused
        self._health.tick(now, waits=busy and not snapshot.paused and not held_by_own_limits(snapshot))
        if self._engine.is_stopping:
            return
        if (stalled := self._health.stalled_for) is not None:
            text = f"No answer for {format_duration(stalled)}. {self._why(snapshot)}"
            self._say(f"{text} Stopping: nothing more is sent.")
            self._engine.stop(StopReason(BatchError(text, advice=_STALLED_ADVICE)))
        elif (quiet := self._health.quiet_for()) is not None:
            self._say(f"No answer for {format_duration(quiet)}. {self._why(snapshot)}")

    def _why(self, snapshot: Snapshot) -> str:
        return why_it_waits(snapshot, self._tracker.snapshot(self._clock()), open_since=self._open_since)

    def _apply_command(self, command: Command) -> None:
        try:
            match command.name:
                case "pause":
                    self._sender.pause()
                    self._was_paused = True
                case "resume":
                    self._sender.resume()
                    self._was_paused = False
                case "retune":
                    before = self._sender.limits
                    self._sender.retune(change_limits(before, command.argument))
                    self._limits_before = self._limits_before or before
                case "stop":
                    self._engine.stop(StopReason(interrupted=True))
        except (OneLLMError, TypeError) as error:  # TypeError: a setting that this version does not have
            self._journal.refuse(command, str(error))
            self._say(f"From another terminal: {command.name} was refused, nothing changes: {error}")
        else:
            self._say(f"From another terminal: {command.name}.")


def _since(before: float | None, there: bool) -> float | None:
    return (before or time.time()) if there else None


def held_by_own_limits(snapshot: Snapshot) -> bool:
    """Whether only limits that the caller declared keep requests from being sent: nothing waits for the service."""
    if snapshot.in_flight or snapshot.backing_off:
        return False
    if snapshot.bottleneck == "rate" and snapshot.window_wait is not None:
        return True
    if snapshot.bottleneck == "rate" and snapshot.declared_rate is not None and snapshot.rate is not None:
        return snapshot.rate >= _NEARLY * snapshot.declared_rate
    return snapshot.bottleneck == "tokens"


def why_it_waits(snapshot: Snapshot, progress: RunProgress, *, open_since: float | None) -> str:
    """What a run waits for, with the last error, in a sentence or two.

    Args:
        snapshot: What the client is doing.
        progress: Of the run.
        open_since: When the circuit opened, in Unix seconds; None if it is closed.
    """
    error = snapshot.last_error
    if progress.trouble is not None:
        return f"Paused: {progress.trouble} {_next_attempt(progress.trial_in)}"
    if open_since is not None:
        clock = time.strftime("%H:%M", time.localtime(open_since))
        return f"Circuit open since {clock}: {error or 'the service fails.'} {_next_attempt(snapshot.trial_in)}"
    if snapshot.retry_after is not None:
        wait = f"The service asked to wait {format_duration(snapshot.retry_after)} longer."
    elif snapshot.in_flight or snapshot.backing_off:
        wait = f"{snapshot.in_flight:,} in flight, {snapshot.backing_off:,} waiting for a retry."
    else:
        wait = f"Waiting for: {BOTTLENECK_LABELS[snapshot.bottleneck]}."
    return wait if error is None else f"{wait} Last error: {error}"


def _next_attempt(seconds: float | None) -> str:
    return f"Next attempt in {format_duration(seconds)}." if seconds else "A trial request is in flight."
