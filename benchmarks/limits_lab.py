"""The limits laboratory: a discovered rate against services of every kind, in virtual time.

One client with all its requests at hand drives the real admission core against a model of a service, event by event.
A case takes milliseconds, so an idea can be measured over many kinds of limits and many seeds before it is kept::

    python -m benchmarks.limits_lab                    # every case, 10 seeds each
    python -m benchmarks.limits_lab --seeds 100-109 --only "sliding 300" --workers 2
"""

import argparse
import heapq
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from functools import partial
from random import Random
from statistics import NormalDist
from typing import Protocol

from attrs import define, field, frozen

from onellm_async.limits.admission import Admission
from onellm_async.limits.policy import Limits
from onellm_async.limits.queue import Ticket
from onellm_async.limits.rate_control import control_for
from onellm_async.limits.rate_state import RateState

ROUND_TRIP = 0.02
"""Seconds from sending a request to its 429."""
LATENCY_SIGMA = 0.2
"""Spread of the latency: sigma of its logarithm."""
NEVER = math.inf


class Service(Protocol):
    """A service with a limit."""

    def ask(self, now: float) -> tuple[bool, float | None]:
        """Whether a request that arrives now is accepted, and the Retry-After of its 429."""
        ...

    def finish(self, now: float) -> None:
        """An accepted request has been answered."""
        ...

    def best(self, requests: int, latency: float) -> float:
        """The shortest possible time for so many requests, in seconds."""
        ...


class BucketService:
    """A token bucket.

    Args:
        rate: Tokens per second.
        burst: Capacity.
        level: Tokens at the start; None: a full bucket.
        retry_after: Whether a 429 says in whole seconds when the next token is there.
        at: Time of the start.
    """

    def __init__(
        self, rate: float, burst: float, level: float | None = None, *, retry_after: bool = False, at: float = 0.0
    ) -> None:
        self.rate, self.burst, self.at, self.tells = rate, burst, at, retry_after
        self.level = self.start = burst if level is None else level

    def ask(self, now: float) -> tuple[bool, float | None]:
        self.level = min(self.burst, self.level + max(0.0, now - self.at) * self.rate)
        self.at = max(now, self.at)
        if self.level >= 1 - 1e-9:
            self.level -= 1
            return True, None
        return False, float(max(1, math.ceil((1 - self.level) / self.rate))) if self.tells else None

    def finish(self, now: float) -> None:
        """A bucket does not count what is in flight."""

    def best(self, requests: int, latency: float) -> float:
        return max(0.0, (requests - self.start) / self.rate) + latency


class SlidingWindow:
    """At most `count` accepted requests in any `seconds`."""

    def __init__(self, count: int, seconds: float, *, retry_after: bool = False) -> None:
        self.count, self.seconds, self.tells = count, seconds, retry_after
        self.accepted: deque[float] = deque()

    def ask(self, now: float) -> tuple[bool, float | None]:
        self._expire(now)
        if len(self.accepted) < self.count:
            self.accepted.append(now)
            return True, None
        return False, float(max(1, math.ceil(self._opens_at(now) - now))) if self.tells else None

    def _expire(self, now: float) -> None:
        while self.accepted and self.accepted[0] <= now - self.seconds:
            self.accepted.popleft()

    def _opens_at(self, now: float) -> float:
        return self.accepted[0] + self.seconds

    def finish(self, now: float) -> None:
        """A window does not count what is in flight."""

    def best(self, requests: int, latency: float) -> float:
        return (math.ceil(requests / self.count) - 1) * self.seconds + latency


