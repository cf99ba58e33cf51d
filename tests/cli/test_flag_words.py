"""What goes wrong on the command line is told in its own words."""

import pytest

from onellm_async.cli.flag_words import told_in_flags
from onellm_async.errors import (
    APIError,
    AuthenticationError,
    BatchError,
    ConfigurationError,
    InvalidRequestError,
    OneLLMError,
)
from onellm_async.limits.policy import Limits
from onellm_async.settings import Timeout, resolve_api_key, resolve_base_url
from onellm_async.wire import Dialect, encode_request, request_from_body
from onellm_async.wire.error_replies import error_for

REQUEST = request_from_body({"model": "smollm2", "messages": "x"})


def error_of(status: int, text: str, asked: bytes = b"") -> APIError:
    return error_for(status, {}, {"error": text}, text.encode(), model="GPT-5", now=0.0, asked=asked)


def raised_by(action) -> OneLLMError:
    with pytest.raises(OneLLMError) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (error_of(422, "missing field `endpoint`"), "set --dialect backend or ONELLM_DIALECT=backend."),
        (error_of(422, "unknown field `endpoint`", b'"endpoint"'), "set --dialect documented."),
        (error_of(401, "unknown key"), "Check the key in ONELLM_API_KEY."),
        (error_of(404, ""), "Check --base-url or ONELLM_BASE_URL: requests are posted"),
        (error_of(429, ""), "declared in --rpm and --tpm, or another client"),
        (error_of(529, ""), "lower --concurrency."),
        (error_of(307, ""), "set --base-url to the final address."),
        (
            raised_by(lambda: encode_request(REQUEST, Dialect.BACKEND)),
            "Otherwise give its URL, and no other: --endpoint OpenAI=https://….",
        ),
        (raised_by(lambda: resolve_api_key("")), "Set ONELLM_API_KEY."),
        (raised_by(lambda: resolve_base_url("http://llm.example")), "Use https, or --allow-insecure if the network"),
        (raised_by(lambda: resolve_base_url("ftp://llm.example")), "--base-url 'ftp://llm.example' is not"),
        (
            raised_by(lambda: resolve_base_url("http://u:p@llm.example")),
            "--base-url holds a user name or password. Set ",
        ),
        (raised_by(lambda: Timeout(total=-1)), "--timeout: Timeout.total is -1; it must be"),
        (raised_by(lambda: Limits(requests_per_minute=-1)), "--rpm: Limits.requests_per_minute is -1; it must be"),
        (raised_by(lambda: Limits(burst=0)), "--burst: Limits.burst is 0; it must be"),
        (raised_by(lambda: Limits(max_concurrency=0)), "--concurrency: Limits.max_concurrency is 0; it must be"),
        (BatchError("No.", advice="Nothing was sent (--strict)."), "Nothing was sent (--strict)."),
        (raised_by(lambda: Limits(tokens_per_minute=0)), "--tpm: Limits.tokens_per_minute is 0; it must be"),
    ],
)
def test_advice_names_flags_and_variables(error: OneLLMError, words: str) -> None:
    told = told_in_flags(error)
    assert words in told
    for python in ("dialect=", "api_key=", "Limits(", "allow_insecure", "extra=", "endpoints=", "…)"):
        assert python not in told


@pytest.mark.parametrize(
    "error",
    [
        error_of(400, "base_url and Limits.burst (--burst) are unknown"),
        InvalidRequestError("temperature is 5; it must be a number from 0 to 2."),
        AuthenticationError("401 Timeout.total", status_code=401),
        ConfigurationError("ONELLM_DIALECT is 'x'."),
    ],
)
def test_what_the_service_said_stays_as_it_is(error: OneLLMError) -> None:
    assert error.message in told_in_flags(error)


async def test_the_terminal_shows_it_so(onellm):
    ended = await onellm("chat", "Hi", "--timeout", "0", "--local")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("onellm-async: --timeout: Timeout.total is 0")
