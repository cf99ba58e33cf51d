"""What an overloaded service gets, and the sweep of the constants that decide it; in virtual time.

``python -m benchmarks.overload`` prints the share of the best possible throughput and the faults per prompt, for the
constants as they are and for others in their place: the medians of five seeds.
"""

import asyncio
from collections.abc import Callable
from random import Random
from statistics import median

from attrs import frozen

from onellm_async.limits import Limiter, Limits, overload
from onellm_async.simulation.clock import run_in_virtual_time

_RATE = {"requests_per_minute": 6e6, "burst": 100_000}
SWEEP = {"_LATER_CUT": (0.5, 0.7, 0.85), "_RANDOM_SHARE": (0.001, 0.02, 0.05, 0.1), "_JUDGED_SHARE": (0.5, 0.9)}
"""Constants of `onellm_async.limits.overload`, and the values that are tried; one of each is the one in use."""


@frozen(kw_only=True)
class Service:
    """A service that accepts only so much at once, or fails whatever is in flight.

    Attributes:
        slots: `Limits.max_concurrency` of the client.
        prompts: Prompts to answer.
        latency: Seconds of an answer.
        places: Requests that are worked on at once; None for any number.
        patience: Seconds for which a request waits for a place before it fails.
        refuses: Whether a request beyond the places fails at once.
        failing: Share of the requests that fail, whatever is in flight.
    """

    slots: int
    prompts: int
    latency: float = 0.3
    places: int | None = None
    patience: float = 1.0
    refuses: bool = False
    failing: float = 0.0


SERVICES = {
    "4 places, patience 1 s, 40 prompts": Service(slots=48, prompts=40, places=4),
    "4 places, patience 1 s, 400 prompts": Service(slots=48, prompts=400, places=4),
    "8 places, no patience": Service(slots=200, prompts=1000, places=8, refuses=True),
    "50 places, no patience": Service(slots=200, prompts=5000, places=50, refuses=True),
    "1 % fail, 8 slots": Service(slots=8, prompts=1000, failing=0.01),
    "1 % fail, 19 slots": Service(slots=19, prompts=2000, failing=0.01),
    "1 % fail, 48 slots": Service(slots=48, prompts=4000, failing=0.01),
    "1 % fail, 200 slots": Service(slots=200, prompts=12000, failing=0.01),
}


async def _run(service: Service, seed: int) -> tuple[float, float]:
    random, limiter = Random(seed), Limiter(Limits(max_concurrency=service.slots, **_RATE), random=Random(seed + 1))
    places = asyncio.Semaphore(service.places or service.prompts)
    faults = 0

    async def is_answered() -> bool:
        if random.random() < service.failing or (service.refuses and places.locked()):
            await asyncio.sleep(service.latency / 6)
            return False
        try:
            async with asyncio.timeout(service.patience):
                await places.acquire()
        except TimeoutError:
            return False
        await asyncio.sleep(service.latency)
        places.release()
        return True

    async def send() -> None:
        nonlocal faults
        order, attempts = -1, 0
        while True:
            permit = await limiter.acquire(order=order)
            order = permit.order
            if await is_answered():
                return permit.answered()
            faults += 1
            attempts += permit.overloaded()
            await asyncio.sleep(random.uniform(0, 0.25 * 2 ** min(attempts, 6)))

    await asyncio.gather(*(send() for _ in range(service.prompts)))
    best = service.prompts * service.latency / min(service.slots, service.places or service.slots)
    return best / asyncio.get_running_loop().time(), faults / service.prompts


def measure(service: Service, seeds: int = 5) -> tuple[float, float]:
    """The median share of the best throughput, and of the faults per prompt."""
    run: Callable[[int], tuple[float, float]] = lambda seed: run_in_virtual_time(_run(service, seed))  # noqa: E731
    runs = [run(seed) for seed in range(seeds)]
    return median(share for share, _ in runs), median(faults for _, faults in runs)


def main() -> None:
    """Prints the table of every constant."""
    for name, values in SWEEP.items():
        used = getattr(overload, name)
        print(f"\n| {name} | {' | '.join(f'{value:g}' + ' (used)' * (value == used) for value in values)} |")
        print("| --- |" + " --- |" * len(values))
        for label, service in SERVICES.items():
            cells = []
            for value in values:
                setattr(overload, name, value)
                share, faults = measure(service)
                cells.append(f"{share:.2f} / {faults:.3f}")
            setattr(overload, name, used)
            print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
