"""What one chat costs, counted in calls: unlike seconds, they are the same on every machine and on every day."""

import asyncio
import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import aiohttp
import pytest
from attrs import evolve

from onellm_async import AsyncOneLLM, Event, Limits
from onellm_async.batch.journal.record import JournalRecord, RecordState, RunCounts
from onellm_async.transport import RawReply

REPLY = json.dumps(
    {
        "provider": "OpenAI",
        "model": "gpt-5-mini",
        "role": "assistant",
        "content": "Paris.",
        "usage": {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12},
        "finish_reason": "stop",
    }
).encode()
ADVICE = (
    "It makes {found} calls; {budget} are allowed. If the new ones are worth it to every user, raise the budget "
    "in the same commit and say why; else make them only where they are needed. The most frequent:\n{list}"
)

IN_MEMORY = 95
"""Calls of a warm chat without its transport."""
LIMITED = 40
"""More of them where requests and tokens per minute are declared."""
DISCOVERED = 19
"""More of them where a limit is discovered, as long as nothing delays the chat."""
HOOKED = 25
"""More of them where somebody listens."""
FOLDED = 18
"""Calls that fold an intent and its outcome into the totals of a journal."""
OVER_HTTP = 300
"""Calls of a warm chat, aiohttp's and asyncio's included."""


class InMemory:
    async def post(self, body: bytes) -> RawReply:
        return RawReply(200, {}, REPLY)

    async def aclose(self) -> None:
        pass


async def calls_of(chat: Callable[[], Awaitable[object]], pause: float | None = None) -> Counter[str]:
    """The calls that one of many warm chats makes, in Python and of C functions, coroutines' resumptions included.

    Args:
        chat: Makes a chat.
        pause: Seconds before each, which are not counted.
    """
    counted: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            counted[f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_qualname}"] += 1
        elif event == "c_call":
            counted[argument.__qualname__] += 1

    found = []
    for _ in range(30):
        if pause is not None:
            await asyncio.sleep(pause)
        counted.clear()
        sys.setprofile(count)
        try:
            await chat()
        finally:
            sys.setprofile(None)
        found.append(counted.copy())
    return min(found[10:], key=Counter.total)


def check(calls: Counter[str], budget: int) -> None:
    listed = "\n".join(f"{number:4d} {name}" for name, number in calls.most_common())
    assert calls.total() <= budget, ADVICE.format(found=calls.total(), budget=budget, list=listed)
    assert calls.total() > budget * 0.8, f"Only {calls.total()} calls: lower the budget of {budget}, lest they return."


@pytest.fixture
def server() -> Iterator[str]:
    """Answers from a thread of its own, which is not counted."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(REPLY)}\r\n\r\n".encode()

    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            while connection.recv(65536):
                connection.sendall(head + REPLY)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        thread.join()


async def test_a_chat_makes_no_more_calls_than_it_did() -> None:
    async with AsyncOneLLM(transport=InMemory(), limits=Limits.unlimited()) as client:
        calls = await calls_of(lambda: client.chat("Hello", model="GPT-5"))
    check(calls, IN_MEMORY)


async def test_a_limited_chat_that_need_not_wait_makes_hardly_more() -> None:
    limits = Limits(max_concurrency=64, requests_per_minute=1_000_000, burst=1000, tokens_per_minute=1_000_000)
    async with AsyncOneLLM(transport=InMemory(), limits=limits) as client:
        calls = await calls_of(lambda: client.chat("Hello", model="GPT-5", lane="interactive"))
    check(calls, IN_MEMORY + LIMITED)


@pytest.mark.virtual_time
async def test_a_chat_under_a_limit_that_is_discovered_makes_hardly_more() -> None:
    limits = Limits(max_concurrency=64, requests_per_minute="auto")
    async with AsyncOneLLM(transport=InMemory(), limits=limits) as client:
        calls = await calls_of(lambda: client.chat("Hello", model="GPT-5"), pause=1.0)
    check(calls, IN_MEMORY + DISCOVERED)


async def test_a_hook_costs_its_four_events() -> None:
    heard: list[Event] = []
    async with AsyncOneLLM(transport=InMemory(), limits=Limits.unlimited(), hooks=[heard.append]) as client:
        calls = await calls_of(lambda: client.chat("Hello", model="GPT-5"))
    check(calls, IN_MEMORY + HOOKED)
    assert len(heard) == 30 * 4


async def test_a_chat_over_http_makes_no_more_calls_than_it_did(server: str) -> None:
    async with AsyncOneLLM("key", base_url=server, limits=Limits.unlimited()) as client:
        calls = await calls_of(lambda: client.chat("Hello", model="GPT-5"))
    check(calls, OVER_HTTP)


async def test_a_chat_makes_fewer_calls_than_a_plain_aiohttp_post(server: str) -> None:
    body = {"model": "GPT-5", "messages": [{"role": "user", "content": "Hello"}]}
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key"}) as session:

        async def post() -> None:
            async with session.post(server, json=body) as response:
                await response.json()

        plain = await calls_of(post)
    assert plain.total() > OVER_HTTP


async def test_the_totals_of_a_journal_cost_few_calls_for_each_prompt() -> None:
    intent = JournalRecord(0, 1, 7, b"digest", reserved=0.01, reserved_tokens=100, possibly_billed=1)
    outcome = evolve(intent, possibly_billed=0, state=RecordState.ANSWERED, cost=0.001, input_tokens=1, output_tokens=1)
    prompt = [(None, intent), (intent, outcome)]

    async def fold(times: int) -> None:
        RunCounts().replacing_all(prompt * times)

    once, often = await calls_of(lambda: fold(1)), await calls_of(lambda: fold(101))
    for name in once:
        often[name] = (often[name] - once[name]) // 100
    check(+often, FOLDED)