class FixedWindow(SlidingWindow):
    """At most `count` accepted requests in each window; the windows do not begin with the client."""

    PHASE = 0.37
    """Share of the first window that is over when the client starts."""

    def _number(self, at: float) -> int:
        return math.floor(at / self.seconds + self.PHASE)

    def _expire(self, now: float) -> None:
        while self.accepted and self._number(self.accepted[0]) != self._number(now):
            self.accepted.popleft()

    def _opens_at(self, now: float) -> float:
        return (self._number(now) + 1 - self.PHASE) * self.seconds

    def best(self, requests: int, latency: float) -> float:
        full = math.ceil(requests / self.count) - 1
        return (max(0.0, (full - self.PHASE) * self.seconds) if full else 0.0) + latency


class ConcurrencyLimit:
    """At most `count` requests at once."""

    def __init__(self, count: int) -> None:
        self.count, self.now = count, 0

    def ask(self, now: float) -> tuple[bool, float | None]:
        if self.now >= self.count:
            return False, None
        self.now += 1
        return True, None

    def finish(self, now: float) -> None:
        self.now -= 1

    def best(self, requests: int, latency: float) -> float:
        return math.ceil(requests / self.count) * latency


class AllOf:
    """Several limits: a request has to pass all of them, and one that is refused counts in none."""

    def __init__(self, *limits: Service) -> None:
        self.limits = limits

    def ask(self, now: float) -> tuple[bool, float | None]:
        passed: list[tuple[Service, Service]] = []
        for limit in self.limits:
            before = copy(limit)
            if isinstance(before, SlidingWindow):
                before.accepted = before.accepted.copy()
            accepted, retry_after = limit.ask(now)
            if not accepted:
                for changed, old in passed:
                    vars(changed).update(vars(old))
                return False, retry_after
            passed.append((limit, before))
        return True, None

    def finish(self, now: float) -> None:
        for limit in self.limits:
            limit.finish(now)

    def best(self, requests: int, latency: float) -> float:
        return max(limit.best(requests, latency) for limit in self.limits)


class Changing:
    """One limit until `at`, then another one. Not for limits of concurrency."""

    def __init__(self, first: Service, second: Service, at: float) -> None:
        self.first, self.second, self.at = first, second, at

    def ask(self, now: float) -> tuple[bool, float | None]:
        return (self.first if now < self.at else self.second).ask(now)

    def finish(self, now: float) -> None:
        (self.first if now < self.at else self.second).finish(now)

    def best(self, requests: int, latency: float) -> float:
        raise NotImplementedError


class Shared:
    """Another client takes tokens at random, `rate` per second in the mean."""

    def __init__(self, limit: Service, rate: float, random: Random) -> None:
        self.limit, self.rate, self.random, self.next = limit, rate, random, random.expovariate(rate)

    def ask(self, now: float) -> tuple[bool, float | None]:
        while self.next <= now:
            self.limit.ask(self.next)
            self.next += self.random.expovariate(self.rate)
        return self.limit.ask(now)

    def finish(self, now: float) -> None:
        self.limit.finish(now)

    def best(self, requests: int, latency: float) -> float:
        raise NotImplementedError


class Refusing:
    """Refuses everything while `closed` says so."""

    def __init__(self, limit: Service, closed: Callable[[float], bool]) -> None:
        self.limit, self.closed = limit, closed

    def ask(self, now: float) -> tuple[bool, float | None]:
        return (False, None) if self.closed(now) else self.limit.ask(now)

    def finish(self, now: float) -> None:
        """Not for limits of concurrency."""

    def best(self, requests: int, latency: float) -> float:
        raise NotImplementedError


@define
class Run:
    """What happened in one run.

    Attributes:
        accepted_at: When the accepted requests arrived.
        refused_at: When those arrived that got a 429.
        answered: Requests that were answered.
        seconds: Time of the last event.
        found: What the control said of the limit in the end.
        rates: The rate that it kept up, with the time: one entry for each 429.
    """

    accepted_at: list[float] = field(factory=list)
    refused_at: list[float] = field(factory=list)
    answered: int = 0
    seconds: float = 0.0
    found: str = ""
    rates: list[tuple[float, float]] = field(factory=list)

    def rate_between(self, start: float, end: float) -> float:
        """Accepted requests per second between two times."""
        return sum(start <= at < end for at in self.accepted_at) / (end - start)

    def worst_dark_second(self, after: int = 10) -> int:
        """The most 429s in a second in which nothing was accepted, without the first `after` 429s."""
        light = {int(at) for at in self.accepted_at}
        dark = Counter(int(at) for at in self.refused_at[after:] if int(at) not in light)
        return max(dark.values(), default=0)


