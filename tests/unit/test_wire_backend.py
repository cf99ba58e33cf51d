"""The dialect of the published backend through the whole client."""

from collections.abc import Mapping
from typing import Any

import pytest

from onellm_async import AsyncOneLLM, ConfigurationError, Conversation, InvalidRequestError, Limits
from onellm_async.testing import FakeTransport


def recording() -> FakeTransport:
    return FakeTransport({"code": 200, "output": {"content": "x"}})


def bodies(transport: FakeTransport) -> list[Mapping[str, Any]]:
    return [request.fields for request in transport.requests]


def client_of(transport: FakeTransport, **settings: object) -> AsyncOneLLM:
    return AsyncOneLLM(transport=transport, limits=Limits.unlimited(), dialect="backend", **settings)  # type: ignore[arg-type]


async def test_an_instruction_reaches_every_provider_also_in_a_conversation() -> None:
    async with client_of(transport := recording()) as client:
        for model in ("GPT-5-Mini", "Sonnet-4", "2.0-Flash", "DeepSeek-Chat", "Codestral"):
            conversation = Conversation(client, model=model, system="In German.")
            await conversation.say("Hi")
            await conversation.say("Bye")
    firsts = [body["messages"][0] for body in bodies(transport)]
    told = {"role": "system", "content": "In German."}
    assert firsts[0] == firsts[1] == firsts[6] == firsts[7] == firsts[8] == firsts[9] == told
    assert [body.get("system") for body in bodies(transport)[2:4]] == ["In German."] * 2
    assert firsts[4] == firsts[5] == {"role": "user", "content": "In German.\n\nHi"}
    assert [message["role"] for message in bodies(transport)[5]["messages"]] == ["user", "model", "user"]


async def test_endpoints_are_used_by_chats_and_fan_outs() -> None:
    async with client_of(transport := recording(), endpoints={"OpenAI": "http://a", "Claude": "http://b"}) as client:
        await client.chat("x", model="GPT-5-Mini")
        await client.gather_chats(["x"], model="Sonnet-4")
        await client.chat("x", model="Sonnet-4", extra={"endpoint": "http://c"})
    assert [body["endpoint"] for body in bodies(transport)] == ["http://a", "http://b", "http://c"]


async def test_a_model_that_the_catalog_lacks_is_asked_where_one_endpoint_is_given() -> None:
    async with client_of(transport := recording(), endpoints={"OpenAI": "http://a"}) as client:
        await client.gather_chats(["x"], model="smollm2")
    async with client_of(transport) as client:
        with pytest.raises(InvalidRequestError, match="smollm2"):
            await client.gather_chats(["x"], model="smollm2")
    assert [body["endpoint"] for body in bodies(transport)] == ["http://a"]


@pytest.mark.parametrize("endpoints", [{"Groq": "http://a"}, {"OpenAI": "a"}, "http://a", {"OpenAI": None}])
def test_endpoints_that_cannot_be_used_are_refused_when_the_client_is_made(endpoints: object) -> None:
    with pytest.raises(ConfigurationError):
        client_of(recording(), endpoints=endpoints)


def test_endpoints_are_refused_in_the_dialect_that_has_none() -> None:
    with pytest.raises(ConfigurationError, match="no effect in the documented dialect"):
        AsyncOneLLM(transport=recording(), endpoints={"OpenAI": "http://a"})


async def test_a_field_that_cannot_arrive_is_logged_once_for_a_client(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        async with client_of(recording()) as client:
            await client.gather_chats(["x"] * 3, model="Sonnet-4", seed=1, tools=[], top_k=1)
    assert [record.message for record in caplog.records] == [
        "The backend does not forward tools to Anthropic: it has no effect there.",
        "The backend does not forward seed to Anthropic: it has no effect there.",
    ] * 2
    assert {record.name for record in caplog.records} == {"onellm_async"}


async def test_the_documented_dialect_loses_no_field(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncOneLLM(transport=recording(), limits=Limits.unlimited()) as client:
        await client.chat("x", model="Sonnet-4", seed=1, system="S")
    assert caplog.records == []
