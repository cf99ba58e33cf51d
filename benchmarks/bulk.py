"""A long list at once: time and memory of `gather_chats` beside a plain pool of workers that keeps its replies."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from benchmarks.peers import AnswerAll, Contender, prompts
from benchmarks.processes import FastServer, measured
from benchmarks.repetitions import Found, interleaved, shortfall, spread
from benchmarks.report import Section

BASELINE = Contender("aiohttp, a pool of workers", "plain_aiohttp", {"keep": True})
CONTENDERS = (BASELINE, Contender("onellm-async, gather_chats", "onellm", {"call": "gather_chats"}))
IN_FLIGHT = 64
_WARM_UP = 512


async def measure(connect: Callable[[], AbstractAsyncContextManager[AnswerAll]], number: int) -> Found:
    """Answers that many prompts, after a warm-up.

    Returns:
        ``elapsed`` seconds, and ``peak`` memory of the process in megabytes, the prompts and all replies included.
    """
    async with connect() as answer_all:
        await answer_all(prompts(_WARM_UP))
        texts = list(prompts(number, _WARM_UP))
        started = time.perf_counter()
        errors = await answer_all(texts)
        elapsed = time.perf_counter() - started
    if errors:
        raise RuntimeError(f"{errors.total()} of {number} prompts failed: {dict(errors)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"elapsed": elapsed, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


def run(server: FastServer, *, repetitions: int, number: int) -> Section:
    """Compares both; the ratios are to the plain pool in the same repetition."""
    target = {"root": f"http://127.0.0.1:{server.port}", "in_flight": IN_FLIGHT}

    def once(contender: Contender) -> Found:
        return measured("bulk", contender.peer, options=contender.options, target=target, plan={"number": number})

    table = interleaved(CONTENDERS, repetitions, once)
    return Section(
        "A long list at once",
        f"{number:,} prompts in a list, {IN_FLIGHT} in flight, all replies kept: the pool's as parsed JSON, ours as "
        f"`ChatResponse` in the order of the prompts. Median of {repetitions} (minimum to maximum); the ratios are to "
        "the pool in the same repetition.",
        ("client", "s", "peak MB", "time / pool", "memory / pool"),
        [_row(contender, found, table[0][1]) for contender, found in table],
    )


def _row(contender: Contender, found: Sequence[Found], baseline: Sequence[Found]) -> Sequence[str]:
    if missing := shortfall(found) or shortfall(baseline):
        return (contender.name, missing, "", "", "")
    pairs = list(zip(found, baseline, strict=True))
    ratios = [spread((own[figure] / base[figure] for own, base in pairs), 2) for figure in ("elapsed", "peak")]
    return (
        contender.name,
        spread((each["elapsed"] for each in found), 1),
        spread(each["peak"] for each in found),
        *ratios,
    )
