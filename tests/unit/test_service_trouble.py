"""What fan-outs and single chats make of a service in trouble: every wait ends, and says why."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from random import Random
from typing import Any

import pytest

from onellm_async import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AsyncOneLLM,
    AuthenticationError,
    ChatOutcome,
    CircuitOpenError,
    ClientClosedError,
    FailureKind,
    InternalServerError,
    Limits,
    OneLLMError,
    RateLimitError,
    RequestCancelledError,
    ResponseDecodeError,
    RetryPolicy,
)
from onellm_async.events import Event, Hook, Retrying
from onellm_async.testing import FakeReply, FakeRequest, FakeTransport, failure
from onellm_async.transport import RawReply

pytestmark = pytest.mark.virtual_time

OK = {"provider": "OpenAI", "model": "gpt-5-mini", "role": "assistant", "content": "hi",
      "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}, "finish_reason": "stop"}  # fmt: skip
POISON = 200, {}, {"code": 500, "output": {"output": "prompt too long"}}
NO_KEY = 401, {}, {"error": "Custom error: No such user was found"}
Reply = tuple[int, Mapping[str, str], Any]


def fake(reply: Callable[[str, int], Reply | APIError], seconds: float = 0.0) -> FakeTransport:
    """Answers by a function of the text of the request and its number; a success takes `seconds`."""

    def handle(request: FakeRequest) -> FakeReply:
        given = reply(request.prompt, request.number)
        if isinstance(given, APIError):
            return FakeReply(error=given, delay=0.002)
        status, headers, body = given
        delay = seconds if status == 200 else 0.002
        return FakeReply(raw=RawReply(status, headers, json.dumps(body).encode()), delay=delay)

    return FakeTransport(handle)


def poison(text: str, _: int) -> Reply:
    return POISON if text.startswith("bad") else (200, {}, OK)


def refused() -> APIError:
    return APIConnectionError("No connection to host.example: refused.", kind=FailureKind.CANNOT_CONNECT)


async def all_of(outcomes: AsyncIterator[ChatOutcome], seen: list[ChatOutcome] | None = None) -> list[ChatOutcome]:
    seen = [] if seen is None else seen
    async for outcome in outcomes:
        seen.append(outcome)  # what came before an error counts
    return seen


def listen(retries: list[int]) -> Hook:
    def hook(event: Event) -> None:
        if isinstance(event, Retrying):
            retries.append(event.request)

    return hook


def now() -> float:
    return asyncio.get_running_loop().time()


def bad_at_the_end(count: int) -> Callable[[int, Random], list[str]]:
    return lambda total, random: ["q"] * (total - count) + ["bad"] * count


def bad_share(share: float) -> Callable[[int, Random], list[str]]:
    def make(total: int, random: Random) -> list[str]:
        bad = set(random.sample(range(total), max(1, round(total * share))))
        return ["bad" if index in bad else "q" for index in range(total)]

    return make


PATTERNS = {
    "the last 3": bad_at_the_end(3),
    "the last 8": bad_at_the_end(8),
    "3 %": bad_share(0.03),
    "10 %": bad_share(0.1),
    "50 %": bad_share(0.5),
    "all": bad_share(1.0),
}


@pytest.mark.parametrize("total", [50, 300])
@pytest.mark.parametrize("pattern", PATTERNS)
async def test_prompts_that_can_never_be_answered_fail_and_the_others_are_answered(pattern: str, total: int) -> None:
    for seed in range(int(os.environ.get("SEEDS", "3"))):
        prompts = PATTERNS[pattern](total, Random(seed))
        bad, begin = prompts.count("bad"), now()
        transport = fake(poison, 5.0)
        async with AsyncOneLLM(transport=transport, random=Random(seed)) as client:
            outcomes = await client.gather_chats(prompts, model="GPT-5-Mini", return_exceptions=True)
        failed = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, OneLLMError)]
        assert failed == [index for index, prompt in enumerate(prompts) if prompt == "bad"]
        assert all("prompt too long" in str(outcomes[index]) for index in failed)
        assert {outcomes[index].attempts for index in failed} == {3}
        requests = total + 2 * bad
        assert len(transport.requests) == requests
        at_the_limit = max(0, requests - 40) / (40 / 60)
        assert now() - begin <= 1.3 * at_the_limit + 60


async def test_iterating_over_nothing_but_poison_ends_with_an_outcome_for_each_prompt() -> None:
    async with AsyncOneLLM(transport=fake(poison), random=Random(1)) as client:
        outcomes = [outcome async for outcome in client.iter_chats(["bad"] * 60, model="GPT-5-Mini")]
    assert sorted(outcome.index for outcome in outcomes) == list(range(60))
    assert {type(outcome.error) for outcome in outcomes} == {InternalServerError}


async def test_a_model_that_fails_for_good_does_not_slow_another() -> None:
    def reply(text: str, _: int) -> Reply:
        return (500, {}, {"error": "missing field `safetyRatings`"}) if text == "broken" else (200, {}, OK)

    for broken in ([], ["broken"] * 40):
        begin = now()
        async with AsyncOneLLM(
            transport=fake(reply, 0.3), limits=Limits(requests_per_minute=600, burst=40), random=Random(3)
        ) as client:
            failing = asyncio.create_task(
                client.gather_chats(broken, model="2.0-Flash", lane="batch", return_exceptions=True)
            )
            answers = await client.gather_chats(["q"] * 40, model="GPT-5-Mini", lane="interactive")
            assert len(answers) == 40
            assert now() - begin < 10
            failures = await failing
            assert all("safetyRatings" in str(failure) for failure in failures)


async def test_three_bad_prompts_hear_their_own_error_and_shut_out_no_other_request() -> None:
    async with AsyncOneLLM(transport=fake(poison), random=Random(1)) as client:
        bad = await asyncio.gather(*(client.chat("bad", model="GPT-5-Mini") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(error, InternalServerError) and "prompt too long" in str(error) for error in bad)
        assert (await client.chat("hello", model="GPT-5-Mini")).content == "hi"


@pytest.mark.parametrize("prompts", [1, 2, 3, 60])
@pytest.mark.parametrize("iterates", [False, True])
async def test_an_address_that_never_answers_ends_a_fan_out_with_the_reason(prompts: int, iterates: bool) -> None:
    transport = fake(lambda text, n: refused())
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        chats = ["q"] * prompts
        iterating = all_of(client.iter_chats(chats, model="GPT-5-Mini"))
        gathering = client.gather_chats(chats, model="GPT-5-Mini", return_exceptions=True)
        chosen, other = (iterating, gathering) if iterates else (gathering, iterating)
        other.close()
        with pytest.raises(APIConnectionError, match=r"No connection to host\.example: refused"):
            await chosen
    assert now() < 60
    assert len(transport.requests) < 120


async def test_a_page_behind_the_address_that_never_was_the_service_ends_a_fan_out() -> None:
    transport = FakeTransport(RawReply(200, {}, b"<html><title>Welcome</title></html>"))
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        with pytest.raises(ResponseDecodeError, match="not JSON"):
            await client.gather_chats(["q"] * 60, model="GPT-5-Mini", return_exceptions=True)
    assert now() < 60
    assert len(transport.requests) < 250


async def test_a_service_that_answered_before_is_waited_for() -> None:
    transport = fake(lambda text, n: refused() if 2 <= now() < 1500 else (200, {}, OK), 1.0)
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        assert len(await client.gather_chats(["q"] * 100, model="GPT-5-Mini")) == 100
    assert now() < 1500 + 300 + 120


@pytest.mark.parametrize("prompts", [2, 100])
async def test_an_outage_that_does_not_end_is_given_up_after_max_outage(prompts: int, caplog: Any) -> None:
    transport = fake(lambda text, n: refused() if n > 1 else (200, {}, OK))
    retry = RetryPolicy(max_outage=1800)
    async with AsyncOneLLM(transport=transport, retry=retry, random=Random(1)) as client:
        await client.chat("the service answers once", model="GPT-5-Mini")
        with pytest.raises(APIConnectionError, match="nothing was accepted for 30 min") as caught:
            await client.gather_chats(["q"] * prompts, model="GPT-5-Mini", return_exceptions=True)
        assert caught.value.affects_every_prompt
        assert 1800 <= now() < 1810
        assert client.snapshot().at_rest
    assert "refused" in caplog.text


async def test_a_single_chat_does_not_wait_for_an_outage() -> None:
    transport = fake(lambda text, n: refused() if n > 1 else (200, {}, OK))
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        await client.chat("q", model="GPT-5-Mini")
        with pytest.raises(APIConnectionError, match="after 4 attempts"):
            await client.chat("q", model="GPT-5-Mini")
    assert now() < 10


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "120"}], ids=["no hint", "Retry-After"])
async def test_429s_without_end_end_a_fan_out_after_max_outage(headers: dict[str, str]) -> None:
    transport = fake(lambda text, n: (429, headers, {"error": "Rate limit exceeded."}))
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        with pytest.raises(RateLimitError, match="nothing was accepted for 60 min") as caught:
            await client.gather_chats(["q"] * 100, model="GPT-5-Mini", return_exceptions=True)
    assert "Rate limit exceeded" in str(caught.value)
    assert 3600 <= now() < 3700


async def test_a_client_that_is_slow_by_its_own_limits_is_in_no_outage() -> None:
    transport = fake(lambda text, n: (429, {}, {}) if n < 4 else (200, {}, OK))
    limits = Limits(requests_per_minute=1 / 120, burst=1, adaptive="off")
    async with AsyncOneLLM(transport=transport, limits=limits, random=Random(1)) as client:
        assert len(await client.gather_chats(["q"] * 2, model="GPT-5-Mini")) == 2
    assert now() > 4 * 7200


async def test_time_in_a_pause_is_no_outage() -> None:
    transport = fake(lambda text, n: (429, {}, {}) if n == 2 else (200, {}, OK), 1.0)
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        gathering = asyncio.create_task(client.gather_chats(["q"] * 60, model="GPT-5-Mini"))
        await asyncio.sleep(0.15)
        client.pause()
        await asyncio.sleep(86400)
        client.resume()
        assert len(await gathering) == 60


# Keys.


async def test_a_key_that_was_never_accepted_ends_a_fan_out_after_the_requests_in_flight() -> None:
    transport = fake(lambda text, n: NO_KEY)
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        with pytest.raises(AuthenticationError, match="No such user"):
            await client.gather_chats(["q"] * 400, model="GPT-5-Mini", return_exceptions=True)
    assert len(transport.requests) <= 48
    assert now() < 5


async def test_a_key_that_is_revoked_in_the_middle_ends_a_fan_out_within_45_seconds() -> None:
    transport = fake(lambda text, n: (200, {}, OK) if now() < 60 else NO_KEY, 2.0)
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.gather_chats(["q"] * 400, model="GPT-5-Mini", return_exceptions=True)
    assert 70 <= now() <= 105
    partial = [outcome for outcome in caught.value.partial_results if isinstance(outcome, ChatOutcome)]
    assert sum(outcome.ok for outcome in partial) >= 70


async def test_a_401_that_passes_costs_no_answer() -> None:
    transport = fake(lambda text, n: NO_KEY if 20 <= now() < 26 else (200, {}, OK), 1.0)
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        assert len(await client.gather_chats(["q"] * 100, model="GPT-5-Mini")) == 100


# Backoff ends when there is nothing left to wait for.


def slow_or_no_key(text: str, _: int) -> Reply:
    return (503, {"Retry-After": "40"}, {}) if text == "slow" else (403, {}, {"error": "no"})


@pytest.mark.parametrize("how", ["aclose", "drain"])
async def test_closing_ends_backoff_at_once(how: str) -> None:
    client = AsyncOneLLM(transport=fake(slow_or_no_key), random=Random(1))
    chat = asyncio.create_task(client.chat("slow", model="GPT-5-Mini"))
    await asyncio.sleep(1)
    await getattr(client, how)()
    with pytest.raises(ClientClosedError) as caught:
        await chat
    assert now() == 1
    assert caught.value.possibly_billed == 1
    await client.aclose()


async def test_a_stopped_fan_out_ends_backoff_at_once() -> None:
    async with AsyncOneLLM(transport=fake(slow_or_no_key), random=Random(1)) as client:
        with pytest.raises(APIError, match="403") as caught:
            await client.gather_chats(["slow", "wrong"], model="GPT-5-Mini")
    assert now() < 1
    assert len(caught.value.partial_results) == 2, "also the one that may be billed"


async def test_a_request_in_flight_is_not_retried_after_its_fan_out_was_stopped() -> None:
    transport = FakeTransport(lambda request: failure(503, delay=2) if request.prompt == "slow" else 400)
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        with pytest.raises(APIError, match="400"):
            await client.gather_chats(["slow", "wrong"], model="GPT-5-Mini")
    assert len(transport.requests) == 2
    assert 2 <= now() < 2.1


# The circuit.


async def test_what_the_open_circuit_refuses_ends_with_its_own_failure_and_no_retry_whatever_that_was() -> None:
    retries: list[int] = []
    lost = FakeReply(error=APITimeoutError("No answer within 5 s."), delay=5.0)
    policy = RetryPolicy(max_attempts=4, breaker_failures=3, breaker_wait=60)
    async with AsyncOneLLM(
        transport=FakeTransport(lambda request: failure(500, delay=0.1) if request.prompt == "500" else lost),
        limits=Limits(requests_per_minute=1, burst=5),
        retry=policy,
        random=Random(1),
        hooks=[listen(retries)],
    ) as client:
        chats = [asyncio.create_task(client.chat(text, model="GPT-5-Mini")) for text in ("500", "lost", "lost", "lost")]
        with pytest.raises(InternalServerError, match="circuit is open"):  # it waited in the queue
            await chats[0]
        assert now() == pytest.approx(5.0, abs=0.2)
        assert retries.count(1) == 1
        await asyncio.gather(*chats, return_exceptions=True)


async def opened(transport: FakeTransport) -> AsyncOneLLM:
    client = AsyncOneLLM(transport=transport, retry=RetryPolicy(max_attempts=1), random=Random(1))
    for _ in range(5):
        with pytest.raises(APIConnectionError):
            await client.chat("q", model="GPT-5-Mini")
    return client


async def test_while_a_trial_request_is_in_flight_single_chats_fail_at_once() -> None:
    async with await opened(fake(lambda text, n: refused() if n <= 5 else (200, {}, OK), 500.0)) as client:
        await asyncio.sleep(20)
        trial = asyncio.create_task(client.chat("trial", model="GPT-5-Mini"))
        await asyncio.sleep(1)
        begin = now()
        with pytest.raises(CircuitOpenError, match=r"Last error: No connection to host\.example.*trial request"):
            await client.chat("second", model="GPT-5-Mini")
        assert now() == begin
        assert (await trial).content == "hi"
        assert (await client.chat("third", model="GPT-5-Mini")).content == "hi"


async def test_a_failure_of_this_process_says_nothing_about_the_service() -> None:
    local = APIConnectionError("No file descriptor left.", kind=FailureKind.LOCAL)
    async with await opened(fake(lambda text, n: refused() if n <= 5 else local)) as client:
        assert client.snapshot().trial_in is not None
        await asyncio.sleep(60)
        with pytest.raises(APIConnectionError, match="descriptor"):
            await client.chat("trial", model="GPT-5-Mini")
        assert client.snapshot().trial_in is not None


async def test_the_snapshot_and_the_log_tell_what_a_wait_is_for(caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, logger="onellm_async")
    transport = fake(lambda text, n: refused() if 2 <= n <= 12 else (200, {}, OK), 0.1)
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        gathering = asyncio.create_task(client.gather_chats(["q"] * 12, model="GPT-5-Mini"))
        await asyncio.sleep(10)
        assert client.snapshot().last_error == "No connection to host.example: refused."
        assert len(await gathering) == 12
        assert client.snapshot().last_error is None
    levels = {record.levelname: record.getMessage() for record in reversed(caplog.records)}
    assert "Circuit open after 5 failures in a row." in levels["WARNING"]
    assert "refused" in levels["WARNING"]
    assert "retry in" in levels["DEBUG"]
    assert "Circuit closed" in levels["INFO"]


# Outcomes that must not vanish.


async def test_a_task_that_other_code_cancels_costs_one_prompt_its_answer_and_no_other() -> None:
    async with AsyncOneLLM(transport=fake(poison, 1.0), random=Random(1)) as client:
        before = asyncio.all_tasks()
        gathering = asyncio.create_task(client.gather_chats(["q"] * 80, model="GPT-5-Mini", return_exceptions=True))
        await asyncio.sleep(0.5)
        worker = min(asyncio.all_tasks() - before - {gathering}, key=lambda task: task.get_name())
        worker.cancel()
        outcomes = await gathering
    assert len(outcomes) == 80
    assert [type(outcome) for outcome in outcomes].count(RequestCancelledError) == 1


async def test_a_source_that_was_cancelled_inside_ends_the_iteration_with_an_error() -> None:
    async def feed():
        yield "a"
        yield "b"
        reader = asyncio.create_task(asyncio.sleep(10))
        await asyncio.sleep(0)
        reader.cancel()
        await reader
        yield "c"

    seen: list[ChatOutcome] = []
    async with AsyncOneLLM(transport=fake(poison), random=Random(1)) as client:
        with pytest.raises(RequestCancelledError, match="source of the prompts was cancelled after 2 prompts"):
            await all_of(client.iter_chats(feed(), model="GPT-5-Mini"), seen)
    assert sorted(outcome.index for outcome in seen) == [0, 1]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_source_that_fails_ends_the_iteration_after_the_answers_to_what_it_gave(kind: str) -> None:
    def feed():
        yield from ["q"] * 45
        raise LookupError("the file ends here")

    async def feed_slowly():
        for prompt in feed():
            yield prompt

    seen: list[ChatOutcome] = []
    async with AsyncOneLLM(transport=fake(poison, 3.0), random=Random(1)) as client:
        source = feed() if kind == "sync" else feed_slowly()
        with pytest.raises(LookupError, match="the file ends here"):
            await all_of(client.iter_chats(source, model="GPT-5-Mini"), seen)
    assert sorted(outcome.index for outcome in seen) == list(range(45))
    assert all(outcome.ok for outcome in seen)


async def test_an_error_that_is_not_ours_carries_what_was_paid_for() -> None:
    transport = FakeTransport(lambda request: ZeroDivisionError if request.number == 21 else "hi")
    async with AsyncOneLLM(transport=transport, random=Random(1)) as client:
        with pytest.raises(ZeroDivisionError) as caught:
            await client.gather_chats(["q"] * 50, model="GPT-5-Mini", return_exceptions=True)
    assert len(getattr(caught.value, "partial_results", ())) >= 20


async def test_a_generator_as_source_is_closed_when_the_iteration_is_left() -> None:
    closed = []

    def feed():
        try:
            while True:
                yield "q"
        finally:
            closed.append(True)

    async with AsyncOneLLM(transport=fake(poison), random=Random(1)) as client:
        outcomes = client.iter_chats(feed(), model="GPT-5-Mini")
        await anext(outcomes)
        await outcomes.aclose()
    assert closed == [True]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager task factories came with Python 3.12")
@pytest.mark.parametrize("iterates", [False, True])
async def test_an_eager_task_factory_answers_5000_prompts_without_recursion(iterates: bool) -> None:
    class Instant(FakeTransport):
        async def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> RawReply:
            return RawReply(200, {}, json.dumps(OK).encode())  # without a turn of the loop

    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    try:
        async with AsyncOneLLM(transport=Instant(), limits=Limits.unlimited()) as client:
            prompts = ["q"] * 5000
            if iterates:
                assert len(await all_of(client.iter_chats(prompts, model="GPT-5-Mini"))) == 5000
            else:
                assert len(await client.gather_chats(prompts, model="GPT-5-Mini")) == 5000
    finally:
        loop.set_task_factory(None)
