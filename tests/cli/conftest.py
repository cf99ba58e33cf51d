import asyncio
import os
import signal
from pathlib import Path

import pytest
from attrs import frozen

from onellm_async.batch import JournalReader
from onellm_async.errors import BatchError
from onellm_async.server import LocalServer, ServerSettings
from tests.forks import start_command
from tests.held_backend import HeldBackend, last_words

ROOT = Path(__file__).parents[2]


@frozen
class Ended:
    code: int
    out: str
    err: str


class Command:
    """A running ``python -m onellm_async``."""

    def __init__(self, process):
        self.process = process

    def interrupt(self, number=signal.SIGINT):
        self.process.send_signal(number)

    async def says(self, start):
        """Returns when it says a line on standard error that begins so; progress may come before it."""
        while not (line := (await self.process.stderr.readline()).decode()).startswith(start):
            assert line, f"it ended without saying {start!r}"

    async def killed(self):
        self.process.kill()
        await self.process.communicate()

    async def ended(self, stdin=None):
        out, err = await self.process.communicate(None if stdin is None else stdin.encode())
        return Ended(self.process.returncode, (out or b"").decode(), (err or b"").decode())

    def interrupt_group(self, number=signal.SIGINT):
        """As a terminal does it; the command was started by ``setsid``."""
        os.killpg(self.process.pid, number)


@pytest.fixture
def started():
    """The processes of all commands of a test, which `start` starts."""
    return []


@pytest.fixture
async def start(tmp_path, monkeypatch, started):
    """Starts a command in an empty directory; whatever is left running is killed at the end."""
    usual = {
        "ONELLM_API_KEY": "",
        "ONELLM_BASE_URL": "",
        "ONELLM_MODEL": "",
        "ONELLM_DIALECT": "",
        "ONELLM_PROXY": "",
        "ONELLM_CA_FILE": "",
        "COLUMNS": "100",
    }

    async def start(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        without=(),
        **environment,
    ):
        process = await start_command(
            *map(str, arguments),
            within=without,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=tmp_path,
            env=os.environ | usual | {name: str(value) for name, value in environment.items()},
        )
        started.append(process)
        return Command(process)

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
def onellm(start):
    """Runs a command to its end."""

    async def onellm(*arguments, stdin=None, **environment):
        text = stdin if isinstance(stdin, str) else None
        given = {} if stdin is None else {"stdin": stdin if text is None else asyncio.subprocess.PIPE}
        return await (await start(*arguments, **given, **environment)).ended(text)

    return onellm


@pytest.fixture
def journal_has(tmp_path, started):
    """Waits until the journal of a run meets a condition; fails when it does not and all commands have ended."""

    async def journal_has(output, condition):
        while True:
            ended = started and all(process.returncode is not None for process in started)
            try:
                with JournalReader.open(tmp_path / output) as journal:
                    if condition(journal):
                        return
            except BatchError:  # it is not there yet
                pass
            assert not ended, await last_words(started)
            await asyncio.sleep(0.02)

    return journal_has


@pytest.fixture
def backend(started):
    return HeldBackend(started)


@pytest.fixture
async def server(backend):
    """A local service whose key is "good"; "poor" has no balance."""
    settings = ServerSettings(requests_per_minute=60_000, burst=1000, keys={"good": 10.0, "poor": 0.0})
    async with LocalServer(settings, backend=backend) as server:
        yield server
        await backend.release()


@pytest.fixture
def at(server):
    """Environment that leads to the local service."""
    return {"ONELLM_BASE_URL": server.url, "ONELLM_API_KEY": "good"}


@pytest.fixture
def prompts(tmp_path):
    prompts = [f"p{number}" for number in range(10)]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    return prompts
