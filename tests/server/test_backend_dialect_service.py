import json
from pathlib import Path

import pytest

from onellm_async import catalog
from onellm_async.chat import ChatRequest, Message
from onellm_async.server import Outcome, ServerSettings, echo
from onellm_async.server.jobs import Job
from onellm_async.wire import Dialect, decode_reply, encode_request

SAMPLES = Path(__file__).parents[1] / "samples"
UNREADABLE = "Failed to deserialize the JSON body into the target type: "


@pytest.fixture
def asker(asking):
    return asking(
        ServerSettings(dialect="backend", keys={"good": 10.0, "poor": 0.01, "closed": 5.0}, blocked={"closed"})
    )


def recorded(case):
    return (SAMPLES / case / "body.raw").read_bytes()


def test_success_is_the_flat_reply_in_an_envelope(asker):
    reply = asker.reply()
    assert reply.status == 200
    value = json.loads(reply.body)
    assert list(value) == ["code", "output"]
    assert value["code"] == 200
    assert value["output"] == {
        "provider": "OpenAI",
        "model": "gpt-5-mini",
        "role": "assistant",
        "content": "Hello there",
        "usage": {"input_tokens": 3, "output_tokens": 3, "total_tokens": 6},
        "finish_reason": "stop",
    }


def test_refusal_is_word_for_word_the_recorded_one(asking):
    reply = asking(ServerSettings(dialect="backend", initial_level=0)).reply()
    assert (reply.status, reply.body) == (200, recorded("envelope_429"))
    assert "Retry-After" not in reply.headers


def test_missing_header_is_word_for_word_the_recorded_reply(asker):
    reply = asker.receive(key=None)
    assert (reply.status, reply.body) == (200, recorded("envelope_401_no_header"))


def test_wrong_scheme_is_word_for_word_the_recorded_reply(asker):
    headers = {"Content-Type": "application/json", "Authorization": "Basic Z29vZA=="}
    reply = asker.raw(json.dumps(asker.body).encode(), key=None, headers=headers)
    assert (reply.status, reply.body) == (200, recorded("envelope_401_wrong_scheme"))


@pytest.mark.parametrize("key", ["stranger", "closed"])
def test_unknown_and_blocked_key_are_word_for_word_the_recorded_reply(asker, key):
    reply = asker.receive(key)
    assert (reply.status, reply.body) == (200, recorded("envelope_401_unknown_key"))


def test_empty_account_is_word_for_word_the_recorded_reply(asker):
    reply = asker.receive("poor")
    assert (reply.status, reply.body) == (200, recorded("envelope_500_insufficient_balance"))


def test_failure_of_the_provider_is_an_enveloped_500_and_not_billed(asker):
    delivery = asker.service.fail(asker.receive(), "error sending request")
    assert delivery.reply.status == 200
    assert json.loads(delivery.reply.body) == {"code": 500, "output": {"output": "error sending request"}}
    assert asker.balance() == 10.0


def test_key_is_looked_up_after_the_bucket_so_that_unknown_keys_are_refused_too(asker):
    codes = [json.loads(asker.receive("stranger").body)["code"] for _ in range(41)]
    assert codes == [401] * 40 + [429]


def test_bucket_is_asked_before_the_balance(asker):
    codes = [json.loads(asker.receive("poor").body)["code"] for _ in range(41)]
    assert codes == [500] * 40 + [429]


