"""Draws the plots of ``limiter.md`` from simulated runs of the real client: ``python docs/plots.py``.

The same code gives the same files. The figures that the text quotes are written beside them, to ``limiter.json``;
``--check`` compares these with new runs and draws nothing.
"""

import asyncio
import json
import sys
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from attrs import field, frozen

from benchmarks.targets import seconds_until_back
from onellm_async import AsyncOneLLM, Limits
from onellm_async.events import Answered, Event, Granted, Queued, RateLimited
from onellm_async.server import (
    BucketLimit,
    ConcurrencyLimit,
    Faults,
    Outcome,
    ServerSettings,
    ServiceLimit,
    WindowLimit,
)
from onellm_async.server.service import Service
from onellm_async.simulation import LimitChange, Network, Scenario, ServiceTransport, run_in_virtual_time, simulate

STATIC = Path(__file__).with_name("_static")
CHANGES = ((0, 40), (900, 20), (2400, 80))
END = 4200
PROBES = (40, 75, 150, 300, 600)
KIND_SPAN = 60.0
"""Seconds over which the rate in use is counted."""
INK = "#808080"  # readable on white and on black
BLUE, RED, GREEN = "#3b82f6", "#ef4444", "#16a34a"


@frozen
class Kind:
    """A kind of limit, and a run against it.

    Attributes:
        title: Title of its plot.
        limits: Limits of the service.
        allowed: What they allow in the long run: pairs of seconds and requests per minute from then on.
        end: Seconds that the run takes.
        latency: Median seconds of an answer.
        change: Limits from the second pair on.
        background_rate: Requests per second of other clients.
    """

    title: str
    limits: Sequence[ServiceLimit]
    allowed: Sequence[tuple[float, float]]
    end: float = 600.0
    latency: float = 0.5
    change: Sequence[ServiceLimit] = ()
    background_rate: float = field(default=0.0, kw_only=True)


KINDS = {
    "sliding": Kind("sliding window, 40 in 60 s", [WindowLimit(40, 60, sliding=True)], [(0, 40)]),
    "fixed": Kind("fixed window, 300 in 60 s", [WindowLimit(300, 60, phase=0.37)], [(0, 300)]),
    "concurrency": Kind("8 in flight, answers of 2 s", [ConcurrencyLimit(8)], [(0, 240)], 300, 2.0),
    "several": Kind(
        "10 per second, burst 20, and 300 in 60 s",
        [BucketLimit(600, 20), WindowLimit(300, 60, sliding=True)],
        [(0, 300)],
    ),
    "changing": Kind(
        "bucket of 60 per minute, then 30 in 60 s",
        [BucketLimit(60, 20)],
        [(0, 60), (300, 30)],
        change=[WindowLimit(30, 60, sliding=True)],
    ),
    "shared": Kind("bucket of 600 per minute, half used by others", [BucketLimit(600, 20)], [(0, 300)], 300,
                   background_rate=5.0),
}  # fmt: skip
"""The plots of limits of each kind."""


async def _run_of_kind(kind: Kind) -> dict[str, Any]:
    faults = Faults(latency=kind.latency, latency_sigma=0.2, seed=1)
    service = Service(ServerSettings(limits=kind.limits, background_rate=kind.background_rate, faults=faults))
    service.account("key", 0.0)  # windows begin with the run
    loop = asyncio.get_running_loop()
    for at, _ in kind.allowed[1:]:
        loop.call_at(at, service.change_limits, kind.change, at)
    transport = ServiceTransport(service, "key", random=Random(1), network=Network(delay=0.009, jitter=0.002))
    limits = Limits(requests_per_minute="auto")
    async with AsyncOneLLM(transport=transport, limits=limits, random=Random(1)) as client:
        sending = asyncio.create_task(_endless(client))
        believed = []
        for at in range(0, round(kind.end), 5):
            await asyncio.sleep(at - loop.time())
            believed.append((at, client.snapshot().rate))
        sending.cancel()
        await asyncio.wait({sending})
    rows = service.ledger.rows
    rate_limited = sorted(row.received_at for row in rows if row.outcome is Outcome.RATE_LIMITED)
    accepted = sorted(row.received_at for row in rows if row.outcome is not Outcome.RATE_LIMITED)
    used = []
    for at in range(0, round(kind.end), 5):
        span = min(KIND_SPAN, at) or 1
        used.append((at, (bisect(accepted, at) - bisect(accepted, at - span)) / span * 60))
    return {"believed": believed, "used": used, "rate_limited": rate_limited, "accepted": len(accepted)}


