"""The server in a thread serves code with any event loop, or with none."""

import asyncio
import os
import subprocess
import sys
import threading
import urllib.request
from typing import Any

import pytest

from onellm_async import (
    APIStatusError,
    AsyncOneLLM,
    AuthenticationError,
    RetryPolicy,
    UnprocessableEntityError,
)
from onellm_async.server import BackendError, EchoBackend, ServerSettings
from onellm_async.testing import ThreadedServer, answer, failure


async def ask(server: ThreadedServer, *prompts: str, key: str = "any") -> list[str]:
    async with AsyncOneLLM(key, base_url=server.url, retry=RetryPolicy(max_attempts=1)) as client:
        return [(await client.chat(prompt, model="GPT-5-Nano")).content for prompt in prompts]


def test_it_serves_one_event_loop_after_the_other_and_code_without_any() -> None:
    with ThreadedServer() as server:
        assert asyncio.run(ask(server, "a")) == ["a"]
        assert asyncio.run(ask(server, "b")) == ["b"]
        assert [row.prompt for row in server.ledger.rows] == ["a", "b"]
        with urllib.request.urlopen(f"{server.origin}/healthz") as page:  # noqa: S310
            assert b"ok" in page.read()
    assert not [thread for thread in threading.enumerate() if thread.name == "onellm-async-server"]


async def test_it_serves_the_loop_of_an_asynchronous_test() -> None:
    with ThreadedServer() as server:
        assert await ask(server, "a") == ["a"]


def test_it_has_no_rate_limit_unless_it_is_given_one() -> None:
    with ThreadedServer() as server:
        asyncio.run(ask(server, *map(str, range(45))))
    assert server.ledger.received == server.ledger.billed == 45


def test_answers_come_from_a_mapping_or_a_function() -> None:
    with ThreadedServer(answers={"2 + 2?": "4"}) as server:
        assert asyncio.run(ask(server, "2 + 2?", "Hello?")) == ["4", "Hello?"]
    with ThreadedServer(answers=str.upper) as server:
        assert asyncio.run(ask(server, "hello?")) == ["HELLO?"]


def test_a_function_may_fail_as_a_backend_may() -> None:
    def fail(prompt: str) -> str:
        raise BackendError("overloaded", status=503)

    with ThreadedServer(answers=fail) as server, pytest.raises(Exception, match="503 overloaded"):
        asyncio.run(ask(server, "a"))


def test_answers_and_a_backend_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="both given"):
        ThreadedServer(answers={}, backend=EchoBackend())


def test_a_key_is_revoked_before_or_while_it_runs() -> None:
    server = ThreadedServer()
    server.revoke("early")
    with server:
        with pytest.raises(AuthenticationError):
            asyncio.run(ask(server, "a", key="early"))
        assert asyncio.run(ask(server, "a", key="late")) == ["a"]
        server.revoke("late")
        with pytest.raises(AuthenticationError):
            asyncio.run(ask(server, "a", key="late"))


def test_other_programs_reach_it() -> None:
    source = "import asyncio, onellm_async as o\nasync def main():\n    async with o.AsyncOneLLM() as client:\n"
    source += "        print((await client.chat('Hello?', model='GPT-5')).content)\nasyncio.run(main())"
    with ThreadedServer() as server:
        environment = {**os.environ, "ONELLM_API_KEY": "any", "ONELLM_BASE_URL": server.url}
        run = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, check=True, env=environment
        )
    assert run.stdout == "Hello?\n"


def test_a_server_that_cannot_start_says_why() -> None:
    with ThreadedServer() as server:
        second = ThreadedServer(ServerSettings())
        second._server._port = int(server.origin.rpartition(":")[2])
        with pytest.raises(OSError, match=str(second._server._port)):
            second.__enter__()


def test_it_is_not_used_outside_of_its_block() -> None:
    with pytest.raises(RuntimeError, match="not running"):
        _ = ThreadedServer().url


def test_a_list_is_a_script_of_answers_and_failures() -> None:
    script = ["one", 422, failure(503, "Busy.", headers={"Retry-After": "7"}), answer("last", delay=0.01)]
    with ThreadedServer(answers=script) as server:
        assert asyncio.run(ask(server, "a")) == ["one"]
        with pytest.raises(UnprocessableEntityError, match="Unprocessable"):
            asyncio.run(ask(server, "b"))
        with pytest.raises(APIStatusError, match="503 Busy") as caught:
            asyncio.run(ask(server, "c"))
        assert caught.value.retry_after == 7
        assert asyncio.run(ask(server, "d", "e")) == ["last", "last"]
        server.set_answers([500])
        with pytest.raises(APIStatusError, match="500"):
            asyncio.run(ask(server, "f"))
        server.set_answers(None)
        assert asyncio.run(ask(server, "echo")) == ["echo"]
    assert server.ledger.billed == 4


@pytest.mark.parametrize("answers", [[], [ConnectionResetError()], [{"content": "x"}], [True], 5])
def test_what_a_server_cannot_answer_is_refused_at_once(answers: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        ThreadedServer(answers=answers)  # type: ignore[arg-type]


def test_a_server_with_a_backend_takes_no_other_answers() -> None:
    server = ThreadedServer(backend=EchoBackend())
    with pytest.raises(ValueError, match="has a backend"):
        server.set_answers(["x"])


async def test_an_answer_of_the_server_may_be_cut_off_or_empty_and_name_its_model() -> None:
    script = [
        answer("The fir", finish_reason="length"),
        answer("", finish_reason="content_filter", model="other", provider="Elsewhere"),
        answer("a", provider="Elsewhere"),
    ]
    with ThreadedServer(answers=script) as server:
        async with AsyncOneLLM("any", base_url=server.url) as client:
            cut, empty, moved = [await client.chat("a", model="GPT-5-Nano") for _ in range(3)]
    assert (cut.content, cut.finish_reason, cut.model) == ("The fir", "length", "gpt-5-nano")
    assert (empty.content, empty.finish_reason) == ("", "content_filter")
    assert (empty.model, empty.provider) == ("other", "Elsewhere")
    assert (moved.model, moved.provider) == ("gpt-5-nano", "Elsewhere")


@pytest.mark.parametrize("answers", [["a", 999], ["a", 200], [5], {"b": 399}, {"b": failure(304)}, ["a", OSError()]])
def test_what_is_no_error_is_refused_before_any_request_and_changes_nothing(answers: Any) -> None:
    with ThreadedServer(answers=["one"]) as server:
        with pytest.raises(ValueError, match=r"status|exception"):
            server.set_answers(answers)
        assert asyncio.run(ask(server, "a")) == ["one"]
    with pytest.raises(ValueError, match=r"status|exception"):
        ThreadedServer(answers=answers)
