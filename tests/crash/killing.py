"""A run in a process of its own, against a server whose ledger tells what was billed."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from attrs import field, frozen

from onellm_async.batch import JournalReader
from onellm_async.batch.journal.record import RecordState
from onellm_async.server import Faults, LocalServer, ServerSettings
from onellm_async.server.ledger import Outcome
from tests.forks import start_command
from tests.held_backend import HeldBackend

KEY = "the-key-of-the-tests"
BILLED = {Outcome.ANSWERED, Outcome.LOST}


def quick_server(backend: HeldBackend | None = None, **settings) -> LocalServer:
    return LocalServer(
        ServerSettings(
            **{
                "requests_per_minute": 1e6,
                "burst": 100_000,
                "keys": {KEY: 1e6},
                "faults": Faults(latency=0.01, latency_sigma=0.3),
            }
            | settings
        ),
        backend=backend,
    )


def prompts_file(folder: Path, count: int) -> Path:
    path = folder / "prompts.txt"
    path.write_text("".join(f"prompt number {number}\n" for number in range(count)))
    return path


def billed_by_prompt(server: LocalServer) -> Counter[str]:
    return Counter(row.prompt for row in server.ledger.rows if row.outcome in BILLED)


HARDLY_LIMITED = ("--rpm", "600000", "--burst", "10000", "--concurrency", "16")


async def start_run(
    source: Path,
    output: Path,
    server: LocalServer,
    *flags: str,
    limits: tuple[str, ...] = HARDLY_LIMITED,
    within: tuple[str, ...] = (),
    terminal: int | None = None,
) -> asyncio.subprocess.Process:
    """Starts a run: as an argument of the command `within`, with a terminal as its standard streams if one is given."""
    command = ["run", str(source), "-o", str(output), "--base-url", server.url]
    return await start_command(
        *command,
        *limits,
        *flags,
        within=within,
        stdin=asyncio.subprocess.DEVNULL if terminal is None else terminal,
        stdout=asyncio.subprocess.PIPE if terminal is None else terminal,
        stderr=asyncio.subprocess.PIPE if terminal is None else terminal,
        env=os.environ | {"ONELLM_API_KEY": KEY},
    )


async def finish(process: asyncio.subprocess.Process) -> tuple[int, str]:
    _, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, (stderr or b"").decode()


async def until(condition: Callable[[], bool]) -> None:
    """Looks again and again: those who make it true are other processes."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.001)


async def at_rest(server: LocalServer) -> None:
    await until(lambda: not server.ledger.in_flight)


async def received(server: LocalServer, count: int, process: asyncio.subprocess.Process) -> None:
    """Returns when the server has received so many requests, or the run has ended."""
    await until(lambda: server.ledger.received >= count or process.returncode is not None)


@frozen
class Left:
    """What a run that has ended somehow left in its journal, prompts by their index."""

    answered: set[int] = field(factory=set)
    sent: set[int] = field(factory=set)

    @classmethod
    def by(cls, output: Path) -> "Left":
        if not output.with_name(output.name + ".journal").exists():
            return cls()
        with JournalReader.open(output) as journal:
            states = {row.index: row.state for row in journal.records()}
        return cls(
            {index for index, state in states.items() if state is RecordState.ANSWERED},
            {index for index, state in states.items() if state is RecordState.IN_FLIGHT},
        )


async def kill_after(process: asyncio.subprocess.Process, server: LocalServer, count: int, moment: float) -> bool:
    """Kills a run `moment` seconds after the server has received so many requests; whether it was still running."""
    await received(server, count, process)
    await asyncio.sleep(moment)
    if process.returncode is not None:
        return False
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    return True
