"""Where the time of a run went, from snapshots of it, and what would make it shorter. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Literal, TypeAlias

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.limits.bottleneck import Bottleneck
from onellm_async.limits.snapshot import Snapshot

__all__ = ["Decider", "TimeSpent", "where_time_went"]

Decider: TypeAlias = Literal[
    "rate", "slots", "tokens", "server", "retry-after", "back-off", "service down", "paused", "idle"
]
"""What decided, at one moment, how fast a run went on:

- ``"rate"``, ``"slots"``, ``"tokens"``, ``"retry-after"``, ``"service down"``, ``"paused"``: what the next request
  waited for, as in `Snapshot.bottleneck`; ``"slots"`` also when nobody waited because every slot was in use
- ``"server"``: nobody waited, and requests were under way: only their answers could get the run on
- ``"back-off"``: the client waited to try again after failures
- ``"idle"``: nothing waited and nothing was under way: a slow source of prompts, or a slow consumer of answers
"""

_ADVICE: Mapping[Decider, str] = {
    "rate": "the rate limit of {rate:.1f} a minute decided: more requests per minute would make this run shorter; more"
    " concurrency would not.",
    "slots": "all {slots} slots were in use: a higher max_concurrency would make this run shorter; more requests per"
    " minute would not.",
    "tokens": "the limit of {tokens:,.0f} tokens a minute decided: more tokens per minute, shorter prompts or a smaller"
    " max_tokens would make this run shorter; more requests per minute would not.",
    "server": "all that was asked for was under way, and the service was busy answering: faster answers would make this"
    " run shorter; neither a higher rate nor more concurrency would.",
    "retry-after": "the service had asked everybody to wait (Retry-After): whatever else uses this key, or a declared"
    " rate that is too high, makes this run longer.",
    "back-off": "the client waited to try again after failures: fewer failures would make this run shorter; neither a"
    " higher rate nor more concurrency would.",
    "service down": "the service was down and was only probed: nothing but its return could make this run shorter.",
    "paused": "the client was paused: resuming sooner would make this run shorter.",
    "idle": "nothing was asked for: a faster source of prompts, or a faster consumer of the answers, would make this"
    " run shorter.",
}
_OVERLOADED = (
    "all {slots} slots that the service left were in use: it said that it was overloaded, so fewer than max_concurrency"
    " requests were sent at once; a service that takes more would make this run shorter."
)
_WAITING_FOR: Mapping[Bottleneck, Decider] = {
    "rate": "rate",
    "slots": "slots",
    "tokens": "tokens",
    "retry-after": "retry-after",
    "back-off": "back-off",
    "service down": "service down",
    "paused": "paused",
}


@frozen
class TimeSpent:
    """Where the time of a run went.

    Attributes:
        elapsed: Seconds from the first snapshot to the last.
        shares: Of that time, what decided how fast the run went on; from 0 to 1, all together 1, the largest first.
        refused_share: Of the requests sent meanwhile, those refused by rate limit.
        repeated_share: Of the requests sent meanwhile, repeats after a failure.
        verdict: What decided most of the time, and what would make the run shorter, in words.
    """

    elapsed: float
    shares: Mapping[Decider, float] = field(hash=False)
    refused_share: float
    repeated_share: float
    verdict: str


def where_time_went(samples: Iterable[Snapshot]) -> TimeSpent:
    """Tells from snapshots of a run what decided how long it took.

    Each interval between two snapshots is shared equally by what they show, so the finer they are the better: one a
    second is plenty for a run of minutes.

    Args:
        samples: Snapshots of one client in the order in which they were taken, from `AsyncOneLLM.snapshot`.

    Raises:
        ConfigurationError: If a snapshot is earlier than the one before it.

    Example:
        ::

            samples = []

            async def watch():
                while True:
                    samples.append(client.snapshot())
                    await asyncio.sleep(1)

            watching = asyncio.create_task(watch())
            replies = await client.gather_chats(prompts, model="GPT-5-Nano")
            watching.cancel()
            print(where_time_went(samples).verdict)
    """
    taken = list(samples)
    seconds: Counter[Decider] = Counter()
    for earlier, later in pairwise(taken):
        if later.at < earlier.at:
            raise ConfigurationError(f"The snapshot of {later.at:g} s comes after that of {earlier.at:g} s.")
        seconds[_decider(earlier)] += (later.at - earlier.at) / 2  # type: ignore[assignment]  # a Counter takes floats
        seconds[_decider(later)] += (later.at - earlier.at) / 2  # type: ignore[assignment]
    elapsed = taken[-1].at - taken[0].at if taken else 0.0
    if elapsed <= 0:
        return TimeSpent(0.0, {}, 0.0, 0.0, "There are too few snapshots to tell where the time went.")
    shares = {decider: spent / elapsed for decider, spent in seconds.most_common() if spent > 0}
    first, last = taken[0], taken[-1]
    sent = max(1, last.sent - first.sent)
    repeated = (last.retried - first.retried) / sent
    verdict = _in_words(next(iter(shares.items())), taken)
    if repeated >= 0.005:
        verdict += f" {_percent(repeated)} of the requests were repeats."
    return TimeSpent(elapsed, shares, (last.rate_limited - first.rate_limited) / sent, repeated, verdict)


def _decider(snapshot: Snapshot) -> Decider:
    waiting_for = _WAITING_FOR.get(snapshot.bottleneck)
    if waiting_for is not None:
        return waiting_for
    if snapshot.paused:
        return "paused"
    if snapshot.in_flight:
        return "slots" if snapshot.in_flight >= _slots(snapshot) else "server"
    return "back-off" if snapshot.backing_off else "idle"


def _in_words(largest: tuple[Decider, float], taken: list[Snapshot]) -> str:
    decider, share = largest
    shown = next(snapshot for snapshot in reversed(taken) if _decider(snapshot) == decider)
    advice = _OVERLOADED if decider == "slots" and _slots(shown) < shown.max_concurrency else _ADVICE[decider]
    advice = advice.format(rate=shown.rate or 0.0, slots=_slots(shown), tokens=shown.tokens_per_minute or 0.0)
    return f"{_percent(share)} of the time {advice}"


def _slots(snapshot: Snapshot) -> int:
    return snapshot.concurrency or snapshot.max_concurrency  # of a run before there was the former, it is 0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
