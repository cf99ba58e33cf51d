"""How much of a rate limit a client uses: many prompts against a token bucket that refuses what it does not cover.

The best possible makespan is T* = max(0, (N - b)/r) + L for N prompts, a bucket of b refilled at r per second, full at
the start, and latency L. The goodput ratio is T*/T.
"""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from attrs import asdict, frozen

from benchmarks.peers import AnswerAll, Contender, prompts
from benchmarks.processes import measured, python_server
from benchmarks.repetitions import Found, interleaved, shortfall, spread
from benchmarks.report import Section


@frozen
class Scene:
    """The prompts and the limit.

    Attributes:
        number: Prompts.
        rate: Refill of the bucket per second.
        burst: Capacity of the bucket.
        latency: Seconds until an admitted request is answered; a refusal comes at once.
        in_flight: Requests under way at once.
    """

    number: int = 2000
    rate: float = 200
    burst: int = 40
    latency: float = 0.1
    in_flight: int = 64

    @property
    def optimum(self) -> float:
        """T*, in seconds."""
        return max(0.0, (self.number - self.burst) / self.rate) + self.latency


SCENE = Scene()
_PER_MINUTE = SCENE.rate * 60
_REFILL = SCENE.burst / SCENE.rate
CONTENDERS = (
    Contender(
        "onellm-async, limit declared",
        "onellm",
        {"call": "gather_chats", "limits": {"requests_per_minute": _PER_MINUTE, "burst": SCENE.burst}},
    ),
    Contender(
        "onellm-async, limit not known", "onellm", {"call": "gather_chats", "limits": {"requests_per_minute": "auto"}}
    ),
    Contender(
        "async-batch-llm, limit declared, pause of 1 s",
        "async_batch",
        {"requests_per_minute": _PER_MINUTE, "burst_seconds": _REFILL, "pause": 1},
    ),
    Contender("async-batch-llm, defaults (pause of 300 s)", "async_batch"),
    Contender("openai-python, 2 retries (default)", "openai_python", {"retries": 2}),
    Contender("openai-python, 10 retries", "openai_python", {"retries": 10}),
    Contender(
        "openai-python, 10 retries, aiolimiter(200, 1)", "openai_python", {"retries": 10, "limiter": [SCENE.rate, 1]}
    ),
    Contender(
        "openai-python, 10 retries, aiolimiter(40, 0.2)",
        "openai_python",
        {"retries": 10, "limiter": [SCENE.burst, _REFILL]},
    ),
    Contender("litellm, 10 retries", "litellm_sdk", {"retries": 10}),
    Contender("aiohttp + tenacity, 10 retries with exponential jitter", "plain_aiohttp", {"retries": 10}),
)
GIVE_UP = 20
"""A client that has used less than a twentieth of the rate is not waited for."""


def _get(url: str) -> Any:
    with urllib.request.urlopen(url) as response:  # noqa: S310 - our own server
        return json.load(response)


async def measure(
    connect: Callable[[], AbstractAsyncContextManager[AnswerAll]], root: str, number: int, give_up: float
) -> Found:
    """Measures one fan-out, after one prompt to warm up and with the bucket full again.

    Returns:
        ``elapsed`` in seconds, ``failed`` prompts, ``refused`` sends; ``given_up`` if it took longer than `give_up`.
    """
    async with connect() as answer_all:
        await answer_all(prompts(1))
        texts = list(prompts(number, 1))
        await asyncio.to_thread(_get, f"{root}/reset")
        started = time.perf_counter()
        try:
            async with asyncio.timeout(give_up) as limit:
                errors = await answer_all(texts)
        except TimeoutError:
            if not limit.expired():
                raise
            return {"given_up": give_up, **await asyncio.to_thread(_get, f"{root}/stats")}
        elapsed = time.perf_counter() - started
        stats = await asyncio.to_thread(_get, f"{root}/stats")
    if stats["processed"] + errors.total() < number:
        raise RuntimeError(f"{number} prompts, but {stats} and {dict(errors)}")
    return {"elapsed": elapsed, "failed": errors.total(), "refused": stats["refused"]}


def run(contenders: Sequence[Contender], *, repetitions: int, number: int = SCENE.number) -> Section:
    """Compares the contenders."""
    scene = Scene(number=number)
    give_up = GIVE_UP * scene.optimum
    bucket = {key: str(value) for key, value in asdict(scene).items() if key in {"rate", "burst", "latency"}}
    with python_server("bucket", *(f"--{key}={value}" for key, value in bucket.items())) as port:
        root = f"http://127.0.0.1:{port}"

        def once(contender: Contender) -> Found:
            return measured(
                "goodput",
                contender.peer,
                options=contender.options,
                target={"root": root, "in_flight": scene.in_flight},
                plan={"root": root, "number": number, "give_up": give_up},
            )

        table = interleaved(contenders, repetitions, once)
    return Section(
        "Goodput under a rate limit",
        f"{number:,} prompts, {scene.in_flight} in flight, against a token bucket of {scene.burst}, full at the start "
        f"and refilled at {scene.rate:g} per second; an answer takes {scene.latency:g} s, a refusal is a 429 at once, "
        f"without Retry-After. The best possible time T* is {scene.optimum:.1f} s, and goodput is T*/T. Median of "
        f"{repetitions} (minimum to maximum); a client that takes longer than {GIVE_UP} T* is stopped "
        "and not tried again. A prompt that failed is not waited for: whoever gives up is soon done, so read goodput "
        "together with the failed prompts.",
        ("client", "goodput T*/T", "failed prompts", "refused sends"),
        [_row(contender, found, scene) for contender, found in table],
    )


def _row(contender: Contender, found: Sequence[Found], scene: Scene) -> Sequence[str]:
    if missing := shortfall(found):
        return (contender.name, missing, "", "")
    if "given_up" in found[-1]:
        last = found[-1]
        return (
            contender.name,
            f"< {scene.optimum / last['given_up']:.2f}",
            f"{scene.number - last['processed']:,} unanswered",
            f"{last['refused']:,}",
        )
    ratios = spread((scene.optimum / each["elapsed"] for each in found), 3)
    failed, refused = (spread(each[figure] for each in found) for figure in ("failed", "refused"))
    return (contender.name, ratios, failed, refused)
