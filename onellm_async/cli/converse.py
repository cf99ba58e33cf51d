"""The conversation of ``onellm-async chat`` on a terminal: a line is a question, and the history is kept."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from attrs import fields

from onellm_async.chat import ChatResponse
from onellm_async.cli.connection import connected, defaults_from
from onellm_async.cli.flag_words import told_in_flags
from onellm_async.cli.options import ConnectionFlags, RequestFlags
from onellm_async.cli.terminal import print_error, put, say
from onellm_async.conversation import Conversation
from onellm_async.errors import ConfigurationError, OneLLMError
from onellm_async.formatting import format_usd, pluralize

_HELP = """\
A line is a question. Ctrl-C cancels the question that is being answered, Ctrl-D ends the conversation.
  /retry        ask the last question again
  /undo         forget the last question and its answer
  /forget       forget all of them
  /save FILE    write the conversation to a new file
  /load FILE    continue the conversation of a file
  /quit         end the conversation"""


class Talk:
    """A conversation as a series of lines.

    Args:
        conversation: What is continued.
        load: Makes a conversation of what a file holds.
    """

    def __init__(self, conversation: Conversation, load: Callable[[dict[str, Any]], Conversation]) -> None:
        self._conversation = conversation
        self._load = load
        self.cost: float = 0.0
        self.answers: int = 0
        self.ended: bool = False

    def obey(self, line: str) -> Coroutine[Any, Any, ChatResponse] | None:
        """Does what a line says. Returns the question to be answered, if it is one.

        Args:
            line: Without its line end.

        Raises:
            ConfigurationError: If it is no command that there is, or a file cannot be read or written.
        """
        if not line.strip():
            return None
        if not line.startswith("/"):
            return self._conversation.say(line)
        name, _, argument = line[1:].strip().partition(" ")
        if name == "retry":
            return self._conversation.retry()
        self._command(name, argument.strip())
        return None

    def record(self, reply: ChatResponse) -> None:
        """Counts an answer."""
        self.answers += 1
        self.cost += reply.cost or 0.0

    def _command(self, name: str, argument: str) -> None:
        if name in {"quit", "exit"}:
            self.ended = True
        elif name == "undo":
            question = self._conversation.undo()
            say("There is nothing to forget." if question is None else f"Forgotten: {question}")
        elif name == "forget":
            self._conversation.forget()
        elif name == "help":
            say(_HELP)
        elif name in {"save", "load"} and argument:
            self._file(name, Path(argument).expanduser())
        else:
            raise ConfigurationError(f"/{name} is no command here.", advice="/help lists them.")

    def _file(self, name: str, path: Path) -> None:
        try:
            if name == "save":
                text = json.dumps(self._conversation.to_dict(), ensure_ascii=False, indent=2)
                with path.open("x", encoding="utf-8") as file:
                    file.write(f"{text}\n")
                say(f"Saved: {path}")
            else:
                self._conversation = self._load(json.loads(path.read_text("utf-8")))
                say(f"Loaded: {path}, {pluralize(len(self._conversation.messages), 'message')}")
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}.") from None
        except ValueError as error:
            if isinstance(error, OneLLMError):
                raise
            raise ConfigurationError(f"{path} holds no conversation: {error}") from None


def converse(asking: RequestFlags, connecting: ConnectionFlags, ask: Callable[[str], str] = input) -> int:
    """Answers lines until there are no more. Returns the exit code.

    Args:
        asking: The request flags; they hold for every question.
        connecting: The connection flags.
        ask: Shows a prompt and returns a line, or raises `EOFError`.
    """
    with contextlib.suppress(ImportError):  # lines can then be edited, and earlier ones are found with the arrow keys
        import readline  # noqa: F401

    first = defaults_from(asking).request("x")
    given = {
        field.name: value
        for field in fields(type(first))
        if field.name not in {"model", "messages"} and (value := getattr(first, field.name)) is not None
    }
    with asyncio.Runner() as runner:
        connection = connected(connecting)
        client = runner.run(connection.__aenter__())
        try:
            talk = Talk(
                Conversation(client, model=first.model, **given),
                lambda saved: Conversation.from_dict(client, saved),
            )
            say(f"{first.model}. /help lists the commands.")
            while not talk.ended:
                try:
                    line = ask("> ")
                except EOFError:
                    break
                except KeyboardInterrupt:
                    say("")
                    continue
                _answer(runner, talk, line)
            if talk.answers:
                say(f"{pluralize(talk.answers, 'answer')}, {format_usd(talk.cost)}")
        finally:
            runner.run(connection.__aexit__(None, None, None))
    return 0


def _answer(runner: asyncio.Runner, talk: Talk, line: str) -> None:
    try:
        question = talk.obey(line)
        if question is not None:
            reply = runner.run(question)
            talk.record(reply)
            put(reply.content or f"The answer has no text ({reply.finish_reason}).")
    except KeyboardInterrupt:
        say("Cancelled; a request in flight may be billed. /retry asks again.")
    except OneLLMError as error:
        print_error(told_in_flags(error))
