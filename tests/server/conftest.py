import asyncio
import json

import aiohttp
import pytest

from onellm_async.server import Service
from onellm_async.server.echo import echo
from onellm_async.transport import RawReply

DOCUMENTED = {"model": "GPT-5-Mini", "messages": [{"role": "user", "content": "Hello there"}]}
BACKEND = {
    "endpoint": "https://api.openai.com/v1/chat/completions",
    "model": "GPT-5-mini",
    "messages": [{"role": "user", "content": "Hello there"}],
    "max_tokens": 100,
    "top_p": 1.0,
}
JSON_TYPE = {"Content-Type": "application/json"}


class Asker:
    """Puts requests to a pure service and takes each one to its end."""

    def __init__(self, settings, body):
        self.service = Service(settings)
        self.ledger = self.service.ledger
        self.body = body
        self.now = 0.0

    def receive(self, key="good", **changes):
        body = self.body | changes
        return self.raw(json.dumps({name: value for name, value in body.items() if value is not ...}).encode(), key)

    def raw(self, body, key="good", *, method="POST", path="/api", headers=JSON_TYPE):
        authorization = {} if key is None else {"Authorization": f"Bearer {key}"}
        return self.service.receive(method, path, headers | authorization, body, self.now)

    def delivery(self, key="good", **changes):
        job = self.receive(key, **changes)
        assert not isinstance(job, RawReply), job
        return self.service.doomed(job) or self.service.complete(job, echo(job))

    def reply(self, key="good", **changes):
        """The whole reply, which must not be lost."""
        received = self.receive(key, **changes)
        if isinstance(received, RawReply):
            return received
        delivery = self.service.doomed(received) or self.service.complete(received, echo(received))
        assert delivery.reply is not None
        return delivery.reply

    def balance(self, key="good"):
        return self.service.account(key, self.now).balance


class HeldBackend:
    """Answers when it is released, and tells what it was asked."""

    def __init__(self):
        self.asked = asyncio.Event()
        self.released = asyncio.Event()
        self.closed = False

    async def complete(self, job):
        self.asked.set()
        await self.released.wait()
        return echo(job)

    async def aclose(self):
        self.closed = True


@pytest.fixture
def asking():
    """Makes an `Asker` for settings, with a request that is right in their dialect."""
    return lambda settings: Asker(settings, BACKEND if settings.dialect == "backend" else DOCUMENTED)


@pytest.fixture
def held():
    return HeldBackend()


@pytest.fixture
async def session():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


async def _until(condition):
    while not condition():  # noqa: ASYNC110  # a few turns of the loop; the server has no event for it
        await asyncio.sleep(0)


@pytest.fixture
def until():
    return _until
