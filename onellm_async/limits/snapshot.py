"""What a limiter is doing at one moment, as a value."""

from collections.abc import Mapping

from attrs import field, frozen

from onellm_async.limits.bottleneck import Bottleneck
from onellm_async.limits.policy import LANES

__all__ = ["Snapshot"]


@frozen(kw_only=True)
class Snapshot:
    """One client at one moment.

    Attributes:
        queued: Chats waiting for admission, by lane.
        in_flight: Requests under way.
        max_concurrency: Most of them at once.
        rate: Requests per minute that the limiter keeps up now, declared or learned; None without a limit.
        answered: Requests answered so far.
        refused: Requests refused by rate limit so far; they cost nothing.
        waiting_for: What the next request waits for.
        next_in: Seconds until it leaves, as far as that is known; None when it depends on others, or nobody waits.
        timer_set: Whether the limiter will look again by itself.
    """

    queued: Mapping[str, int] = field(factory=lambda: dict.fromkeys(LANES, 0), hash=False)
    in_flight: int = 0
    max_concurrency: int
    rate: float | None = None
    answered: int = 0
    refused: int = 0
    waiting_for: Bottleneck = "nothing"
    next_in: float | None = None
    timer_set: bool = False

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way, nobody waits, and no timer is set."""
        return not self.in_flight and not any(self.queued.values()) and not self.timer_set
