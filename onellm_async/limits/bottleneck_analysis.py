"""The bottlenecks of a run, from snapshots of it, and what would make the run shorter. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from attrs import field, frozen

from onellm_async import serialization
from onellm_async.errors import ConfigurationError
from onellm_async.limits.bottleneck import BOTTLENECK_ADVICE, OVERLOAD_ADVICE, Bottleneck
from onellm_async.limits.snapshot import Snapshot
from onellm_async.serialization import JSON

_MIN_RETRIED_SHARE = 0.005
"""Share of retries from which the summary mentions them; less is shown as 0 %."""


@frozen
class BottleneckAnalysis:
    """Where the time of a run went.

    Attributes:
        elapsed: Seconds from the first snapshot to the last.
        shares: The share of that time for each bottleneck, from 0 to 1, in sum 1, the largest first.
        rate_limited_share: Of the requests sent in that time, those answered 429.
        retried_share: Of the requests sent in that time, retries after a failure.
        summary: The largest bottleneck, and what would make the run shorter, in words.
    """

    elapsed: float
    shares: Mapping[Bottleneck, float] = field(hash=False)
    rate_limited_share: float
    retried_share: float
    summary: str

    def to_dict(self) -> dict[str, JSON]:
        """Returns the analysis as a dict that JSON can hold, without what is not set."""
        return serialization.to_dict(self)


def analyze_bottlenecks(samples: Iterable[Snapshot]) -> BottleneckAnalysis:
    """Finds out from snapshots of a run which bottleneck it had for how long.

    The interval between two snapshots counts half for each of them, so more snapshots give a better answer. One per
    second is enough for a run of minutes.

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
            print(analyze_bottlenecks(samples).summary)
    """
    taken = list(samples)
    seconds: Counter[Bottleneck] = Counter()
    for earlier, later in pairwise(taken):
        if later.at < earlier.at:
            raise ConfigurationError(f"The snapshot of {later.at:g} s comes after that of {earlier.at:g} s.")
        seconds[_bottleneck(earlier)] += (later.at - earlier.at) / 2  # type: ignore[assignment]  # a Counter takes floats
        seconds[_bottleneck(later)] += (later.at - earlier.at) / 2  # type: ignore[assignment]
    elapsed = taken[-1].at - taken[0].at if taken else 0.0
    if elapsed <= 0:
        return BottleneckAnalysis(0.0, {}, 0.0, 0.0, "There are too few snapshots to find a bottleneck.")
    shares = {bottleneck: spent / elapsed for bottleneck, spent in seconds.most_common() if spent > 0}
    first, last = taken[0], taken[-1]
    sent = max(1, last.sent - first.sent)
    retried = (last.retried - first.retried) / sent
    summary = _summary(next(iter(shares.items())), taken)
    if retried >= _MIN_RETRIED_SHARE:
        summary += f" {_percent(retried)} of the requests were retries."
    return BottleneckAnalysis(elapsed, shares, (last.rate_limited - first.rate_limited) / sent, retried, summary)


def _bottleneck(snapshot: Snapshot) -> Bottleneck:
    if snapshot.bottleneck in BOTTLENECK_ADVICE and snapshot.bottleneck not in {"idle", "lane"}:
        return snapshot.bottleneck
    if snapshot.paused:
        return "paused"
    if snapshot.in_flight:
        return "concurrency" if snapshot.in_flight >= _slots(snapshot) else "service"
    return "backoff" if snapshot.backing_off else "idle"


def _summary(largest: tuple[Bottleneck, float], taken: list[Snapshot]) -> str:
    bottleneck, share = largest
    shown = next(snapshot for snapshot in reversed(taken) if _bottleneck(snapshot) == bottleneck)
    overloaded = bottleneck == "concurrency" and _slots(shown) < shown.max_concurrency
    advice = OVERLOAD_ADVICE if overloaded else BOTTLENECK_ADVICE[bottleneck]
    advice = advice.format(rate=shown.rate or 0.0, slots=_slots(shown), tokens=shown.tokens_per_minute or 0.0)
    return f"{_percent(share)} of the time {advice}"


def _slots(snapshot: Snapshot) -> int:
    return snapshot.concurrency or snapshot.max_concurrency  # 0 in a sample that does not have it


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