@pytest.mark.parametrize("field", ["endpoint", "model", "messages", "max_tokens", "top_p"])
def test_each_required_field_is_missed_by_name_in_plain_text(asker, field):
    reply = asker.receive(**{field: ...})
    assert reply.status == 422
    assert reply.headers["Content-Type"].startswith("text/plain")
    size = len(json.dumps({name: value for name, value in asker.body.items() if name != field}))
    assert reply.body.decode() == f"{UNREADABLE}missing field `{field}` at line 1 column {size}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "GPT-5-Mini"}, "model: unknown variant `GPT-5-Mini`, expected one of `GPT-5`, `GPT-5-mini`"),
        ({"model": "Mistral-7B"}, "unknown variant `Mistral-7B`"),
        ({"model": ["GPT-5"]}, "model: invalid type: sequence, expected variant identifier"),
        ({"endpoint": None}, "endpoint: invalid type: null, expected a string"),
        ({"messages": "Hello"}, 'messages: invalid type: string "Hello", expected a sequence'),
        ({"messages": {}}, "messages: invalid type: map, expected a sequence"),
        ({"max_tokens": 1.5}, "max_tokens: invalid type: floating point `1.5`, expected u32"),
        ({"max_tokens": -1}, "max_tokens: invalid value: integer `-1`, expected u32"),
        ({"max_tokens": 2**32}, "expected u32"),
        ({"max_tokens": True}, "max_tokens: invalid type: boolean `true`, expected u32"),
        ({"top_p": "1"}, 'top_p: invalid type: string "1", expected f64'),
        ({"top_p": False}, "top_p: invalid type: boolean `false`, expected f64"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"messages": []}, "at least one message"),
        ({"stream": True}, "stream is not supported"),
        ({"model": "\ud800"}, "unknown variant `\\ud800`"),
    ],
)
def test_bad_field_is_refused_with_422_in_the_words_of_the_framework(asker, changes, words):
    reply = asker.receive(**changes)
    assert reply.status == 422
    text = reply.body.decode()
    assert text.startswith(UNREADABLE)
    assert words in text
    assert " at line 1 column " in text


def test_body_is_read_before_the_key_and_costs_no_token(asker):
    for _ in range(100):
        assert asker.receive(key=None, endpoint=...).status == 422
    assert asker.reply().status == 200


def test_not_json_is_a_plain_text_400(asker):
    reply = asker.raw(b"{")
    assert reply.status == 400
    assert reply.body.startswith(b"Failed to parse the request body as JSON: ")
    assert reply.headers["Content-Type"].startswith("text/plain")


def test_wrong_content_type_is_word_for_word_the_recorded_reply(asker):
    reply = asker.raw(b"{}", headers={"Content-Type": "text/plain"})
    assert (reply.status, reply.body) == (415, recorded("http_415"))


def test_other_path_and_method_are_refused_without_a_body(asker):
    missing, wrong = asker.raw(b"{}", path="/v1"), asker.raw(b"{}", method="PUT")
    root = asker.raw(b"{}", path="/")
    assert (root.status, root.body, root.headers) == (405, b"", {"Allow": "GET, HEAD"})
    assert (missing.status, missing.body, missing.headers) == (404, b"", {})
    assert (wrong.status, wrong.body, wrong.headers) == (405, b"", {"Allow": "POST"})


def test_body_beyond_the_bound_is_a_plain_text_413(asker):
    reply = asker.service.reject_too_long(0.0)
    assert reply.status == 413
    assert reply.headers["Content-Type"].startswith("text/plain")


def test_any_model_drops_the_list_of_models_but_not_the_type(asking):
    asker = asking(ServerSettings(dialect="backend", any_model=True))
    assert isinstance(asker.receive(model="llama3.2:1b"), Job)
    assert asker.receive(model=5).status == 422


@pytest.mark.parametrize("entry", [entry for entry in catalog.entries() if entry.backend_name], ids=lambda e: e.name)
def test_every_model_of_the_catalogue_is_asked_answered_billed_and_understood(asker, entry):
    history = [Message.user("Hi."), Message.assistant("Hello."), Message.user("What is new?")]
    body = encode_request(ChatRequest(entry.name, history), Dialect.BACKEND)
    job = asker.raw(body)
    assert job.max_tokens == 1024
    before = asker.balance()
    reply = asker.service.complete(job, echo(job)).reply
    response = decode_reply(reply.status, reply.headers, reply.body, model=entry.name, now=0.0)
    assert response.content == "What is new?"
    assert before - asker.balance() == pytest.approx(response.cost or 0.0)


def test_little_more_than_nothing_is_a_balance(asking):
    asker = asking(ServerSettings(dialect="backend", keys={"good": 0.0101}))
    assert isinstance(asker.receive(), Job)


def messages(*roles):
    return [{"role": role, "content": f"{role} says"} for role in roles]


