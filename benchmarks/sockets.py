"""The limiter on real sockets: the client in one process, the package's local server in another, at two rates."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack
from itertools import product
from typing import Any

from attrs import frozen

from benchmarks.peers import AnswerAll, prompts
from benchmarks.processes import measured, python_server
from benchmarks.repetitions import Found, shortfall, spread
from benchmarks.report import Section

BURST = 40
LATENCY = 0.1
PATIENCE = 10
"""Times the best possible time after which a run is given up."""


@frozen
class Pace:
    """A rate, how many prompts are asked at it, and how many measurements may share the machine."""

    rate: float
    number: int
    beside: int

    @property
    def optimum(self) -> float:
        """The best possible time, in seconds."""
        return max(0.0, (self.number - BURST) / self.rate) + LATENCY


PACES = (Pace(20, 400, 8), Pace(200, 2000, 2))


@frozen
class Setting:
    """One row of the table."""

    pace: Pace
    dialect: str
    retry_after: int | None
    declared: bool

    @property
    def name(self) -> str:
        """As the table shows it."""
        told = "declared" if self.declared else "not declared"
        after = "no Retry-After" if self.retry_after is None else f"Retry-After: {self.retry_after}"
        return f"{self.pace.rate:g}/s, {told}, {self.dialect}, {after}"

    @property
    def limits(self) -> dict[str, Any]:
        """What the client is told."""
        if self.declared:
            return {"requests_per_minute": self.pace.rate * 60, "burst": BURST}
        return {"requests_per_minute": "auto"}


SETTINGS = tuple(Setting(*each) for each in product(PACES, ("documented", "backend"), (None, 1), (True, False)))
QUICK = tuple(Setting(Pace(200, 50, 2), *each) for each in (("documented", None, True), ("backend", 1, False)))


def _refused(root: str) -> int:
    with urllib.request.urlopen(f"{root}/ledger") as response:  # noqa: S310 - our own server
        return int(json.load(response)["rate_limited"])


async def measure(connect: Callable[[], AbstractAsyncContextManager[AnswerAll]], number: int, give_up: float) -> Found:
    """Measures one fan-out from a full bucket; the connection pool is cold, as it is for a user.

    Returns:
        ``elapsed`` in seconds and ``failed`` prompts.
    """
    async with connect() as answer_all:
        texts = list(prompts(number))
        started = time.perf_counter()
        async with asyncio.timeout(give_up):
            errors = await answer_all(texts)
        return {"elapsed": time.perf_counter() - started, "failed": errors.total()}


def run(*, repetitions: int, settings: Sequence[Setting] = SETTINGS) -> Section:
    """Measures every setting, several at a time where the machine has room for it."""
    found: dict[Setting, list[Found]] = {setting: [] for setting in settings}
    for pace in dict.fromkeys(setting.pace for setting in settings):
        rows = [setting for setting in settings if setting.pace == pace]
        with ThreadPoolExecutor(pace.beside) as beside:
            for _ in range(repetitions):
                for setting, result in zip(rows, beside.map(_once, rows), strict=True):
                    found[setting].append(result)
    return Section(
        "The limiter on real sockets",
        f"The client and the local server in processes of their own, on loopback; a bucket of {BURST}, full at the "
        f"start; an answer takes {LATENCY:g} s, a refusal is a 429 at once. Goodput is the best possible time over the "
        f"real one, refused is sends refused per prompt. Median of {repetitions} and the worst.",
        ("rate, limit, dialect, refusals", "goodput", "worst", "refused", "worst", "failed prompts"),
        [_row(setting, found[setting]) for setting in settings],
    )


def _once(setting: Setting) -> Found:
    pace = setting.pace
    bucket = {"rate": pace.rate, "burst": BURST, "latency": LATENCY, "dialect": setting.dialect}
    arguments = [f"--{name}={value}" for name, value in bucket.items()]
    if setting.retry_after is not None:
        arguments.append(f"--retry-after={setting.retry_after}")
    with ExitStack() as stack:
        root = f"http://127.0.0.1:{stack.enter_context(python_server('local', *arguments))}"
        found = measured(
            "sockets",
            "onellm",
            options={"call": "gather_chats", "limits": setting.limits, "dialect": setting.dialect},
            target={"root": root, "in_flight": 64},
            plan={"number": pace.number, "give_up": PATIENCE * pace.optimum + 5},
        )
        return found if shortfall([found]) else {**found, "refused": _refused(root)}


def _row(setting: Setting, found: Sequence[Found]) -> Sequence[str]:
    if missing := next(filter(None, (shortfall([each]) for each in found)), None):
        return (setting.name, missing, "", "", "", "")
    goodput = sorted(setting.pace.optimum / each["elapsed"] for each in found)
    refused = sorted(each["refused"] / setting.pace.number for each in found)
    middle = len(found) // 2
    return (
        setting.name,
        f"{goodput[middle]:.3f}",
        f"{goodput[0]:.3f}",
        f"{refused[middle]:.1%}",
        f"{refused[-1]:.1%}",
        spread(each["failed"] for each in found),
    )
