"""openai-python, over either of its transports; with aiolimiter around each call if a rate is given."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from openai import AsyncOpenAI, DefaultAioHttpClient

from benchmarks.peers import AnswerAll, Target, pooled


@asynccontextmanager
async def connect(
    target: Target, transport: str = "httpx", retries: int = 0, limiter: tuple[float, float] | None = None
) -> AsyncIterator[AnswerAll]:
    """Opens the client; `limiter` are aiolimiter's two arguments: requests, and in how many seconds."""
    if limiter:
        from aiolimiter import AsyncLimiter

        admitted = AsyncLimiter(*limiter)
    else:
        admitted = nullcontext()
    async with AsyncOpenAI(
        api_key="key",
        base_url=f"{target.root}/v1",
        max_retries=retries,
        http_client=DefaultAioHttpClient() if transport == "aiohttp" else None,
    ) as client:

        async def ask(prompt: str) -> str:
            async with admitted:
                completion = await client.chat.completions.create(
                    model="gpt-5-mini", messages=[{"role": "user", "content": prompt}]
                )
            return completion.choices[0].message.content or ""

        yield pooled(ask, target.in_flight)
