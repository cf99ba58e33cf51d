"""A chat with a memory, for bots."""

import asyncio
from typing import Unpack

from onellm_async.catalog import Model
from onellm_async.chat import ChatResponse, Message, Messages, RequestOptions, request_for
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import ConfigurationError, DeadlineExceededError

__all__ = ["Conversation"]


class Conversation:
    """Turns that build on each other.

    What fails or is cancelled leaves the history as it was, so that the same text can simply be said again. Turns said
    at the same time are taken one after the other.

    Args:
        client: Who asks.
        model: Any model id.
        max_messages: Most messages that are kept and sent, the oldest turns being forgotten first; None keeps all.
        history: Turns to begin with.
        lane: Default ``"interactive"``: somebody is waiting.
        deadline: Seconds for each turn, queue included.
        **options: Fields of `ChatRequest`, such as ``system``, for each turn.

    Raises:
        ConfigurationError: If `max_messages` leaves no room for a question and its answer.

    Example:
        ::

            conversation = Conversation(client, model="GPT-5-Mini", system="You are a patient tutor.")
            reply = await conversation.say("What is a prime?")
            reply = await conversation.say("Is 51 one?")
    """

    def __init__(
        self,
        client: AsyncOneLLM,
        *,
        model: Model,
        max_messages: int | None = None,
        history: Messages = (),
        lane: str = "interactive",
        deadline: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> None:
        if max_messages is not None and max_messages < 2:
            raise ConfigurationError(f"max_messages is {max_messages!r}; a question and its answer are 2.")
        request_for("", model, options)
        if isinstance(history, str):
            raise ConfigurationError("history is a string; it must be a sequence of messages.")
        self._client = client
        self._model = model
        self._most = max_messages
        self._lane = lane
        self._deadline = deadline
        self._options = options
        self._messages = [Message.of(message) for message in history]
        self._turn = asyncio.Lock()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The history, oldest first."""
        return tuple(self._messages)

    def forget(self) -> None:
        """Begins anew, with an empty history."""
        self._messages.clear()

    async def say(self, text: str) -> ChatResponse:
        """Says `text` and returns the answer; both join the history. Safe to cancel.

        Raises:
            OneLLMError: As `AsyncOneLLM.chat`; the history is then unchanged.
        """
        began = asyncio.get_running_loop().time()
        await self._my_turn()
        try:
            waited = asyncio.get_running_loop().time() - began
            return await self._say(text, None if self._deadline is None else self._deadline - waited)
        finally:
            self._turn.release()

    async def _my_turn(self) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                await self._turn.acquire()
        except TimeoutError:
            raise DeadlineExceededError("The deadline passed while an earlier turn was still being answered.") from None

    async def _say(self, text: str, deadline: float | None) -> ChatResponse:
        asked = [*self._messages, Message.user(text)]
        if self._most is not None and len(asked) >= self._most:
            del asked[: len(asked) - self._most + 1]
            while asked[0].role == "assistant":  # an answer without its question confuses models
                del asked[0]
        reply = await self._client.chat(asked, model=self._model, lane=self._lane, deadline=deadline, **self._options)
        self._messages = [*asked, Message.assistant(reply.content)]
        return reply
