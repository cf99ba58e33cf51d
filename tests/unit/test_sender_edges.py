"""What a request that was sent before still says when something else ends it."""

import asyncio
from random import Random

import pytest

from onellm_async import (
    APIConnectionError,
    AsyncOneLLM,
    AuthenticationError,
    Billing,
    CircuitOpenError,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    FailureKind,
    InternalServerError,
    InvalidRequestError,
    Limits,
    OneLLMError,
    RetryPolicy,
    Timeout,
    UnprocessableEntityError,
)
from onellm_async.client import _timeout_from
from onellm_async.testing import FakeRequest, FakeTransport, answer

pytestmark = pytest.mark.virtual_time


UNREACHABLE = APIConnectionError("No connection to example.org: refused.", kind=FailureKind.CANNOT_CONNECT)


def says_it_may_be_billed(error: OneLLMError) -> bool:
    return (
        getattr(error, "possibly_billed", 0) == 1 and "not sent" not in str(error) and "Nothing was" not in str(error)
    )


async def test_a_deadline_while_an_earlier_attempt_may_be_billed_says_so() -> None:
    transport = FakeTransport([503, answer("x", delay=1000)])
    async with AsyncOneLLM(transport=transport, retry=RetryPolicy(backoff_base=1)) as client:
        with pytest.raises(DeadlineExceededError) as caught:
            await client.chat("x", model="GPT-5", deadline=60)
    assert (caught.value.billing, caught.value.attempts) == (Billing.POSSIBLY_BILLED, 2)
    assert asyncio.get_running_loop().time() == 60


async def test_a_repeat_that_the_queue_cannot_serve_in_time_does_not_deny_the_first_attempt() -> None:
    limits = Limits(requests_per_minute=1, burst=1)
    retry = RetryPolicy(backoff_base=0)
    async with AsyncOneLLM(transport=FakeTransport(503), limits=limits, retry=retry) as client:
        with pytest.raises(OneLLMError) as caught:
            await client.chat("x", model="GPT-5", deadline=30)
    assert getattr(caught.value, "billing", None) is Billing.POSSIBLY_BILLED
    assert says_it_may_be_billed(caught.value)


async def test_closing_while_a_repeat_waits_does_not_deny_the_first_attempt() -> None:
    retry = RetryPolicy(backoff_base=10)
    client = AsyncOneLLM(transport=FakeTransport(503), retry=retry, random=Random(1))
    async with client:
        chat = asyncio.create_task(client.chat("x", model="GPT-5"))
        await asyncio.sleep(0.1)
    with pytest.raises(ClientClosedError) as caught:
        await chat
    assert caught.value.attempts == 1
    assert says_it_may_be_billed(caught.value)


async def test_a_request_that_was_sent_ends_with_its_own_error_when_the_circuit_opens() -> None:
    retry = RetryPolicy(backoff_base=10)
    transport = FakeTransport(503)
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited(), retry=retry, random=Random(1)) as client:
        chats = [asyncio.create_task(client.chat("x", model="GPT-5")) for _ in range(3)]
        ends = await asyncio.gather(*chats, return_exceptions=True)
    assert {type(end) for end in ends} == {InternalServerError}
    assert sum("Gave up because the circuit is open" in str(end) for end in ends) == 3
    assert len(transport.requests) == 5


@pytest.mark.parametrize("deadline", ["5", 10**400, [1]], ids=["text", "huge", "list"])
async def test_a_deadline_that_is_no_number_is_refused_by_value(deadline: object) -> None:
    async with AsyncOneLLM(transport=FakeTransport("x")) as client:
        with pytest.raises(InvalidRequestError, match="deadline is"):
            await client.chat("x", model="GPT-5", deadline=deadline)  # type: ignore[arg-type]


async def test_a_lane_that_is_no_name_is_refused_by_value() -> None:
    async with AsyncOneLLM(transport=FakeTransport("x")) as client:
        with pytest.raises(ConfigurationError, match="lane is"):
            await client.chat("x", model="GPT-5", lane=[])  # type: ignore[arg-type]


