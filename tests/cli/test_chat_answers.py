"""What ``chat`` prints of answers that are not just a text."""

import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


@pytest.fixture
async def answering():
    """Makes a service that answers with one reply, and the environment that leads to it."""
    servers = []

    async def answering(reply):
        async def answer(request):
            return web.json_response(reply)

        app = web.Application()
        app.router.add_post("/api", answer)
        server = TestServer(app)
        servers.append(server)
        await server.start_server()
        return {"ONELLM_BASE_URL": str(server.make_url("/api")), "ONELLM_API_KEY": "k"}

    yield answering
    for server in servers:
        await server.close()


async def test_an_answer_without_text_says_why_and_where_the_rest_is(onellm, answering):
    at = await answering({"content": None, "finish_reason": "tool_calls", "tool_calls": [CALL]})
    ended = await onellm("chat", "Hi", **at)
    assert (ended.code, ended.out) == (0, "\n")
    assert ended.err == "The answer has no text (tool_calls); --json shows all of it.\n"

    ended = await onellm("chat", "Hi", "--json", **at)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["extra"] == {"tool_calls": [CALL]}


async def test_an_answer_that_was_cut_off_says_so(onellm, answering):
    ended = await onellm("chat", "Hi", **await answering({"content": "Once upon", "finish_reason": "length"}))
    assert (ended.code, ended.out) == (0, "Once upon\n")
    assert ended.err == "The answer was cut off at its limit of tokens (--max-tokens).\n"


async def test_an_endpoint_of_openai_is_answered_and_told_what_would_fit_better(onellm, answering):
    at = await answering({"choices": [{"message": {"role": "assistant", "content": "Hello"}}]})
    ended = await onellm("chat", "Hi", **at)
    assert (ended.code, ended.out) == (0, "Hello\n")
    assert "onellm-async serve --upstream URL" in ended.err