def drive(
    service: Service,
    requests: int,
    *,
    latency: float = 0.3,
    max_concurrency: int = 48,
    seed: int = 0,
    horizon: float = 20_000.0,
    limits: Limits | None = None,
    state: RateState | None = None,
    round_trip: float = ROUND_TRIP,
) -> Run:
    """Runs one client against `service` and returns what happened."""
    random, run = Random(seed), Run()
    limits = limits or Limits(requests_per_minute="auto", max_concurrency=max_concurrency)
    core = Admission(limits, control_for(limits, 0.0, Random(seed + 1), state), 0.0)
    now, number = 0.0, 0
    events: list[tuple[float, int, Ticket, bool, float | None]] = []
    for _ in range(requests):
        core.enqueue(Ticket("batch"), 0.0)
    while run.answered < requests:
        wake = core.next_wake(now)
        if wake is None and not events:
            raise RuntimeError(f"deadlock at {now:.3f} s")
        if wake is None or (events and events[0][0] <= wake):
            now, _, ticket, accepted, retry_after = heapq.heappop(events)
            if accepted:
                service.finish(now)
                run.answered += 1
                core.answered(ticket, now)
            else:
                core.rate_limited(ticket, now, retry_after)
                run.rates.append((now, core.rate.rate))
                core.enqueue(Ticket("batch", order=ticket.order), now)
        else:
            now = max(now, wake)
            if now > horizon:
                break
        for ticket in core.dispatch(now):
            number += 1
            arrives = now + round_trip / 2
            accepted, retry_after = service.ask(arrives)
            if accepted:
                run.accepted_at.append(arrives)
                takes = round_trip + latency * random.lognormvariate(0, LATENCY_SIGMA)
            else:
                run.refused_at.append(arrives)
                takes = round_trip * random.uniform(0.9, 1.1)
            heapq.heappush(events, (now + takes, number, ticket, accepted, retry_after))
    run.seconds = now
    run.found = core.rate.found or ""
    return run


Make = Callable[[int], Service]
Share = Callable[[Run], float]


@frozen
class Case:
    """One service, and what is expected of a client.

    Attributes:
        group: Number of the group.
        name: What the service is.
        make: Makes it from a seed.
        requests: Number of requests.
        share: Minimum of the share of the best; None: no target.
        refused: Maximum of 429s for each accepted request; None: no target.
        latency: Median latency in seconds.
        max_concurrency: Maximum number of requests in flight.
        best: Shortest possible time; None: what the service says.
        measure: Computes the share of a run; None: shortest possible time divided by the time taken.
        since: From when on 429s count.
        limits: What the client declares; None: nothing.
        last: Requests that end a run together. The shortest possible time counts one median latency for them, but the
            slowest of so many takes longer.
    """

    group: int
    name: str
    make: Make
    requests: int
    share: float | None = None
    refused: float | None = None
    latency: float = 0.3
    max_concurrency: int = 48
    best: float | None = None
    measure: Share | None = None
    since: float = 0.0
    limits: Limits | None = None
    last: int = 1

    def bound(self) -> float:
        """The share that a client reaches in the mean which knows the limit, with the slowest of the last requests."""
        if self.last < 2:
            return 1.0
        best = self.make(0).best(self.requests, self.latency)
        slowest = NormalDist().inv_cdf((self.last - 0.375) / (self.last + 0.25))  # mean of the largest (Blom)
        return best / (best + self.latency * (math.exp(LATENCY_SIGMA * slowest) - 1))

    def run(self, seed: int) -> tuple[float, float, int]:
        """Share of the best, 429s for each accepted request, and the most 429s in a dark second."""
        service = self.make(seed)
        run = drive(
            service,
            self.requests,
            latency=self.latency,
            max_concurrency=self.max_concurrency,
            seed=seed,
            limits=self.limits,
        )
        if self.measure is not None:
            share = self.measure(run)
        else:
            best = service.best(self.requests, self.latency) if self.best is None else self.best
            share = best / run.seconds if run.answered == self.requests else 0.0
        refused, accepted = (sum(at >= self.since for at in times) for times in (run.refused_at, run.accepted_at))
        return share, refused / max(1, accepted), run.worst_dark_second()


