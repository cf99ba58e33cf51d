"""The fake transport replies as it is told, and records what it was sent."""

import asyncio
from typing import Any

import pytest

from onellm_async import (
    APIConnectionError,
    APITimeoutError,
    AsyncOneLLM,
    BadRequestError,
    ChatResponse,
    InternalServerError,
    Limits,
    RetryPolicy,
    UnprocessableEntityError,
    Usage,
)
from onellm_async.testing import FakeReply, FakeRequest, FakeTransport, answer, failure, hang
from onellm_async.transport import RawReply

pytestmark = pytest.mark.virtual_time


def client_on(transport: FakeTransport, **settings: Any) -> AsyncOneLLM:
    return AsyncOneLLM(transport=transport, **{"limits": Limits.unlimited(), **settings})


async def chat(client: AsyncOneLLM, prompt: str = "Hi", **options: Any) -> ChatResponse:
    return await client.chat(prompt, model="GPT-5-Nano", **options)


async def test_without_a_script_it_echoes_the_prompt_in_a_complete_reply() -> None:
    async with client_on(FakeTransport()) as client:
        reply = await chat(client, "Hello?")
    assert (reply.content, reply.model, reply.provider) == ("Hello?", "GPT-5-Nano", "OpenAI")
    assert (reply.role, reply.finish_reason) == ("assistant", "stop")
    assert reply.usage is not None
    assert reply.usage.output_tokens == 2
    assert reply.cost


async def test_a_script_is_followed_step_by_step_and_its_last_step_repeats() -> None:
    transport = FakeTransport([429, 500, APIConnectionError("reset"), "Paris."])
    async with client_on(transport) as client:
        reply = await chat(client)
        again = await chat(client)
    assert (reply.content, reply.attempts, again.content) == ("Paris.", 3, "Paris.")
    assert [request.number for request in transport.requests] == [1, 2, 3, 4, 5]


async def test_the_replies_can_change_while_requests_are_in_flight() -> None:
    transport = FakeTransport("before", delay=2)
    async with client_on(transport) as client:
        running = asyncio.create_task(chat(client))
        await asyncio.sleep(1)
        transport.set_replies(["after", "later"])
        assert (await chat(client)).content == "after"
        assert (await running).content == "before"
        assert (await chat(client)).content == "later"


async def test_one_reply_is_given_to_every_request() -> None:
    async with client_on(FakeTransport("Paris.")) as client:
        assert [each.content for each in await client.gather_chats(["a", "b"], model="GPT-5")] == ["Paris."] * 2


async def test_a_function_decides_by_the_request_and_may_be_a_coroutine() -> None:
    def shout(request: FakeRequest) -> str:
        return request.prompt.upper()

    async def wait(request: FakeRequest) -> str:
        await asyncio.sleep(3)
        return f"{request.number} {request.model}"

    async with client_on(FakeTransport(shout)) as client:
        assert (await chat(client)).content == "HI"
    async with client_on(FakeTransport(wait)) as client:
        assert (await chat(client)).content == "1 GPT-5-Nano"
    assert asyncio.get_running_loop().time() == 3


async def test_requests_are_recorded_decoded() -> None:
    transport = FakeTransport(delay=0.5)
    async with client_on(transport) as client:
        await chat(client, "One", max_tokens=5)
        await chat(client, "Two", system="Be brief.")
        assert not transport.closed
    first, second = transport.requests
    assert (first.prompt, first.at, first.fields["max_tokens"]) == ("One", 0.0, 5)
    assert (second.at, second.fields["system"]) == (0.5, "Be brief.")
    assert second.messages == [{"role": "user", "content": "Two"}]
    assert b"Be brief." in second.body
    assert transport.prompts == ["One", "Two"]
    assert transport.closed


async def test_requests_in_flight_are_counted() -> None:
    transport = FakeTransport(delay=1)
    async with client_on(transport, limits=Limits.unlimited(3)) as client:
        running = asyncio.create_task(client.gather_chats(["x"] * 10, model="GPT-5"))
        await asyncio.sleep(0.5)
        assert transport.in_flight == 3
        await running
    assert (transport.in_flight, transport.max_in_flight) == (0, 3)


async def test_a_delay_of_a_reply_replaces_that_of_the_transport() -> None:
    transport = FakeTransport([answer("slow", delay=7), failure(429, delay=0), "usual"], delay=2)
    loop = asyncio.get_running_loop()
    async with client_on(transport) as client:
        await chat(client)
        assert loop.time() == 7
        await chat(client)
    assert transport.requests[2].at == pytest.approx(7, abs=1)
    assert loop.time() == transport.requests[2].at + 2