async def test_two_may_wait_for_the_client_to_drain() -> None:
    async with AsyncOneLLM(transport=FakeTransport("x", delay=5)) as client:
        chat = asyncio.create_task(client.chat("x", model="GPT-5"))
        await asyncio.sleep(1)
        async with asyncio.timeout(60):
            await asyncio.gather(client.drain(), client.drain())
        assert (await chat).content == "x"


async def test_a_bug_in_a_transport_surfaces_and_frees_the_slot() -> None:
    limits = Limits.unlimited(max_concurrency=1)
    async with AsyncOneLLM(transport=FakeTransport([ZeroDivisionError, "x"]), limits=limits) as client:
        with pytest.raises(ZeroDivisionError):
            await client.chat("x", model="GPT-5")
        assert (await client.chat("x", model="GPT-5")).content == "x"


async def test_an_endless_rate_limit_ends_with_the_deadline_and_costs_nothing() -> None:
    async with AsyncOneLLM(transport=FakeTransport(429)) as client:
        with pytest.raises(DeadlineExceededError) as caught:
            await client.chat("x", model="GPT-5", deadline=60)
    assert (caught.value.billing, caught.value.attempts) == (Billing.NOT_PROCESSED, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_no_repeat_starts_after_the_deadline(seed: int) -> None:
    transport = FakeTransport(503, delay=0.3)
    retry = RetryPolicy(max_attempts=50, backoff_base=2, breaker_failures=0)
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited(), retry=retry, random=Random(seed)) as client:
        with pytest.raises(OneLLMError):
            await client.chat("x", model="GPT-5", deadline=10)
    assert asyncio.get_running_loop().time() <= 10
    assert max(request.at for request in transport.requests) < 10


async def test_the_budget_of_a_client_ends_a_storm() -> None:
    transport = FakeTransport(503)
    retry = RetryPolicy(retry_budget=3, breaker_failures=0, backoff_base=0.1)
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited(), retry=retry) as client:
        ends = await asyncio.gather(*(client.chat("x", model="GPT-5") for _ in range(50)), return_exceptions=True)
    assert all(isinstance(end, OneLLMError) for end in ends)
    assert len(transport.requests) == 50 + 3
    assert sum("retry budget of this client is used up" in str(end) for end in ends) >= 49