WINDOWS = ((40, 60), (300, 60), (60, 4), (300, 10), (500, 60))


def _per_second(start: float, end: float, best: float, run: Run) -> float:
    return run.rate_between(start, end) / best


def _bucket_cases() -> Iterator[Case]:
    yield Case(1, "bucket 40/min b40, N=400", lambda _: BucketService(40 / 60, 40), 400, 0.99, 0.015, 6)
    yield Case(1, "bucket 40/min b40, N=4000", lambda _: BucketService(40 / 60, 40), 4000, 0.995, 0.005, 6)
    yield Case(1, "bucket 200/s b40", lambda _: BucketService(200, 40), 2000, 0.985, 0.005, 0.1, 64)
    for rate, burst, requests in ((5, 1, 1000), (20, 200, 2000)):
        make = partial(_bucket, rate, burst)
        yield Case(1, f"bucket {rate}/s b{burst}", make, requests, 0.985, 0.015)
    for name, rate, burst, requests, latency, places in (
        ("40/min b40", 40 / 60, 40, 400, 6, 48),
        ("200/s b40", 200, 40, 2000, 0.1, 64),
        ("5/s b1", 5, 1, 1000, 0.3, 48),
        ("20/s b200", 20, 200, 2000, 0.3, 48),
    ):
        make = partial(_bucket, rate, burst, level=0.0)
        best = requests / rate + latency
        yield Case(1, f"bucket {name}, empty", make, requests, 0.985, 0.015, latency, places, best)
    for burst in (3, 10):
        yield Case(1, f"bucket 5/s b{burst}", partial(_bucket, 5, burst), 1000, 0.985, 0.015)


def _bucket(rate: float, burst: float, _: int = 0, **options: float | bool) -> Service:
    return BucketService(rate, burst, **options)  # type: ignore[arg-type]


def _window(kind: type[SlidingWindow], count: int, seconds: float, _: int = 0, **options: bool) -> Service:
    return kind(count, seconds, **options)


def _window_cases() -> Iterator[Case]:
    for kind, name in ((SlidingWindow, "sliding"), (FixedWindow, "fixed")):
        for count, seconds in WINDOWS:
            for rounds in (5, 20):
                for latency in (0.3, 3.0):
                    slow = 48 if latency < 1 or seconds == 60 else count  # 48 at 3 s are only 16 a second
                    places = 200 if count == 500 else slow
                    title = f"{name} {count} in {seconds}, N={rounds}w, latency {latency:g}"
                    make = partial(_window, kind, count, seconds)
                    yield Case(2, title, make, rounds * count, 0.9, 0.15, latency, places, last=count)


def _odd_window_cases() -> Iterator[Case]:
    """Windows whose length is no round number of seconds, once they are found."""
    for count, seconds in ((7, 11), (20, 7), (60, 23)):
        measure = partial(_per_second, 10 * seconds, 40 * seconds, count / seconds)
        make = partial(_window, SlidingWindow, count, seconds)
        yield Case(2, f"sliding {count} in {seconds}", make, 45 * count, 0.85, 0.15, measure=measure)


