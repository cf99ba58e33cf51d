"""Controls of a running client."""

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import Snapshot
from onellm_async.sender import Sender
from onellm_async.validation import truncated_repr

__all__ = ["LiveControl"]


class LiveControl:
    """The controls of a running client; `onellm_async.AsyncOneLLM` has them all.

    They act at once, from any coroutine or callback of the client's event loop, and lose no queued request. Calls
    made before the loop runs take effect when it runs. The settings outlive the loop.

    Attributes:
        limits: Those in force.
    """

    limits: Limits
    _sender: Sender

    def snapshot(self) -> Snapshot:
        """Returns the state of the client: queued requests, their bottlenecks, and the current rate.

        It takes less than 0.1 ms, however many requests are queued.
        `onellm_async.analyze_bottlenecks` draws conclusions from a series of them.
        """
        return self._sender.snapshot()

    @property
    def rate_state(self) -> RateState | None:
        """The discovered rate, to pass to another client; None if nothing is known yet.

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
        """Stops sending until `resume`, first attempts and retries alike.

        Requests in flight continue, queued chats keep their places, and their deadlines still apply. New chats are
        queued, up to `Limits.max_pending`.

        Example:
            ::

                loop.add_signal_handler(signal.SIGUSR1, client.pause)
                loop.add_signal_handler(signal.SIGUSR2, client.resume)
        """
        self._sender.pause()

    def resume(self) -> None:
        """Ends a pause. Other waits, such as for a `Retry-After`, remain."""
        self._sender.resume()

    def retune(self, limits: Limits) -> None:
        """Changes the limits: rate, burst, concurrency, tokens per minute, `max_pending` and mode.

        Queued requests keep their places and requests in flight continue. Tokens in the bucket remain, as far as the
        new limits allow. If more requests are in flight than the new `max_concurrency`, nothing is sent until enough
        have finished. A discovered rate is kept if rate, burst and mode stay the same. An active fan-out adjusts its
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
            raise ConfigurationError(f"limits is {truncated_repr(limits)}; it must be a Limits.")
        self._sender.retune(limits)
        self.limits = limits

    async def drain(self) -> None:
        """Stops gracefully: queued chats end with `ClientClosedError`, unsent; requests in flight finish.

        Returns when the last request has finished; the callers get these answers, which are paid for. New chats are
        rejected at once. Call it before `aclose` if there is time, as a service does on SIGTERM. Safe to cancel.

        Example:
            ::

                async with asyncio.timeout(30):
                    await client.drain()
        """
        await self._sender.drain()
