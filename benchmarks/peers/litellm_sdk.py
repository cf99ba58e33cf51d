"""litellm's SDK: ``acompletion`` with an OpenAI-compatible endpoint."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.peers import AnswerAll, Target, pooled

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it asks the network for prices

import litellm


@asynccontextmanager
async def connect(target: Target, retries: int = 0) -> AsyncIterator[AnswerAll]:
    """Sets it up; `retries` is its documented ``num_retries``."""
    litellm.suppress_debug_info = True

    async def ask(prompt: str) -> str:
        reply = await litellm.acompletion(
            model="openai/gpt-5-mini",
            messages=[{"role": "user", "content": prompt}],
            api_base=f"{target.root}/v1",
            api_key="key",
            num_retries=retries,
        )
        return reply.choices[0].message.content or ""

    yield pooled(ask, target.in_flight)
