"""Wait-for-ready requests that are cancelled together."""

from onellm_async.call import AfterFailing, BeforeSending
from onellm_async.chat import ChatRequest, ChatResponse
from onellm_async.sender import Sender

__all__ = ["RequestGroup"]


class RequestGroup:
    """Requests of one fan-out or run, from `AsyncOneLLM.group`.

    A single chat fails at once while the circuit is open. A request of a group waits until it closes, because there are
    many more to follow.

    Args:
        sender: Of the client.
        answered: Whether the service is known to have answered before.
        retry_ambiguous: False never retries what may have been billed, whatever the client's policy says.
    """

    def __init__(self, sender: Sender, *, answered: bool = False, retry_ambiguous: bool = True) -> None:
        self._sender = sender
        self._group = sender.new_group(answered=answered, retry_ambiguous=retry_ambiguous)

    async def send(
        self,
        request: ChatRequest,
        *,
        lane: str = "batch",
        deadline: float | None = None,
        before_sending: BeforeSending | None = None,
        after_failing: AfterFailing | None = None,
    ) -> ChatResponse:
        """Sends one request as `AsyncOneLLM.send` does.

        Safe to cancel: an unsent request releases its place, slot and tokens.

        Args:
            request: What to ask.
            lane: ``interactive``, ``default`` or ``batch``.
            deadline: Seconds from now for everything together, waiting included; None for no end.
            before_sending: Awaited when an attempt has been admitted and before it leaves, with an `Attempt`: the
                place to write down that it will, or to forbid it by raising an `OneLLMError`, which then ends the
                request. It holds a slot and a request of the rate meanwhile, so it should be quick.
            after_failing: Told of each attempt that brought no answer, before a repeat waits: the place to give back
                what was set aside for it.

        Raises:
            RequestCancelledError: If the group was withdrawn before it left.
            OneLLMError: As `AsyncOneLLM.send`, and whatever `before_sending` raises.
        """
        return await self._sender.send(
            request,
            lane=lane,
            deadline=deadline,
            group=self._group,
            before_sending=before_sending,
            after_failing=after_failing,
        )

    def withdraw(self) -> None:
        """Cancels the queued requests of the group with `RequestCancelledError`; its requests in flight continue."""
        self._sender.cancel(self._group)
