"""A random scenario, drawn from a seed. Pure."""

from random import Random
from typing import Literal

from attrs import evolve

from onellm_async.limits.policy import LANES, Limits
from onellm_async.retry import RetryPolicy
from onellm_async.server.settings import Faults
from onellm_async.simulation.scenario import LimitChange, Outage, Scenario, SingleChat
from onellm_async.simulation.simulate import best_makespan
from onellm_async.wire import Dialect
from tests.fuzzing.perturbations import log_uniform, perturb
from tests.fuzzing.random_service import with_random_service

_MAX_PROMPTS = 300
"""Prompts of all clients together: a run then takes some hundredths of a second."""


def random_scenario(seed: int, *, undisturbed: bool = False) -> Scenario:
    """Draws a scenario. The same seed always gives the same one.

    Rates lie between 0.1 and 20 per second, bursts between 1 and 600, and 1, 4 or 16 clients share the key. The limit
    is declared correctly, incorrectly or not at all, and may change or be zero for a while. Requests fail, lose their
    connection, stall, and get 429s with and without Retry-After. Chats of all lanes come in between; some have
    deadlines, and some are cancelled. Unless `undisturbed`, clients may also be paused, resumed and retuned, tokens be
    limited, and prompts and chats come in waves with long silences between; and every other service limits otherwise
    than by one bucket.
    """
    plain = _undisturbed(seed)
    if undisturbed:
        return plain
    # Random generators of their own: without perturbations a seed means what it meant before there were any.
    span = best_makespan(plain)
    scenario = perturb(plain, Random(f"disturbances of {seed}"), span)
    return scenario if seed % 2 else with_random_service(scenario, Random(f"service of {seed}"), span)


def _undisturbed(seed: int) -> Scenario:
    random = Random(seed)
    rate, burst = log_uniform(random, 0.1, 20), round(log_uniform(random, 1, 600))
    clients = random.choices((1, 4, 16), (70, 20, 10))[0]
    prompts = max(1, round(log_uniform(random, 5, _MAX_PROMPTS) / clients))
    latency = log_uniform(random, 0.05, 20)
    plain = Scenario(
        prompts=prompts,
        clients=clients,
        limits=_limits(random, rate, burst),
        requests_per_minute=rate * 60,
        burst=burst,
        initial_level=random.choice((None, None, 0.0, random.uniform(0, burst))),
        faults=_faults(random, latency),
        network_delay=log_uniform(random, 0.0005, 0.1),
        network_jitter=log_uniform(random, 0.0005, 0.1),
        dialect=random.choice(list(Dialect)),
        lane=random.choice(list(LANES)),
        deadline=log_uniform(random, 1, 600) if random.random() < 0.1 else None,
        consumer_pause=log_uniform(random, 0.01, 5) if random.random() < 0.15 else 0.0,
        stall_rate=random.choice((0.0, 0.0, random.uniform(0, 0.02))),
        timeout=random.uniform(3, 10) * latency + 5,
        retry=RetryPolicy(max_outage=None),  # of 16 clients, one may wait for hours
        seed=seed,
    )
    return _with_events(plain, random, best_makespan(plain))


def _with_events(plain: Scenario, random: Random, span: float) -> Scenario:
    """Adds limit changes, outages and chats to a run that takes about `span` seconds."""
    changes: list[LimitChange] = []
    if random.random() < 0.2:
        changes.append(LimitChange(random.uniform(0, span), plain.requests_per_minute * log_uniform(random, 0.4, 2.5)))
    if random.random() < 0.1:
        shut = random.uniform(0, span)
        last = changes[-1].requests_per_minute if changes else plain.requests_per_minute
        changes += [LimitChange(shut, 0), LimitChange(shut + log_uniform(random, 5, 600), last)]
        changes.sort(key=lambda change: change.at)
        if not changes[-1].requests_per_minute:
            changes.append(LimitChange(changes[-1].at + 60, last))
    outages = []
    if random.random() < 0.1:
        begin = random.uniform(0, span)
        kinds: list[Literal["unreachable", "silent"]] = ["unreachable", "silent"]
        outages.append(Outage(begin, begin + log_uniform(random, 1, 300), random.choice(kinds)))
    chats = [_chat(random, span) for _ in range(random.choice((0, 0, 3, 12)))]
    return evolve(plain, changes=tuple(changes), outages=tuple(outages), chats=tuple(chats))


def _limits(random: Random, rate: float, burst: int) -> Limits:
    slots = round(log_uniform(random, 1, 200))
    declaration = random.choice(("truth", "truth", "nothing", "nothing", "untruth"))
    if declaration == "nothing":
        return Limits(max_concurrency=slots, requests_per_minute="auto")
    if declaration == "truth":
        return Limits(max_concurrency=slots, requests_per_minute=rate * 60, burst=burst)
    factor = log_uniform(random, 0.5, 2)
    wrong_burst = max(1, round(burst * log_uniform(random, 0.5, 2)))
    modes: list[Literal["discover", "correct", "off"]] = ["discover", "correct", "off"]
    return Limits(
        max_concurrency=slots,
        requests_per_minute=rate * 60 * factor,
        burst=wrong_burst,
        adaptive=random.choice(modes),
    )


def _faults(random: Random, latency: float) -> Faults:
    rates = [random.uniform(0, 0.03) if random.random() < 0.3 else 0.0 for _ in range(5)]
    return Faults(
        latency=latency,
        latency_sigma=random.uniform(0, 0.6),
        server_error_rate=rates[0],
        reset_before_rate=rates[1],
        reset_after_rate=rates[2],
        html_502_rate=rates[3],
        truncate_rate=rates[4],
        retry_after=random.choice((None, None, 0, random.randint(1, 10), random.randint(10, 400))),
    )


def _chat(random: Random, span: float) -> SingleChat:
    return SingleChat(
        at=random.uniform(0, span),
        lane=random.choice(list(LANES)),
        deadline=log_uniform(random, 0.1, 300) if random.random() < 0.4 else None,
        cancelled_after=log_uniform(random, 0.01, 100) if random.random() < 0.5 else None,
    )
