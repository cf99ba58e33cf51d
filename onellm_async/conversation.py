"""A chat with its history, for bots."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import takewhile
from typing import Unpack, cast

from attrs import define, field, frozen

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

_MAX_UNANSWERED = 10
"""Maximum number of failed texts that are kept for `retry` and `undo`. The oldest are dropped, so that an outage does
not fill the memory."""

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
    unanswered: tuple[str, ...] | None = None


@define(eq=False)
class _Said:
    """A text that was said. Its identity counts: the same words may be said twice."""

    text: str
    answered: bool = False
    undone: bool = False


@define(eq=False)
class _Turn:
    """A call of `say` or `retry` that has not ended."""

    said: _Said
    scope: asyncio.Timeout
    in_flight: bool = False


class Conversation:
    """Turns that build on each other.

    The history holds complete turns only. A turn that fails, is cancelled or brings an answer without text leaves it as
    it was, because many services refuse a history with an empty message. Its text is kept for `retry` and `undo`, also
    by `to_dict`, until a later text is answered. Turns that are said at the same time are sent one after the other.

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
        build_request("any", model, options)
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
        self._unanswered: list[_Said] = []
        self._last_answered: _Said | None = None
        self._tokens = TokenEstimator()
        self._lock = asyncio.Lock()
        self._turns: list[_Turn] = []

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
                It is nevertheless the last text, so that `retry` does not repeat an earlier one.
            RequestCancelledError: If `cancel` was called, or `undo` or `forget` before the text was sent.
            OneLLMError: As `AsyncOneLLM.chat`; the history is then unchanged.
        """
        said = _Said(_text_or_blank(text))
        self._unanswered.append(said)
        self._drop_oldest_failed()
        _check_text(text)
        async with self._taking_turn(said, deadline) as (turn, left):
            return await self._ask(turn, self._messages, model, left, options)

    async def retry(
        self, *, model: Model | None = None, deadline: float | None = None, **options: Unpack[RequestOptions]
    ) -> ChatResponse:
        """Says the last text again, after a turn that failed or was cancelled, or to get another answer.

        The last text is the one of the latest call of `say`, even if it was rejected or is still being answered.
        Another answer replaces the one before. If there is none, the history stays as it was.

        Args:
            model: As for `say`, like all that follow.
            deadline: As for `say`.
            **options: As for `say`.

        Raises:
            InvalidRequestError: If nothing has been said yet, or the last text was rejected and still is.
            OneLLMError: As `say`.
        """
        said = self._last_said()
        if said is None:
            raise InvalidRequestError("There is no turn to retry.", advice="Use say first.")
        _check_text(said.text)
        async with self._taking_turn(said, deadline) as (turn, left):
            history = self._without_last_turn()[0] if said.answered else self._messages
            return await self._ask(turn, history, model, left, options)

    def cancel(self) -> None:
        """Cancels the turn that is being answered, and those that wait for it.

        They end with `RequestCancelledError`, and the history stays as it was. A request in flight may be billed.
        """
        for turn in self._turns:
            _end(turn.scope)

    def undo(self) -> str | None:
        """Takes back the last text that was said, with its answer. Each call takes back one more, the latest first.

        - A text that is being answered continues, and its answer does not join the history.
        - A text that waits for earlier turns is not sent. It ends with `RequestCancelledError`.
        - A text that failed is no longer the one that `retry` says.
        - Then the turns of the history are forgotten, the latest first.

        Returns:
            The text; None if there is none.
        """
        while self._unanswered:
            said = self._unanswered.pop()
            self._take_back(said)
            if not _is_blank(said.text):  # an empty one was rejected, so nothing was said
                return said.text
        if self._last_answered is not None:
            self._take_back(self._last_answered)
        self._messages, question = self._without_last_turn()
        self._before = self._last_answered = None
        return question

    def forget(self) -> None:
        """Starts over with an empty history.

        A turn that is being answered does not join it. Turns that wait are not sent and end with
        `RequestCancelledError`.
        """
        for said in (*self._unanswered, *([self._last_answered] if self._last_answered else [])):
            self._take_back(said)
        self._messages = []
        self._unanswered.clear()
        self._leading = 0
        self._before = self._last_answered = None

    def to_dict(self) -> dict[str, JSON]:
        """Returns the conversation, without its client, as a dict that JSON can hold.

        Texts without an answer are in it, those in flight included: `retry` says the last one again, also after a
        restart.
        """
        return serialization.to_dict(
            _Saved(
                self._model,
                self.messages,
                self._max_messages,
                self._max_history_tokens,
                self._lane,
                self._deadline,
                {name: value for name, value in self._options.items() if value is not None},
                tuple(said.text for said in self._unanswered) or None,
            )
        )

    @classmethod
    def from_dict(
        cls,
        client: AsyncOneLLM,
        saved: Mapping[str, JSON],
        *,
        model: Model | None = None,
        **options: Unpack[RequestOptions],
    ) -> "Conversation":
        """Returns the conversation that `to_dict` wrote.

        Args:
            client: Sends the requests from now on.
            saved: The dict, perhaps read from JSON.
            model: Another model than the saved one.
            **options: Fields of `ChatRequest`, such as ``system``. They replace the saved ones; None unsets one.

        Raises:
            ConfigurationError: If a field is missing, unknown or out of range; the message names it.
            InvalidRequestError: If `model` or one of `options` is out of range.

        Example:
            ::

                conversation = Conversation.from_dict(client, saved, system="You are a strict tutor.")
        """
        build_request("any", "unset" if model is None else model, options)
        read = serialization.from_dict(_Saved, saved, name="conversation", error=ConfigurationError)
        try:
            conversation = cls(
                client,
                model=read.model if model is None else model,
                max_messages=read.max_messages,
                max_history_tokens=read.max_history_tokens,
                history=read.messages,
                lane=cast("Lane", read.lane),
                deadline=read.deadline,
                **cast("RequestOptions", {**read.options, **options}),
            )
        except InvalidRequestError as error:
            raise ConfigurationError(f"conversation cannot be read: {error.message}", advice=error.advice) from None
        conversation._unanswered = [_Said(text) for text in read.unanswered or ()]
        return conversation

    @asynccontextmanager
    async def _taking_turn(self, said: _Said, deadline: float | None) -> AsyncIterator[tuple[_Turn, float | None]]:
        """Waits for the earlier turns. Yields this one and the seconds left for it; None without a deadline."""
        _check_deadline(deadline)
        deadline = self._deadline if deadline is None else deadline
        loop = asyncio.get_running_loop()
        began = loop.time()
        scope = asyncio.timeout(None)
        turn = _Turn(said, scope)
        try:
            async with scope:
                self._turns.append(turn)
                await self._my_turn(deadline)
                try:
                    if said.undone:  # by the time the lock was free
                        raise _taken_back()
                    left = None if deadline is None else deadline - (loop.time() - began)
                    if left is not None and left <= 0:  # the lock came in time, but the loop was busy until too late
                        raise _too_late()
                    yield turn, left
                finally:
                    self._lock.release()
        except TimeoutError as error:
            if not scope.expired() or type(error) is not TimeoutError:
                raise
            if said.undone and not turn.in_flight:
                raise _taken_back() from None
            raise RequestCancelledError(
                "The turn was cancelled.", advice="It may be billed if it was in flight. Say it again with retry."
            ) from None
        finally:
            self._turns.remove(turn)

    async def _my_turn(self, deadline: float | None) -> None:
        try:
            async with asyncio.timeout(deadline):
                await self._lock.acquire()
        except TimeoutError:
            raise _too_late() from None

    async def _ask(
        self,
        turn: _Turn,
        history: list[Message],
        model: str | None,
        deadline: float | None,
        options: RequestOptions,
    ) -> ChatResponse:
        said = turn.said
        model, merged = model or self._model, cast("RequestOptions", {**self._options, **options})
        asked = [*history, Message.user(said.text)]
        size = self._forget_oldest(asked, model, merged.get("system"))
        turn.in_flight = True
        reply = await self._client.chat(asked, model=model, lane=self._lane, deadline=deadline, **merged)
        if reply.usage is not None and size >= _MIN_LEARNED_BYTES:
            self._tokens.learn(model, size, reply.usage.input_tokens, 0)
        if not said.undone and not _is_blank(reply.content):
            self._before, self._last_answered, said.answered = history, said, True
            self._messages = [*asked, Message.assistant(reply.content)]
            if said in self._unanswered:  # what failed before it is out of date
                del self._unanswered[: self._unanswered.index(said) + 1]
        return reply

    def _last_said(self) -> _Said | None:
        if self._unanswered:
            return self._unanswered[-1]
        if self._last_answered is None and (text := self._without_last_turn()[1]) is not None:
            self._last_answered = _Said(text, answered=True)
        return self._last_answered

    def _take_back(self, said: _Said) -> None:
        said.undone = True
        for turn in self._turns:
            if turn.said is said and not turn.in_flight:
                with suppress(RuntimeError):  # no loop runs just now: the turn ends when it gets the lock
                    _end(turn.scope)

    def _drop_oldest_failed(self) -> None:
        waiting = {id(turn.said) for turn in self._turns}
        failed = [said for said in self._unanswered if id(said) not in waiting]
        for said in failed[:-_MAX_UNANSWERED]:
            self._unanswered.remove(said)

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


def _end(scope: asyncio.Timeout) -> None:
    if not scope.expired():
        scope.reschedule(asyncio.get_running_loop().time())


def _taken_back() -> RequestCancelledError:
    return RequestCancelledError(
        "The turn was taken back before it was sent.", advice="Nothing was billed. Say the text again if you need it."
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text_or_blank(text: object) -> str:
    return text if isinstance(text, str) else ""


def _is_blank(text: object) -> bool:
    return isinstance(text, str) and not text.strip()


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("The deadline passed while an earlier turn was still being answered.")
