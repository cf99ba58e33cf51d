"""What perturbs a random scenario: pauses, retunes, a token limit, waves of chats and source gaps. Pure."""

from math import exp, log
from random import Random
from typing import Literal

from attrs import evolve

from onellm_async.limits.policy import LANES, Limits
from onellm_async.simulation.scenario import Control, Pause, Retune, Scenario, SingleChat, SourceGap

_MAX_CHATS = 60
"""Chats in waves, of all clients together; more would make runs slow."""
_MAX_PROMPT_LENGTH = 2000
_CHARACTERS_PER_TOKEN = 4


def perturb(plain: Scenario, random: Random, span: float) -> Scenario:
    """Adds random perturbations to `plain`. Two in five scenarios stay as they are.

    Args:
        plain: The scenario.
        random: Decides on the perturbations.
        span: Seconds in which they happen; about the duration of the run.
    """
    scenario, controls = plain, list[Control]()
    if random.random() < 0.2:
        length = random.choice((0, 100, _MAX_PROMPT_LENGTH))
        limits = evolve(plain.limits, tokens_per_minute=_tokens(random, plain, length))
        scenario = evolve(scenario, max_prompt_length=length, limits=limits)
    if random.random() < 0.2:
        scenario = _in_waves(scenario, random, span)
    end = max([span, *(chat.at for chat in scenario.chats)])
    if random.random() < 0.2:
        controls += [_pause(random, scenario, end) for _ in range(random.choice((1, 1, 2, 5)))]
    if random.random() < 0.25:
        controls += _retunes(random, scenario, end)
    return evolve(scenario, controls=tuple(sorted(controls, key=lambda control: control.at)))


def log_uniform(random: Random, low: float, high: float) -> float:
    """A random value between `low` and `high`; each order of magnitude is equally likely."""
    return exp(random.uniform(log(low), log(high)))


def _tokens(random: Random, scenario: Scenario, length: int) -> float:
    """A token limit that may bind or not: near the use of prompts and echoes at the true rate of requests."""
    mean = max(1.0, length / max(1.0, log(length or 1))) / _CHARACTERS_PER_TOKEN
    return max(1.0, scenario.requests_per_minute * 2 * (mean + 1) * log_uniform(random, 0.3, 3))


def _in_waves(scenario: Scenario, random: Random, span: float) -> Scenario:
    """A few chats again and again, with long silences between, and perhaps a fan-out whose source stalls."""
    at, chats, lane = span, list[SingleChat](), random.choice(list(LANES))
    max_chats = _MAX_CHATS // scenario.clients
    while len(chats) < max_chats and random.random() < 0.8:
        at += log_uniform(random, 30, 20_000)
        within = log_uniform(random, 0.1, 60)
        deadline = log_uniform(random, 1, 300) if random.random() < 0.2 else None
        wave = range(min(round(log_uniform(random, 1, 40)), max_chats - len(chats)))
        chats += [SingleChat(at=at + random.uniform(0, within), lane=lane, deadline=deadline) for _ in wave]
    gaps = []
    if random.random() < 0.5:
        indexes = sorted(random.sample(range(scenario.prompts), min(scenario.prompts, random.randint(1, 4))))
        gaps = [SourceGap(before=index, seconds=log_uniform(random, 1, 20_000)) for index in indexes]
    return evolve(scenario, chats=(*scenario.chats, *chats), source_gaps=tuple(gaps))


def _pause(random: Random, scenario: Scenario, end: float) -> Pause:
    return Pause(at=random.uniform(0, end), seconds=log_uniform(random, 0.01, 2000), client=_client(random, scenario))


def _retunes(random: Random, scenario: Scenario, end: float) -> list[Retune]:
    limits, found = scenario.limits, list[Retune]()
    for at in sorted(random.uniform(0, end) for _ in range(random.choice((1, 1, 2, 4)))):
        limits = _other_limits(random, limits, scenario)
        found.append(Retune(at=at, limits=limits, client=_client(random, scenario)))
    return found


def _other_limits(random: Random, limits: Limits, scenario: Scenario) -> Limits:
    """Changes one of the limits, and sometimes all of them."""
    change = random.choice(("slots", "slots", "rate", "burst", "mode", "tokens", "all"))
    if change in {"slots", "all"}:
        limits = evolve(limits, max_concurrency=round(log_uniform(random, 1, 200)))
    if change in {"tokens", "all"}:
        known = limits.tokens_per_minute is not None
        tokens = None if known and random.random() < 0.3 else _tokens(random, scenario, scenario.max_prompt_length)
        limits = evolve(limits, tokens_per_minute=tokens)
    if change in {"mode", "all"}:
        modes: list[Literal["discover", "correct", "off"]] = ["discover", "correct", "off"]
        mode = random.choice(modes)
        declared = limits.declared_rate or scenario.requests_per_minute
        limits = evolve(limits, adaptive=mode, requests_per_minute=declared)
    if change in {"rate", "all"}:
        factor = random.choice((1.0, log_uniform(random, 0.4, 2.5)))
        adaptive = "correct" if limits.adaptive == "discover" else limits.adaptive
        limits = evolve(limits, adaptive=adaptive, requests_per_minute=scenario.requests_per_minute * factor)
    if change in {"burst", "all"}:
        limits = evolve(limits, burst=max(1, round(scenario.burst * random.choice((1.0, random.uniform(0.2, 1.2))))))
    return limits


def _client(random: Random, scenario: Scenario) -> int | None:
    return random.choice((None, random.randrange(scenario.clients)))