@pytest.mark.parametrize(
    ("model", "told", "answered"),
    [
        ("GPT-5", ("system", "user", "assistant", "user"), True),
        ("GPT-5", ("model", "user"), False),
        ("DeepSeek-Chat", ("system", "user"), True),
        ("Codestral", ("system", "user", "assistant"), True),
        ("Opus-4", ("user", "assistant", "user"), True),
        ("Opus-4", ("system", "user"), False),
        ("2.0-Flash", ("user", "model", "user"), True),
        ("2.0-Flash", ("user", "assistant", "user"), False),
        ("2.0-Flash", ("system", "user"), False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_provider_answers_only_to_the_roles_that_it_knows(asker, model, told, answered):
    value = json.loads(asker.reply(model=model, messages=messages(*told)).body)
    if answered:
        assert (value["code"], value["output"]["content"]) == (200, "user says")
    else:
        field = "candidates" if model == "2.0-Flash" else "id"
        assert value == {"code": 500, "output": {"output": f"missing field `{field}` at line 1 column 70"}}
        assert asker.ledger.outcomes == {Outcome.FAILED: 1}


ALL = {
    "system": "Be brief.",
    "temperature": 0.5,
    "stop_sequences": ("END",),
    "tools": ({"type": "function", "function": {"name": "f"}},),
    "tool_choice": "auto",
    "seed": 7,
    "n": 2,
    "user": "u",
    "frequency_penalty": 1,
    "presence_penalty": 1,
    "logprobs": True,
    "top_logprobs": 2,
    "top_k": 5,
}
ALWAYS = {"temperature", "stop_sequences"}


@pytest.mark.parametrize(
    ("model", "arrives"),
    [
        ("GPT-5", {"tools", "tool_choice", "seed", "n", "user", "frequency_penalty", "presence_penalty"}),
        ("Opus-4", {"system", "top_k"}),
        ("DeepSeek-Chat", {"tools", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs"}),
        ("2.0-Flash", {"tools"}),
        ("Codestral", set()),
    ],
)
def test_field_that_the_backend_does_not_forward_does_not_reach_the_model(asker, model, arrives):
    wanted = {"type": "json_schema", "json_schema": {}}
    asked = {name: list(value) if isinstance(value, tuple) else value for name, value in ALL.items()}
    job = asker.receive(model=model, response_format=wanted, reasoning_effort="low", **asked)
    assert {name for name in ALL if getattr(job.request, name) is not None} == arrives | ALWAYS
    assert all(getattr(job.request, name) == ALL[name] for name in arrives)
    assert job.request.response_format == ({"type": "json_schema"} if model == "GPT-5" else None)
    assert job.request.extra == {"endpoint": "https://api.openai.com/v1/chat/completions"}


@pytest.mark.parametrize(("model", "read"), [("Opus-4", 3 + 3), ("GPT-5", 3), ("2.0-Flash", 3)])
def test_echo_shows_which_model_read_the_system_text(asker, model, read):
    value = json.loads(asker.reply(model=model, system="Be brief.").body)
    assert value["output"]["usage"]["input_tokens"] == read


def test_field_of_a_wrong_type_is_refused_even_where_it_would_be_dropped(asker):
    assert asker.receive(model="Codestral", seed="seven").status == 422


def test_model_of_an_upstream_gets_every_field(asking):
    asker = asking(ServerSettings(dialect="backend", any_model=True))
    job = asker.receive(model="GPT-5", system="Be brief.", top_k=5, reasoning_effort="low", messages=messages("model"))
    assert (job.request.system, job.request.top_k, job.request.extra["reasoning_effort"]) == ("Be brief.", 5, "low")
    assert job.request.messages[0].role == "assistant"


@pytest.mark.parametrize("endpoint", ["http://10.0.0.7:8000/v1", "https://eu.example.org/any?thing=1"])
def test_any_endpoint_is_taken(asker, endpoint):
    assert asker.receive(endpoint=endpoint).request.extra == {"endpoint": endpoint}


def test_lost_and_failed_jobs_are_told_apart_in_the_ledger(asker):
    assert asker.receive().plan.fault is None
    asker.service.fail(asker.receive(), "x")
    asker.service.abandon(asker.receive())
    assert asker.ledger.outcomes == {Outcome.FAILED: 1, Outcome.DROPPED: 1}
    assert asker.ledger.in_flight == 1
