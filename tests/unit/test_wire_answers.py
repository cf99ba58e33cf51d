"""Complete replies through the whole client: one request each, nothing at risk, nothing of the reply lost."""

import asyncio
import logging

import pytest

from onellm_async import APIError, AsyncOneLLM, BadRequestError, ChatResponse, Limits, ResponseDecodeError, RetryPolicy
from onellm_async.chat import JSON
from onellm_async.testing import FakeTransport, failure
from onellm_async.transport import RawReply
from onellm_async.wire import dump_json

REPLY = {
    "provider": "OpenAI",
    "model": "gpt-5-mini",
    "role": "assistant",
    "content": "Paris.",
    "usage": {"input_tokens": 12, "output_tokens": 8, "total_tokens": 20},
    "finish_reason": "stop",
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
PARTS = [{"type": "text", "text": "Par"}, {"type": "text", "text": "is."}, {"type": "image_url", "image_url": {}}]


def openai(message: dict[str, JSON], finish_reason: str = "stop") -> dict[str, JSON]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-5-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20},
    }


def replying(body: JSON) -> FakeTransport:
    return FakeTransport(RawReply(200, {}, dump_json(body)))


def client_of(transport: FakeTransport) -> AsyncOneLLM:
    return AsyncOneLLM(transport=transport, limits=Limits.unlimited(), retry=RetryPolicy(backoff_base=0.0))


ANSWERS: dict[str, tuple[dict[str, JSON], str, dict[str, JSON]]] = {
    "tool calls": (
        REPLY | {"content": None, "finish_reason": "tool_calls", "tool_calls": [CALL]},
        "",
        {"tool_calls": [CALL]},
    ),
    "cut off": (REPLY | {"content": None, "finish_reason": "length"}, "", {}),
    "filtered": (REPLY | {"content": None, "finish_reason": "content_filter"}, "", {}),
    "empty": (REPLY | {"content": ""}, "", {}),
    "refusal": (REPLY | {"content": None, "refusal": "No."}, "", {"refusal": "No."}),
    "thoughts": (
        REPLY | {"content": None, "reasoning": "Hm", "function_call": {"name": "f"}},
        "",
        {"reasoning": "Hm", "function_call": {"name": "f"}},
    ),
    "parts": (REPLY | {"content": PARTS}, "Paris.", {"content": PARTS}),
    "OpenAI": (openai({"content": "Paris."}), "Paris.", {"id": "chatcmpl-1", "object": "chat.completion"}),
    "OpenAI with tool calls": (
        openai({"content": None, "tool_calls": [CALL]}, "tool_calls"),
        "",
        {"id": "chatcmpl-1", "object": "chat.completion", "tool_calls": [CALL]},
    ),
}


@pytest.mark.parametrize("enveloped", [False, True], ids=["flat", "envelope"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_a_complete_answer_takes_one_request_and_keeps_all_that_was_paid_for(name: str, enveloped: bool) -> None:
    body, content, extra = ANSWERS[name]
    transport = replying({"code": 200, "output": body} if enveloped else body)
    async with client_of(transport) as client:
        response = await client.chat("Capital of France?", model="GPT-5-Mini")
        assert len(transport.requests) == 1
        gathered = await client.gather_chats(["x"] * 8, model="GPT-5-Mini")
    assert len(transport.requests) == 9
    finish_reason = body.get("finish_reason") or body["choices"][0]["finish_reason"]
    for answer in [response, *gathered]:
        assert isinstance(answer, ChatResponse)
        assert (answer.content, answer.extra, answer.finish_reason) == (content, extra, finish_reason)
        assert (answer.attempts, answer.possibly_billed, answer.role) == (1, 0, "assistant")
        assert answer.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (12, 8, 20)
        assert answer.cost is not None


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ({"error": {"message": "too long", "code": 400}}, BadRequestError, "400 too long."),
        ({"code": 200, "output": {"error": {"message": "too long", "code": 400}}}, BadRequestError, "400 too long."),
        ({"error": "crashed"}, ResponseDecodeError, "holds an error: crashed."),
        ({"message": "Welcome"}, ResponseDecodeError, "It says: Welcome."),
    ],
)
async def test_a_complete_reply_that_is_no_answer_is_asked_for_once(
    body: JSON, error: type[APIError], message: str
) -> None:
    async with client_of(transport := replying(body)) as client:
        with pytest.raises(error) as caught:
            await client.chat("x", model="GPT-5-Mini")
    assert message in caught.value.message
    assert len(transport.requests) == 1
    assert caught.value.possibly_billed == (error is ResponseDecodeError)


async def test_the_shape_of_openai_is_logged_once_for_a_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "onellm_async")
    async with client_of(replying(openai({"content": "Paris."}))) as client:
        await client.gather_chats(["x"] * 3, model="GPT-5-Mini")
    assert [record.name for record in caplog.records if "serve --upstream" in record.message] == ["onellm_async"]


async def test_an_error_that_repeats_the_prompt_is_taken_by_its_status() -> None:
    body = {"code": 500, "output": {"error": "cannot answer: insufficient balance"}}
    async with client_of(transport := replying(body)) as client:
        with pytest.raises(APIError, match="500 cannot answer") as caught:
            await client.chat("What is an Insufficient Balance?", model="GPT-5-Mini")
    assert caught.value.retryable
    assert len(transport.requests) > 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("status", [429, 503, 408])
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "1.5"}, 1.5),
        ({"retry-after-ms": "2500"}, 2.5),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "1e999"}, 0.0),
    ],
)
async def test_a_retry_after_with_a_fraction_is_waited_for(status: int, headers: dict[str, str], wait: float) -> None:
    loop = asyncio.get_running_loop()
    transport = FakeTransport([failure(status, headers=headers), REPLY])
    async with AsyncOneLLM(transport=transport, limits=Limits(requests_per_minute=6000, burst=100)) as client:
        response = await client.chat("x", model="GPT-5-Mini")
    assert wait <= loop.time() < wait + 1
    assert len(transport.requests) == 2
    assert response.possibly_billed == (status != 429)
