"""A function supplies the API key: when it is asked, and what a 401 makes of it."""

import asyncio
import logging

import aiohttp
import pytest
from fault_server import Exchange, FaultServer, answers

from onellm_async import ApiKey, AsyncOneLLM, AuthenticationError, ChatRequest, Limits, RetryPolicy
from onellm_async.errors import ClientClosedError, ConfigurationError, DeadlineExceededError
from onellm_async.events import Retrying
from onellm_async.quota import HostQuota

OLD, NEW = "sk-of-yesterday-1", "sk-of-today-22222"


class Keys:
    """Supplies the keys of a list, the last one again and again, and counts how often it is asked."""

    def __init__(self, *keys: object, wait: float = 0.0) -> None:
        self._keys = list(keys)
        self._wait = wait
        self.asked = 0

    async def __call__(self) -> object:
        self.asked += 1
        await asyncio.sleep(self._wait)
        key = self._keys.pop(0) if len(self._keys) > 1 else self._keys[0]
        if isinstance(key, Exception):
            raise key
        return key


def accepting(*keys: str, in_band: bool = False):
    """Answers requests with one of `keys`, and all others with 401 after a moment."""

    async def script(exchange: Exchange) -> bool:
        if exchange.server.requests[-1][1]["authorization"].removeprefix("Bearer ") in keys:
            return await answers()(exchange)
        await asyncio.sleep(0.01)
        body = b'{"code":401,"output":{"error":"no such key"}}' if in_band else b'{"error":"no such key"}'
        return await answers(body, "200 OK" if in_band else "401 Unauthorized")(exchange)

    return script


def client_at(server: FaultServer, api_key: object, **settings: object) -> AsyncOneLLM:
    return AsyncOneLLM(api_key, base_url=server.url, **({"limits": Limits.unlimited()} | settings))  # type: ignore[arg-type]


async def ask(client: AsyncOneLLM):
    return await client.chat("Hi", model="GPT-5")


@pytest.mark.parametrize("kind", ["a function", "an async function", "an ApiKey"])
async def test_the_key_is_asked_for_once_when_it_is_needed(kind):
    asked = []

    def function():
        asked.append(kind)
        return ApiKey(NEW) if kind == "an ApiKey" else NEW

    async def coroutine_function():
        return function()

    async with FaultServer(accepting(NEW)) as server:
        async with client_at(server, coroutine_function if kind == "an async function" else function) as client:
            assert asked == []
            await asyncio.gather(*(ask(client) for _ in range(5)))
            await ask(client)
        assert (asked, server.posts) == ([kind], 6)


@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
@pytest.mark.parametrize("in_band", [False, True], ids=["HTTP", "in-band"])
async def test_after_a_401_another_key_gets_one_more_try(in_band, given):
    keys, events = Keys(OLD, NEW), []
    async with FaultServer(accepting(NEW, in_band=in_band)) as server, aiohttp.ClientSession() as session:
        settings = {"hooks": [events.append], "session": session if given else None, "dialect": "backend"}
        async with client_at(server, keys, **settings) as client:
            response = await ask(client)
            assert (response.content, response.attempts, response.possibly_billed) == ("Paris.", 2, 0)
            assert [event.wait for event in events if isinstance(event, Retrying)] == [0.0]
            assert client.snapshot().retried == 1
        assert (keys.asked, server.posts) == (2, 2)


async def test_many_requests_with_an_expired_key_ask_once_for_another():
    keys = Keys(OLD, NEW, wait=0.05)
    async with FaultServer(accepting(NEW)) as server:
        async with client_at(server, keys) as client:
            answered = await client.gather_chats(["Hi"] * 30, model="GPT-5")
        assert [response.content for response in answered] == ["Paris."] * 30
        assert (keys.asked, server.posts) == (2, 60)


async def test_many_requests_with_a_revoked_key_ask_once_and_are_not_sent_again():
    keys = Keys(OLD, wait=0.05)
    async with FaultServer(accepting(NEW)) as server:
        async with client_at(server, keys) as client:
            ended = await asyncio.gather(*(ask(client) for _ in range(10)), return_exceptions=True)
        assert {type(error) for error in ended} == {AuthenticationError}
        assert (keys.asked, server.posts) == (2, 10)


async def test_a_key_that_is_rotated_while_requests_are_in_flight_ends_none_of_them():
    released = asyncio.Event()

    async def slow_then_by_key(exchange: Exchange) -> bool:
        if b"slow" in exchange.server.requests[-1][2]:
            await released.wait()
            return await answers()(exchange)
        return await accepting(NEW)(exchange)

    async with FaultServer(slow_then_by_key) as server, client_at(server, Keys(OLD, NEW)) as client:
        slow = asyncio.create_task(client.chat("slow", model="GPT-5"))
        await server.asked.wait()
        assert (await ask(client)).content == "Paris."
        released.set()
        assert (await slow).content == "Paris."
        assert (await slow).attempts == 1


