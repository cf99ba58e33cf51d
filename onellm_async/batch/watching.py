"""Beside a run, once a second: commands from other terminals, a point of the time series, signs of a stall."""

import asyncio
import time
from collections.abc import Callable

from attrs import asdict, evolve

from onellm_async.batch.ending import Ending
from onellm_async.batch.health import Health
from onellm_async.batch.journal.rows import Command
from onellm_async.batch.progress import Tally
from onellm_async.batch.protocols import RunClient, RunJournal
from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.limits.saving import rate_state_to_dict
from onellm_async.limits.snapshot import Snapshot

__all__ = ["Watch"]

_EVERY = 1.0
"""Seconds between two looks at commands and health."""
_STALLED_ADVICE = "The same command goes on where this one ended."


class Watch:
    """Looks at a run while it goes on.

    Args:
        client: Is told what other terminals ask for.
        journal: Brings the commands and keeps the time series.
        tally: Has counted.
        health: Knows whether the run gets anywhere.
        ending: Ends a sitting that does not, or is told to.
        say: Told what a user should know.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        client: RunClient,
        journal: RunJournal,
        *,
        tally: Tally,
        health: Health,
        ending: Ending,
        say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._journal = journal
        self._tally = tally
        self._health = health
        self._ending = ending
        self._say = say
        self._clock = clock

    async def watch(self, obeyed: Callable[[], None]) -> None:
        """Looks until it is cancelled; `obeyed` is called after each command."""
        while True:
            await asyncio.sleep(_EVERY)
            for command in self._journal.commands():
                self._obey(command)
                obeyed()
            snapshot, now = self._client.snapshot(), self._clock()
            self._journal.sample(time.time(), self._sample(snapshot, now))
            if snapshot.paused:
                self._health.waits(now)
            if (quiet := self._health.quiet_for(now)) is not None:
                self._say(f"No outcome for {quiet / 60:.0f} min; the next request waits for: {snapshot.bottleneck}.")
            if self._health.stalled(now):
                self._ending.stop(BatchError("Nothing has come back for too long.", advice=_STALLED_ADVICE))

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
                self._ending.interrupt()
        self._say(f"From another terminal: {command.name}.")
