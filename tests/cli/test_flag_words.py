"""What goes wrong on the command line is told in its own words."""

import pytest

from onellm_async import AsyncOneLLM
from onellm_async.batch import RunOptions
from onellm_async.cli.flag_words import arguments_in_flags, told_in_flags
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


REFUSED = [
    ("--limit", "-1", {"limit": -1}),
    ("--samples", "0", {"samples": 0}),
    ("--max-cost", "-1", {"max_cost": -1}),
    ("--max-tokens-total", "0", {"max_tokens_total": 0}),
    ("--stall-after", "0", {"stall_after": 0}),
    ("--max-tokens", "0", {"max_tokens": 0}),
    ("--temperature", "5", {"temperature": 5}),
    ("--top-p", "5", {"top_p": 5}),
    ("--corrections", "9", {"corrections": 9}),
    ("--journal", "x.y", {"journal": "x.y"}),
    ("--model", "", {"model": ""}),
]


@pytest.mark.parametrize(("flag", "value", "option"), REFUSED, ids=[each[0] for each in REFUSED])
async def test_a_refused_value_has_the_name_that_was_written(onellm, prompts, tmp_path, flag, value, option):
    told = await onellm("run", "in.txt", "-o", "out.jsonl", flag, value, "--local")
    assert told.code == 2
    assert told.err.startswith(f"onellm-async: {flag} is ")

    async with AsyncOneLLM("k", base_url="http://127.0.0.1:9") as client:
        with pytest.raises(OneLLMError) as raised:
            await client.run(tmp_path / "in.txt", tmp_path / "out.jsonl", **option)
    assert str(raised.value).startswith(f"{next(iter(option))} is ")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("plan", "in.txt", "--limit", "-1"), "--limit is -1"),
        (("plan", "in.txt", "--latency", "-1"), "--latency is -1.0"),
        (("plan", "in.txt", "--service-rpm", "-1"), "--service-rpm is -1.0"),
        (("serve", "--latency", "-1"), "--latency is -1.0"),
        (("serve", "--server-error-rate", "2"), "--server-error-rate is 2.0"),
        (("run", "in.txt", "--quota", "x"), "--quota is 'x'; it must be"),
        (("run", "in.txt", "--local", "--endpoint", "x=y"), "--endpoint names the provider 'x'"),
        (("run", "in.txt", "--preflight", "1"), "--preflight is 1"),
    ],
)
async def test_settings_of_other_commands_have_the_names_of_their_flags(onellm, prompts, command, told):
    ended = await onellm(*command)
    assert ended.code == 2
    assert ended.err.startswith(f"onellm-async: {told}")


@pytest.mark.parametrize(
    ("source", "flags", "options", "words"),
    [
        ("city\nRome\n", (), {}, ("field=", "template=")),
        ("prompt\nHi\n", ("--keep", "x"), {"keep": ["x"]}, ("keep=",)),
        ("prompt\nHi\n", ("--id-field", "x"), {"id_field": "x"}, ("id_field=",)),
        ('prompt\n""\n', ("--strict",), {"strict": True}, ()),
    ],
)
async def test_each_door_speaks_its_own_language(onellm, tmp_path, source, flags, options, words):
    (tmp_path / "in.csv").write_text(source)
    told = await onellm("run", "in.csv", "-o", "out.jsonl", *flags, "--local")
    async with AsyncOneLLM("k", base_url="http://127.0.0.1:9") as client:
        with pytest.raises(BatchError) as raised:
            await client.run(tmp_path / "in.csv", tmp_path / "out.jsonl", **options)
    text = str(raised.value)
    assert told.code == 2
    assert "--" not in text
    for word in words:
        assert word in text
        assert f"--{word[:-1].replace('_', '-')}" in told.err
        assert word not in told.err


def test_every_option_of_a_run_has_its_flag():
    only_in_python = {"output_format"}  # the suffix of the output
    for option in RunOptions.__annotations__.keys() - only_in_python:
        assert arguments_in_flags(f"{option} is 0; no.").startswith("--")
        assert arguments_in_flags(f"Set {option}=….").startswith("Set --")


async def test_the_terminal_shows_it_so(onellm):
    ended = await onellm("chat", "Hi", "--timeout", "0", "--local")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("onellm-async: --timeout: Timeout.total is 0")
