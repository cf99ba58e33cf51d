"""The whole way over sockets: client, front and an upstream that has a limit."""

import asyncio
import json
from collections import Counter
from math import ceil

import pytest
from aiohttp import web

from onellm_async import AsyncOneLLM, Limits
from onellm_async.limits.bucket import TokenBucket
from onellm_async.server import LocalServer, Outcome, ServerSettings, UpstreamBackend


class LimitedUpstream:
    """Refuses with 429 what its bucket does not hold, and counts what it answers."""

    def __init__(self, upstream, *, rate, burst, announce):
        self.bucket = TokenBucket(rate, burst, None, asyncio.get_running_loop().time())
        self.announce = announce
        self.answered = Counter()
        self.refused = 0
        self._upstream = upstream
        upstream.answer = self.answer

    def answer(self):
        now = asyncio.get_running_loop().time()
        if not self.bucket.try_take(1, now):
            self.refused += 1
            headers = self.announce(self.bucket.time_until(1, now))
            return web.json_response({"error": {"message": "Slow down"}}, status=429, headers=headers)
        prompt = self._upstream.body["messages"][-1]["content"]
        self.answered[prompt] += 1
        text = json.dumps(self._upstream.completion).replace("Paris.", prompt)
        return web.Response(text=text, content_type="application/json")


@pytest.mark.parametrize(
    "announce",
    [
        lambda seconds: {"Retry-After": str(ceil(seconds))},
        lambda seconds: {"Retry-After": f"{seconds:.4f}"},
        lambda seconds: {"retry-after-ms": str(ceil(seconds * 1000))},
    ],
    ids=["seconds", "fraction", "milliseconds"],
)
async def test_prompts_through_a_front_meet_the_limit_of_its_upstream_and_none_fails(upstream, announce):
    limited = LimitedUpstream(upstream, rate=60, burst=10, announce=announce)
    prompts = [f"prompt {number}" for number in range(40)]
    settings = ServerSettings(any_model=True, requests_per_minute=None)
    async with (
        LocalServer(settings, backend=UpstreamBackend(upstream.origin)) as front,
        AsyncOneLLM("any", base_url=front.url, limits=Limits(requests_per_minute="auto")) as client,
    ):
        answers = await client.gather_chats(prompts, model="tiny")
        assert front.ledger.outcomes == Counter({Outcome.ANSWERED: 40, Outcome.RATE_LIMITED: limited.refused})
    assert [answer.content for answer in answers] == prompts
    assert limited.answered == Counter(prompts)
    assert limited.refused > 0
    assert sum(answer.possibly_billed for answer in answers) == 0
    assert all(answer.attempts == 1 for answer in answers)


async def test_prompts_that_are_too_long_leave_the_others_alone(upstream):
    def answer():
        prompt = upstream.body["messages"][-1]["content"]
        if prompt.startswith("long"):
            text = "This model's maximum context length is 8192 tokens"
            return web.json_response({"error": {"message": text}}, status=400)
        return web.json_response(upstream.completion)

    upstream.answer = answer
    prompts = [f"{'long' if number % 5 == 0 else 'short'} {number}" for number in range(50)]
    settings = ServerSettings(any_model=True, requests_per_minute=None)
    async with (
        LocalServer(settings, backend=UpstreamBackend(upstream.origin)) as front,
        AsyncOneLLM("any", base_url=front.url, limits=Limits.unlimited(16)) as client,
    ):
        outcomes = await client.gather_chats(prompts, model="tiny", return_exceptions=True)
    failed = [prompt for prompt, it in zip(prompts, outcomes, strict=True) if isinstance(it, Exception)]
    assert failed == [prompt for prompt in prompts if prompt.startswith("long")]
    assert all("maximum context length is 8192" in str(it) for it in outcomes if isinstance(it, Exception))
    assert len(upstream.requests) == 50
