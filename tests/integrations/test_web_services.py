"""Real servers on real sockets: uvicorn and aiohttp with the integrations."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from onellm_async import AsyncOneLLM, Limits
from onellm_async.integrations import aiohttp_web, starlette
from onellm_async.integrations.fastapi import ClientDependency, cancel_on_disconnect, get_client, install
from onellm_async.server import EchoBackend, LocalServer, ServerSettings

MODEL = "GPT-5-Nano"
ONE = Limits(max_concurrency=1)


class Held(EchoBackend):
    """Answers when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()
        self.asked = 0

    async def complete(self, job):
        self.asked += 1
        await self.released.wait()
        return await super().complete(job)


@pytest.fixture
def held():
    return Held()


@pytest.fixture
async def service(held) -> AsyncIterator[LocalServer]:
    async with LocalServer(ServerSettings(requests_per_minute=60_000, burst=1000), backend=held) as server:
        yield server
        held.released.set()


def client_of(service, limits=ONE):
    return lambda: AsyncOneLLM("local", base_url=service.url, limits=limits)


async def chat(request: Request) -> JSONResponse:
    prompt = (await request.json())["prompt"]
    async with starlette.cancel_on_disconnect(request):
        reply = await starlette.get_client(request).chat(prompt, model=MODEL, lane="interactive", deadline=60)
    return JSONResponse({"answer": reply.content})


@asynccontextmanager
async def served(app) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="critical", ws="none"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await until(lambda: server.started or serving.done())
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # of others, who set no event
            await asyncio.sleep(0.005)


async def ask(user, url, prompt="Hello") -> tuple[int, dict[str, object]]:
    async with user.post(f"{url}/chat", json={"prompt": prompt}) as response:
        return response.status, await response.json()


class PassingOn(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


@pytest.mark.parametrize("middleware", [False, True])
async def test_a_user_who_leaves_frees_the_place_and_is_not_paid_for(service, held, middleware):
    app = Starlette(routes=[Route("/chat", chat, methods=["POST"])])
    install(app, client_of(service))
    if middleware:
        app.add_middleware(PassingOn)
    async with served(app) as url, aiohttp.ClientSession() as user:
        first = asyncio.create_task(ask(user, url))
        client = app.state.onellm_client
        await until(lambda: client.snapshot().in_flight == 1)
        leaving = asyncio.create_task(ask(user, url, "Never mind"))
        await until(lambda: client.snapshot().queued["interactive"] == 1)
        leaving.cancel()
        await until(lambda: client.snapshot().queued["interactive"] == 0)
        held.released.set()
        assert await first == (200, {"answer": (await first)[1]["answer"]})
        assert (await ask(user, url, "Next"))[0] == 200
    assert service.ledger.received == 2


async def test_a_handler_that_the_server_cancels_ends_cancelled_although_the_user_left_as_well():
    async def receive():
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)

    async def handler():
        async with starlette.cancel_on_disconnect(request):
            await asyncio.sleep(60)

    with pytest.raises(ClientDisconnect):
        await handler()
    shut_down = asyncio.create_task(handler())
    await asyncio.sleep(0)
    shut_down.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shut_down


async def test_a_handler_that_has_finished_is_not_cancelled_by_a_user_who_leaves_then():
    left = asyncio.Event()

    async def receive():
        await left.wait()
        return {"type": "http.disconnect"}

    async with starlette.cancel_on_disconnect(Request({"type": "http", "headers": []}, receive)):
        left.set()
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_lifespan_that_the_application_has_runs_inside_with_its_state(service, held):
    seen = []

    @asynccontextmanager
    async def lifespan(app):
        reply = asyncio.create_task(app.state.onellm_client.chat("warm up", model=MODEL))
        held.released.set()
        seen.append((await reply).content)
        yield {"warm": True}
        seen.append(app.state.onellm_client.snapshot().paused)

    async def warm(request):
        return JSONResponse({"answer": request.state.warm})

    app = FastAPI(lifespan=lifespan)
    install(app, client_of(service))
    app.add_route("/chat", warm, methods=["POST"])
    async with served(app) as url, aiohttp.ClientSession() as user:
        assert await ask(user, url) == (200, {"answer": True})
    assert len(seen) == 2
    assert not hasattr(app.state, "onellm_client")


async def test_an_application_without_a_client_says_what_to_do(service):
    inner = Starlette(routes=[Route("/chat", chat, methods=["POST"])])
    outer = Starlette(routes=[Mount("/inner", inner)])
    install(outer, client_of(service))
    raised = []

    async def told(request, error):
        raised.append(str(error))
        return JSONResponse({}, status_code=500)

    inner.add_exception_handler(ValueError, told)
    async with served(outer) as url, aiohttp.ClientSession() as user:
        assert (await ask(user, f"{url}/inner"))[0] == 500
        inner.state.onellm_client = outer.state.onellm_client
        asking = asyncio.create_task(ask(user, f"{url}/inner"))
        await until(lambda: outer.state.onellm_client.snapshot().in_flight == 1)
        asking.cancel()
    assert "Call install(app) before it starts" in raised[0]


