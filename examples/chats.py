"""What all chat bots share: a conversation for each chat, commands, friendly texts instead of errors, and a file.

``bot.py`` (terminal), ``aiogram_bot.py`` (Telegram) and ``discord_bot.py`` connect it to a platform. For another one,
call `Chats.answer` for each message, in a task of its own, and `Chats.close` at the end.

Waiting is fair: turns of a chat wait for each other, so each chat has at most one request in the queue of the client,
and a chat with many questions delays no other one.
"""

import asyncio
import json
import math
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path

from attrs import define

from onellm_async import (
    AsyncOneLLM,
    CircuitOpenError,
    ClientClosedError,
    ConfigurationError,
    Conversation,
    DeadlineExceededError,
    InvalidRequestError,
    Limits,
    OneLLMError,
    QueueFullError,
    RequestCancelledError,
)

MODEL = "GPT-5-Nano"
SYSTEM = "You are a chat bot. Be brief and kind."
LIMITS = Limits(max_pending=10)
DEADLINE = 60.0
MAX_HISTORY_TOKENS = 4_000
MAX_TOKENS = 1_000
MAX_CHATS = 1_000
MAX_OPEN_QUESTIONS = 3
GRACE = 20.0


@define(eq=False)
class Chat:
    """One chat: a person, or a group that shares a history."""

    conversation: Conversation
    open_questions: int = 0
    latest: Hashable = None