def _other_cases() -> Iterator[Case]:
    for count in (4, 8, 16):
        for latency in (0.3, 2.0):
            make: Make = lambda _, count=count: ConcurrencyLimit(count)  # type: ignore[misc]
            yield Case(3, f"concurrency {count}, latency {latency:g}", make, 400, 0.85, 0.15, latency)
    for rate, burst, requests, places in ((10, 10, 1000, 48), (40, 40, 2000, 48), (200, 40, 2000, 64)):
        make = partial(_bucket, rate, burst, retry_after=True)
        yield Case(4, f"Retry-After, bucket {rate}/s b{burst}", make, requests, 0.9, 0.15, 0.1, places)
    for kind, name in ((SlidingWindow, "sliding"), (FixedWindow, "fixed")):
        for count, seconds in WINDOWS[:3]:
            make = partial(_window, kind, count, seconds, retry_after=True)
            yield Case(4, f"Retry-After, {name} {count} in {seconds}", make, 5 * count, 0.9, 0.15)
    both: Make = lambda _: AllOf(BucketService(10, 20), SlidingWindow(300, 60))
    yield Case(5, "bucket 10/s b20 + sliding 300/60", both, 1500, 0.85, 0.15)
    both = lambda _: AllOf(SlidingWindow(10, 1), SlidingWindow(200, 60))
    yield Case(5, "sliding 10/1 + sliding 200/60", both, 1000, 0.85, 0.15)
    small = ((BucketService(5, 1), BucketService(1, 60), 400), (BucketService(5, 1), BucketService(1, 10), 300))
    for first, second, requests in small:
        both = lambda _, f=first, s=second: AllOf(copy(f), copy(s))  # type: ignore[misc]
        name = f"bucket 5/s b1 + bucket 60/min b{second.burst:g}"
        yield Case(5, name, both, requests, 0.85, 0.15)
    # The last round takes as long as the shorter window allows.
    both = lambda _: AllOf(SlidingWindow(1, 1), SlidingWindow(40, 60))
    yield Case(5, "sliding 1/1 + sliding 40/60", both, 200, 0.85, 0.15, best=4 * 60 + 39)
    both = lambda _: AllOf(SlidingWindow(3, 1), SlidingWindow(60, 60))
    yield Case(5, "sliding 3/1 + sliding 60/60", both, 300, 0.85, 0.15, best=4 * 60 + 19)
    for latency in (0.3, 2.0):
        both = lambda _: AllOf(BucketService(5, 10), ConcurrencyLimit(4))
        yield Case(5, f"bucket 5/s b10 + concurrency 4, latency {latency:g}", both, 400, 0.85, 0.15, latency)


