"""What disturbs a random scenario: pauses, other limits under way, a limit of tokens, waves and silences. Pure."""

from math import exp, log
from random import Random
from typing import Literal

from attrs import evolve

from onellm_async.limits.policy import LANES, Limits
from onellm_async.simulation.conditions import Scenario
from onellm_async.simulation.controls import Control, Pause, Retune
from onellm_async.simulation.participant import Silence, SingleChat

__all__ = ["disturbed", "log_uniform"]

_MOST_CHATS = 60
"""In waves, of all clients together, for the sake of the time that a run takes."""
_LONGEST_PROMPT = 2000
_CHARACTERS_PER_TOKEN = 4


def disturbed(plain: Scenario, random: Random, span: float) -> Scenario:
    """`plain`, with what else may happen in a run of about `span` seconds. Two in five stay as they are.

    Args:
        plain: What happens anyway.
        random: Decides on the rest.
        span: Seconds in which it happens.
    """
    scenario, controls = plain, list[Control]()
    if random.random() < 0.2:
        longest = random.choice((0, 100, _LONGEST_PROMPT))
        limits = evolve(plain.limits, tokens_per_minute=_tokens(random, plain, longest))
        scenario = evolve(scenario, longest_prompt=longest, limits=limits)
    if random.random() < 0.2:
        scenario = _in_waves(scenario, random, span)
    moments = max([span, *(chat.at for chat in scenario.chats)])
    if random.random() < 0.2:
        controls += [_pause(random, scenario, moments) for _ in range(random.choice((1, 1, 2, 5)))]
    if random.random() < 0.25:
        controls += _retunes(random, scenario, moments)
    return evolve(scenario, controls=tuple(sorted(controls, key=lambda control: control.at)))


def log_uniform(random: Random, least: float, most: float) -> float:
    """Any value between, with all orders of magnitude alike."""
    return exp(random.uniform(log(least), log(most)))


def _tokens(random: Random, scenario: Scenario, longest: int) -> float:
    """A limit that may bind or not: near what the prompts and their echoes use at the true rate of requests."""
    mean = max(1.0, longest / max(1.0, log(longest or 1))) / _CHARACTERS_PER_TOKEN
    return max(1.0, scenario.requests_per_minute * 2 * (mean + 1) * log_uniform(random, 0.3, 3))


def _in_waves(scenario: Scenario, random: Random, span: float) -> Scenario:
    """Somebody asks a little, again and again, with long silences between; the fan-out may be like that, too."""
    at, chats, lane = span, list[SingleChat](), random.choice(list(LANES))
    most = _MOST_CHATS // scenario.clients
    while len(chats) < most and random.random() < 0.8:
        at += log_uniform(random, 30, 20_000)
        within = log_uniform(random, 0.1, 60)
        deadline = log_uniform(random, 1, 300) if random.random() < 0.2 else None
        wave = range(min(round(log_uniform(random, 1, 40)), most - len(chats)))
        chats += [SingleChat(at=at + random.uniform(0, within), lane=lane, deadline=deadline) for _ in wave]
    silences = []
    if random.random() < 0.5:
        befores = sorted(random.sample(range(scenario.prompts), min(scenario.prompts, random.randint(1, 4))))
        silences = [Silence(before=before, seconds=log_uniform(random, 1, 20_000)) for before in befores]
    return evolve(scenario, chats=(*scenario.chats, *chats), silences=tuple(silences))


def _pause(random: Random, scenario: Scenario, moments: float) -> Pause:
    return Pause(
        at=random.uniform(0, moments), seconds=log_uniform(random, 0.01, 2000), client=_client(random, scenario)
    )


def _retunes(random: Random, scenario: Scenario, moments: float) -> list[Retune]:
    limits, found = scenario.limits, list[Retune]()
    for at in sorted(random.uniform(0, moments) for _ in range(random.choice((1, 1, 2, 4)))):
        limits = _other(random, limits, scenario)
        found.append(Retune(at=at, limits=limits, client=_client(random, scenario)))
    return found


def _other(random: Random, limits: Limits, scenario: Scenario) -> Limits:
    """One thing or another about the limits changes, and sometimes all of it."""
    change = random.choice(("slots", "slots", "rate", "burst", "mode", "tokens", "all"))
    if change in {"slots", "all"}:
        limits = evolve(limits, max_concurrency=round(log_uniform(random, 1, 200)))
    if change in {"tokens", "all"}:
        known = limits.tokens_per_minute is not None
        tokens = None if known and random.random() < 0.3 else _tokens(random, scenario, scenario.longest_prompt)
        limits = evolve(limits, tokens_per_minute=tokens)
    if change in {"mode", "all"}:
        modes: list[Literal["discover", "correct", "off"]] = ["discover", "correct", "off"]
        mode = random.choice(modes)
        declared = limits.requests_per_minute or scenario.requests_per_minute
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
