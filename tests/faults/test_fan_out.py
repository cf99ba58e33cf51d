# ruff: noqa: ASYNC110, PERF401, PT012  # polling in turns of the loop; loops that raise
import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
from fault_server import FaultServer, answers

from onellm_async import (
    AsyncOneLLM,
    AuthenticationError,
    BadRequestError,
    ChatRequest,
    ChatResponse,
    ClientClosedError,
    ConfigurationError,
    FanoutProgress,
    InsufficientBalanceError,
    InternalServerError,
    InvalidRequestError,
    Limits,
    Message,
    NotFoundError,
    OneLLMError,
    RetryPolicy,
    Usage,
)
from onellm_async.testing import FakeRequest, FakeTransport, Reply, answer, failure, hang

NO_RETRY = RetryPolicy(max_attempts=1, breaker_failures=0)


class Echo(FakeTransport):
    """Answers each prompt with itself, after a few turns of the loop; or with the status that the prompt names."""

    def __init__(self, turns: int = 3) -> None:
        super().__init__(self._reply_to)
        self.turns = turns
        self.most_tasks = 0

    async def _reply_to(self, request: FakeRequest) -> Reply:
        self.most_tasks = max(self.most_tasks, len(asyncio.all_tasks()))
        for _ in range(self.turns + len(request.prompt) % 3):
            await asyncio.sleep(0)
        if request.prompt.startswith("status "):
            return failure(int(request.prompt.split()[1]), "no")
        return hang() if request.prompt == "hang" else answer(request.prompt, usage=Usage(1, 1, 2))


def client_on(echo: FakeTransport, concurrency: int = 8) -> AsyncOneLLM:
    return AsyncOneLLM(transport=echo, limits=Limits.unlimited(max_concurrency=concurrency), retry=NO_RETRY)


def tasks() -> int:
    return len(asyncio.all_tasks())


async def test_answers_come_in_the_order_of_the_prompts() -> None:
    prompts = [f"prompt {number}" * (number % 4 + 1) for number in range(100)]
    async with client_on(Echo()) as client:
        responses = await client.gather_chats(prompts, model="GPT-5")
    assert [response.content for response in responses] == prompts


async def test_no_prompts_give_no_answers() -> None:
    async with client_on(Echo()) as client:
        assert await client.gather_chats([], model="GPT-5") == []
        assert await client.gather_chats([]) == []
        assert [outcome async for outcome in client.iter_chats([])] == []


async def test_prompts_of_all_kinds_may_be_mixed() -> None:
    prompts = ["a", [Message.user("b")], [{"role": "user", "content": "c"}], ChatRequest("GPT-5-Nano", "d")]
    async with client_on(Echo()) as client:
        responses = await client.gather_chats(iter(prompts), model="GPT-5")
    assert [response.content for response in responses] == ["a", "b", "c", "d"]
    assert responses[3].cost < responses[0].cost  # type: ignore[operator]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["a", "b", [{"role": "robot", "content": "c"}]], "Prompt 2: A message's role is 'robot'"),
        ([*["a"] * 50, 5], "Prompt 50: messages is 5"),
        ([ChatRequest("GPT-5", "a"), "b"], "Prompt 1: model is missing"),
        ([ChatRequest("GPT-5", "a"), [Message.user("b")]], "Prompt 1: model is missing"),
        ([["a"]], "Prompt 0: A message is 'a'"),
        (["a", []], "Prompt 1: messages is []"),
        (["a", None], "Prompt 1: messages is None"),
    ],
)
async def test_an_invalid_prompt_is_refused_by_index_before_anything_is_sent(prompts: list, words: str) -> None:
    echo = Echo()
    model = None if "model" in words else "GPT-5"
    async with client_on(echo) as client:
        for return_exceptions in (False, True):
            with pytest.raises(InvalidRequestError) as caught:
                await client.gather_chats(prompts, model=model, return_exceptions=return_exceptions)
            assert words in str(caught.value)
    assert len(echo.requests) == 0


async def test_a_bad_option_is_refused_even_when_only_later_prompts_use_it() -> None:
    echo = Echo()
    async with client_on(echo) as client:
        with pytest.raises(InvalidRequestError, match=r"^temperature is 7"):
            await client.gather_chats([ChatRequest("GPT-5", "a"), "b"], model="GPT-5", temperature=7)
        with pytest.raises(InvalidRequestError, match="stream is True; OneLLM answers in one piece"):
            await client.gather_chats(["a"], model="GPT-5", stream=True)  # type: ignore[call-arg]
    assert len(echo.requests) == 0