def _changing_cases() -> Iterator[Case]:
    bucket, sliding = BucketService, SlidingWindow
    for name, first, second, at, requests, latency, best, start, end, share, refused in (
        ("40/min -> 20/min", lambda: bucket(40 / 60, 40), lambda: bucket(20 / 60, 40, 0.0, at=600.0),
         600, 800, 6.0, 1 / 3, 60, 660, 0.9, None),
        ("20/min -> 80/min, after 180 s", lambda: bucket(20 / 60, 20), lambda: bucket(80 / 60, 80, at=900.0),
         900, 1500, 6.0, 80 / 60, 180, 480, 0.9, 0.025),
        ("20/min -> 40/min, after 180 s", lambda: bucket(20 / 60, 20), lambda: bucket(40 / 60, 40, at=900.0),
         900, 1000, 6.0, 40 / 60, 180, 480, 0.9, 0.025),
        ("60/min -> 120/min, after 60 s", lambda: bucket(1, 40), lambda: bucket(2, 40, at=900.0),
         900, 1500, 2.0, 2, 60, 240, 0.9, 0.025),
        ("60/min -> 240/min, after 60 s", lambda: bucket(1, 40), lambda: bucket(4, 40, at=900.0),
         900, 2500, 2.0, 4, 60, 240, 0.9, 0.025),
        ("240/min -> 600/min, after 60 s", lambda: bucket(4, 40), lambda: bucket(10, 40, at=300.0),
         300, 4000, 2.0, 10, 60, 240, 0.9, 0.005),
        ("bucket 60/min -> sliding 30/60", lambda: bucket(1, 20), lambda: sliding(30, 60),
         300, 700, 0.3, 0.5, 120, 420, 0.85, 0.15),
        ("bucket 40/min -> sliding 40/60", lambda: bucket(40 / 60, 40), lambda: sliding(40, 60),
         600, 900, 0.3, 40 / 60, 120, 420, 0.85, 0.15),
        ("sliding 40/60 -> bucket 60/min", lambda: sliding(40, 60), lambda: bucket(1, 10, at=600.0),
         600, 900, 0.3, 1, 120, 420, 0.85, 0.15),
        ("sliding 300/60 -> 150/60", lambda: sliding(300, 60), lambda: sliding(150, 60),
         300, 3000, 0.3, 2.5, 120, 420, 0.85, 0.15),
        ("sliding 40/60 -> 20/60", lambda: sliding(40, 60), lambda: sliding(20, 60),
         330, 500, 3.0, 1 / 3, 120, 420, 0.9, 0.15),
        ("fixed 40/60 -> 10/60", lambda: FixedWindow(40, 60), lambda: FixedWindow(10, 60),
         300, 400, 0.3, 1 / 6, 120, 420, 0.9, 0.15),
        ("fixed 300/60 -> 240/60", lambda: FixedWindow(300, 60), lambda: FixedWindow(240, 60),
         300, 4500, 3.0, 4, 120, 420, 0.9, 0.15),
        ("fixed 60/4 -> 30/4", lambda: FixedWindow(60, 4), lambda: FixedWindow(30, 4),
         60, 2500, 0.3, 7.5, 8, 108, 0.9, 0.15),
        ("sliding 150/60 -> 300/60, after 180 s", lambda: sliding(150, 60), lambda: sliding(300, 60),
         300, 3000, 0.3, 5, 180, 480, 0.85, 0.15),
        ("bucket 5/s b1 -> 1/s b1", lambda: bucket(5, 1), lambda: bucket(1, 1, 0.0, at=60.0),
         60, 700, 0.3, 1, 30, 330, 0.9, 0.15),
        ("bucket 5/s b1 -> 8/s b1, after 60 s", lambda: bucket(5, 1), lambda: bucket(8, 1, at=60.0),
         60, 3000, 0.3, 8, 60, 240, 0.9, 0.025),
        ("sliding 1/0.2 -> bucket 1/s b3", lambda: sliding(1, 0.2), lambda: bucket(1, 3, 0.0, at=60.0),
         60, 700, 0.3, 1, 30, 330, 0.9, 0.15),
        ("sliding 40/60 -> 80/60, after 300 s", lambda: sliding(40, 60), lambda: sliding(80, 60),
         600, 1600, 0.3, 80 / 60, 300, 900, 0.9, 0.05),
        ("sliding 40/60 -> 40/10, after 300 s", lambda: sliding(40, 60), lambda: sliding(40, 10),
         600, 3000, 0.3, 4, 300, 600, 0.9, 0.05),
        ("fixed 300/60 -> 300/30, after 300 s", lambda: FixedWindow(300, 60), lambda: FixedWindow(300, 30),
         300, 8000, 0.3, 10, 300, 600, 0.9, 0.05),
    ):  # fmt: skip
        make: Make = lambda _, f=first, s=second, at=at: Changing(f(), s(), at)  # type: ignore[misc]
        measure = partial(_per_second, at + start, at + end, best)
        yield Case(6, name, make, requests, share, refused, latency, measure=measure, since=at)


