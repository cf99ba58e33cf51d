import asyncio
import contextlib
import json
import logging

import aiohttp
import pytest

from onellm_async import AsyncOneLLM, Usage
from onellm_async.failure_kinds import Billing
from onellm_async.server import BackendError, Completion, LocalServer, Outcome, ServerSettings

BODY = {"model": "GPT-5-Mini", "messages": [{"role": "user", "content": "Hello there"}]}
MAYBE = Billing.POSSIBLY_BILLED
KEY = {"Authorization": "Bearer good"}


class Oracle:
    """Answers with whatever a function makes."""

    def __init__(self, make):
        self.make = make

    async def complete(self, job):
        return self.make()

    async def aclose(self):
        pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: "Hello",
        lambda: Completion(b"Hello", Usage(1, 1, 2)),
        lambda: Completion(None, Usage(1, 1, 2)),
        lambda: Completion("Hello", None),
        lambda: Completion("Hello", {"input_tokens": 1}),
        lambda: Completion("Hello", Usage(-1, 1, 0)),
        lambda: Completion("Hello", Usage(1.5, 1, 2)),
        lambda: Completion("Hello", Usage(1, True, 2)),
        lambda: Completion("Hello", Usage(1, 2**53 + 1, 2)),
        lambda: Completion("Hello", Usage(1, 1, 10**400)),
        lambda: Completion("Hello", Usage(1, 1, 2), 5),
        lambda: Completion("Hello", Usage(1, 1, 2), "stop", object()),
    ],
)
async def test_answer_that_is_none_is_a_500_neither_billed_nor_left_in_flight(session, caplog, make):
    with caplog.at_level(logging.ERROR):
        async with LocalServer(backend=Oracle(make)) as server:
            async with session.post(server.url, json=BODY, headers=KEY) as reply:
                assert reply.status == 500
                assert await reply.json() in (
                    {"error": "The backend raised TypeError."},
                    {"error": "The backend raised ValueError."},
                )
            assert server.ledger.outcomes == {Outcome.FAILED: 1}
            assert (server.ledger.in_flight, server.ledger.billed_usd) == (0, 0.0)
    assert [record.name for record in caplog.records] == ["onellm_async.server.app"]


@pytest.mark.parametrize("dialect", ["documented", "backend"])
async def test_uncounted_usage_is_passed_on_as_null_and_costs_nothing(dialect):
    backend = Oracle(lambda: Completion("Hello", Usage(), None))
    async with (
        LocalServer(ServerSettings(dialect=dialect), backend=backend) as server,
        AsyncOneLLM("k", base_url=server.url, dialect=dialect) as client,
    ):
        response = await client.chat("x", model="GPT-5")
        assert (response.content, response.finish_reason, response.cost) == ("Hello", None, None)
        assert (server.ledger.billed, server.ledger.billed_usd) == (1, 0.0)


async def test_parts_of_an_answer_no_json_library_likes_arrive_whole(session):
    backend = Oracle(lambda: Completion("\ud800 \x00 🎉", Usage(1, 1, 2), "\udfff"))
    async with LocalServer(backend=backend) as server, session.post(server.url, json=BODY, headers=KEY) as reply:
        value = json.loads(await reply.read())
    assert (value["content"], value["finish_reason"]) == ("\ud800 \x00 🎉", "\udfff")


async def test_backend_that_ignores_its_cancellation_does_not_hold_the_server_for_good(monkeypatch, session):
    monkeypatch.setattr("onellm_async.server.app._MAX_CANCELLATION", 0.05)
    asked, release = asyncio.Event(), asyncio.Event()

    class Stubborn:
        async def complete(self, job):
            asked.set()
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            return Completion("late", Usage(1, 1, 2))

        async def aclose(self):
            pass

    async with LocalServer(backend=Stubborn()) as server:
        asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
        await asked.wait()
        connections = set(server._connections)
    with pytest.raises(aiohttp.ClientError):
        await asking
    release.set()
    await asyncio.wait(connections)
    assert server.ledger.outcomes == {Outcome.LOST: 1}
    assert server.ledger.in_flight == 0


class Failing:
    """Raises what a function makes."""

    def __init__(self, make):
        self.make = make

    async def complete(self, job):
        raise self.make()

    async def aclose(self):
        pass


@pytest.mark.parametrize(
    ("make", "status", "retry_after", "outcome"),
    [
        (lambda: BackendError("Down."), 500, None, Outcome.FAILED),
        (lambda: BackendError("Too long.", status=400), 400, None, Outcome.FAILED),
        (lambda: BackendError("Slow down.", status=429, retry_after=1.25), 429, "1.25", Outcome.RATE_LIMITED),
        (
            lambda: BackendError("Lost.", status=502, billing=Billing.POSSIBLY_BILLED),
            502,
            None,
            Outcome.POSSIBLY_BILLED,
        ),
    ],
)
@pytest.mark.parametrize("dialect", ["documented", "backend"])
async def test_error_of_a_backend_carries_status_text_and_time(session, dialect, make, status, retry_after, outcome):
    body = BODY | {"endpoint": "http://x", "max_tokens": 9, "top_p": 1, "model": "GPT-5"}
    async with LocalServer(ServerSettings(dialect=dialect), backend=Failing(make)) as server:
        async with session.post(server.url, json=body, headers=KEY) as reply:
            value = await reply.json()
            assert reply.headers.get("Retry-After") == retry_after
        if dialect == "documented":
            assert (reply.status, value) == (status, {"error": str(make())})
        else:
            field = "output" if status == 500 else "error"
            assert (reply.status, value) == (200, {"code": status, "output": {field: str(make())}})
        assert server.ledger.outcomes == {outcome: 1}


@pytest.mark.parametrize("options", [{"status": 200}, {"status": 399}, {"status": 600}, {"retry_after": -1}])
def test_error_of_a_backend_that_is_none_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        BackendError("x", **options)


async def test_fields_beside_the_text_of_an_answer_are_delivered_and_replace_none_of_it(session):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    extra = {"tool_calls": [call], "content": "never", "usage": 5}
    backend = Oracle(lambda: Completion("", Usage(1, 1, 2), "tool_calls", extra=extra, usage_details={"cached": 1}))
    async with LocalServer(backend=backend) as server, session.post(server.url, json=BODY, headers=KEY) as reply:
        value = await reply.json()
    assert (value["content"], value["finish_reason"], value["tool_calls"]) == ("", "tool_calls", [call])
    assert value["usage"] == {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "cached": 1}


@pytest.mark.parametrize("extra", [5, {5: "x"}, {"x": object()}, {"x": [{1}]}])
def test_fields_beside_the_text_that_are_not_json_are_refused(extra):
    with pytest.raises(TypeError, match="of a completion"):
        Completion("x", Usage(), extra=extra)


async def test_backend_that_forwards_hears_of_a_client_that_hung_up(until):
    class Forwarding:
        forwards = True

        def __init__(self):
            self.asked, self.cancelled = asyncio.Event(), asyncio.Event()

        async def complete(self, job):
            self.asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

        async def aclose(self):
            pass

    backend = Forwarding()
    async with LocalServer(backend=backend) as server:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.post(server.url, json=BODY, headers=KEY))
            await backend.asked.wait()
            asking.cancel()
            await asyncio.wait([asking])
        await backend.cancelled.wait()
        await until(lambda: server.ledger.received)
        assert server.ledger.outcomes == {Outcome.POSSIBLY_BILLED: 1}
