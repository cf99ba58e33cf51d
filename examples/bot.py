"""A chat bot in the terminal, for several people at once: each has a history, and none waits for another.

::

    export ONELLM_API_KEY=...
    python examples/bot.py
    ada: What is a prime?
    bob: Tell me a joke.
    ada: Is 51 one?

It needs a key. Without one, use a local server, which echoes: ``onellm-async serve`` in another terminal, and here
``export ONELLM_BASE_URL=http://127.0.0.1:8080/api ONELLM_API_KEY=any``.

A line is ``name: text``. Each reply is printed when it arrives. As texts, ``/forget`` clears that person's history,
``/undo`` takes the last question back, ``/retry`` asks it again, and ``/cancel`` ends the turns in flight. The end of
the input (Ctrl-D) waits for requests in flight, Ctrl-C does not. A bot for a real chat network has the same parts:
`Bot.reply` for one message, a task for each message, and one client for all users.
"""

import asyncio
import math
import sys
import threading
from collections import OrderedDict

from attrs import define

from onellm_async import (
    AsyncOneLLM,
    CircuitOpenError,
    Conversation,
    DeadlineExceededError,
    InvalidRequestError,
    Limits,
    OneLLMError,
    QueueFullError,
    RequestCancelledError,
)

LIMITS = Limits(max_pending=10)
DEADLINE = 60.0
MAX_PEOPLE = 1000
MAX_OPEN_QUESTIONS = 3


@define
class Person:
    """A user of the bot."""

    conversation: Conversation
    open_questions: int = 0


class Bot:
    """Keeps a conversation with each person and turns errors into friendly texts.

    Args:
        client: The client that sends the requests.
    """

    def __init__(self, client: AsyncOneLLM) -> None:
        self._client = client
        self._people: OrderedDict[str, Person] = OrderedDict()

    async def reply(self, name: str, text: str) -> str:
        """Returns the reply to a message. Turns of one person are sent one after the other."""
        person = self._person(name)
        if (done := command(person.conversation, text)) is not None:
            return done
        if person.open_questions >= MAX_OPEN_QUESTIONS:
            return "One moment, let me answer your other questions first."
        person.open_questions += 1
        try:
            reply = await (person.conversation.retry() if text == "/retry" else person.conversation.say(text))
        except (QueueFullError, CircuitOpenError) as error:
            return f"Many people are asking just now. Please try again in {max(1, math.ceil(error.retry_after))} s."
        except DeadlineExceededError:
            return "Sorry, I cannot answer that in good time. Please ask again later."
        except RequestCancelledError:
            return "Cancelled. /retry asks the last question again."
        except InvalidRequestError as error:
            return error.message
        except OneLLMError as error:
            print(error, file=sys.stderr)
            return "Sorry, something went wrong. I have told my operator."
        else:
            return reply.content or f"I have no answer to that ({reply.finish_reason})."
        finally:
            person.open_questions -= 1

    def _person(self, name: str) -> Person:
        if name not in self._people:
            conversation = Conversation(
                self._client,
                model="GPT-5-Nano",
                system=f"You talk with {name}. Be brief.",
                max_messages=20,
                max_history_tokens=4_000,
                deadline=DEADLINE,
            )
            self._people[name] = Person(conversation)
            if len(self._people) > MAX_PEOPLE:
                self._people.popitem(last=False)
        self._people.move_to_end(name)
        return self._people[name]


def command(conversation: Conversation, text: str) -> str | None:
    """Obeys a command that needs no answer of the model; returns None for any other text."""
    if text == "/forget":
        conversation.forget()
        return "Forgotten. What shall we talk about?"
    if text == "/undo":
        question = conversation.undo()
        return f"Taken back: {question}" if question is not None else "There is nothing to take back."
    if text == "/cancel":
        conversation.cancel()
        return "I stop."
    return None


async def main() -> None:
    lines: asyncio.Queue[str | None] = asyncio.Queue(maxsize=100)
    # A daemon thread, because nothing can interrupt a read from a terminal: Ctrl-C must not wait for it.
    threading.Thread(target=read_lines, args=(lines, asyncio.get_running_loop()), daemon=True).start()
    async with AsyncOneLLM(limits=LIMITS) as client, asyncio.TaskGroup() as replies:
        bot = Bot(client)

        async def answer(name: str, text: str) -> None:
            print(f"bot to {name}: {await bot.reply(name, text)}", flush=True)

        while (line := await lines.get()) is not None:
            name, _, text = (part.strip() for part in line.partition(":"))
            if name and text:
                replies.create_task(answer(name, text))
            elif line.strip():
                print("Please write a line as  name: text", flush=True)


def read_lines(lines: "asyncio.Queue[str | None]", loop: asyncio.AbstractEventLoop) -> None:
    with open(0, encoding="utf-8", errors="replace", closefd=False) as stdin:
        for line in stdin:
            asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
    asyncio.run_coroutine_threadsafe(lines.put(None), loop).result()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except OneLLMError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