async def test_a_chat_granted_in_the_moment_of_closing_is_not_sent_any_more() -> None:
    release = asyncio.Event()

    async def held(request: FakeRequest) -> str:
        await release.wait()
        return "x"

    transport = FakeTransport(held)
    client = AsyncOneLLM(transport=transport, limits=Limits.unlimited(max_concurrency=1))

    async def close() -> None:
        await release.wait()
        await client.aclose()

    first = asyncio.create_task(client.chat("x", model="GPT-5"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(close())
    second = asyncio.create_task(client.chat("y", model="GPT-5"))
    await asyncio.sleep(1)
    release.set()
    assert (await first).content == "x"
    await closing
    with pytest.raises(ClientClosedError):
        await second
    assert len(transport.requests) == 1


async def test_a_fan_out_stopped_by_a_failure_sends_nothing_of_what_waits() -> None:
    transport = FakeTransport([422, "x"])
    limits = Limits(requests_per_minute=60, burst=1)
    async with AsyncOneLLM(transport=transport, limits=limits) as client:
        with pytest.raises(UnprocessableEntityError) as caught:
            await client.gather_chats([f"prompt {i}" for i in range(200)], model="GPT-5")
        assert len(transport.requests) == 1
        assert [outcome.index for outcome in caught.value.partial_results] == [0]
        assert client.snapshot().at_rest


async def test_a_wrong_key_stops_iterating_over_a_source_at_its_first_request() -> None:
    transport = FakeTransport(401)
    async with AsyncOneLLM(transport=transport, limits=Limits(requests_per_minute=60, burst=1)) as client:
        outcomes = client.iter_chats((f"prompt {i}" for i in range(10**9)), model="GPT-5")
        assert (await anext(outcomes)).index == 0
        with pytest.raises(AuthenticationError):
            await anext(outcomes)
        assert len(transport.requests) == 1
        assert client.snapshot().at_rest


async def test_a_circuit_that_opens_ends_the_waits_of_single_chats_but_not_of_fan_outs() -> None:
    transport = FakeTransport(["x", *[UNREACHABLE] * 10, "x"], delay=0.01)
    retry = RetryPolicy(backoff_base=0.01)
    limits = Limits(requests_per_minute=600, burst=4)
    async with AsyncOneLLM(transport=transport, limits=limits, retry=retry, random=Random(1)) as client:
        await client.chat("the service answers once", model="GPT-5")
        fan_out = asyncio.create_task(client.gather_chats(["a", "b"], model="GPT-5"))
        chats = [asyncio.create_task(client.chat("x", model="GPT-5")) for _ in range(20)]
        ends = await asyncio.gather(*chats, return_exceptions=True)
        assert asyncio.get_running_loop().time() < 10
        assert sum(isinstance(end, CircuitOpenError) for end in ends) >= 10
        assert [reply.content for reply in await fan_out] == ["x", "x"]
        assert client.snapshot().at_rest


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": "5"},
        {"timeout": True},
        {"limits": 40},
        {"retry": 3},
        {"hooks": print},
        {"hooks": [None]},
    ],
    ids=str,
)
def test_a_setting_of_the_wrong_type_is_refused_by_name_and_value(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(ConfigurationError, match=f"^{name} is "):
        AsyncOneLLM("key", **settings)  # type: ignore[arg-type]


def test_a_bare_number_for_limits_is_refused_with_the_right_form() -> None:
    with pytest.raises(ConfigurationError, match=r"Use Limits\(requests_per_minute=40\)"):
        AsyncOneLLM("key", limits=40)  # type: ignore[arg-type]


def test_a_timeout_in_seconds_is_that_of_the_whole_attempt() -> None:
    assert _timeout_from(30) == Timeout(connect=10, total=30)
    assert _timeout_from(2.5) == Timeout(connect=2.5, total=2.5)
    assert _timeout_from(None) == Timeout()


async def test_an_iteration_with_a_bad_option_is_refused_before_anything_is_drawn() -> None:
    source = iter(["a"])
    async with AsyncOneLLM(transport=FakeTransport("x")) as client:
        with pytest.raises(InvalidRequestError, match="temperature is 7"):
            await anext(client.iter_chats(source, model="GPT-5", temperature=7))
    assert list(source) == ["a"]


async def test_a_model_that_the_backend_dialect_cannot_route_is_refused_before_anything_is_sent() -> None:
    transport = FakeTransport("x")
    async with AsyncOneLLM(transport=transport, dialect="backend") as client:
        with pytest.raises(InvalidRequestError, match="provider of model 'my-own'"):
            await client.gather_chats(["a", "b"], model="my-own")
    assert len(transport.requests) == 0


async def test_a_fan_out_outlives_an_outage_of_an_hour() -> None:
    transport = FakeTransport(["x", UNREACHABLE], delay=0.01)
    async with AsyncOneLLM(transport=transport, retry=RetryPolicy(max_outage=7200), random=Random(1)) as client:
        fan_out = asyncio.create_task(client.gather_chats([f"prompt {i}" for i in range(30)], model="GPT-5"))
        await asyncio.sleep(3600)
        assert not fan_out.done()
        assert client.snapshot().bottleneck == "circuit_open"
        assert client.snapshot().last_error == "No connection to example.org: refused."
        assert len(transport.requests) < 70, "an outage is tried now and then, not hammered"
        transport.set_replies("x")
        replied = await fan_out
    assert len(replied) == 30
    assert asyncio.get_running_loop().time() < 3600 + 400
