"""A chat with its history, for bots."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import takewhile
from typing import Unpack, cast

from attrs import field, frozen

from onellm_async import serialization
from onellm_async.catalog import Model
from onellm_async.chat import JSON, ChatResponse, Message, Messages, RequestOptions, build_request
from onellm_async.client import AsyncOneLLM
from onellm_async.errors import (
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    RequestCancelledError,
)
from onellm_async.limits.policy import LANES, Lane
from onellm_async.limits.token_estimator import TokenEstimator
from onellm_async.validation import Checks, truncated_repr

_check = Checks(ConfigurationError)
_BYTES_PER_MESSAGE = 16
"""What the role and the separators of a message count for, as bytes of its text: about four tokens."""

_MIN_LEARNED_BYTES = 400
"""Size from which the usage of a turn is learned. That of a shorter one shows the overhead of the service."""


@frozen
class _Saved:
    """A conversation as JSON."""

    model: str
    messages: tuple[Message, ...] = ()
    max_messages: int | None = None
    max_history_tokens: int | None = None
    lane: str = "interactive"
    deadline: float | None = None
    options: Mapping[str, JSON] = field(factory=dict)


class Conversation:
    """Turns that build on each other.

    The history holds complete turns only. A turn that fails, is cancelled or brings an answer without text leaves it as
    it was, because many services refuse a history with an empty message. Turns that are said at the same time are sent
    one after the other.

    Args:
        client: Sends the requests.
        model: Any model id.
        max_messages: Maximum number of messages that are kept and sent. The oldest turns are forgotten first; None
            keeps all. The system messages that `history` begins with are counted and stay, and so do the last question
            and its answer.
        max_history_tokens: Maximum number of tokens that are sent with a turn, its question and the instructions
            included. It is an estimate, learned from the usage of the answers. The oldest turns are forgotten first.
        history: Turns to begin with.
        lane: Default ``"interactive"``: a user is waiting.
        deadline: Seconds for each turn, earlier turns and the queue included.
        **options: Fields of `ChatRequest`, such as ``system``, for each turn.

    Raises:
        ConfigurationError: If `max_messages` leaves no room for a question and its answer, another setting is out of
            range, or a message of `history` is empty.

    Example:
        ::

            conversation = Conversation(client, model="GPT-5-Mini", system="You are a patient tutor.")
            reply = await conversation.say("What is a prime?")
            reply = await conversation.say("Is 51 one?", temperature=0)
    """

    def __init__(
        self,
        client: AsyncOneLLM,
        *,
        model: Model,
        max_messages: int | None = None,
        max_history_tokens: int | None = None,
        history: Messages = (),
        lane: Lane = "interactive",
        deadline: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> None:
        if max_messages is not None and (not _is_integer(max_messages) or max_messages < 2):
            raise ConfigurationError(
                f"max_messages is {truncated_repr(max_messages)}; it must be at least 2, a question and its answer."
            )
        if max_history_tokens is not None and (not _is_integer(max_history_tokens) or max_history_tokens < 1):
            raise _check.error("max_history_tokens", max_history_tokens, "it must be an integer of at least 1")
        if lane not in LANES:
            raise _check.error("lane", lane, f"it must be one of {', '.join(LANES)}")
        _check_deadline(deadline)
        build_request("", model, options)
        self._client = client
        self._model: str = model
        self._max_messages = max_messages
        self._max_history_tokens = max_history_tokens
        self._lane: Lane = lane
        self._deadline = deadline
        self._options = options
        self._messages = _checked(history)
        self._leading = sum(1 for _ in takewhile(lambda message: message.role == "system", self._messages))
        self._before: list[Message] | None = None
        self._failed: str | None = None
        self._asking: str | None = None
        self._changes = 0
        self._tokens = TokenEstimator()
        self._turn = asyncio.Lock()
        self._scopes: list[asyncio.Timeout] = []

    @property
    def messages(self) -> tuple[Message, ...]:
        """The history, oldest first."""
        return tuple(self._messages)

    async def say(
        self,
        text: str,
        *,
        model: Model | None = None,
        deadline: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatResponse:
        """Says `text` and returns the answer. Both join the history, unless the answer has no text. Safe to cancel.

        Args:
            text: The question.
            model: Another model for this turn.
            deadline: Another deadline for this turn; None for that of the conversation.
            **options: Fields of `ChatRequest` for this turn. They replace those of the conversation; None unsets one.

        Raises:
            InvalidRequestError: If `text` is empty, no string, or too long for `max_history_tokens`; nothing was sent.
            RequestCancelledError: If `cancel` was called.
            OneLLMError: As `AsyncOneLLM.chat`; the history is then unchanged.
        """
        _check_text(text)
        async with self._taking_turn(deadline) as left:
            return await self._ask(self._messages, text, model, left, options)

    async def retry(
        self, *, model: Model | None = None, deadline: float | None = None, **options: Unpack[RequestOptions]
    ) -> ChatResponse:
        """Says the last text again, after a turn that failed or was cancelled, or to get another answer.

        Another answer replaces the one before. If there is none, the history stays as it was.

        Args:
            model: As for `say`, like all that follow.
            deadline: As for `say`.
            **options: As for `say`.

        Raises:
            InvalidRequestError: If nothing has been said yet.
            OneLLMError: As `say`.
        """
        async with self._taking_turn(deadline) as left:
            history, text = self._messages, self._failed
            if text is None:
                history, text = self._without_last_turn()
            if text is None:
                raise InvalidRequestError("There is no turn to retry.", advice="Use say first.")
            return await self._ask(history, text, model, left, options)

    def cancel(self) -> None:
        """Cancels the turn that is being answered, and those that wait for it.

        They end with `RequestCancelledError`, and the history stays as it was. A request in flight may be billed.
        """
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())

    def undo(self) -> str | None:
        """Forgets the last turn: the question and its answer.

        While a turn is being answered, that is the last one: it continues, but does not join the history.

        Returns:
            The question; None if there is no turn.
        """
        self._changes += 1
        self._failed = None
        if self._asking is not None:
            return self._asking
        self._messages, question = self._without_last_turn()
        self._before = None
        return question

    def forget(self) -> None:
        """Starts over with an empty history. A turn that is being answered does not join it."""
        self._messages = []
        self._leading = 0
        self._before = self._failed = None
        self._changes += 1

    def to_dict(self) -> dict[str, JSON]:
        """Returns the conversation, without its client, as a dict that JSON can hold. A turn in flight is not in it."""
        return serialization.to_dict(
            _Saved(
                self._model,
                self.messages,
                self._max_messages,
                self._max_history_tokens,
                self._lane,
                self._deadline,
                {name: value for name, value in self._options.items() if value is not None},
            )
        )

    @classmethod
    def from_dict(cls, client: AsyncOneLLM, saved: Mapping[str, JSON]) -> "Conversation":
        """Returns the conversation that `to_dict` wrote.

        Args:
            client: Sends the requests from now on.
            saved: The dict, perhaps read from JSON.

        Raises:
            ConfigurationError: If a field is missing, unknown or out of range; the message names it.
        """
        read = serialization.from_dict(_Saved, saved, name="conversation", error=ConfigurationError)
        try:
            return cls(
                client,
                model=read.model,
                max_messages=read.max_messages,
                max_history_tokens=read.max_history_tokens,
                history=read.messages,
                lane=cast("Lane", read.lane),
                deadline=read.deadline,
                **cast("RequestOptions", dict(read.options)),
            )
        except InvalidRequestError as error:
            raise ConfigurationError(f"conversation cannot be read: {error.message}", advice=error.advice) from None

    @asynccontextmanager
    async def _taking_turn(self, deadline: float | None) -> AsyncIterator[float | None]:
        """Waits for the earlier turns. Yields the seconds that are left for this one; None without a deadline."""
        _check_deadline(deadline)
        deadline = self._deadline if deadline is None else deadline
        loop = asyncio.get_running_loop()
        began = loop.time()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scopes.append(scope)
                await self._my_turn(deadline)
                try:
                    left = None if deadline is None else deadline - (loop.time() - began)
                    if left is not None and left <= 0:  # the lock came in time, but the loop was busy until too late
                        raise _too_late()
                    yield left
                finally:
                    self._turn.release()
        except TimeoutError as error:
            if not scope.expired() or type(error) is not TimeoutError:
                raise
            raise RequestCancelledError(
                "The turn was cancelled.", advice="It may be billed if it was in flight. Say it again with retry."
            ) from None
        finally:
            self._scopes.remove(scope)

    async def _my_turn(self, deadline: float | None) -> None:
        try:
            async with asyncio.timeout(deadline):
                await self._turn.acquire()
        except TimeoutError:
            raise _too_late() from None

    async def _ask(
        self, history: list[Message], text: str, model: str | None, deadline: float | None, options: RequestOptions
    ) -> ChatResponse:
        model, merged = model or self._model, cast("RequestOptions", {**self._options, **options})
        asked = [*history, Message.user(text)]
        size = self._forget_oldest(asked, model, merged.get("system"))
        changes, self._failed, self._asking = self._changes, text, text
        try:
            reply = await self._client.chat(asked, model=model, lane=self._lane, deadline=deadline, **merged)
        finally:
            self._asking = None
        if reply.usage is not None and size >= _MIN_LEARNED_BYTES:
            self._tokens.learn(model, size, reply.usage.input_tokens, 0)
        if changes == self._changes and not _is_blank(reply.content):
            self._before, self._failed = history, None
            self._messages = [*asked, Message.assistant(reply.content)]
        return reply

    def _forget_oldest(self, asked: list[Message], model: str, system: str | None) -> int:
        """Drops the oldest turns from `asked` until it is small enough. Returns its size in bytes."""
        begin, sizes = self._leading, [len(message.content.encode("utf-8", "replace")) for message in asked]
        fixed = 0 if system is None else len(system.encode("utf-8", "replace")) + _BYTES_PER_MESSAGE

        def size() -> int:
            return fixed + sum(sizes) + _BYTES_PER_MESSAGE * len(sizes)

        def drop(number: int) -> None:
            del asked[begin : begin + number], sizes[begin : begin + number]

        if self._max_messages is not None:
            drop(max(0, len(asked) - max(begin + 1, self._max_messages - 1)))
        while self._is_too_long(model, size()) and len(asked) > begin + 1:
            drop(1)
        while asked[begin].role == "assistant":  # an answer without its question confuses models
            drop(1)
        if self._is_too_long(model, size()):
            raise InvalidRequestError(
                f"The text has about {self._tokens.estimate(model, size(), 0):,.0f} tokens with the instructions, "
                f"and max_history_tokens is {self._max_history_tokens:,}.",
                advice="Say less, or raise max_history_tokens.",
            )
        return size()

    def _is_too_long(self, model: str, size: int) -> bool:
        return self._max_history_tokens is not None and (
            self._tokens.estimate(model, size, 0) > self._max_history_tokens
        )

    def _without_last_turn(self) -> tuple[list[Message], str | None]:
        """The history before the last turn, and its question; the whole history and None without a turn."""
        if len(self._messages) - self._leading < 2 or self._messages[-1].role != "assistant":
            return self._messages, None
        question = self._messages[-2]
        if question.role != "user":
            return self._messages, None
        return self._before if self._before is not None else self._messages[:-2], question.content


def _checked(history: Messages) -> list[Message]:
    if isinstance(history, str):
        raise ConfigurationError("history is a string; it must be a sequence of messages.")
    messages = [Message.of(message) for message in history]
    for number, message in enumerate(messages):
        if _is_blank(message.content):
            raise ConfigurationError(
                f"history[{number}] is empty, and many services refuse a history with an empty message.",
                advice="Leave the turn out.",
            )
    return messages


def _check_text(text: object) -> None:
    if _is_blank(text):
        raise InvalidRequestError(
            "The text to say is empty, and many services refuse a history with an empty message.",
            advice="Say something, or leave the turn out.",
        )
    Message.user(text)  # type: ignore[arg-type]  # refused here if it is no string


def _check_deadline(deadline: float | None) -> None:
    if deadline is not None:
        _check.check_number("deadline", deadline, 0, above=True)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_blank(text: object) -> bool:
    return isinstance(text, str) and not text.strip()


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("The deadline passed while an earlier turn was still being answered.")
