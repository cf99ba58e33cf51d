"""LangChain's own contract for chat models, against the local server. Run by ``nox -s integrations``."""

import json
import os
from typing import ClassVar

import pytest
from langchain_core.messages import ToolMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel

from onellm_async import InvalidRequestError, Limits
from onellm_async.integrations.langchain import ChatOneLLM
from onellm_async.server import ServerSettings
from onellm_async.testing import ThreadedServer

FAST = Limits(requests_per_minute=60_000, burst=1000)


class Joke(BaseModel):
    setup: str
    punchline: str


def reply_to(prompt):
    """The words of the prompt, or a JSON value where the instruction asks for one."""
    return json.dumps({"setup": "Why?", "punchline": "Because."}) if "joke" in prompt.lower() else prompt


@pytest.fixture(scope="session", autouse=True)
def server():
    with ThreadedServer(ServerSettings(requests_per_minute=60_000, burst=1000), answers=reply_to) as server:
        os.environ["ONELLM_API_KEY"], os.environ["ONELLM_BASE_URL"] = "local", server.url
        yield server


class TestUnit(ChatModelUnitTests):
    chat_model_class = ChatOneLLM
    chat_model_params: ClassVar = {"model": "GPT-5-Nano", "limits": FAST}

    @property
    def init_from_env_params(self):
        environment = {"ONELLM_API_KEY": "sk-of-the-environment", "ONELLM_BASE_URL": "http://127.0.0.1:1/api"}
        return (
            environment,
            {"model": "GPT-5-Nano"},
            {"api_key": "sk-of-the-environment", "base_url": "http://127.0.0.1:1/api"},
        )


class TestIntegration(ChatModelIntegrationTests):
    chat_model_class = ChatOneLLM
    chat_model_params: ClassVar = {"model": "GPT-5-Nano", "limits": FAST}
    has_structured_output = True
    supports_json_mode = True
    model_override_value = "GPT-5"


def test_an_answer_has_its_cost_and_its_provider():
    reply = ChatOneLLM(model="GPT-5-Nano", limits=FAST).invoke("What is a prime?")
    assert reply.content == "What is a prime?"
    assert reply.response_metadata["model_name"] == "GPT-5-Nano"
    assert reply.response_metadata["cost"] > 0
    assert reply.usage_metadata["output_tokens"] > 0


def test_models_with_one_key_share_a_client_and_its_limit():
    one, two = (ChatOneLLM(model=model, limits=FAST) for model in ("GPT-5-Nano", "GPT-5"))
    assert one.client() is two.client()
    assert ChatOneLLM(model="GPT-5", limits=Limits()).client() is not one.client()


def test_tools_are_refused_unsent():
    llm = ChatOneLLM(model="GPT-5-Nano", limits=FAST)
    with pytest.raises(NotImplementedError):
        llm.bind_tools([Joke])
    with pytest.raises(InvalidRequestError, match="ToolMessage"):
        llm.invoke([ToolMessage("4", tool_call_id="1")])
    with pytest.raises(InvalidRequestError, match="Tools are given"):
        llm.invoke("x", tools=[{"type": "function"}])


def test_a_value_of_a_schema_is_returned_with_or_without_the_raw_answer():
    llm = ChatOneLLM(model="GPT-5-Nano", limits=FAST)
    assert llm.with_structured_output(Joke).invoke("Tell a joke.") == Joke(setup="Why?", punchline="Because.")
    both = llm.with_structured_output(Joke, include_raw=True).invoke("Tell a joke.")
    assert both["parsed"] == Joke(setup="Why?", punchline="Because.")
    assert both["raw"].response_metadata["corrections"] == 0


def test_the_key_is_shown_nowhere():
    llm = ChatOneLLM(model="GPT-5-Nano", api_key="sk-canary")
    assert "sk-canary" not in repr(llm) + str(llm) + json.dumps(llm._identifying_params, default=str)