async def test_readiness_is_a_page_and_no_part_of_the_schema(service):
    app = FastAPI()
    install(app, client_of(service), ready_path="/ready")
    async with served(app) as url, aiohttp.ClientSession() as user:
        async with user.get(f"{url}/ready") as response:
            assert (response.status, await response.json()) == (200, {"ready": True, "reason": "ready"})
        app.state.onellm_client.pause()
        async with user.get(f"{url}/ready") as response:
            assert (response.status, await response.json()) == (503, {"ready": False, "reason": "paused"})
    assert list(app.openapi()["paths"]) == []


async def test_no_page_is_added_where_none_is_wanted(service):
    app, other = Starlette(), web.Application()
    install(app, client_of(service), ready_path=None)
    aiohttp_web.install(other, client_of(service), ready_path=None)
    assert app.routes == []
    assert len(other.router.resources()) == 0


PROGRAM = """
from fastapi import FastAPI, Request
from onellm_async import AsyncOneLLM, Limits
from onellm_async.integrations.fastapi import ClientDependency, cancel_on_disconnect, install
app = FastAPI()
install(app, lambda: AsyncOneLLM(limits=Limits(max_concurrency=1)))
@app.post("/chat")
async def chat(request: Request, client: ClientDependency):
    prompt = (await request.json())["prompt"]
    async with cancel_on_disconnect(request):
        reply = await client.chat(prompt, model="GPT-5-Nano", lane="interactive", deadline=60)
    return {"answer": reply.content}
"""
AIOHTTP_PROGRAM = """
import sys
from aiohttp import web
from onellm_async import AsyncOneLLM, Limits
from onellm_async.integrations.aiohttp_web import CLIENT, install
async def chat(request):
    prompt = (await request.json())["prompt"]
    reply = await request.app[CLIENT].chat(prompt, model="GPT-5-Nano", lane="interactive", deadline=60)
    return web.json_response({"answer": reply.content})
app = web.Application()
install(app, lambda: AsyncOneLLM(limits=Limits(max_concurrency=1)))
app.add_routes([web.post("/chat", chat)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), handler_cancellation=True, print=None)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.mark.parametrize("framework", ["fastapi", "aiohttp"])
async def test_sigterm_finishes_what_is_in_flight_and_answers_the_queue_at_once(service, held, tmp_path, framework):
    port = free_port()
    (tmp_path / "program.py").write_text(PROGRAM if framework == "fastapi" else AIOHTTP_PROGRAM)
    command = ["-m", "uvicorn", "--app-dir", str(tmp_path), "program:app", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(command if framework == "fastapi" else [str(tmp_path / "program.py"), str(port)]),
        env={**os.environ, "ONELLM_BASE_URL": service.url, "ONELLM_API_KEY": "local"},
        stderr=asyncio.subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as user:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with user.get(f"{url}/readyz") as response:
                        assert response.status == 200
                        break
                await asyncio.sleep(0.02)
        in_flight = asyncio.create_task(ask(user, url, "in flight"))
        await until(lambda: held.asked == 1)
        queued = [asyncio.create_task(ask(user, url, "queued")) for _ in range(3)]
        await asyncio.sleep(0.3)  # these are on their way through another process
        process.send_signal(signal.SIGTERM)
        shed = await asyncio.gather(*queued)
        assert not in_flight.done()
        held.released.set()
        assert (await in_flight)[0] == 200
    async with asyncio.timeout(20):
        _, err = await process.communicate()
    assert [status for status, _ in shed] == [503] * 3, err
    assert "shutting down" in json.dumps(shed)
    assert b"Traceback" not in err
    assert process.returncode in {0, -signal.SIGTERM}
    assert service.ledger.received == 1


async def test_an_error_of_aiohttp_has_the_same_table(service):
    app = web.Application()
    aiohttp_web.install(app, client_of(service))

    async def chat(request):
        await request.app[aiohttp_web.CLIENT].chat("x", model=MODEL, temperature=9)

    app.add_routes([web.post("/chat", chat)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as user:
        status, body = await ask(user, site.name)
    await runner.cleanup()
    assert status == 422
    assert "temperature" in body["detail"]


def test_the_dependency_of_fastapi_is_the_client_of_the_application():
    assert get_client is starlette.get_client
    assert cancel_on_disconnect is starlette.cancel_on_disconnect
    assert ClientDependency.__origin__ is AsyncOneLLM
