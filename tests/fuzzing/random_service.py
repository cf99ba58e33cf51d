"""What limits the service of a random scenario: buckets, windows, concurrency, several at once. Pure."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal

from attrs import evolve

from onellm_async.server.service_limits import (
    BucketLimit,
    ClosedTimes,
    ConcurrencyLimit,
    RandomLimit,
    ServiceLimit,
    WindowLimit,
)
from onellm_async.server.settings import RateHeaders, RetryAfterForm
from onellm_async.simulation.scenario import LimitChange, Scenario
from tests.fuzzing.perturbations import log_uniform

_MAX_CLIENTS = 4
"""Clients of a service; with 16 a run takes seconds."""
_MAX_WINDOWS = 40
"""Windows that the prompts of a scenario fill: a bound on its virtual time."""


def with_random_service(plain: Scenario, random: Random, span: float) -> Scenario:
    """Replaces the bucket of `plain` by limits of any kind, whose rate is about the same.

    Args:
        plain: The scenario.
        random: Decides on the limits.
        span: Seconds in which they change; about the duration of the run.
    """
    limits = _limits(random, plain)
    changes = [
        LimitChange(random.uniform(0, 2 * span), limits=_limits(random, plain))
        for _ in range(random.choice((0, 0, 0, 1, 2)))
    ]
    background = plain.requests_per_minute / 60 * random.uniform(0.1, 0.7) if random.random() < 0.2 else 0.0
    return evolve(
        plain,
        clients=min(plain.clients, _MAX_CLIENTS),
        controls=[control for control in plain.controls if control.client is None or control.client < _MAX_CLIENTS],
        service_limits=limits,
        changes=tuple(sorted(changes, key=lambda change: change.at)),
        background_rate=background,
        rate_headers=_rate_headers(random),
        faults=evolve(
            plain.faults,
            retry_after=_retry_after(random),
            database_places=round(log_uniform(random, 1, 50)) if random.random() < 0.1 else None,
            database_wait=log_uniform(random, 0.1, 30),
            overload_status=random.choice((401, 503, 529)),
        ),
    )


def _limits(random: Random, plain: Scenario) -> tuple[ServiceLimit, ...]:
    kinds: Sequence[Callable[[Random, Scenario], ServiceLimit]] = (_bucket, _sliding, _fixed, _concurrency)
    limits = [random.choice(kinds)(random, plain) for _ in range(random.choice((1, 1, 1, 2, 2, 3)))]
    if random.random() < 0.15:
        limits.append(_closed(random))
    if random.random() < 0.1:
        limits.append(RandomLimit(random.uniform(0.0, 0.5)))
    return tuple(limits)


def _bucket(random: Random, plain: Scenario) -> ServiceLimit:
    level = random.choice((None, None, 0.0))
    return BucketLimit(plain.requests_per_minute * log_uniform(random, 0.7, 1.5), plain.burst, initial_level=level)


def _sliding(random: Random, plain: Scenario) -> ServiceLimit:
    count, seconds = _window(random, plain)
    return WindowLimit(count, seconds, sliding=True)


def _fixed(random: Random, plain: Scenario) -> ServiceLimit:
    count, seconds = _window(random, plain)
    return WindowLimit(count, seconds, phase=random.random())


def _window(random: Random, plain: Scenario) -> tuple[int, float]:
    """Count and seconds of a window with about the rate of `plain`."""
    seconds = random.choice((1.0, 4.0, 10.0, 60.0, 60.0, log_uniform(random, 0.5, 300)))
    prompts = plain.prompts * plain.clients + len(plain.chats)
    rate = plain.requests_per_minute / 60 * log_uniform(random, 0.7, 1.5)
    return max(1, round(rate * seconds), prompts // _MAX_WINDOWS), seconds


def _concurrency(random: Random, plain: Scenario) -> ServiceLimit:
    return ConcurrencyLimit(round(log_uniform(random, 1, 64)))


def _closed(random: Random) -> ServiceLimit:
    seconds = log_uniform(random, 1, 300)
    every = seconds * random.uniform(4, 40) if random.random() < 0.3 else None
    return ClosedTimes(after=log_uniform(random, 0.1, 300), seconds=seconds, every=every)


def _retry_after(random: Random) -> float | RetryAfterForm | None:
    forms: list[RetryAfterForm] = ["seconds", "fraction", "milliseconds"]
    return random.choice((None, None, random.choice(forms), float(random.randint(1, 10))))


def _rate_headers(random: Random) -> RateHeaders | None:
    dialects: list[Literal["openai", "seconds", "epoch"]] = ["openai", "seconds", "epoch"]
    return random.choice((None, random.choice(dialects)))