def _shared_cases() -> Iterator[Case]:
    for name, inner, requests, half, start, end, latency, places in (
        ("bucket 40/min", lambda: BucketService(40 / 60, 40), 800, 20 / 60, 60, 1500, 6.0, 48),
        ("bucket 10/s b20", lambda: BucketService(10, 20), 3000, 5, 30, 500, 0.3, 48),
        ("bucket 200/s", lambda: BucketService(200, 40), 6000, 100, 2, 50, 0.1, 64),
        ("sliding 300/60", lambda: SlidingWindow(300, 60), 1500, 2.5, 60, 360, 0.3, 48),
        ("fixed 40/60", lambda: FixedWindow(40, 60), 200, 20 / 60, 60, 480, 0.3, 48),
    ):
        make: Make = lambda seed, i=inner, half=half: Shared(i(), half, Random(seed + 50))  # type: ignore[misc]
        measure: Share = lambda run, s=start, e=end, half=half, lag=latency: (  # type: ignore[misc]
            run.rate_between(s, min(e, run.seconds - lag)) / half
        )
        yield Case(7, f"shared {name}, half taken", make, requests, 0.85, 0.05, latency, places, measure=measure)


def _hard_cases() -> Iterator[Case]:
    def down(until: float, limit: Service) -> Service:
        return Refusing(limit, lambda now: now < until)

    def random_429s(seed: int) -> Service:
        random = Random(seed + 9)
        return Refusing(BucketService(1e9, 1e9), lambda _: random.random() < 0.5)

    def flips(limit: Service) -> Service:
        return Refusing(limit, lambda now: int(now / 5) % 2 == 1)

    yield Case(8, "all refused for 10 min, then 60/min", lambda _: down(600, BucketService(1, 40)), 400,
               measure=partial(_per_second, 660, 960, 1))  # fmt: skip
    yield Case(8, "refused at random, p=.5", random_429s, 200, measure=lambda run: len(run.accepted_at) / 200)
    yield Case(8, "20/s b20, nothing every other 5 s", lambda _: flips(BucketService(20, 20)), 400,
               measure=lambda run: run.rate_between(0, run.seconds) / 10)  # fmt: skip
    yield Case(8, "anything, nothing every other 5 s", lambda _: flips(BucketService(1e6, 1e6)), 3000,
               measure=lambda run: float(run.answered == 3000))  # fmt: skip
    out: Make = lambda _: Changing(
        Changing(BucketService(2, 40), down(1e9, BucketService(2, 40)), 200), BucketService(2, 40, at=800.0), 800
    )
    yield Case(8, "120/min, out 200..800 s", out, 1500, measure=partial(_per_second, 860, 1100, 2))


def _declared_cases() -> Iterator[Case]:
    """A declared rate, and a service that also limits what is in flight, or that others use."""
    limits = Limits(requests_per_minute=600, burst=20, max_concurrency=48)
    for latency in (0.3, 2.0):
        make: Make = lambda _: AllOf(BucketService(10, 20), ConcurrencyLimit(4))
        name = f"declared 10/s b20 + concurrency 4, latency {latency:g}"
        best = max(380 / 10 + latency, 100 * latency)
        yield Case(9, name, make, 400, 0.85, 0.15, latency, best=best, limits=limits)
    make = lambda _: ConcurrencyLimit(4)
    yield Case(9, "declared 40/min + concurrency 4, latency 12", make, 200, 0.85, 0.15, 12, limits=Limits())
    make = lambda _: ConcurrencyLimit(4)
    yield Case(9, "no limit, concurrency 4", make, 400, 0.85, 0.15, 2, limits=Limits.unlimited(48))
    make = lambda seed: Shared(BucketService(10, 20), 5, Random(seed + 50))
    measure: Share = lambda run: run.rate_between(30, min(400, run.seconds - 1)) / 5
    yield Case(9, "declared 10/s b20, half taken by others", make, 2000, 0.85, 0.15, measure=measure, limits=limits)
    make = lambda seed: Shared(BucketService(40 / 60, 40), 20 / 60, Random(seed + 50))
    measure = lambda run: run.rate_between(60, min(1500, run.seconds - 6)) / (20 / 60)
    yield Case(9, "declared 40/min, half taken by others", make, 400, 0.85, 0.15, 6, measure=measure, limits=Limits())


