"""The plugin of ``llm`` against the local server, as its users call it. Run by ``nox -s integrations``."""

import json
import os
import subprocess
import sys

import llm
import pytest

from onellm_async.catalog import entries
from onellm_async.server import ServerSettings
from onellm_async.testing import ThreadedServer


@pytest.fixture
def run(tmp_path):
    def reply(prompt):
        return '{"name": "Rex", "age": 3}' if "dog" in prompt else prompt

    with ThreadedServer(ServerSettings(requests_per_minute=60_000, burst=1000), answers=reply) as server:
        environment = {
            **os.environ,
            "ONELLM_API_KEY": "local",
            "ONELLM_BASE_URL": server.url,
            "LLM_USER_PATH": str(tmp_path),
        }

        def run(*arguments):
            command = [sys.executable, "-m", "llm", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        yield run


def test_every_model_of_the_catalog_is_listed(run):
    listed = run("models")
    assert all(f"onellm/{entry.name}" in listed for entry in entries())


def test_a_prompt_is_answered_with_options_and_logged_with_its_tokens(run):
    asked = ["-m", "onellm/GPT-5-Nano", "What is a prime?", "-s", "Be brief.", "-o", "temperature", "0.3"]
    assert run(*asked) == "What is a prime?"
    (logged,) = json.loads(run("logs", "--json"))
    assert logged["input_tokens"] > 0
    assert logged["response_json"]["cost"] > 0


def test_a_conversation_is_continued(run):
    run("-m", "onellm/GPT-5-Nano", "One")
    assert run("-c", "Two") == "Two"


def test_asyncio_and_schemas(run):
    assert run("-m", "onellm/GPT-5-Nano", "--async", "Hello") == "Hello"
    value = run("-m", "onellm/GPT-5-Nano", "Invent a dog", "--schema", "name, age int")
    assert json.loads(value) == {"name": "Rex", "age": 3}


def test_a_key_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("ONELLM_API_KEY", raising=False)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    with pytest.raises(llm.NeedsKeyException, match="onellm"):
        llm.get_model("onellm/GPT-5-Nano").prompt("x").text()


def test_the_plugin_does_not_import_the_client():
    code = "import onellm_async.integrations._llm, sys; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