def _service(seed: int) -> Service:
    return Service(ServerSettings(faults=Faults(latency=6.0, latency_sigma=0.3, seed=seed), keep_rows=0))


async def _endless(client: AsyncOneLLM) -> None:
    async for _ in client.iter_chats(("batch" for _ in range(1_000_000)), model="GPT-5-Nano"):
        pass


async def _discovered_rate() -> dict[str, Any]:
    service, loop = _service(1), asyncio.get_running_loop()
    rate_limited: list[float] = []
    answers: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, RateLimited):
            rate_limited.append(event.at)
        elif isinstance(event, Answered):
            answers.append(event.at)

    for at, rate in CHANGES[1:]:
        loop.call_at(at, service.retune, rate, at)
    transport = ServiceTransport(service, "key", random=Random(1))
    limits = Limits(requests_per_minute="auto")
    async with AsyncOneLLM(transport=transport, limits=limits, hooks=(watch,), random=Random(1)) as client:
        sending = asyncio.create_task(_endless(client))
        rates = []
        for at in range(0, END, 10):
            await asyncio.sleep(at - loop.time())
            rates.append((at, client.snapshot().rate))
        sending.cancel()
        await asyncio.wait({sending})
    return {"rates": rates, "rate_limited": rate_limited, "answered": len(answers)}


async def _lanes() -> dict[str, Any]:
    loop, random = asyncio.get_running_loop(), Random(2)
    lane_of: dict[int, str] = {}
    queued = {"interactive": 0, "batch": 0}
    curves: dict[str, list[tuple[float, int]]] = {"interactive": [], "batch": []}
    waits: list[tuple[float, float]] = []

    def watch(event: Event) -> None:
        if isinstance(event, Queued):
            lane_of[event.request] = event.lane
            queued[event.lane] += 1
        elif isinstance(event, Granted):
            lane = lane_of[event.request]
            queued[lane] -= 1
            if lane == "interactive":
                waits.append((event.at, event.waited))
        else:
            return
        for name, curve in curves.items():
            curve.append((event.at, queued[name]))

    transport = ServiceTransport(_service(2), "key", random=Random(2))
    async with AsyncOneLLM(transport=transport, hooks=(watch,), random=Random(2)) as client:
        sending = asyncio.create_task(client.gather_chats(["batch"] * 200, model="GPT-5-Nano"))
        async with asyncio.TaskGroup() as users:
            while loop.time() < 270:
                await asyncio.sleep(random.expovariate(1 / 4))
                users.create_task(client.chat("Quick!", model="GPT-5-Mini", lane="interactive"))
        await sending
    return {"queued": curves, "waits": waits}


def _reaction(probe_every: int, seed: int, at: float) -> tuple[float, float]:
    """Seconds until a doubled limit is used, and 429s per prompt while nothing changes."""
    limits = Limits(requests_per_minute="auto", probe_every=probe_every)
    doubled = simulate(Scenario(prompts=2000, limits=limits, changes=[LimitChange(at, 80)], seed=seed))
    steady = simulate(Scenario(prompts=2000, limits=limits, seed=seed))
    return seconds_until_back(doubled, 80, at), steady.rate_limited_share


def measure(*, probes: tuple[int, ...] = PROBES, seeds: int = 8) -> dict[str, Any]:
    """All that is drawn."""
    trade = {}
    for probe_every in probes:
        # Moments spread over the time between two probes: half of it has passed on average.
        runs = [_reaction(probe_every, seed, 900 + 1.5 * probe_every * seed / seeds) for seed in range(seeds)]
        trade[probe_every] = (fmean(late for late, _ in runs), fmean(share for _, share in runs))
    kinds = {name: run_in_virtual_time(_run_of_kind(kind)) for name, kind in KINDS.items()}
    return {
        "rate": run_in_virtual_time(_discovered_rate()),
        "lanes": run_in_virtual_time(_lanes()),
        "trade": trade,
        "kinds": kinds,
    }


def quoted(drawn: dict[str, Any]) -> dict[str, Any]:
    """The figures that the text quotes."""
    waits = [wait for _, wait in drawn["lanes"]["waits"]]
    rate = drawn["rate"]
    return {
        "answered": rate["answered"],
        "rate_limited": len(rate["rate_limited"]),
        "interactive chats": len(waits),
        "longest interactive wait": round(max(waits), 1),
        "batch queue": max(length for _, length in drawn["lanes"]["queued"]["batch"]),
        "kinds": {
            name: {"accepted": run["accepted"], "rate_limited": len(run["rate_limited"])}
            for name, run in drawn["kinds"].items()
        },
        "trade": {str(probe): [round(s), round(100 * share, 1)] for probe, (s, share) in drawn["trade"].items()},
    }


