"""A chat with its history, for bots."""

import asyncio
from itertools import takewhile
from typing import Unpack

from onellm_async.catalog import Model
from onellm_async.chat import ChatResponse, Message, Messages, RequestOptions, build_request
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import ConfigurationError, DeadlineExceededError, InvalidRequestError
from onellm_async.limits.policy import Lane
from onellm_async.validation import Checks

_check = Checks(ConfigurationError)


class Conversation:
    """Turns that build on each other.

    What fails, is cancelled or brings an answer without text leaves the history as it was, so that the same text can
    simply be said again: many services refuse a history with an empty message, and would then refuse every turn. Turns
    said at the same time are taken one after the other.

    Args:
        client: Who asks.
        model: Any model id.
        max_messages: Most messages that are kept and sent, the oldest turns being forgotten first; None keeps all. The
            system messages that `history` begins with are counted and stay, and so do the last question and its answer.
        history: Turns to begin with.
        lane: Default ``"interactive"``: a user is waiting.
        deadline: Seconds for each turn, queue included.
        **options: Fields of `ChatRequest`, such as ``system``, for each turn.

    Raises:
        ConfigurationError: If `max_messages` leaves no room for a question and its answer, or `deadline` is none.

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
        lane: Lane = "interactive",
        deadline: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> None:
        if max_messages is not None and max_messages < 2:
            raise ConfigurationError(f"max_messages is {max_messages!r}; a question and its answer are 2.")
        if deadline is not None:
            _check.check_number("deadline", deadline, 0, above=True)
        build_request("", model, options)
        if isinstance(history, str):
            raise ConfigurationError("history is a string; it must be a sequence of messages.")
        self._client = client
        self._model = model
        self._most = max_messages
        self._lane = lane
        self._deadline = deadline
        self._options = options
        self._messages = [Message.of(message) for message in history]
        self._leading = sum(1 for _ in takewhile(lambda message: message.role == "system", self._messages))
        self._turn = asyncio.Lock()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The history, oldest first."""
        return tuple(self._messages)

    def forget(self) -> None:
        """Starts over with an empty history."""
        self._messages.clear()
        self._leading = 0

    async def say(self, text: str) -> ChatResponse:
        """Says `text` and returns the answer; both join the history, unless the answer has no text. Safe to cancel.

        Raises:
            InvalidRequestError: If `text` is empty or no string; nothing was sent.
            OneLLMError: As `AsyncOneLLM.chat`; the history is then unchanged.
        """
        if _is_blank(text):
            raise InvalidRequestError(
                "The text to say is empty, and many services refuse a history with an empty message.",
                advice="Say something, or leave the turn out.",
            )
        began = asyncio.get_running_loop().time()
        await self._my_turn()
        try:
            left = None
            if self._deadline is not None:
                left = self._deadline - (asyncio.get_running_loop().time() - began)
                if left <= 0:  # the lock came in time, but the loop was busy until it was too late
                    raise _too_late()
            return await self._say(text, left)
        finally:
            self._turn.release()

    async def _my_turn(self) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                await self._turn.acquire()
        except TimeoutError:
            raise _too_late() from None

    async def _say(self, text: str, deadline: float | None) -> ChatResponse:
        asked = [*self._messages, Message.user(text)]
        if self._most is not None:
            begin = self._leading
            room = max(1, self._most - 1 - begin)
            del asked[begin : max(begin, len(asked) - room)]
            while asked[begin].role == "assistant":  # an answer without its question confuses models
                del asked[begin]
        reply = await self._client.chat(asked, model=self._model, lane=self._lane, deadline=deadline, **self._options)
        if not _is_blank(reply.content):
            self._messages = [*asked, Message.assistant(reply.content)]
        return reply


def _is_blank(text: object) -> bool:
    return isinstance(text, str) and not text.strip()


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("The deadline passed while an earlier turn was still being answered.")
