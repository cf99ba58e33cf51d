import json

import pytest
from aiohttp import web

from onellm_async import AsyncOneLLM
from onellm_async.server import LocalServer, Outcome, UpstreamBackend

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}


def choice(message, finish_reason="stop", **beside):
    return {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish_reason} | beside


@pytest.mark.parametrize(
    ("message", "finish_reason", "content", "beside"),
    [
        ({"content": None, "tool_calls": [CALL]}, "tool_calls", "", {"tool_calls": [CALL]}),
        ({"tool_calls": [CALL]}, "tool_calls", "", {"tool_calls": [CALL]}),
        ({"content": "Let me look.", "tool_calls": [CALL]}, "tool_calls", "Let me look.", {"tool_calls": [CALL]}),
        ({"content": None, "refusal": "I cannot help."}, "stop", "", {"refusal": "I cannot help."}),
        ({"content": None}, "content_filter", "", {}),
        ({"content": None}, "length", "", {}),
        ({}, "stop", "", {}),
        ({"content": "", "reasoning_content": "Hm."}, "stop", "", {"reasoning_content": "Hm."}),
        ({"content": [{"type": "text", "text": "Par"}, {"type": "text", "text": "is."}]}, "stop", "Paris.", {}),
        ({"content": ["Par", "is."]}, "stop", "Paris.", {}),
        ({"content": []}, "stop", "", {}),
        ({"content": {"type": "text", "text": "Paris."}}, "stop", "Paris.", {}),
        (
            {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Paris."}]},
            "stop",
            "Paris.",
            {"content_parts": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Paris."}]},
        ),
        ({"content": 5}, "stop", "", {"content_parts": 5}),
        ({"content": None, "function_call": {"name": "f"}}, "function_call", "", {"function_call": {"name": "f"}}),
    ],
)
async def test_complete_answer_is_delivered_whatever_it_holds(front, upstream, message, finish_reason, content, beside):
    upstream.says(choices=[choice(message, finish_reason)])
    asked = await front()
    status, _, reply = await asked.post()
    assert status == 200
    assert (reply["content"], reply["finish_reason"]) == (content, finish_reason)
    assert {name: reply[name] for name in beside} == beside
    assert ("content_parts" in reply) is ("content_parts" in beside)
    assert asked.ledger.outcomes == {Outcome.ANSWERED: 1}
    assert len(upstream.requests) == 1


async def test_every_field_beside_the_text_is_kept_and_replaces_none_of_the_replys_own(front, upstream):
    logprobs = {"content": [{"token": "Paris", "logprob": -0.1}]}
    upstream.says(
        choices=[choice({"content": "Paris.", "annotations": [], "refusal": None}, logprobs=logprobs)],
        system_fingerprint="fp",
        usage={"prompt_tokens": 21, "completion_tokens": 2, "total_tokens": 30, "prompt_tokens_details": {"cached": 9}},
    )
    _, _, reply = await (await front()).post()
    assert reply == {
        "provider": None,
        "model": "tiny-135m-instruct",
        "role": "assistant",
        "content": "Paris.",
        "usage": {"input_tokens": 21, "output_tokens": 2, "total_tokens": 30, "prompt_tokens_details": {"cached": 9}},
        "finish_reason": "stop",
        "id": "c1",
        "object": "chat.completion",
        "system_fingerprint": "fp",
        "logprobs": logprobs,
        "annotations": [],
    }


@pytest.mark.parametrize("dialect", ["documented", "backend"])
async def test_all_choices_that_were_paid_for_are_delivered(front, upstream, dialect):
    choices = [choice({"content": "first"}), choice({"content": "second"}) | {"index": 1}]
    upstream.says(choices=choices)
    asked = await front(dialect=dialect)
    _, _, reply = await asked.post(n=2)
    reply = reply.get("output", reply)
    assert upstream.body["n"] == 2
    assert reply["content"] == "first"
    assert reply["choices"] == choices


async def test_usage_of_several_choices_that_nobody_counted_is_estimated_for_all(front, upstream):
    upstream.says(choices=[choice({"content": "abcd"}), choice({"content": "efgh"}) | {"index": 1}], usage=None)
    _, _, reply = await (await front()).post(n=2)
    assert reply["usage"] == {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


async def test_borrowed_name_makes_neither_a_provider_nor_a_price(front, upstream):
    asked = await front()
    _, _, reply = await asked.post(model="GPT-5")
    assert (reply["provider"], reply["model"]) == (None, "tiny-135m-instruct")
    assert (asked.ledger.billed, asked.ledger.billed_usd, asked.ledger.output_tokens) == (1, 0.0, 2)


async def test_client_of_a_front_does_not_price_a_borrowed_name(upstream):
    async with (
        LocalServer(backend=UpstreamBackend(upstream.origin)) as server,
        AsyncOneLLM("any", base_url=server.url) as client,
    ):
        response = await client.chat("Capital of France?", model="GPT-5-Mini")
    assert (response.content, response.provider, response.cost) == ("Paris.", None, None)
    assert response.usage.total_tokens == 23


async def test_provider_that_the_upstream_names_is_passed_on(front, upstream):
    upstream.says(provider="DeepInfra")
    _, _, reply = await (await front()).post()
    assert reply["provider"] == "DeepInfra"


@pytest.mark.parametrize("asked_for", [None, "smollm2"])
async def test_model_that_the_upstream_does_not_name_is_the_one_it_was_asked_for(front, upstream, asked_for):
    upstream.says(model=5, choices=[choice({"content": "x"}, ["stop"])])
    _, _, reply = await (await front(model=asked_for)).post(model="GPT-5-Mini")
    assert (reply["model"], reply["finish_reason"]) == (asked_for or "GPT-5-Mini", None)


async def test_key_that_an_answer_repeats_does_not_reach_the_client(front, upstream):
    key = "sk-0123456789/abcdefghij"
    upstream.answer = lambda: web.Response(
        body=json.dumps(upstream.completion).replace("Paris.", f"Bearer {key} or {key}".replace("/", "\\/")).encode()
    )
    _, _, reply = await (await front(key=key)).post()
    assert reply["content"] == "Bearer *** or ***"


async def test_word_that_serves_as_a_key_is_no_secret_in_an_answer(front, upstream):
    upstream.says(choices=[choice({"content": "Use ollama."})])
    _, _, reply = await (await front(key="ollama")).post()
    assert reply["content"] == "Use ollama."


async def test_answer_nested_too_deeply_to_be_passed_on_is_told_as_such(front, upstream):
    deep = "[" * 900 + "]" * 900
    upstream.answer = lambda: web.Response(
        body=json.dumps(upstream.completion).replace('"index": 0', f'"index": 0, "deep": {deep}').encode()
    )
    asked = await front()
    status, _, reply = await asked.post()
    assert status in {200, 502}
    if status == 502:
        assert "without a chat reply" in reply["error"]
        assert asked.ledger.outcomes == {Outcome.POSSIBLY_BILLED: 1}
