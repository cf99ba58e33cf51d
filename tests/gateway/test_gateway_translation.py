"""From chat completion requests to requests of OneLLM, and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import ChatRequest, ChatResponse, Message, Usage
from onellm_async.chat import ROLES
from onellm_async.gateway.completions import ReplyHead, completion_chunks, to_completion
from onellm_async.gateway.error_replies import RequestRejectedError
from onellm_async.gateway.translation import to_chat_request

MESSAGES = [{"role": "user", "content": "Hello"}]
HEAD = ReplyHead("chatcmpl-1", 1_700_000_000, "GPT-5-Mini")


def translated(**fields):
    return to_chat_request({"model": "GPT-5-Mini", "messages": MESSAGES, **fields})


def refused(**fields):
    with pytest.raises(RequestRejectedError) as raised:
        translated(**fields)
    reply = raised.value.reply
    assert reply.status == 400
    return reply


def test_all_fields_that_onellm_has_arrive_under_its_names():
    request = translated(
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=7,
        stop="END",
        seed=1,
        user="u",
        frequency_penalty=0.1,
        presence_penalty=0.2,
        logprobs=True,
        top_logprobs=2,
        n=1,
        stream=False,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
    )
    assert request.ignored == ()
    assert request.request == ChatRequest(
        "GPT-5-Mini",
        "Hello",
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        stop_sequences=("END",),
        seed=1,
        user="u",
        frequency_penalty=0.1,
        presence_penalty=0.2,
        logprobs=True,
        top_logprobs=2,
    )


def test_the_texts_of_parts_become_one_and_a_developer_is_a_system():
    request = translated(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]},
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "user", "content": []},
        ]
    ).request
    assert request.messages == (
        Message.system("Be brief."),
        Message.user("Hello\nthere"),
        Message.assistant("No."),
        Message.user(""),
    )


def test_both_names_of_the_longest_answer_are_read_and_a_default_only_fills_in():
    assert translated(max_tokens=3).request.max_tokens == 3
    assert translated(max_tokens=3, max_completion_tokens=3).request.max_tokens == 3
    assert refused(max_tokens=3, max_completion_tokens=4).param == "max_completion_tokens"
    body = {"model": "GPT-5", "messages": MESSAGES}
    assert to_chat_request(body, max_tokens=9).request.max_tokens == 9
    assert to_chat_request({**body, "max_tokens": 3}, max_tokens=9).request.max_tokens == 3


def test_a_null_is_a_field_that_is_not_set():
    nulls = dict.fromkeys(("temperature", "stop", "tools", "n", "stream", "stream_options", "response_format", "new"))
    assert translated(**nulls).request == ChatRequest("GPT-5-Mini", "Hello")
    assert translated(**nulls).ignored == ()


def test_unknown_fields_are_ignored_and_listed_once():
    request = translated(
        store=True,
        metadata={},
        reasoning_effort="low",
        messages=[{"role": "user", "content": "Hello", "name": "ada"}, {"role": "user", "content": "x", "name": "b"}],
    )
    assert request.ignored == ("store", "metadata", "reasoning_effort", "messages[].name")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_onellm_cannot_do_is_refused_by_name(fields, param):
    reply = refused(**fields)
    assert (reply.param, reply.code) == (param, "unsupported_parameter")
    assert param in reply.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": [], "stream": True}, "stream_options"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_what_is_unusable_is_refused_by_name(fields, param):
    assert refused(**fields).param == param


@pytest.mark.parametrize("body", [None, [], "text", 5, {}])
def test_a_body_that_is_no_request_is_refused(body):
    with pytest.raises(RequestRejectedError):
        to_chat_request(body)


def test_a_request_cannot_hold_up_others_with_millions_of_small_parts():
    many = [{"role": "user", "content": "a"}] * 10_001
    assert refused(messages=many).param == "messages"
    parts = [{"type": "text", "text": "a"}] * 6_000
    assert "12,002 messages and parts" in refused(messages=[{"role": "user", "content": parts}] * 2).message
    named = {f"field {number}": 1 for number in range(1000)}
    assert len(translated(**named).ignored) == 100


def test_a_schema_goes_into_the_instruction_and_json_is_asked_for_where_the_provider_has_it():
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    openai = translated(response_format=wanted).request
    assert openai.response_format == {"type": "json_object"}
    assert openai.messages[0].role == "system"
    assert json.dumps(schema, separators=(",", ":")) in openai.messages[0].content
    claude = to_chat_request(
        {
            "model": "Sonnet-4",
            "messages": [{"role": "system", "content": "Be brief."}, *MESSAGES],
            "response_format": wanted,
        }
    ).request
    assert claude.response_format is None
    assert claude.messages[0].content.startswith("Be brief.\n\n")
    assert len(claude.messages) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TURN = st.fixed_dictionaries(
    {
        "role": st.sampled_from([*ROLES, "developer", "tool"]) | JSON,
        "content": JSON | st.text(),
    }
)
OPTIONS = (
    "temperature",
    "stop",
    "n",
    "tools",
    "stream",
    "stream_options",
    "response_format",
    "max_tokens",
    "max_completion_tokens",
    "modalities",
    "logprobs",
    "other",
)


@given(
    st.fixed_dictionaries(
        {"model": st.just("GPT-5") | JSON, "messages": st.lists(TURN, max_size=3) | JSON},
        optional=dict.fromkeys(OPTIONS, JSON),
    )
)
def test_whatever_a_body_holds_it_is_a_request_or_a_400(body):
    try:
        assert isinstance(to_chat_request(body).request, ChatRequest)
    except RequestRejectedError as error:
        assert error.reply.status == 400  # noqa: PT017
        json.dumps(error.reply.body())


RESPONSE = ChatResponse(
    "Bonjour",
    model="gpt-5-mini-2026",
    provider="OpenAI",
    usage=Usage(3, 5, 8),
    finish_reason="max_tokens",
    cost=0.0001,
    attempts=2,
    possibly_billed=1,
)


def test_a_completion_has_the_asked_model_and_the_details_of_onellm():
    body = to_completion(RESPONSE, HEAD)
    assert body["model"] == "GPT-5-Mini"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Bonjour", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert body["onellm"]["cost"] == 0.0001
    assert (body["onellm"]["model"], body["onellm"]["possibly_billed"]) == ("gpt-5-mini-2026", 1)


def test_a_usage_that_is_not_known_is_left_out():
    assert "usage" not in to_completion(ChatResponse("x"), HEAD)
    assert "usage" not in to_completion(ChatResponse("x", usage=Usage()), HEAD)


def test_a_stream_is_the_text_its_end_the_usage_and_done():
    *events, done = b"".join(completion_chunks(RESPONSE, HEAD, include_usage=True)).decode().split("\n\n")[:-1]
    assert done == "data: [DONE]"
    text, end, usage = (json.loads(event.removeprefix("data: ")) for event in events)
    assert text["choices"][0]["delta"] == {"role": "assistant", "content": "Bonjour"}
    assert (text["choices"][0]["finish_reason"], end["choices"][0]["finish_reason"]) == (None, "length")
    assert (end["choices"][0]["delta"], usage["choices"]) == ({}, [])
    assert usage["usage"]["total_tokens"] == 8
    assert {event["object"] for event in (text, end, usage)} == {"chat.completion.chunk"}
    assert len(list(completion_chunks(RESPONSE, HEAD, include_usage=False))) == 3
