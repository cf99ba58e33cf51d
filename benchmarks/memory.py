"""What a long source costs in memory: `iter_chats` over far more prompts than should ever be held."""

import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from benchmarks.peers import AnswerAll, Contender, prompts
from benchmarks.processes import FastServer, measured
from benchmarks.repetitions import Found, shortfall
from benchmarks.report import Section

US = Contender("onellm-async, iter_chats", "onellm", {"call": "iter_chats"})
IN_FLIGHT = 64
ALLOWED = 60
"""Megabytes above the start, whatever the length of the source."""
_WARM_UP = 1000


def _resident() -> float:
    """Megabytes of this process in memory; where the system does not tell, the most there ever were."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


async def measure(connect: Callable[[], AbstractAsyncContextManager[AnswerAll]], number: int) -> Found:
    """Streams that many prompts, after a warm-up, and looks at the memory at each thousandth.

    Returns:
        ``start`` and ``peak`` in megabytes.
    """
    peak = 0.0

    def watched(source: Iterable[str]) -> Iterator[str]:
        nonlocal peak
        for index, prompt in enumerate(source):
            if index % 1000 == 0:
                peak = max(peak, _resident())
            yield prompt

    async with connect() as answer_all:
        await answer_all(prompts(_WARM_UP))
        start = _resident()
        errors = await answer_all(watched(prompts(number, _WARM_UP)))
        peak = max(peak, _resident())
    if errors:
        raise RuntimeError(f"{errors.total()} of {number} prompts failed: {dict(errors)}")
    return {"start": start, "peak": peak}


def run(server: FastServer, *, number: int) -> Section:
    """Measures once: memory does not depend on the machine's mood."""
    target = {"root": f"http://127.0.0.1:{server.port}", "in_flight": IN_FLIGHT}
    found = measured("memory", US.peer, options=US.options, target=target, plan={"number": number})
    return Section(
        "Memory of a long run",
        f"A generator of {number:,} prompts through `iter_chats`, {IN_FLIGHT} in flight, each outcome dropped by the "
        f"consumer. Resident memory of the client process at the start, after a warm-up of {_WARM_UP:,}, and at its "
        f"highest; {ALLOWED} MB of growth are allowed.",
        ("client", "start MB", "peak MB", "growth MB"),
        [_row(found)],
    )


def _row(found: Found) -> Sequence[str]:
    if missing := shortfall([found]):
        return (US.name, missing, "", "")
    growth = found["peak"] - found["start"]
    verdict = "" if growth <= ALLOWED else " (too much)"
    return (US.name, f"{found['start']:.1f}", f"{found['peak']:.1f}", f"{growth:.1f}{verdict}")
