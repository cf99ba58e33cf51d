"""What can be seen of a client while it runs, and changed."""

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import Snapshot
from onellm_async.sender import Sender
from onellm_async.validation import shown

__all__ = ["LiveControl"]


class LiveControl:
    """The controls of a running client; `onellm_async.AsyncOneLLM` has them all.

    They act at once, from any coroutine or callback of the client's event loop, and nobody who waits is lost. Before
    the loop runs they take effect when it does, and they outlive it.

    Attributes:
        limits: Those in force.
    """

    limits: Limits
    _sender: Sender

    def snapshot(self) -> Snapshot:
        """What the client is doing at this moment: who waits, for what, and at which rate requests leave.

        It takes less than a tenth of a millisecond, however many wait.
        `onellm_async.analyze_bottlenecks` draws conclusions from a series of them.
        """
        return self._sender.snapshot()

    @property
    def rate_state(self) -> RateState | None:
        """What has been learned about the rate, to give to another client; None while there is nothing.

        Example:
            A program that starts where the last run left off::

                path = Path("rate.json")
                state = RateState.from_dict(json.loads(path.read_text())) if path.exists() else None
                async with AsyncOneLLM(limits=Limits(requests_per_minute="auto"), rate_state=state) as client:
                    ...
                    if (learned := client.rate_state) is not None:
                        path.write_text(json.dumps(learned.to_dict()))
        """
        return self._sender.rate_state

    def pause(self) -> None:
        """Lets nothing leave until `resume`: neither a chat that waits nor a repeat.

        Requests under way go on, chats that wait keep their places, and their deadlines still pass. New chats may
        come and wait, as many as `Limits.max_pending` allows.

        Example:
            ::

                loop.add_signal_handler(signal.SIGUSR1, client.pause)
                loop.add_signal_handler(signal.SIGUSR2, client.resume)
        """
        self._sender.pause()

    def resume(self) -> None:
        """Ends a pause. What else holds requests back, such as a Retry-After, still does."""
        self._sender.resume()

    def retune(self, limits: Limits) -> None:
        """Goes on with other limits: rate, burst, concurrency, tokens per minute, `max_pending` and mode.

        Whoever waits keeps its place, whatever is under way goes on, and what could have left at once still can, as far
        as the new limits allow. When more is under way than the new `max_concurrency`, nothing leaves until it is
        fewer. What was learned is kept when rate, burst and mode stay as they were. A fan-out that has begun widens its
        window with its next outcome.

        Args:
            limits: All of them, not only those that change.

        Raises:
            ConfigurationError: If that is no `Limits`.

        Example:
            ::

                client.retune(attrs.evolve(client.limits, requests_per_minute=600, burst=100))
        """
        if not isinstance(limits, Limits):
            raise ConfigurationError(f"limits is {shown(limits)}; it must be a Limits.")
        self._sender.retune(limits)
        self.limits = limits

    async def drain(self) -> None:
        """Stops in good order: chats that wait end with `ClientClosedError`, unsent; those under way finish.

        Returns when the last one has; their callers get their answers, which are paid for. New chats are refused from
        the start. Call it before `aclose` where there is time, as a service does on SIGTERM. Safe to cancel.

        Example:
            ::

                async with asyncio.timeout(30):
                    await client.drain()
        """
        await self._sender.drain()
