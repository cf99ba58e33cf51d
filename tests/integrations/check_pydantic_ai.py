"""Agents of pydantic-ai against the local server. Run by ``nox -s integrations``."""

import asyncio
import json
import threading

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelSettings, UserError
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models import override_allow_model_requests
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel

from onellm_async import AsyncOneLLM, Limits, OneLLM
from onellm_async.integrations.pydantic_ai import OneLLMModel
from onellm_async.server import ServerSettings
from onellm_async.testing import FakeTransport, ThreadedServer, answer, failure

FAST = Limits(requests_per_minute=60_000, burst=1000)


class Order(BaseModel):
    drink: str
    cups: int


@pytest.fixture
def client():
    with (
        ThreadedServer(ServerSettings(requests_per_minute=60_000, burst=1000)) as server,
        OneLLM("local", base_url=server.url, limits=FAST) as client,
    ):
        yield client


def faked(replies):
    transport = FakeTransport(replies)
    return transport, AsyncOneLLM(transport=transport, limits=FAST)


def test_text_and_history(client):
    agent = Agent(OneLLMModel("GPT-5-Nano", client=client), instructions="Be brief.")
    first = agent.run_sync("What is a prime?")
    assert first.output == "What is a prime?"
    assert first.usage.output_tokens > 0
    second = agent.run_sync("Is 51 one?", message_history=first.all_messages())
    assert second.output == "Is 51 one?"
    details = second.all_messages()[-1].provider_details
    assert (details["attempts"], details["possibly_billed"]) == (1, 0)
    assert details["cost"] > 0


async def test_what_is_sent_is_the_instruction_the_history_and_the_settings():
    transport, client = faked(answer("ok"))
    async with client:
        agent = Agent(OneLLMModel("GPT-5-Nano", client=client), instructions="Be brief.", system_prompt="Be kind.")
        first = await agent.run("One")
        await agent.run("Two", message_history=first.all_messages(), model_settings=ModelSettings(temperature=0.5))
    sent = transport.requests[-1].fields
    assert sent["system"] == "Be brief."
    assert [turn["role"] for turn in sent["messages"]] == ["system", "user", "assistant", "user"]
    assert sent["temperature"] == 0.5


async def test_a_value_is_corrected_once_and_both_requests_are_counted():
    replies = [answer("no"), answer(json.dumps({"drink": "tea", "cups": 2}))]
    transport, client = faked(replies)
    async with client:
        result = await Agent(OneLLMModel("GPT-5-Nano", client=client), output_type=Order).run("Two teas")
    assert result.output == Order(drink="tea", cups=2)
    assert result.usage.requests == 2
    assert transport.requests[0].fields["response_format"] == {"type": "json_object"}


async def test_a_stream_is_the_answer_in_one_piece():
    _, client = faked(answer("all of it"))
    async with client, Agent(OneLLMModel("GPT-5-Nano", client=client)).run_stream("x") as result:
        assert [text async for text in result.stream_text()] == ["all of it"]


async def test_tools_and_files_are_refused_unsent():
    transport, client = faked(answer("x"))
    async with client:
        model = OneLLMModel("GPT-5-Nano", client=client)
        agent = Agent(model)
        agent.tool_plain(lambda: "4", name="four")
        with pytest.raises(UserError):
            await agent.run("x")
        with pytest.raises(UserError):
            await Agent(model).run(["look", BinaryContent(b"1", media_type="image/png")])
        with override_allow_model_requests(False), pytest.raises(RuntimeError):
            await Agent(model).run("x")
    assert transport.requests == []


async def test_a_failure_lets_a_fallback_model_go_on():
    _, client = faked(failure(422, "No such model."))
    async with client:
        model = OneLLMModel("GPT-5-Nano", client=client)
        with pytest.raises(ModelHTTPError, match="422"):
            await Agent(model).run("x")
        result = await Agent(FallbackModel(model, TestModel(custom_output_text="other"))).run("x")
    assert result.output == "other"


def test_threads_and_loops_share_one_client(client):
    agent, outputs = Agent(OneLLMModel("GPT-5-Nano", client=client)), []
    threads = [threading.Thread(target=lambda n=n: outputs.append(agent.run_sync(f"{n}").output)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outputs.append(asyncio.run(agent.run("4")).output)
    assert sorted(outputs) == ["0", "1", "2", "3", "4"]
