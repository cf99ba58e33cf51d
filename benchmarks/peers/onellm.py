"""This package: one chat at a time like its peers, a whole list at once, or a stream of any length."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers import AnswerAll, Errors, Target, pooled
from onellm_async import AsyncOneLLM, Limits

_MODEL = "GPT-5-Mini"


@asynccontextmanager
async def connect(
    target: Target, call: str = "chat", limits: Mapping[str, Any] | None = None, dialect: str = "documented"
) -> AsyncIterator[AnswerAll]:
    """Opens the client; without `limits` it knows that there are none.

    `call` is ``chat``, ``gather_chats`` or ``iter_chats``.
    """
    limited = Limits.unlimited(target.in_flight) if limits is None else Limits(target.in_flight, **limits)
    async with AsyncOneLLM("key", base_url=f"{target.root}/api", limits=limited, dialect=dialect) as client:

        async def ask(prompt: str) -> str:
            return (await client.chat(prompt, model=_MODEL)).content

        async def gather(texts: Iterable[str]) -> Errors:
            replies = await client.gather_chats(texts, model=_MODEL, return_exceptions=True)
            return Counter(type(reply).__name__ for reply in replies if isinstance(reply, Exception))

        async def stream(texts: Iterable[str]) -> Errors:
            errors: Errors = Counter()
            async for outcome in client.iter_chats(texts, model=_MODEL):
                errors.update([type(outcome.error).__name__] if outcome.error else ())
            return errors

        yield {"chat": pooled(ask, target.in_flight), "gather_chats": gather, "iter_chats": stream}[call]
