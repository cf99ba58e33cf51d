"""async-batch-llm around an aiohttp session, the way its guide to existing async clients shows."""

import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from async_batch_llm import (
    ArtifactIdentity,
    CallableStrategy,
    CallOutcome,
    ProcessorConfig,
    RateLimitConfig,
    SqliteArtifactStore,
    process_prompts,
)

from benchmarks.peers import AnswerAll, Errors, Target


@asynccontextmanager
async def connect(
    target: Target,
    requests_per_minute: float | None = None,
    burst_seconds: float | None = None,
    pause: float | None = None,
    durability: str | None = None,
) -> AsyncIterator[AnswerAll]:
    """Opens the session; what is not given is the default.

    `pause` are the seconds after a 429, by default 300. With a `durability` (``balanced``, its default, or ``full``)
    results go into its SQLite store.
    """
    rate_limit = RateLimitConfig() if pause is None else RateLimitConfig(cooldown_seconds=pause)
    url = f"{target.root}/v1/chat/completions"
    connector = aiohttp.TCPConnector(limit=target.in_flight)
    async with aiohttp.ClientSession(
        connector=connector, headers={"Authorization": "Bearer key"}, raise_for_status=True
    ) as session:

        async def invoke(prompt: str, *, attempt: int, timeout: float, state: Any) -> CallOutcome[str]:
            body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": prompt}]}
            async with session.post(url, json=body) as response:
                reply = await response.json()
            return CallOutcome(reply["choices"][0]["message"]["content"], token_usage=reply["usage"])

        async def answer_all(texts: Iterable[str]) -> Errors:
            config = ProcessorConfig(
                concurrency=target.in_flight,
                max_requests_per_minute=requests_per_minute,
                quota_burst_seconds=burst_seconds,
                rate_limit=rate_limit,
            )
            with tempfile.TemporaryDirectory() as folder:
                store = None
                if durability is not None:
                    identity = ArtifactIdentity(provider="benchmark", model="gpt-5-mini")
                    store = SqliteArtifactStore(Path(folder) / "store", identity=identity, durability=durability)
                batch = await process_prompts(CallableStrategy(invoke), texts, config=config, artifact_store=store)
            return Counter(type(result.exception).__name__ for result in batch.results if not result.success)

        yield answer_all
