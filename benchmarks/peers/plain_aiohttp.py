"""aiohttp and nothing else: what everybody else is measured by. With tenacity around it if retries are asked for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from benchmarks.peers import AnswerAll, Target, pooled


@asynccontextmanager
async def connect(target: Target, retries: int = 0, keep: bool = False) -> AsyncIterator[AnswerAll]:
    """Opens a session. `retries` are tenacity's, with exponential waits and its default jitter.

    With `keep` the replies stay in memory.
    """
    kept: list[Any] = []
    url = f"{target.root}/v1/chat/completions"
    connector = aiohttp.TCPConnector(limit=target.in_flight)
    async with aiohttp.ClientSession(
        connector=connector, headers={"Authorization": "Bearer key"}, raise_for_status=True
    ) as session:

        async def ask(prompt: str) -> str:
            body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": prompt}]}
            async with session.post(url, json=body) as response:
                reply = await response.json()
            if keep:
                kept.append(reply)
            text: str = reply["choices"][0]["message"]["content"]
            return text

        if retries:
            from tenacity import retry, stop_after_attempt, wait_exponential_jitter

            ask = retry(wait=wait_exponential_jitter(), stop=stop_after_attempt(retries + 1))(ask)
        yield pooled(ask, target.in_flight)