@pytest.mark.parametrize("single", ["hello", b"hello", {"role": "user"}, Message.user("x"), ChatRequest("GPT-5", "x")])
async def test_a_single_prompt_is_not_taken_apart(single: object) -> None:
    echo = Echo()
    async with client_on(echo) as client:
        with pytest.raises(InvalidRequestError, match="which is a single"):
            await client.gather_chats(single, model="GPT-5")  # type: ignore[call-overload]
        with pytest.raises(InvalidRequestError, match="which is a single"):
            async for _ in client.iter_chats(single, model="GPT-5"):  # type: ignore[arg-type]
                pass
        with pytest.raises(InvalidRequestError, match="must be an"):
            await client.gather_chats(None, model="GPT-5")  # type: ignore[call-overload]
    assert len(echo.requests) == 0
    assert tasks() == 1


async def test_a_generator_that_raises_sends_nothing_of_a_gather() -> None:
    def prompts() -> Iterator[str]:
        yield "a"
        raise LookupError("no more")

    echo = Echo()
    async with client_on(echo) as client:
        with pytest.raises(LookupError, match="no more"):
            await client.gather_chats(prompts(), model="GPT-5")
    assert len(echo.requests) == 0


async def test_a_source_that_raises_midway_lets_what_was_drawn_finish() -> None:
    def prompts() -> Iterator[str]:
        yield from ("a", "b", "c")
        raise LookupError("no more")

    async def async_prompts() -> AsyncIterator[str]:
        for prompt in prompts():
            yield prompt

    for source in (prompts(), async_prompts()):
        seen = []
        async with client_on(Echo()) as client:
            with pytest.raises(LookupError, match="no more"):
                async for outcome in client.iter_chats(source, model="GPT-5"):
                    seen.append(outcome.unwrap().content)
        assert sorted(seen) == ["a", "b", "c"]
        assert tasks() == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AuthenticationError), (404, NotFoundError), (307, OneLLMError)],
)
@pytest.mark.parametrize("return_exceptions", [True, False])
async def test_a_failure_that_concerns_everybody_stops_a_fan_out_early(
    status: int, error: type[OneLLMError], return_exceptions: bool
) -> None:
    answered = 0 if status == 401 else 6  # a key that was accepted before is tried for ten seconds more
    async with FaultServer(*[answers()] * answered, answers(b"", f"{status} No")) as server:
        client = AsyncOneLLM(
            "key",
            base_url=server.url,
            limits=Limits.unlimited(max_concurrency=4),
            retry=RetryPolicy(breaker_failures=0),
        )
        async with client:
            with pytest.raises(error) as caught:
                await client.gather_chats(["x"] * 500, model="GPT-5", return_exceptions=return_exceptions)
        assert answered + 1 <= server.posts <= answered + 4
        outcomes = caught.value.partial_results
        assert len(outcomes) == server.posts
        assert sum(outcome.ok for outcome in outcomes) == answered  # type: ignore[attr-defined]
        indices = [outcome.index for outcome in outcomes]  # type: ignore[attr-defined]
        assert indices == sorted(indices)
        assert f"{server.posts} outcomes were already there" in str(caught.value)


async def test_an_empty_balance_stops_a_loop_after_its_outcomes() -> None:
    broke = answers(b'{"code":500,"output":{"output":"Insufficient balance, please topup"}}')
    async with FaultServer(*[answers()] * 6, broke) as server:
        client = AsyncOneLLM("key", base_url=server.url, limits=Limits.unlimited(max_concurrency=4))
        seen = []
        async with client:
            with pytest.raises(InsufficientBalanceError):
                async for outcome in client.iter_chats(["x"] * 500, model="GPT-5"):
                    seen.append(outcome)
        assert len(seen) == server.posts <= 10
        assert sum(outcome.ok for outcome in seen) == 6


async def test_the_first_failure_ends_a_gather_and_what_is_under_way_is_kept() -> None:
    echo = Echo()
    prompts = [*["fine"] * 20, "status 400", *["fine"] * 500]
    async with client_on(echo, concurrency=4) as client:
        with pytest.raises(BadRequestError) as caught:
            await client.gather_chats(prompts, model="GPT-5")
    assert 21 <= len(echo.requests) <= 28
    assert len(caught.value.partial_results) == len(echo.requests)
    assert sum(not outcome.ok for outcome in caught.value.partial_results) == 1  # type: ignore[attr-defined]


