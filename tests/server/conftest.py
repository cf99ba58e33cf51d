import asyncio
import contextlib
import json

import aiohttp
import pytest
from aiohttp import web

from onellm_async.server import LocalServer, ServerSettings, Service, UpstreamBackend
from onellm_async.server.backends import echo
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
        return self.service.apply_fault(job) or self.service.complete(job, echo(job))

    def reply(self, key="good", **changes):
        """The whole reply, which must not be lost."""
        received = self.receive(key, **changes)
        if isinstance(received, RawReply):
            return received
        delivery = self.service.apply_fault(received) or self.service.complete(received, echo(received))
        assert delivery.reply is not None
        return delivery.reply

    def balance(self, key="good"):
        return self.service.account(key, self.now).balance


COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "model": "tiny-135m-instruct",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 21, "completion_tokens": 2, "total_tokens": 23},
}


class Upstream:
    """A small OpenAI-compatible endpoint: keeps what it was sent, answers what it is told to."""

    completion = COMPLETION

    def __init__(self):
        self.requests = []
        self.answer = lambda: web.json_response(COMPLETION)

    async def respond(self, request):
        self.requests.append((request.path, request.headers, json.loads(await request.read())))
        answer = self.answer()
        return await answer if asyncio.iscoroutine(answer) else answer

    def says(self, **changes):
        self.answer = lambda: web.json_response(COMPLETION | changes)

    def answers(self, status, value, **headers):
        self.answer = lambda: web.Response(
            status=status,
            body=value if isinstance(value, bytes) else json.dumps(value).encode(),
            headers={name.replace("_", "-"): text for name, text in headers.items()},
        )

    @property
    def body(self):
        """What the last request asked."""
        return self.requests[-1][2]


@pytest.fixture
async def upstream():
    upstream = Upstream()
    app = web.Application()
    app.router.add_post("/{path:.*}", upstream.respond)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    upstream.origin = f"http://{host}:{port}"
    yield upstream
    await runner.cleanup()


class Front:
    """A local server before an upstream, asked without a client in between."""

    def __init__(self, server, session):
        self.server = server
        self.ledger = server.ledger
        self._session = session

    async def post(self, **fields):
        """Status, headers and parsed body of one reply."""
        dialect = self.server.service.settings.dialect
        body = (BACKEND if dialect == "backend" else DOCUMENTED) | fields
        headers = JSON_TYPE | {"Authorization": "Bearer any"}
        async with self._session.post(self.server.url, data=json.dumps(body), headers=headers) as reply:
            return reply.status, reply.headers, json.loads(await reply.read())


@pytest.fixture
async def front(upstream, session):
    """Starts a server before `upstream`; options go to the backend and to the settings."""
    async with contextlib.AsyncExitStack() as stack:

        async def front(*, url=None, key=None, model=None, timeout=600.0, **settings):
            backend = UpstreamBackend(url or upstream.origin, api_key=key, model=model, timeout=timeout)
            settings = ServerSettings(**{"any_model": True} | settings)
            return Front(await stack.enter_async_context(LocalServer(settings, backend=backend)), session)

        yield front


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
