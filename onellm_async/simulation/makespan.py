"""How long a run takes at best, and at most. Pure."""

from onellm_async.simulation.conditions import Scenario
from onellm_async.simulation.controls import Pause

__all__ = ["best_makespan", "longest_makespan"]

_PATIENCE = 50
"""Times the best makespan, an hour, and four Retry-Afters for each request: a run that takes longer is given up."""
_UNLEARNED_TOKENS = 600
"""What a request is taken for until its model's usual answers are known, and what is booked for it if it gets lost."""


def best_makespan(scenario: Scenario) -> float:
    """Seconds that a client would need that knows everything beforehand."""
    level = scenario.burst if scenario.initial_level is None else scenario.initial_level
    left, now, rate = scenario.prompts * scenario.clients - level, 0.0, scenario.requests_per_minute / 60
    for change in scenario.changes:
        step = (change.at - now) * rate
        if left <= step:
            break
        left, now, rate = left - step, change.at, change.requests_per_minute / 60
    return now + max(0.0, left / rate) + scenario.faults.latency + 2 * scenario.travel + scenario.travel_jitter


def longest_makespan(scenario: Scenario) -> float:
    """Seconds after which a run is given up: something in it waits for good."""
    told_to_wait = 4 * (scenario.faults.retry_after or 0) * (scenario.prompts + len(scenario.chats)) * scenario.clients
    return _PATIENCE * best_makespan(scenario) + 3600 + told_to_wait + _held_back(scenario)


def _held_back(scenario: Scenario) -> float:
    """Seconds for which pauses, silences, scarce slots and scarce tokens may hold up a client."""
    asked = scenario.prompts + len(scenario.chats)
    pauses = sum(control.seconds for control in scenario.controls if isinstance(control, Pause))
    silences = sum(silence.seconds for silence in scenario.silences)
    last_chat = max((chat.at for chat in scenario.chats), default=0.0)
    slow = max(
        asked * scenario.faults.latency / limits.max_concurrency
        + 60 * asked * (_UNLEARNED_TOKENS + scenario.longest_prompt) / (limits.tokens_per_minute or float("inf"))
        for limits in scenario.limits_in_turn
    )
    return pauses + silences + last_chat + _PATIENCE * slow / 10