async def test_with_return_exceptions_a_failure_takes_its_place() -> None:
    prompts = ["a", "status 400", "b", "status 500", "c"]
    async with client_on(Echo()) as client:
        results = await client.gather_chats(prompts, model="GPT-5", return_exceptions=True)
    assert [type(result) for result in results] == [
        ChatResponse,
        BadRequestError,
        ChatResponse,
        InternalServerError,
        ChatResponse,
    ]
    assert [result.content for result in results if isinstance(result, ChatResponse)] == ["a", "b", "c"]


async def test_cancelling_a_gather_leaves_no_task_and_no_slot() -> None:
    echo = Echo()
    async with client_on(echo, concurrency=4) as client:
        gathering = asyncio.create_task(client.gather_chats(["hang"] * 50, model="GPT-5"))
        while echo.in_flight < 4:
            await asyncio.sleep(0)
        gathering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathering
        assert (tasks(), echo.in_flight) == (1, 0)
        assert client._sender._limiter.core.in_flight == 0
        assert len(await client.gather_chats(["x"] * 10, model="GPT-5")) == 10


async def test_there_are_never_more_tasks_than_the_window_has_places_and_one_that_reads() -> None:
    echo = Echo()
    async with client_on(echo, concurrency=5) as client:
        await client.gather_chats(["x"] * 200, model="GPT-5")
        async for _ in client.iter_chats((str(number) for number in range(200)), model="GPT-5"):
            pass
    assert echo.max_in_flight == 5
    assert echo.most_tasks <= 5 + 1 + 1


async def test_a_short_list_takes_no_more_tasks_than_prompts() -> None:
    echo = Echo()
    async with client_on(echo, concurrency=500) as client:
        await client.gather_chats(["x"] * 3, model="GPT-5")
    assert echo.most_tasks == 4


async def test_outcomes_are_yielded_as_they_come_with_their_prompts() -> None:
    echo = Echo()
    async with (
        client_on(echo, concurrency=3) as client,
        aclosing(client.iter_chats(["hang", "a", "status 400", "b"], model="GPT-5")) as outcomes,
    ):
        first_three = [await anext(outcomes) for _ in range(3)]
    assert sorted(outcome.index for outcome in first_three) == [1, 2, 3]
    assert {outcome.prompt for outcome in first_three} == {"a", "b", "status 400"}
    assert [outcome.ok for outcome in first_three].count(False) == 1
    assert (tasks(), echo.in_flight) == (1, 0)


async def test_a_prompt_refused_in_a_loop_has_its_error_in_its_outcome() -> None:
    echo = Echo()
    async with client_on(echo) as client:
        outcomes = [outcome async for outcome in client.iter_chats(["a", 5, "b"], model="GPT-5")]  # type: ignore[list-item]
    errors = {outcome.index: outcome.error for outcome in outcomes}
    assert isinstance(errors[1], InvalidRequestError)
    assert (errors[0], errors[2], len(echo.requests)) == (None, None, 2)


class Source:
    """An endless async source that counts what is drawn from it, and whether it was closed."""

    def __init__(self) -> None:
        self.drawn = 0
        self.closed = False

    async def prompts(self) -> AsyncIterator[str]:
        try:
            while True:
                await asyncio.sleep(0)
                self.drawn += 1
                yield f"prompt {self.drawn - 1}"
        finally:
            self.closed = True


async def test_leaving_a_loop_early_cancels_what_is_under_way_and_closes_the_source() -> None:
    source, echo = Source(), Echo()
    async with client_on(echo, concurrency=4) as client:
        async with aclosing(client.iter_chats(source.prompts(), model="GPT-5")) as outcomes:
            async for outcome in outcomes:
                if outcome.index >= 10:
                    break
        assert source.closed
        assert (tasks(), echo.in_flight) == (1, 0)
        assert source.drawn < 40
        assert client._sender._limiter.core.in_flight == 0


async def test_an_error_in_the_loops_body_closes_the_source_too() -> None:
    source, echo = Source(), Echo()
    async with client_on(echo, concurrency=4) as client:
        with pytest.raises(LookupError):
            async with aclosing(client.iter_chats(source.prompts(), model="GPT-5")) as outcomes:
                async for _ in outcomes:
                    raise LookupError
    assert source.closed
    assert tasks() == 1


async def test_cancelling_the_consumer_closes_the_source_and_ends_the_workers() -> None:
    source, echo = Source(), Echo()

    async def consume(client: AsyncOneLLM) -> None:
        async with aclosing(client.iter_chats(source.prompts(), model="GPT-5")) as outcomes:
            async for _ in outcomes:
                pass

    async with client_on(echo, concurrency=4) as client:
        consumer = asyncio.create_task(consume(client))
        while source.drawn < 20:
            await asyncio.sleep(0)
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert source.closed
        assert (tasks(), echo.in_flight) == (1, 0)