def draw(drawn: dict[str, Any], folder: Path) -> None:
    """Writes the plots."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    text = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    look = {"svg.hashsalt": "onellm-async", "svg.fonttype": "none", "savefig.transparent": True, "font.size": 10}
    with mpl.rc_context(text | look | {"legend.labelcolor": INK, "legend.frameon": False}):
        figure, axes = plt.subplots(figsize=(7.5, 3))
        steps = [*CHANGES, (END, CHANGES[-1][1])]
        axes.step(
            [at / 60 for at, _ in steps],
            [rate for _, rate in steps],
            where="post",
            color=INK,
            ls="--",
            label="true rate",
        )
        points = [(at / 60, rate) for at, rate in drawn["rate"]["rates"] if rate is not None]
        axes.plot(*zip(*points, strict=True), color=BLUE, label="discovered rate")
        axes.plot(
            [at / 60 for at in drawn["rate"]["rate_limited"]],
            [0] * len(drawn["rate"]["rate_limited"]),
            "|",
            color=RED,
            ms=9,
            label="429",
        )
        axes.set(xlabel="minutes", ylabel="requests per minute", ylim=(-3, 110))
        _save(figure, axes, folder / "limiter-rate.svg")
        figure, (above, below) = plt.subplots(2, 1, figsize=(7.5, 4.2), sharex=True)
        for lane, colour in (("batch", BLUE), ("interactive", GREEN)):
            above.step(*zip(*drawn["lanes"]["queued"][lane], strict=True), where="post", color=colour, label=lane)
        above.set(ylabel="queued")
        above.legend(loc="upper right")
        below.stem(
            *zip(*drawn["lanes"]["waits"], strict=True),
            linefmt=GREEN,
            markerfmt="o",
            basefmt=" ",
            label="interactive chat",
        )
        below.set(xlabel="seconds", ylabel="seconds queued")
        _save(figure, below, folder / "limiter-lanes.svg")
        figure, axes = plt.subplots(figsize=(7.5, 3))
        axes.plot(
            [s for s, _ in drawn["trade"].values()],
            [100 * share for _, share in drawn["trade"].values()],
            "o-",
            color=BLUE,
            label="probe_every",
        )
        for probe, (seconds, share) in drawn["trade"].items():
            axes.annotate(str(probe), (seconds, 100 * share), xytext=(6, 6), textcoords="offset points")
        axes.set(xlabel="seconds until a doubled limit is used", ylabel="rate-limited, %", ylim=(0, None))
        _save(figure, axes, folder / "limiter-probes.svg")
        _draw_kinds(drawn["kinds"], folder / "limiter-kinds.svg")
        plt.close("all")


def _draw_kinds(runs: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(3, 2, figsize=(7.5, 7.5))
    for axes, (name, kind) in zip(panels.flat, KINDS.items(), strict=True):
        run = runs[name]
        steps = [*kind.allowed, (kind.end, kind.allowed[-1][1])]
        top = 2 * max(rate for _, rate in kind.allowed)
        axes.step(*zip(*steps, strict=True), where="post", color=INK, ls="--", label="allowed")
        believed = [(at, rate) for at, rate in run["believed"] if rate is not None]
        if believed:
            axes.plot(*zip(*believed, strict=True), color=GREEN, lw=1, label="believed")
        axes.plot(*zip(*run["used"], strict=True), color=BLUE, label="in use, last 60 s")
        axes.plot(run["rate_limited"], [0] * len(run["rate_limited"]), "|", color=RED, ms=9, label="429")
        axes.set_title(kind.title, fontsize=10, color=INK)
        axes.set(ylim=(-0.03 * top, top))
    for axes in panels[-1]:
        axes.set(xlabel="seconds")
    for axes in panels[:, 0]:
        axes.set(ylabel="per minute")
    _save(figure, panels[0, 0], path)


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.legend(loc="upper center")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    drawn = measure()
    figures = json.dumps(quoted(drawn), indent=1) + "\n"
    if "--check" in sys.argv:
        if figures != (STATIC / "limiter.json").read_text("utf-8"):
            sys.exit(f"The plots are out of date; run python docs/plots.py. New figures:\n{figures}")
    else:
        STATIC.mkdir(exist_ok=True)
        draw(drawn, STATIC)
        (STATIC / "limiter.json").write_text(figures, encoding="utf-8")
