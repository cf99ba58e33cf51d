"""Unchanged clients against the gateway, under a limit that is much too low for them; ``nox -s gateway_clients``.

Each client sends 50 prompts at once, and every one must be answered. Then four processes together must use at least
0.98 of the limit.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version

from onellm_async.server import ServerSettings
from onellm_async.testing import ThreadedServer

MODEL = "GPT-5-Nano"
PROMPTS = 50
RATE, BURST = 20, 20
"""Requests per second, and at once: a client that knows no limit sends its 50 within milliseconds."""
PROCESSES, PROMPTS_EACH = 4, 150
TARGET = 0.98

Question = tuple[str, str]
"""A prompt and its answer."""


def questions(kind: str) -> list[Question]:
    return [(f"{kind} {number}", answer_to(f"{kind} {number}")) for number in range(PROMPTS)]


answered_at: list[float] = []
"""When the service answered, on its own clock: what the processes need to start and to end is not the gateway's."""


def answer_to(prompt: str) -> str:
    answered_at.append(time.monotonic())
    if (person := re.match(r"person \d+", prompt)) is not None:  # instructor adds to the prompt
        return json.dumps({"name": person[0], "age": len(person[0])})
    return f"The answer to {prompt}."


@contextmanager
def gateway(server: ThreadedServer):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "onellm_async",
            "gateway",
            "--port",
            "0",
            "--rpm",
            str(RATE * 60),
            "--burst",
            str(BURST),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ONELLM_API_KEY": "any", "ONELLM_BASE_URL": server.url},
    )
    try:
        assert process.stdout is not None
        yield re.search(r"http://\S+/v1", process.stdout.readline())[0]  # type: ignore[index]
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()


async def with_openai() -> None:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

    async with AsyncOpenAI() as client:

        async def ask(question: Question) -> None:
            raw = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": question[0]}], user="u", store=False
            )
            assert raw.headers["x-onellm-ignored"] == "store"
            reply = ChatCompletion.model_validate_json(raw.content, strict=True)
            assert reply.choices[0].message.content == question[1], reply
            assert reply.usage is not None

        await asyncio.gather(*map(ask, questions("async")))
        assert len((await client.models.list()).data) > 40


async def with_openai_in_threads() -> None:
    from openai import OpenAI

    with OpenAI() as client:

        def ask(question: Question) -> None:
            reply = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question[0]}])
            assert reply.choices[0].message.content == question[1], reply

        def ask_all() -> None:
            with ThreadPoolExecutor(PROMPTS) as threads:
                list(threads.map(ask, questions("sync")))

        await asyncio.to_thread(ask_all)


async def with_openai_streams() -> None:
    from openai import AsyncOpenAI

    async with AsyncOpenAI() as client:

        async def ask(question: Question) -> None:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": question[0]}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == question[1], chunks
            assert chunks[-1].usage is not None
            assert {choice.finish_reason for chunk in chunks for choice in chunk.choices} == {None, "stop"}

        await asyncio.gather(*map(ask, questions("stream")))


async def with_langchain() -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL)
    asked = questions("langchain")
    replies = await model.abatch([prompt for prompt, _ in asked])
    assert [reply.content for reply in replies] == [answer for _, answer in asked]
    streamed = "".join([str(chunk.content) async for chunk in model.astream("langchain stream")])
    assert streamed == answer_to("langchain stream")


async def with_litellm() -> None:
    import litellm

    async def ask(question: Question) -> None:
        reply = await litellm.acompletion(
            model=f"openai/{MODEL}",
            messages=[{"role": "user", "content": question[0]}],
            api_base=os.environ["OPENAI_BASE_URL"],
        )
        assert reply.choices[0].message.content == question[1], reply

    await asyncio.gather(*map(ask, questions("litellm")))


async def with_pydantic_ai() -> None:
    from pydantic_ai import Agent

    agent = Agent(f"openai-chat:{MODEL}", instructions="Be brief.")

    async def ask(question: Question) -> None:
        reply = await agent.run(question[0])
        assert reply.output == question[1], reply

    await asyncio.gather(*map(ask, questions("pydantic-ai")))


async def with_instructor() -> None:
    import instructor
    from openai import AsyncOpenAI
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    async with AsyncOpenAI() as plain:
        client = instructor.from_openai(plain, mode=instructor.Mode.JSON)

        async def ask(question: Question) -> None:
            person = await client.chat.completions.create(
                model=MODEL, response_model=Person, messages=[{"role": "user", "content": question[0]}]
            )
            assert (person.name, person.age) == (question[0], len(question[0])), person

        await asyncio.gather(*map(ask, questions("person")))


CLIENTS: dict[str, tuple[str, Callable[[], Awaitable[None]]]] = {
    "openai-python, async": ("openai", with_openai),
    "openai-python, sync in threads": ("openai", with_openai_in_threads),
    "openai-python, streams": ("openai", with_openai_streams),
    "LangChain ChatOpenAI": ("langchain-openai", with_langchain),
    "litellm": ("litellm", with_litellm),
    "pydantic-ai, openai-chat:": ("pydantic-ai-slim", with_pydantic_ai),
    "instructor, JSON mode": ("instructor", with_instructor),
}

ONE_PROCESS = f"""
import asyncio, sys
from openai import AsyncOpenAI

async def main():
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    async with AsyncOpenAI(max_retries=0) as client:
        async def ask(number):
            reply = await client.chat.completions.create(
                model={MODEL!r}, messages=[{{"role": "user", "content": f"process {{number}}"}}]
            )
            assert reply.choices[0].message.content == f"The answer to process {{number}}."
        await asyncio.gather(*map(ask, range({PROMPTS_EACH})))

asyncio.run(main())
"""


def share_of_the_limit(server: ThreadedServer) -> float:
    """Four processes at once: the best possible time of all their requests, as a share of the time they took.

    Time is counted from the first answer of the service to its last.
    """
    time.sleep(BURST / RATE + 0.5)  # so that the bucket of the service is full
    processes = [
        subprocess.Popen([sys.executable, "-c", ONE_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answered_at.clear()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(120) for process in processes] == [0] * PROCESSES
    took = answered_at[-1] - answered_at[0]
    assert len(answered_at) == PROCESSES * PROMPTS_EACH
    for process in processes:
        process.communicate()
    return (PROCESSES * PROMPTS_EACH - BURST) / RATE / took


def main() -> None:
    settings = ServerSettings(requests_per_minute=RATE * 60, burst=BURST)
    with ThreadedServer(settings, answers=answer_to) as server, gateway(server) as url:
        os.environ |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "any", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        for name, (package, ask) in CLIENTS.items():
            if sys.argv[1:] and package not in sys.argv[1:]:
                continue
            before, started = server.ledger.billed, time.monotonic()
            asyncio.run(ask())
            answered = server.ledger.billed - before
            assert answered >= PROMPTS, (name, answered)
            print(f"{name} ({package} {version(package)}): {answered} answered in {time.monotonic() - started:.1f} s")
        share = share_of_the_limit(server)
        print(f"{PROCESSES} processes with {PROMPTS_EACH} prompts each: {share:.3f} of the limit")
        refused = server.ledger.summary()["rate_limited"]
        print(f"429s of the service: {refused}")
        assert share >= TARGET, share


if __name__ == "__main__":
    main()
