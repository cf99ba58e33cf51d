"""Permits to send one request, and groups of requests that wait together."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from onellm_async.errors import OneLLMError, RequestCancelledError
from onellm_async.limits.advertised import AdvertisedReply
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
            home.core.release(self, home.loop.time())
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

    def advertised(self, said: AdvertisedReply) -> None:
        """Records what the headers of the reply say of the rate limit.

        Args:
            said: What they say.
        """
        home = self.home
        if home.limiter.home is home:
            home.core.advertised = said.limit, said.remaining
            home.core.rate.advise(home.loop.time(), said)

    def give_back(self) -> None:
        """Records that the request never reached the service, so that it used nothing."""
        home = self.home
        if home.limiter.home is home or home.takes_back(self):
            home.core.give_back(self, home.loop.time())
            home.dispatch()


class GroupOwner(Protocol):
    """Sends the requests of groups."""

    def end_waits(self, group: "RequestGroup", error: Callable[[], OneLLMError]) -> None:
        """Ends the waits of the requests of `group`, each with a new error."""


class RequestGroup:
    """Requests that are cancelled together, such as those of one fan-out. Pass it to `AsyncOneLLM.send`.

    `gather_chats`, `iter_chats` and `run` each make their own. A group belongs to the client that it is first used
    with.

    Args:
        wait_for_ready: See the attribute.
        answered: Whether the service is known to have answered, for example in an earlier session. A service that
            never answered is not waited for.
        retry_ambiguous: False never retries an attempt that may have been billed, whatever the client's policy says.
        take_turns: See the attribute.

    Attributes:
        wait_for_ready: Whether requests wait while the circuit is open, instead of failing at once. They then do not
            count toward `Limits.max_pending`.
        answered: As given.
        retry_ambiguous: As given.
        take_turns: Whether its requests take turns with those of other such groups in the same lane, so that the many
            requests of one do not delay the few of another. All other requests are first in, first out.

    Example:
        ::

            group = RequestGroup()
            async with asyncio.TaskGroup() as tasks:
                for request in requests:
                    tasks.create_task(client.send(request, lane="batch", group=group))
    """

    __slots__ = (
        "__weakref__",
        "answered",
        "ended",
        "owner",
        "retry_ambiguous",
        "take_turns",
        "wait_for_ready",
        "waiting",
    )

    def __init__(
        self,
        *,
        wait_for_ready: bool = True,
        answered: bool = False,
        retry_ambiguous: bool = True,
        take_turns: bool = False,
    ) -> None:
        self.wait_for_ready: bool = wait_for_ready
        self.answered: bool = answered
        self.retry_ambiguous: bool = retry_ambiguous
        self.take_turns: bool = take_turns
        self.waiting: set[Permit] = set()
        """Permits of the group that are queued."""
        self.ended: Callable[[], OneLLMError] | None = None
        """Makes the error for every further request of the group; None while requests are admitted."""
        self.owner: GroupOwner | None = None
        """Sends the requests of the group; None before the first of them."""

    def cancel(self) -> None:
        """Cancels the requests that are queued or in backoff. Requests in flight continue.

        The cancelled ones, and all later requests of the group, end with `RequestCancelledError`.
        """
        self.end(_cancelled)

    def end(self, error: Callable[[], OneLLMError]) -> None:
        """Ends the waits of its requests, and every later request.

        Args:
            error: Makes the errors.
        """
        self.ended = error
        if self.owner is not None:
            self.owner.end_waits(self, error)


def _cancelled() -> OneLLMError:
    return RequestCancelledError("The group of this request was cancelled before it was sent.")
