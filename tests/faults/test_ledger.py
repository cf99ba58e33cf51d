"""The server's ledger as oracle: nobody pays without an answer or without being told."""

from collections import Counter
from random import Random

import pytest

from onellm_async import APIError, AsyncOneLLM, Billing, ChatResponse, Dialect, Limits, OneLLMError, RetryPolicy
from onellm_async.server import Faults, LocalServer, ServerSettings

PROMPTS = 150


def ill_server(seed: int, dialect: Dialect, share: float) -> LocalServer:
    faults = Faults(
        seed=seed,
        latency=0.001,
        latency_sigma=1.0,
        reset_before_rate=share,
        server_error_rate=share,
        html_502_rate=share,
        reset_after_rate=share,
        truncate_rate=share,
    )
    return LocalServer(
        ServerSettings(dialect=dialect, requests_per_minute=60_000, burst=1000, balance=1e6, faults=faults)
    )


async def run(server: LocalServer, dialect: Dialect, policy: RetryPolicy) -> list[ChatResponse | OneLLMError]:
    limits = Limits(max_concurrency=16, requests_per_minute=60_000, burst=1000)
    client = AsyncOneLLM("any", base_url=server.url, dialect=dialect, limits=limits, retry=policy, random=Random(1))
    async with client:
        prompts = [f"prompt {number}" for number in range(PROMPTS)]
        return await client.gather_chats(prompts, model="GPT-5-Nano", return_exceptions=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ambiguous", ["retry", "once", "never"])
@pytest.mark.parametrize("dialect", list(Dialect))
async def test_whatever_was_billed_is_answered_or_told(seed: int, ambiguous: str, dialect: Dialect) -> None:
    policy = RetryPolicy(ambiguous=ambiguous, backoff_base=0.0, retry_budget=1e6, breaker_failures=0)  # type: ignore[arg-type]
    async with ill_server(seed, dialect, share=0.08) as server:
        ends = await run(server, dialect, policy)
        ledger = server.ledger
    answers = [end for end in ends if isinstance(end, ChatResponse)]
    failures = [end for end in ends if isinstance(end, APIError)]
    assert len(answers) + len(failures) == PROMPTS
    told = sum(end.possibly_billed for end in answers) + sum(end.possibly_billed for end in failures)
    assert len(answers) <= ledger.billed <= len(answers) + told
    billed = Counter(row.prompt for row in ledger.rows if row.cost > 0)
    assert len(billed) > PROMPTS / 2
    if ambiguous == "never":
        assert max(billed.values()) == 1
        assert all(end.possibly_billed == 0 for end in answers)
    elif ambiguous == "once":
        assert max(billed.values()) <= 2
    for index, end in enumerate(ends):
        if isinstance(end, ChatResponse):
            assert end.content.endswith(f"prompt {index}")
        else:
            assert isinstance(end, APIError)
            assert end.attempts <= 4
            assert end.possibly_billed <= end.attempts
            if end.billing is Billing.POSSIBLY_BILLED:
                assert end.possibly_billed >= 1


async def test_when_faults_are_few_all_is_answered() -> None:
    policy = RetryPolicy(backoff_base=0.0, retry_budget=1e6, breaker_failures=0)
    async with ill_server(7, Dialect.DOCUMENTED, share=0.01) as server:
        ends = await run(server, Dialect.DOCUMENTED, policy)
    assert all(isinstance(end, ChatResponse) for end in ends)


async def test_a_single_chat_with_a_healthy_server_is_billed_once(local_server: LocalServer) -> None:
    async with AsyncOneLLM("any", base_url=local_server.url) as client:
        response = await client.chat("Hello?", model="GPT-5-Nano")
    assert local_server.ledger.billed == 1
    assert response.cost == pytest.approx(local_server.ledger.billed_usd)
