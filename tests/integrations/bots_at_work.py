"""What the checks of the bots of the examples share."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

from onellm_async import AsyncOneLLM, Limits
from onellm_async.testing import FakeTransport

EXAMPLES = Path(__file__).parents[2] / "examples"


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what others do, who set no event."""
    async with asyncio.timeout(90):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def faked(reply: object) -> tuple[FakeTransport, AsyncOneLLM]:
    """A client without a service, and its transport."""
    transport = FakeTransport(reply)
    return transport, AsyncOneLLM(transport=transport, limits=Limits.unlimited())


async def started(name: str, folder: Path, redirect: str, **environment: str) -> Process:
    """An example as its users start it, in `folder`. `redirect` is code that leads its library to a stand-in."""
    path = folder / "redirected"
    path.mkdir(exist_ok=True)
    (path / "sitecustomize.py").write_text(redirect, "utf-8")
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / name),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path), **environment},
        stdout=PIPE,
        stderr=PIPE,
    )


async def ended(process: Process) -> tuple[int | None, str]:
    """The exit code, and what was printed."""
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    return process.returncode, (out + err).decode()


def questions_in(path: Path) -> list[str]:
    """The questions of the one chat that a bot has saved."""
    (saved,) = json.loads(path.read_text("utf-8")).values()
    return [message["content"] for message in saved["messages"] if message["role"] == "user"]