def _sporadic_cases() -> Iterator[Case]:
    """429s that come at random, whatever the rate, for 3 of 100 requests."""
    no_limit = partial(_bucket, 1e9, 1e9)
    declared = Limits(requests_per_minute=600, burst=20, max_concurrency=48)
    for name, inner, requests, latency, best, limits in (
        ("no limit", no_limit, 4000, 0.3, 48 / 0.3, None),
        ("no limit", no_limit, 1500, 3.0, 48 / 3, None),
        ("bucket 10/s b20", partial(_bucket, 10, 20), 3000, 0.3, 10, None),
        ("sliding 40/60", partial(_window, SlidingWindow, 40, 60), 800, 0.3, 40 / 60, None),
        ("declared 10/s b20", partial(_bucket, 10, 20), 3000, 0.3, 10, declared),
        ("unlimited declared, no limit", no_limit, 4000, 0.3, 48 / 0.3, Limits.unlimited(48)),
    ):
        make: Make = lambda seed, inner=inner: Refusing(inner(), _at_random(0.03, seed))  # type: ignore[misc]
        measure: Share = lambda run, best=best: run.rate_between(0, run.seconds) / best  # type: ignore[misc]
        title = f"{name}, latency {latency:g}, 429s at random for 3 of 100"
        yield Case(10, title, make, requests, 0.5, 0.15, latency, measure=measure, limits=limits)


def _at_random(share: float, seed: int) -> Callable[[float], bool]:
    random = Random(seed + 7)
    return lambda _: random.random() < share


def cases() -> list[Case]:
    """All cases."""
    return [
        *_bucket_cases(),
        *_window_cases(),
        *_odd_window_cases(),
        *_other_cases(),
        *_changing_cases(),
        *_shared_cases(),
        *_hard_cases(),
        *_declared_cases(),
        *_sporadic_cases(),
    ]


def _one(number: int, seeds: Sequence[int]) -> tuple[list[tuple[float, float, int]], str]:
    results: list[tuple[float, float, int]] = []
    trouble = ""
    case = cases()[number]
    for seed in seeds:
        try:
            results.append(case.run(seed))
        except Exception as error:  # a policy that fails in one case is shown with the others
            results.append((0.0, 9.0, 99))
            trouble = f"seed {seed}: {error!r}"
    return results, trouble


def main() -> None:
    """Prints a row for each case: median and worst share, median and worst refused, worst dark second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-9", help="first and last seed")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--group", type=int, help="cases of this group")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    chosen = [
        (number, case)
        for number, case in enumerate(cases())
        if options.only in case.name and options.group in {None, case.group}
    ]
    started, reached = time.monotonic(), 0
    print(f"{'case':55s}    target         share (worst)    refused (worst)  dark")
    with ProcessPoolExecutor(options.workers) as pool:
        found = pool.map(partial(_one, seeds=seeds), [number for number, _ in chosen])
        for (_, case), (results, trouble) in zip(chosen, found, strict=True):
            shares, refused, dark = zip(*results, strict=True)
            share, waste = statistics.median(shares), statistics.median(refused)
            met = (case.share is None or round(share, 3) >= case.share) and max(dark) <= 2
            met = met and (case.refused is None or round(waste, 4) <= case.refused)
            reached += met
            print(
                f"{case.group} {case.name:53s} {case.share or '-':>5} / {case.refused or '-':<5}  "
                f"{share:.3f} ({min(shares):.3f})  {waste:.4f} ({max(refused):.3f})  {max(dark):4d}  "
                f"{'' if met else 'MISSED'} {'' if case.bound() > 0.95 else f'bound {case.bound():.3f}'} {trouble}",
                flush=True,
            )
    print(f"{reached} of {len(chosen)} reached; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