async def test_a_second_key_that_is_not_accepted_either_is_tried_once():
    keys = Keys(OLD, "sk-of-another-service", "sk-of-a-third-one")
    async with FaultServer(accepting(NEW)) as server, client_at(server, keys) as client:
        with pytest.raises(AuthenticationError) as caught:
            await ask(client)
        assert (caught.value.attempts, server.posts) == (2, 2)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (OSError("vault"), "The api_key function raised OSError."),
        (None, "The api_key function returned a NoneType; it must return a string."),
        ("", "The API key is empty."),
        ("two\nlines", "The API key holds white space"),
    ],
)
async def test_a_function_without_a_usable_key_ends_the_request_unsent(key, message):
    async with FaultServer(accepting(NEW)) as server, client_at(server, Keys(key)) as client:
        with pytest.raises(ConfigurationError) as caught:
            await ask(client)
        assert caught.value.message.startswith(message)
        assert (caught.value.attempts, server.posts) == (0, 0)
        assert client.snapshot().at_rest


async def test_a_function_that_fails_after_a_401_leaves_the_401_as_it_is():
    async with FaultServer(accepting(NEW)) as server, client_at(server, Keys(OLD, OSError("vault"))) as client:
        with pytest.raises(AuthenticationError, match="no other key: The api_key function raised OSError") as caught:
            await ask(client)
        assert caught.value.attempts == 1


async def test_cancelling_the_request_that_asks_lets_the_next_one_ask():
    keys = Keys(NEW, wait=0.05)
    async with FaultServer(accepting(NEW)) as server, client_at(server, keys) as client:
        first = asyncio.create_task(ask(client))
        second = asyncio.create_task(ask(client))
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).content == "Paris."
        assert (keys.asked, server.posts) == (2, 1)


async def test_a_client_that_is_closed_while_it_asks_sends_nothing():
    async with FaultServer(accepting(NEW)) as server:
        client = client_at(server, Keys(NEW, wait=0.05))
        asking = asyncio.create_task(ask(client))
        await asyncio.sleep(0.01)
        await client.aclose()
        with pytest.raises(ClientClosedError):
            await asking
        assert server.posts == 0


async def test_a_policy_without_retries_still_tries_another_key():
    retry = RetryPolicy.none()
    async with FaultServer(accepting(NEW)) as server, client_at(server, Keys(OLD, NEW), retry=retry) as client:
        assert (await ask(client)).content == "Paris."


async def test_a_run_of_several_keys_shows_none_of_them(caplog):
    caplog.set_level(logging.DEBUG)
    events = []
    echo = b'{"error":"no such key as %b"}' % OLD.encode()

    async def echoing(exchange: Exchange) -> bool:
        if NEW in exchange.server.requests[-1][1]["authorization"]:
            return await answers(b'{"content":"%b and %b"}' % (OLD.encode(), NEW.encode()))(exchange)
        return await answers(echo, "401 Unauthorized")(exchange)

    async with FaultServer(echoing) as server, client_at(server, Keys(OLD, NEW), hooks=[events.append]) as client:
        assert (await ask(client)).content == "*** and ***"
        shown = f"{events!r}{caplog.text}{vars(client._sender._transport)!r}"
    assert OLD not in shown
    assert NEW not in shown
    assert "another key after a 401" in caplog.text


async def test_one_client_with_a_key_function_serves_several_loops():
    keys = Keys(NEW)

    async def once(client: AsyncOneLLM) -> str:
        async with client:
            return (await client.send(ChatRequest("GPT-5", "Hi"))).content

    async with FaultServer(accepting(NEW)) as server:
        client = client_at(server, keys)
        for _ in range(2):
            assert await asyncio.to_thread(asyncio.run, once(client)) == "Paris."
    assert keys.asked == 1


def test_a_quota_needs_the_key_itself(tmp_path):
    with pytest.raises(ConfigurationError, match="quota shares the rate limit of one key, and api_key is a function"):
        AsyncOneLLM(lambda: NEW, base_url="http://127.0.0.1:9", quota=HostQuota(tmp_path))


@pytest.mark.parametrize("end", ["aclose", "drain"])
async def test_a_function_that_never_returns_does_not_hold_up_the_end_of_the_client(end):
    async with FaultServer(accepting(NEW)) as server:
        client = client_at(server, Keys(NEW, wait=3600))
        asking = [asyncio.create_task(ask(client)) for _ in range(3)]
        await asyncio.sleep(0.01)
        await getattr(client, end)()
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(error) for error in ended] == [ClientClosedError] * 3
        await client.aclose()
        assert server.posts == 0


async def test_a_deadline_covers_the_wait_for_the_key():
    async with FaultServer(accepting(NEW)) as server, client_at(server, Keys(NEW, wait=3600)) as client:
        with pytest.raises(DeadlineExceededError) as caught:
            await client.chat("Hi", model="GPT-5", deadline=0.02)
        assert (caught.value.possibly_billed, server.posts) == (0, 0)


async def test_a_function_that_times_out_says_so():
    async with FaultServer(accepting(NEW)) as server, client_at(server, Keys(TimeoutError())) as client:
        with pytest.raises(ConfigurationError, match="The api_key function raised TimeoutError"):
            await ask(client)
