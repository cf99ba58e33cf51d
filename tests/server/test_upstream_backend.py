import aiohttp
import pytest

from onellm_async import AsyncOneLLM, RetryPolicy
from onellm_async.errors import ConfigurationError
from onellm_async.server import EchoBackend, LocalServer, ServerSettings, UpstreamBackend

ONCE = RetryPolicy(max_attempts=1)


async def ask(upstream, prompt="Capital of France?", *, any_model=False, timeout=600.0, url=None, key=None, **options):
    backend = UpstreamBackend(
        url or upstream.origin, api_key=key, model=options.pop("upstream_model", None), timeout=timeout
    )
    settings = ServerSettings(any_model=any_model, list_prices=True)
    async with (
        LocalServer(settings, backend=backend) as server,
        AsyncOneLLM("local", base_url=server.url, retry=ONCE) as client,
    ):
        response = await client.chat(prompt, **{"model": "GPT-5-Mini"} | options)
        assert server.ledger.billed == 1
        return response, server.ledger


async def test_answer_of_the_upstream_is_passed_on_with_its_usage_and_billed(upstream):
    response, ledger = await ask(upstream)
    assert (response.content, response.model, response.finish_reason) == ("Paris.", "tiny-135m-instruct", "stop")
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (21, 2, 23)
    assert ledger.billed_usd == pytest.approx((21 * 0.26 + 2 * 2.08) / 1e6)


async def test_only_what_was_set_goes_on(upstream):
    await ask(upstream)
    (_, _, body) = upstream.requests[0]
    assert body.keys() == {"model", "messages"}


async def test_asked_limit_goes_on_as_lowered_to_what_the_balance_affords(upstream):
    settings = ServerSettings(balance=0.104, list_prices=True)
    async with (
        LocalServer(settings, backend=UpstreamBackend(upstream.origin)) as server,
        AsyncOneLLM("local", base_url=server.url, retry=ONCE) as client,
    ):
        await client.chat("Hello there", model="GPT-5", max_tokens=1_000_000)
    assert upstream.requests[0][2]["max_tokens"] == 9999


async def test_model_can_be_replaced_by_the_upstreams(upstream):
    await ask(upstream, upstream_model="smollm2")
    assert upstream.requests[0][2]["model"] == "smollm2"


async def test_any_model_of_the_upstream_can_be_asked_for(upstream):
    response, ledger = await ask(upstream, model="smollm2:135m", any_model=True)
    assert upstream.requests[0][2]["model"] == "smollm2:135m"
    assert "max_tokens" not in upstream.requests[0][2]
    assert response.content == "Paris."
    assert ledger.billed_usd == 0


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/chat/completions"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions"),
    ],
)
async def test_address_is_taken_with_and_without_its_usual_end(upstream, suffix, path):
    await ask(upstream, url=upstream.origin + suffix)
    assert upstream.requests[0][0] == path


async def test_key_of_the_upstream_is_sent_and_the_callers_is_not(upstream):
    await ask(upstream, key="upstream-secret")
    assert upstream.requests[0][1]["Authorization"] == "Bearer upstream-secret"
    await ask(upstream)
    assert "Authorization" not in upstream.requests[1][1]


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        {"prompt_tokens": 5},
        {"prompt_tokens": "5", "completion_tokens": True},
        {"prompt_tokens": -1, "completion_tokens": 9},
        {"prompt_tokens": 10**400, "completion_tokens": 9},
    ],
)
async def test_missing_usage_is_estimated(upstream, usage):
    upstream.says(usage=usage)
    response, _ = await ask(upstream)
    assert (response.usage.input_tokens, response.usage.output_tokens) == (5, 2)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nowhere",
        "ftp://x/v1",
        "http://",
        "http://[::1",
        "http://user:pass@host/v1",
        "http://host/v1?key=1",
        "//host",
        "http://host/v1#here",
        "http://host/v1?",
        "http://host:99999/v1",
        "http://host:port/v1",
        "http://ho st/v1",
        "http://host/v1\n",
        "http://\nuser:pass@host/v1",
        "http://" + "a" * 64 + "/v1",
    ],
)
def test_impossible_address_is_refused_without_echoing_a_password(url):
    with pytest.raises(ConfigurationError) as refused:
        UpstreamBackend(url)
    assert "not an http or https URL" in str(refused.value)
    assert "user:pass" not in str(refused.value)


def test_impossible_key_and_timeout_are_refused():
    with pytest.raises(ConfigurationError) as refused:
        UpstreamBackend("http://host", api_key="bad\nsecret")
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="upstream timeout is 0"):
        UpstreamBackend("http://host", timeout=0)


async def test_connections_are_kept_and_closed_with_the_backend(upstream):
    async with UpstreamBackend(upstream.origin) as backend:
        async with (
            LocalServer(backend=backend) as server,
            AsyncOneLLM("local", base_url=server.url, retry=ONCE) as client,
        ):
            await client.chat("one", model="GPT-5")
            session = backend._session
            await client.chat("two", model="GPT-5")
            assert backend._session is session
        assert session.closed
    await EchoBackend().aclose()
    assert isinstance(session, aiohttp.ClientSession)
