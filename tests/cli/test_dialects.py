"""The dialect and the endpoints of a self-hosted backend, from flags and the environment."""

import json
from collections.abc import AsyncIterator

import pytest

from onellm_async.server import LocalServer, ServerSettings
from onellm_async.server.backends import echo

FAST = ("--rpm", 60_000, "--burst", 1000)


class Listening:
    """Echoes, and keeps the requests."""

    def __init__(self):
        self.requests = []

    async def complete(self, job):
        self.requests.append(job.request)
        return echo(job)

    async def aclose(self):
        pass


@pytest.fixture
def heard() -> Listening:
    return Listening()


@pytest.fixture
async def self_hosted(heard) -> AsyncIterator[dict[str, str]]:
    """Environment that leads to a backend, by an address without a path."""
    settings = ServerSettings(dialect="backend", any_model=True, requests_per_minute=60_000, burst=1000)
    async with LocalServer(settings, backend=heard) as server:
        yield {"ONELLM_BASE_URL": server.url.removesuffix("/api"), "ONELLM_API_KEY": "local"}


@pytest.mark.parametrize("flags", [("--dialect", "backend"), ()])
async def test_the_dialect_is_a_flag_or_a_variable(onellm, heard, self_hosted, flags):
    variable = {} if flags else {"ONELLM_DIALECT": "backend"}
    ended = await onellm("chat", "Hi", "-m", "GPT-5", *flags, **variable, **self_hosted)

    assert (ended.code, ended.out) == (0, "Hi\n"), ended.err
    assert heard.requests[0].extra == {"endpoint": "https://api.openai.com/v1/chat/completions"}


async def test_the_flag_goes_before_the_variable(onellm, heard, self_hosted):
    ended = await onellm("chat", "Hi", "--dialect", "documented", ONELLM_DIALECT="backend", **self_hosted)

    assert (ended.code, heard.requests) == (1, [])
    assert "--dialect backend or ONELLM_DIALECT=backend" in ended.err


async def test_a_dialect_that_is_none_is_refused_by_the_name_of_the_variable(onellm, self_hosted):
    ended = await onellm("chat", "Hi", ONELLM_DIALECT="openai", **self_hosted)

    assert ended.code == 2
    assert "ONELLM_DIALECT is 'openai'; it must be documented or backend." in ended.err


async def test_endpoints_are_those_of_their_providers_in_chat_and_run(onellm, heard, self_hosted, tmp_path):
    flags = ("--dialect", "backend", "--endpoint", "OpenAI=http://a/v1?b=c", "--endpoint", "claude=http://d/{model}")
    for model in ("GPT-5", "Haiku-3", "Codestral"):
        ended = await onellm("chat", "Hi", "-m", model, *flags, **self_hosted)
        assert ended.code == 0, ended.err
    assert [request.extra["endpoint"] for request in heard.requests] == [
        "http://a/v1?b=c",
        "http://d/haiku-3",
        "https://api.mistral.ai/v1/chat/completions",
    ]

    (tmp_path / "in.txt").write_text("one\ntwo\n")
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "-m", "GPT-5", *flags, *FAST, **self_hosted)
    assert ended.code == 0, ended.err
    assert {request.extra["endpoint"] for request in heard.requests[3:]} == {"http://a/v1?b=c"}

    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "-m", "GPT-5", *flags[:2], *FAST, **self_hosted)
    assert ended.code == 2
    told = " ".join(ended.err.split())
    assert "the endpoints was anthropic=http://d/{model}, openai=http://a/v1?b=~" in told
    assert "and is not given any more" in told
    assert "b=c" not in told
    assert len(heard.requests) == 5


async def test_a_model_that_the_catalog_lacks_can_be_given_an_endpoint(onellm, heard, self_hosted):
    ended = await onellm("chat", "Hi", "-m", "smollm2", "--dialect", "backend", **self_hosted)
    assert (ended.code, heard.requests) == (2, [])
    assert "--endpoint OpenAI=https://…" in ended.err

    flags = ("--dialect", "backend", "--endpoint", "OpenAI=http://a/v1")
    ended = await onellm("chat", "Hi", "-m", "smollm2", *flags, **self_hosted)
    assert (ended.code, heard.requests[0].extra["endpoint"]) == (0, "http://a/v1"), ended.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--endpoint", "OpenAI"), "--endpoint 'OpenAI' is not PROVIDER=URL."),
        (("--endpoint", "=http://a"), "--endpoint '=http://a' is not PROVIDER=URL."),
        (("--endpoint", "Groq=http://a"), "the known ones are OpenAI, Anthropic, DeepSeek, Gemini, Mistral"),
        (("--endpoint", "OpenAI=a"), "The endpoint of OpenAI 'a' is not an http or https URL"),
        (("--endpoint", "OpenAI=http://a", "--endpoint", "OpenAI=http://b"), "the provider OpenAI twice"),
        (("--endpoint", "OpenAI=http://a", "--endpoint", "openai=http://b"), "the provider OpenAI twice"),
    ],
)
async def test_an_endpoint_that_cannot_be_used_is_refused_unsent(onellm, heard, self_hosted, flags, words):
    ended = await onellm("chat", "Hi", "--dialect", "backend", *flags, **self_hosted)

    assert (ended.code, heard.requests) == (2, [])
    assert words in " ".join(ended.err.split())


async def test_an_endpoint_needs_the_dialect_that_has_one(onellm, heard, self_hosted):
    ended = await onellm("chat", "Hi", "--endpoint", "OpenAI=http://a", **self_hosted)

    assert (ended.code, heard.requests) == (2, [])
    assert "--dialect backend" in ended.err


async def test_a_field_that_cannot_arrive_is_told_once_in_a_run(onellm, heard, self_hosted, tmp_path):
    bodies = [{"model": "Haiku-3", "messages": [{"role": "user", "content": str(n)}], "seed": n} for n in range(5)]
    lines = [{"custom_id": str(n), "url": "/v1/chat/completions", "body": body} for n, body in enumerate(bodies)]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    ended = await onellm("run", "in.jsonl", "-o", "out.jsonl", "--dialect", "backend", *FAST, **self_hosted)

    assert (ended.code, len(heard.requests)) == (0, 5), ended.err
    assert ended.err.count("The backend does not forward seed to Anthropic") == 1


async def test_plain_http_elsewhere_names_its_flag(onellm, tmp_path):
    at = {"ONELLM_API_KEY": "k", "ONELLM_BASE_URL": "http://10.255.255.1/api"}
    ended = await onellm("chat", "Hi", **at)
    assert ended.code == 2
    assert "--allow-insecure" in ended.err

    (tmp_path / "in.txt").write_text("Hi\n")
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "--allow-insecure", "--estimate", **at)
    assert ended.code == 0, ended.err
