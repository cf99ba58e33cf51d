"""inspect_ai: its model API with adaptive connections, which adapt the concurrency to 429s. It retries without end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.util import AdaptiveConcurrency

from benchmarks.peers import AnswerAll, Target, pooled


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[AnswerAll]:
    """Opens the model with as many connections at most as requests shall be in flight."""
    connections = AdaptiveConcurrency(min=1, max=target.in_flight, start=min(20, target.in_flight))
    async with get_model(
        "openai-api/benchmark/gpt-5-mini",
        base_url=f"{target.root}/v1",
        api_key="key",
        config=GenerateConfig(adaptive_connections=connections),
    ) as model:

        async def ask(prompt: str) -> str:
            return (await model.generate(prompt)).completion

        yield pooled(ask, target.in_flight)
