"""Permits to send one request, and groups of requests that wait together."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from onellm_async.errors import OneLLMError
from onellm_async.limits.queue import GRANTED, Ticket

if TYPE_CHECKING:
    import asyncio

    from onellm_async.limits.limiter import LoopAdmission


class Permit(Ticket):
    """The right to send one request, from `Limiter.acquire`.

    Exactly one of `answered`, `rate_limited`, `overloaded`, `give_back` and `release` takes effect. Later calls do
    nothing, so that ``finally: permit.release()`` is always right.
    """

    __slots__ = ("home", "waker")

    home: "LoopAdmission"
    """The event loop's part of the limiter that granted it."""
    waker: "asyncio.Future[None] | None"
    """Ends the wait; None if the permit was granted at once."""

    def __init__(
        self,
        lane: str,
        tokens: float,
        deadline: float | None,
        order: int,
        model: str | None,
        pending: bool,
    ) -> None:
        super().__init__(lane, tokens, deadline, order, model)
        self.pending = pending
        self.waker = None

    def answered(self, tokens: float | None = None) -> None:
        """Records that the service accepted the request and that it is over.

        Args:
            tokens: Tokens that it used; None if not known, and the estimate stands.
        """
        home = self.home
        if home.limiter.home is home or home.takes_back(self):
            home.core.answered(self, home.loop.time(), tokens)
            home.dispatch()

    def release(self) -> None:
        """Records that the request is over; it is not known whether it reached the service."""
        home = self.home
        if self.state == GRANTED and (home.limiter.home is home or home.takes_back(self)):
            home.core.release(self)
            home.dispatch()

    def rate_limited(self, retry_after: float | None = None) -> None:
        """Records a 429.

        Args:
            retry_after: Seconds that the service asked to wait; None if it did not.
        """
        home = self.home
        if home.limiter.home is home or home.takes_back(self):
            home.core.rate_limited(self, home.loop.time(), retry_after)
            home.dispatch()

    def overloaded(self) -> bool:
        """Records that the service is overloaded. Concurrency is reduced for a while.

        Returns:
            Whether the request was sent after the last reduction. The fault is then an attempt of the request.
        """
        home = self.home
        if home.limiter.home is not home and not home.takes_back(self):
            return True
        counts = home.core.overloaded(self, home.loop.time())
        home.dispatch()
        return counts

    def give_back(self) -> None:
        """Records that the request never reached the service, so that it used nothing."""
        home = self.home
        if home.limiter.home is home or home.takes_back(self):
            home.core.give_back(self, home.loop.time())
            home.dispatch()


class Group:
    """Requests whose wait can be ended together, see `Limiter.cancel_group`.

    Args:
        wait_for_ready: See the attribute.

    Attributes:
        wait_for_ready: Whether its requests wait as long as it takes, as those of a fan-out or a run. They do not count
            toward `Limits.max_pending` and never fail because of it.
        waiting: Permits of the group that are queued.
        ended: Makes the error for every further request of the group; None while requests are admitted.
    """

    __slots__ = ("__weakref__", "ended", "wait_for_ready", "waiting")

    def __init__(self, *, wait_for_ready: bool = False) -> None:
        self.wait_for_ready: bool = wait_for_ready
        self.waiting: set[Permit] = set()
        self.ended: Callable[[], OneLLMError] | None = None
