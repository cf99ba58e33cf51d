"""This package: one chat at a time like its peers, a whole list at once, or a stream of any length."""

import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.peers import AnswerAll, Errors, Target, pooled
from onellm_async import AsyncOneLLM, Event, Hook, Limits, RateState
from onellm_async.batch import (
    FileSink,
    Journal,
    NullJournal,
    RequestDefaults,
    RunIdentity,
    entries_from,
    output_format_named,
)
from onellm_async.batch.engine import RunEngine
from onellm_async.settings import ApiKey, Timeout
from onellm_async.transport import AiohttpTransport
from onellm_async.wire import dump_json

_MODEL = "GPT-5-Mini"


@asynccontextmanager
async def connect(
    target: Target,
    call: str = "chat",
    limits: Mapping[str, Any] | None = None,
    dialect: str = "documented",
    journal: bool = False,
    watched: bool = False,
    found: float | None = None,
) -> AsyncIterator[AnswerAll]:
    """Opens the client; without `limits` it knows that there are none.

    `call` is ``chat``, ``gather_chats``, ``iter_chats``, ``run_batch`` with or without ``journal``, or ``post``: the
    transport without a client around it. When `watched`, a hook hears of everything and chats take turns in two lanes.
    With `found`, an earlier client found so many requests per second, as the bounds of a limit.
    """
    if call == "post":
        async with _transport(target) as answer_all:
            yield answer_all
        return
    limited = (
        Limits.unlimited(target.in_flight) if limits is None else Limits(max_concurrency=target.in_flight, **limits)
    )
    events: deque[Event] = deque(maxlen=1000)
    hooks: list[Hook] = [events.append] if watched else []
    lanes = cycle(("interactive", "batch") if watched else ("default",))
    state = None if found is None else RateState(found, found / 10, low=found, high=1.01 * found)
    async with AsyncOneLLM(
        "key", base_url=f"{target.root}/api", limits=limited, rate_state=state, dialect=dialect, hooks=hooks
    ) as client:

        async def ask(prompt: str) -> str:
            return (await client.chat(prompt, model=_MODEL, lane=next(lanes))).content

        async def gather(texts: Iterable[str]) -> Errors:
            replies = await client.gather_chats(texts, model=_MODEL, return_exceptions=True)
            return Counter(type(reply).__name__ for reply in replies if isinstance(reply, Exception))

        async def stream(texts: Iterable[str]) -> Errors:
            errors: Errors = Counter()
            async for outcome in client.iter_chats(texts, model=_MODEL):
                errors.update([type(outcome.error).__name__] if outcome.error else ())
            return errors

        async def durable(texts: Iterable[str]) -> Errors:
            shape, source = output_format_named("jsonl"), entries_from(texts, defaults=RequestDefaults(model=_MODEL))
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / "answers.jsonl"
                sink = FileSink(place)
                if journal:
                    memory = Journal.open(place.with_name("answers.journal"), RunIdentity(input="prompts"))
                else:
                    memory = NullJournal()
                async with sink:
                    report = await RunEngine(client, source, journal=memory, sink=sink, encode=shape.encode).run()
                if isinstance(memory, Journal):
                    await memory.aclose()
            return Counter({"failed": report.progress.failed} if report.progress.failed else {})

        calls = {"gather_chats": gather, "iter_chats": stream, "run_batch": durable}
        yield pooled(ask, target.in_flight) if call == "chat" else calls[call]


@asynccontextmanager
async def _transport(target: Target) -> AsyncIterator[AnswerAll]:
    transport = AiohttpTransport(f"{target.root}/api", ApiKey("key"), Timeout())

    async def post(prompt: str) -> str:
        body = dump_json({"model": _MODEL, "messages": [{"role": "user", "content": prompt}]})
        return str(len((await transport.post(body)).body))

    try:
        yield pooled(post, target.in_flight)
    finally:
        await transport.aclose()