async def test_a_slow_consumer_holds_the_source_back() -> None:
    source, echo = Source(), Echo()
    async with (
        client_on(echo, concurrency=4) as client,
        aclosing(client.iter_chats(source.prompts(), model="GPT-5")) as outcomes,
    ):
        for consumed in range(1, 6):
            await anext(outcomes)
            for _ in range(200):
                await asyncio.sleep(0)
            assert source.drawn <= consumed + 2 * 4 + 1


async def test_a_slow_async_source_does_not_stop_answers_from_coming() -> None:
    gate = asyncio.Event()

    async def prompts() -> AsyncIterator[str]:
        yield "a"
        await gate.wait()
        yield "b"

    async with client_on(Echo()) as client, aclosing(client.iter_chats(prompts(), model="GPT-5")) as outcomes:
        assert (await anext(outcomes)).unwrap().content == "a"
        gate.set()
        assert (await anext(outcomes)).unwrap().content == "b"
        with pytest.raises(StopAsyncIteration):
            await anext(outcomes)


async def test_every_prompt_of_a_source_has_exactly_one_outcome() -> None:
    async with client_on(Echo(), concurrency=7) as client:
        seen = [outcome async for outcome in client.iter_chats((str(n) for n in range(1000)), model="GPT-5")]
    assert sorted(outcome.index for outcome in seen) == list(range(1000))
    assert all(outcome.unwrap().content == outcome.prompt == str(outcome.index) for outcome in seen)


async def test_eight_thousand_prompts_take_no_more_memory_than_a_thousand() -> None:
    async def peak(prompts: int) -> int:
        echo = Echo(turns=0)
        async with client_on(echo, concurrency=16) as client:
            source = (f"{number} " * 50 for number in range(prompts))
            gc.collect()
            tracemalloc.start()
            try:
                async for _ in client.iter_chats(source, model="GPT-5"):
                    echo.requests.clear()  # a fake transport keeps them all
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    asyncio.get_running_loop().set_debug(False)
    await peak(200)
    assert await peak(8_000) < await peak(1_000) + 200_000


async def test_progress_counts_done_failed_and_cost() -> None:
    seen: list[FanoutProgress] = []
    async with client_on(Echo()) as client:
        await client.gather_chats(
            ["a", "status 400", "b"], model="GPT-5", return_exceptions=True, on_progress=seen.append
        )
        assert [(step.done, step.total) for step in seen] == [(1, 3), (2, 3), (3, 3)]
        assert (seen[-1].failed, seen[-1].cost) == (1, pytest.approx(2 * (1.28 + 10.40) / 1e6))
        assert 0 <= seen[0].elapsed <= seen[-1].elapsed
        seen.clear()
        async for _ in client.iter_chats(iter(["a"]), model="GPT-5", on_progress=seen.append):
            pass
        assert [step.total for step in seen] == [None]


async def test_a_progress_callback_that_raises_is_logged_and_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    def broken(progress: FanoutProgress) -> None:
        raise LookupError("progress trouble")

    async with client_on(Echo()) as client:
        assert len(await client.gather_chats(["a"] * 50, model="GPT-5", on_progress=broken)) == 50
    assert caplog.text.count("LookupError: progress trouble") == 1
    assert caplog.messages[-1] == "on_progress raised 50 times in this fan-out; the first is logged above."
    assert tasks() == 1


async def test_closing_the_client_ends_a_fan_out() -> None:
    echo = Echo()
    client = client_on(echo, concurrency=2)
    gathering = asyncio.create_task(client.gather_chats(["x"] * 1000, model="GPT-5"))
    while len(echo.requests) < 10:
        await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(ClientClosedError) as caught:
        await gathering
    assert len(caught.value.partial_results) >= 8
    assert tasks() == 1


async def test_a_wrong_lane_stops_a_fan_out_before_anything_is_sent() -> None:
    echo = Echo()
    async with client_on(echo) as client:
        with pytest.raises(ConfigurationError, match="lane is 'slow'"):
            await client.gather_chats(["x"] * 100, model="GPT-5", lane="slow", return_exceptions=True)
    assert len(echo.requests) == 0


async def test_a_bug_in_a_transport_is_not_hidden_in_an_outcome() -> None:
    async with client_on(FakeTransport(ZeroDivisionError)) as client:
        with pytest.raises(ZeroDivisionError):
            await client.gather_chats(["x"] * 20, model="GPT-5", return_exceptions=True)
        assert client._sender._limiter.core.in_flight == 0
    assert tasks() == 1
