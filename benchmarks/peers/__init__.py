"""What is compared: one file for each client, each with one async context manager, `connect`.

It opens the client as its documentation recommends, with room for all requests that shall be in flight, and yields a
function that answers many prompts and returns what went wrong.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from attrs import field, frozen

Errors: TypeAlias = Counter[str]
"""How often each error ended a prompt; empty when all were answered."""

AnswerAll: TypeAlias = Callable[[Iterable[str]], Awaitable[Errors]]


@frozen
class Target:
    """Whom to ask, and how.

    Attributes:
        root: Address of the server; the paths of both wire formats are below it.
        in_flight: Requests under way at once.
    """

    root: str
    in_flight: int


@frozen
class Contender:
    """A row of a table: a peer and how it is set up.

    Attributes:
        name: As the table shows it.
        peer: Its file in this folder.
        options: Passed to its `connect`.
    """

    name: str
    peer: str
    options: Mapping[str, Any] = field(factory=dict)


def prompts(number: int, start: int = 0) -> Iterator[str]:
    """Different prompts of a usual length: some 300 characters."""
    filler = (
        "Explain in two sentences how a token bucket works, for a reader who knows queues but not rate limits. " * 3
    )
    return (f"{index}. {filler}" for index in range(start, start + number))


def pooled(ask: Callable[[str], Awaitable[str]], in_flight: int) -> AnswerAll:
    """Answers prompts with as many workers as requests shall be in flight: the cheapest way for a client without one.

    Args:
        ask: Returns the text of one answer.
        in_flight: How many at once.
    """

    async def answer_all(texts: Iterable[str]) -> Errors:
        errors: Errors = Counter()
        waiting = iter(texts)

        async def work() -> None:
            for prompt in waiting:
                try:
                    answer = await ask(prompt)
                except Exception as error:  # whatever a client raises is a failed prompt
                    errors[type(error).__name__] += 1
                else:
                    errors.update(() if answer else ("no text",))

        async with asyncio.TaskGroup() as workers:
            for _ in range(in_flight):
                workers.create_task(work())
        return errors

    return answer_all