async def test_a_failure_has_a_status_a_text_and_headers() -> None:
    transport = FakeTransport([failure(429, "Slow down.", headers={"Retry-After": "70"}), "there"])
    async with client_on(transport) as client:
        assert (await chat(client)).content == "there"
    assert transport.requests[1].at >= 70
    async with client_on(FakeTransport(failure(422, "No such model."))) as client:
        with pytest.raises(UnprocessableEntityError, match=r"422 No such model\."):
            await chat(client)
    async with client_on(FakeTransport(400)) as client:
        with pytest.raises(BadRequestError, match="400 Bad Request"):
            await chat(client)
    async with client_on(FakeTransport(599), retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(InternalServerError, match="Status 599"):
            await chat(client)


async def test_an_error_is_raised_anew_for_each_request() -> None:
    error = APIConnectionError("reset")
    transport = FakeTransport(FakeReply(error=error, delay=1))
    async with client_on(transport, retry=RetryPolicy(max_attempts=1)) as client:
        found = await asyncio.gather(chat(client), chat(client), return_exceptions=True)
    assert found[0] is not found[1]
    assert all(isinstance(each, APIConnectionError) and each.possibly_billed == 1 for each in found)
    assert error.possibly_billed == 0


async def test_a_class_of_errors_is_raised_too() -> None:
    async with client_on(FakeTransport(ZeroDivisionError)) as client:
        with pytest.raises(ZeroDivisionError):
            await chat(client)


async def test_a_request_that_hangs_ends_when_it_is_cancelled() -> None:
    transport = FakeTransport([hang(), "back"])
    async with client_on(transport) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await chat(client)
        assert transport.in_flight == 0
        assert (await chat(client)).content == "back"


async def test_json_values_of_the_package_and_raw_replies_are_sent_as_they_are() -> None:
    refusal = {"content": None, "refusal": "No.", "finish_reason": "content_filter"}
    whole = ChatResponse("x", "gpt", "OpenAI", "assistant", Usage(1, 2, 3), "length", extra={"reasoning": "…"})
    transport = FakeTransport([refusal, whole, RawReply(200, {}, b'{"content":"raw"}'), answer("y", usage=Usage(7))])
    async with client_on(transport) as client:
        refused, complete, raw, counted = [await chat(client) for _ in range(4)]
    assert (refused.content, refused.extra["refusal"]) == ("", "No.")
    assert (complete.content, complete.model, complete.usage) == ("x", "gpt", Usage(1, 2, 3))
    assert (complete.finish_reason, complete.extra) == ("length", {"reasoning": "…"})
    assert (raw.content, raw.usage) == ("raw", None)
    assert counted.usage == Usage(7)


async def test_the_dialect_of_the_backend_is_recorded_like_the_documented_one() -> None:
    transport = FakeTransport()
    async with client_on(transport, dialect="backend") as client:
        assert (await chat(client, "Hello?")).content == "Hello?"
    assert transport.requests[0].fields["endpoint"]


async def test_a_timeout_can_be_raised_like_any_other_error() -> None:
    transport = FakeTransport([FakeReply(error=APITimeoutError("too slow"), delay=30), "there"])
    async with client_on(transport) as client:
        reply = await chat(client)
    assert (reply.content, reply.possibly_billed) == ("there", 1)


@pytest.mark.parametrize("wrong", [None, 1.5, True, object()], ids=["none", "float", "bool", "object"])
async def test_what_is_no_reply_is_rejected_with_what_may_be_one(wrong: Any) -> None:
    with pytest.raises(TypeError, match="it must be a text, a status"):
        FakeTransport(["fine", wrong])
    async with client_on(FakeTransport(lambda request: wrong)) as client:
        with pytest.raises(TypeError, match="it must be a text, a status"):
            await chat(client)


def test_an_empty_script_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one reply"):
        FakeTransport([])


async def test_an_answer_may_be_cut_off_or_empty_and_name_its_model() -> None:
    transport = FakeTransport(
        [
            answer("The fir", finish_reason="length"),
            answer("", finish_reason="content_filter"),
            answer("Hi", model="Mistral-Large", provider="Elsewhere", finish_reason=None),
        ]
    )
    async with client_on(transport) as client:
        cut, empty, named = [await chat(client) for _ in range(3)]
    assert (cut.content, cut.finish_reason, cut.model) == ("The fir", "length", "GPT-5-Nano")
    assert (empty.content, empty.finish_reason) == ("", "content_filter")
    assert (named.model, named.provider, named.finish_reason) == ("Mistral-Large", "Elsewhere", None)


@pytest.mark.parametrize("wrong", [{"content": None}, {"content": 5}, {"finish_reason": 5}, {"model": b"x"}])
async def test_an_answer_of_other_types_is_refused_when_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="it must be a string"):
        answer(**{"content": "a", **wrong})


@pytest.mark.parametrize("status", [0, 5, 99, 1000, -500, True, "500", 500.0])
async def test_a_number_that_is_no_status_is_refused_when_it_is_given(status: Any) -> None:
    with pytest.raises(ValueError, match="must be an HTTP status"):
        failure(status)
    if type(status) is int:
        with pytest.raises(ValueError, match="must be an HTTP status"):
            FakeTransport(["a", status])