class Chats:
    """The chats of a bot.

    Args:
        client: Sends the requests.
        path: The file of the conversations, read now and written by `close`; None keeps them in memory.
        prefix: Begins a command: ``/new``, ``/undo``, ``/retry``, ``/stop``.
        longest: Maximum length of one message of the platform, in UTF-16 units.
    """

    def __init__(
        self, client: AsyncOneLLM, path: Path | None = None, *, prefix: str = "/", longest: int = 4_096
    ) -> None:
        self._client, self._path, self._prefix, self._longest = client, path, prefix, longest
        self._answering: set[asyncio.Task[None] | None] = set()
        self._closing = False
        self._chats: OrderedDict[str, Chat] = OrderedDict()
        if path is not None and path.exists():
            self._load(path)

    async def answer(
        self,
        chat: Hashable,
        text: str,
        send: Callable[[str], Awaitable[object]],
        *,
        message: Hashable = None,
        edited: bool = False,
        group: bool = False,
    ) -> None:
        """Answers a message, in as many messages as the platform needs.

        Args:
            chat: Id of the chat.
            text: Text of the message.
            send: Sends a text to the chat.
            message: Id of the message, so that it can be edited.
            edited: Whether the message was sent before, with another text. The latest question of a chat is asked anew;
                edits of earlier ones are ignored.
            group: Whether many people share the chat. Single people are answered first.
        """
        task = asyncio.current_task()
        self._answering.add(task)
        try:
            if edited and not self.take_back(chat, message):
                return
            reply = await self._reply(self._chat(chat, group), text.strip(), message)
            for piece in split_text(reply, self._longest):
                await send(piece)
        finally:
            self._answering.discard(task)

    def take_back(self, chat: Hashable, message: Hashable) -> bool:
        """Cancels and forgets the latest question of a chat; does nothing if `message` is another one."""
        state = self._chats.get(str(chat))
        if state is None or message is None or state.latest != message:
            return False
        if state.open_questions == 1:  # the latest one, in flight; if there are several, it still waits
            state.conversation.cancel()
        state.conversation.undo()
        state.latest = None
        return True

    async def close(self) -> None:
        """Stops gracefully: requests in flight are answered for up to `GRACE` seconds, and all chats are saved."""
        self._closing = True
        self.save()  # a supervisor may not have the patience
        try:
            async with asyncio.timeout(GRACE):
                await self._client.drain()
                if self._answering:
                    await asyncio.wait(self._answering)
        except TimeoutError:
            pass
        self.save()

    def save(self) -> None:
        """Writes all conversations; a crash in between leaves the file as it was."""
        if self._path is None:
            return
        saved = {name: chat.conversation.to_dict() for name, chat in self._chats.items()}
        new = self._path.with_name(f"{self._path.name}.new")
        new.touch(mode=0o600)  # what people tell a bot is private
        new.write_text(json.dumps(saved), "utf-8")
        new.replace(self._path)

    async def _reply(self, chat: Chat, text: str, message: Hashable) -> str:
        command = text.partition("@")[0].removeprefix(self._prefix) if text.startswith(self._prefix) else ""
        if (done := self._obey(chat, command)) is not None:
            return done
        if self._closing:
            return "I am being restarted. Please ask again in a minute."
        if chat.open_questions >= MAX_OPEN_QUESTIONS:
            return "One moment, let me answer your other questions first."
        chat.latest = message
        chat.open_questions += 1
        try:
            reply = await (chat.conversation.retry() if command == "retry" else chat.conversation.say(text))
        except RequestCancelledError:  # by a command, which said so, or by an edit, which is answered
            return ""
        except OneLLMError as error:
            return self._excuse(error)
        else:
            return reply.content.strip() or f"I have no answer to that ({reply.finish_reason})."
        finally:
            chat.open_questions -= 1

    def _excuse(self, error: OneLLMError) -> str:
        retry = f"{self._prefix}retry asks the question again."
        match error:
            case QueueFullError(retry_after=wait) | CircuitOpenError(retry_after=wait):
                return f"Many people are asking just now. Please try again in {max(1, math.ceil(wait))} s: {retry}"
            case DeadlineExceededError():
                return f"Sorry, I cannot answer that within {DEADLINE:.0f} s just now. {retry}"
            case ClientClosedError():
                return f"I am being restarted. In a minute, {retry}"
            case InvalidRequestError():
                return error.message
        print(error, file=sys.stderr)
        return "Sorry, something went wrong. I have told my operator."

    def _obey(self, chat: Chat, command: str) -> str | None:
        """Obeys a command that needs no answer of the model; returns None for any other text."""
        if command in {"start", "help"}:
            commands = ", ".join(f"{self._prefix}{name}" for name in ("new", "undo", "retry", "stop"))
            return f"Hello! Ask me anything. I also know: {commands}."
        if command == "new":
            chat.conversation.cancel()
            chat.conversation.forget()
            chat.latest = None
            return "Forgotten. What shall we talk about?"
        if command == "undo":
            question = chat.conversation.undo()
            chat.latest = None
            return f"Taken back: {question}" if question is not None else "There is nothing to take back."
        if command == "stop":
            chat.conversation.cancel()
            return f"Stopped. {self._prefix}retry asks the last question again."
        return None

    def _chat(self, chat: Hashable, group: bool) -> Chat:
        name = str(chat)
        if name not in self._chats:
            conversation = Conversation(
                self._client,
                model=MODEL,
                system=SYSTEM,
                max_tokens=MAX_TOKENS,
                max_history_tokens=MAX_HISTORY_TOKENS,
                deadline=DEADLINE,
                lane="default" if group else "interactive",
            )
            self._chats[name] = Chat(conversation)
            if len(self._chats) > MAX_CHATS:
                self._chats.popitem(last=False)
        self._chats.move_to_end(name)
        return self._chats[name]

    def _load(self, path: Path) -> None:
        try:
            for name, saved in json.loads(path.read_text("utf-8")).items():
                self._chats[name] = Chat(Conversation.from_dict(self._client, saved, model=MODEL, system=SYSTEM))
        except (ValueError, AttributeError) as error:  # a ConfigurationError is a ValueError, too
            raise ConfigurationError(f"{path} cannot be read: {error}", advice="Move it away to start anew.") from None


def split_text(text: str, longest: int) -> list[str]:
    """Splits a text at the last paragraph, line or word that fits, or within a word that is longer than a message."""
    pieces = []
    text = text.encode("utf-16-le", "replace").decode("utf-16-le").strip()
    while text:
        head = text.encode("utf-16-le")[: 2 * longest].decode("utf-16-le", "ignore")  # never half an emoji
        if len(head) < len(text):
            ends = (text.rfind(border, 0, len(head) + len(border)) for border in ("\n\n", "\n", " "))
            head = head[: next((end for end in ends if end > 0), len(head))]
        pieces.append(head.rstrip())
        text = text[len(head) :].strip()
    return pieces
