# ruff: noqa: S301  # our own pickles
import copy
import math
import pickle
from types import MappingProxyType

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import AsyncOneLLM
from onellm_async.batch.config import RunOptions
from onellm_async.chat import (
    ChatOutcome,
    ChatRequest,
    ChatResponse,
    Message,
    RequestOptions,
    Usage,
    build_request,
    finish_kind,
)
from onellm_async.errors import AuthenticationError, InvalidRequestError, OneLLMError
from onellm_async.testing import FakeTransport
from onellm_async.validation import truncated_repr

FULL = ChatRequest(
    "GPT-5",
    [{"role": "system", "content": "Be brief."}, Message.user("Hi"), Message.assistant("Hello")],
    temperature=0.5,
    max_tokens=10,
    top_p=0.9,
    stop_sequences=["\n"],
    system="Be kind.",
    tools=[{"type": "function", "function": {"name": "f"}}],
    tool_choice="auto",
    response_format={"type": "json_object"},
    seed=-3,
    n=1,
    user="u1",
    frequency_penalty=-2,
    presence_penalty=2.0,
    logprobs=True,
    top_logprobs=0,
    top_k=1,
    extra={"generation_config": {"topK": 3}},
)


@pytest.mark.parametrize("role", ["", "User", "tool", "developer", None, 5, [], {}])
def test_an_unknown_role_is_refused_by_name(role: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"role is .*it must be one of system, user, assistant") as caught:
        Message(role, "x")  # type: ignore[arg-type]
    assert truncated_repr(role) in str(caught.value)


@pytest.mark.parametrize("content", [None, b"x", 5, ["x"], [{"type": "text", "text": "x"}]])
def test_content_that_is_no_text_is_refused_by_value(content: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"content is .*it must be a string") as caught:
        Message("user", content)  # type: ignore[arg-type]
    assert truncated_repr(content) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hi", "'hi'"),
        (5, "5"),
        ({"content": "x"}, "role is ''"),
        ({"role": "user"}, "content is None"),
        ({"role": "user", "content": "x", "name": "y", 3: 4}, "unknown keys: 3, name"),
    ],
)
def test_a_mapping_that_is_no_message_is_refused(value: object, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Message.of(value)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize("messages", [[], (), iter(())])
def test_a_chat_without_messages_is_refused(messages: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages is \[\]; at least one message is needed"):
        ChatRequest("GPT-5", messages)  # type: ignore[arg-type]


@pytest.mark.parametrize("messages", [None, 5, b"hello", {"role": "user", "content": "x"}, object()])
def test_messages_of_another_kind_are_refused(messages: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"messages is .*; it must be a string or a sequence of messages"):
        ChatRequest("GPT-5", messages)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["", "  ", None, 5, b"GPT-5"])
def test_a_model_without_a_name_is_refused(model: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"model is .*; it must be the name of a model") as caught:
        ChatRequest(model, "x")  # type: ignore[arg-type]
    assert truncated_repr(model) in str(caught.value)


BAD = {
    "temperature": [-0.1, 2.1, math.nan, math.inf, "1", True, 10**400],
    "top_p": [-0.1, 1.1, math.nan, "1", False],
    "max_tokens": [0, -1, 1.5, "5", True, math.inf, 10**5000],
    "seed": [1.0, "7", True, 10**5000],
    "n": [0, -1, 1.0, True],
    "top_k": [0, 1.5, True],
    "top_logprobs": [-1, 1.5, False],
    "frequency_penalty": [-2.1, 2.1, math.nan, "0"],
    "presence_penalty": [-2.1, 2.1, math.nan, "0"],
    "logprobs": [0, 1, "yes"],
    "system": [5, b"x", ["x"]],
    "user": [5, b"x"],
    "tool_choice": [{"type": "auto"}, 5],
    "stop_sequences": ["stop", b"stop", [1], ["a", None], 5, {"a": 1}],
    "tools": [{"type": "function"}, "f", ["f"], [None], [{"a": math.nan}], [{1: 2}], 5],
    "response_format": ["json", [("type", "x")], {"type": math.nan}, {"type": print}, {1: 2}],
    "extra": ["x", [1], 5, {"a": math.nan}, {"a": math.inf}, {"a": b"x"}, {"a": {1}}, {1: 2}, {"a": 10**5000}],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values], ids=truncated_repr
)
def test_a_bad_option_is_refused_with_its_name_and_its_value(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        ChatRequest("GPT-5", "x", **{name: value})  # type: ignore[arg-type]
    message = str(caught.value)
    as_kept = tuple(value) if isinstance(value, list) else value
    named_inside = f"{name}[" in message or f"A key of {name}" in message  # the place of a part that JSON cannot hold
    assert truncated_repr(as_kept) in message or truncated_repr(value) in message or named_inside


def test_every_option_has_its_bad_values_above() -> None:
    assert set(BAD) == set(RequestOptions.__annotations__)
    assert set(RequestOptions.__annotations__) == {field.name for field in attrs.fields(ChatRequest)} - {
        "model",
        "messages",
    }


@pytest.mark.parametrize("value", [True, False, None, "yes"])
def test_streaming_is_refused_with_the_reason(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="cannot stream") as caught:
        ChatRequest("GPT-5", "x", extra={"stream": value})
    assert f"stream to {value!r}" in str(caught.value)
    assert "OpenAPI" in caught.value.advice


def test_nesting_that_would_break_an_encoder_is_refused() -> None:
    deep: list[object] = []
    for _ in range(150):
        deep = [deep]
    for options in ({"extra": {"a": deep}}, {"tools": [{"a": deep}]}, {"response_format": {"a": deep}}):
        with pytest.raises(InvalidRequestError, match="nested deeper than 100 levels"):
            ChatRequest("GPT-5", "x", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "edges"),
    [("temperature", (0, 2)), ("top_p", (0, 1)), ("frequency_penalty", (-2, 2)), ("presence_penalty", (-2, 2))],
)
def test_the_ends_of_a_range_belong_to_it(name: str, edges: tuple[float, float]) -> None:
    for edge in edges:
        request = ChatRequest("GPT-5", "x", **{name: edge})  # type: ignore[arg-type]
        assert getattr(request, name) == edge


def test_a_string_stands_for_one_user_message() -> None:
    assert ChatRequest("GPT-5", "Hi").messages == (Message("user", "Hi"),)
    assert ChatRequest("GPT-5", Message.user("Hi")) == ChatRequest("GPT-5", [{"role": "user", "content": "Hi"}])
    assert ChatRequest("GPT-5", (m for m in [Message.user("Hi")])) == ChatRequest("GPT-5", "Hi")


def test_an_empty_text_is_a_text() -> None:
    assert ChatRequest("GPT-5", "").messages[0].content == ""


@pytest.mark.parametrize("prompt", ["", " \n"])
async def test_an_empty_prompt_is_refused_unsent(prompt: str) -> None:
    service = FakeTransport("Hello")
    async with AsyncOneLLM(transport=service) as client:
        with pytest.raises(InvalidRequestError, match="The prompt is empty"):
            await client.chat(prompt, model="GPT-5")
        with pytest.raises(InvalidRequestError, match="Prompt 1: The prompt is empty"):
            await client.gather_chats(["a", prompt], model="GPT-5")
        assert not service.requests
        outcomes = [outcome async for outcome in client.iter_chats(iter(["a", prompt]), model="GPT-5")]
        assert {outcome.index: type(outcome.error) for outcome in outcomes} == {0: type(None), 1: InvalidRequestError}
        assert (await client.chat("", model="GPT-5", extra={"messages": [{"role": "tool"}]})).content == "Hello"
    assert len(service.requests) == 2


@pytest.mark.parametrize("value", [FULL, FULL.messages[0], Usage(1), ChatResponse("x"), ChatOutcome(0, "x")])
def test_values_are_frozen(value: object) -> None:
    name = attrs.fields(type(value))[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, name, "other")
    with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
        value.novelty = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize(
    "value",
    [
        FULL,
        Message.user("x"),
        Usage(1, 2, 3),
        ChatResponse("x", usage=Usage(1), extra={"a": [1]}),
        ChatOutcome(1, FULL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_survive_pickling_and_copying(value: object, again) -> None:
    twin = again(value)
    assert twin == value
    assert repr(twin) == repr(value)
    assert hash(twin) == hash(value)


def test_equal_requests_are_one_key_of_a_dict_even_with_mappings_inside() -> None:
    one, other = attrs.evolve(FULL), attrs.evolve(FULL)
    assert len({one, other}) == 1
    assert attrs.evolve(FULL, seed=4) != FULL
    assert attrs.evolve(FULL, extra={"a": 1}) != FULL


def test_changing_a_mapping_after_the_request_was_made_changes_nothing_in_it() -> None:
    extra, shape, tools = {"a": 1}, {"type": "json_object"}, [{"type": "function"}]
    request = ChatRequest("GPT-5", "x", extra=extra, response_format=shape, tools=tools)
    extra["stream"] = True  # type: ignore[assignment]
    shape["type"] = math.nan  # type: ignore[assignment]
    tools.append({"type": math.nan})  # type: ignore[dict-item]
    assert request.extra == {"a": 1}
    assert request.response_format == {"type": "json_object"}
    assert request.tools == ({"type": "function"},)


def test_any_mapping_may_be_extra() -> None:
    assert ChatRequest("GPT-5", "x", extra=MappingProxyType({"a": 1})).extra == {"a": 1}


def test_request_for_returns_a_complete_request_as_it_is() -> None:
    assert build_request(FULL, None, {}) is FULL
    assert build_request("x", "GPT-5", {"seed": 1}) == ChatRequest("GPT-5", "x", seed=1)


def test_request_for_names_what_is_missing_or_unknown() -> None:
    with pytest.raises(InvalidRequestError, match="model is missing"):
        build_request("x", None, {})
    with pytest.raises(InvalidRequestError) as caught:
        build_request("x", "GPT-5", {"max_token": 1, "frequency": 2})  # type: ignore[typeddict-unknown-key]
    assert str(caught.value) == (
        'There is no request field called frequency; use extra for it: extra={"frequency": …} is sent as it is. '
        "There is no request field called max_token; did you mean max_tokens?"
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("stop", "stop_sequences"),
        ("timeout", "deadline"),
        ("max_completion_tokens", "max_tokens"),
        ("max_output_tokens", "max_tokens"),
        ("system_prompt", "system"),
        ("functions", "tools"),
        ("temprature", "temperature"),
        ("stop_sequence", "stop_sequences"),
        ("extra_body", "extra"),
    ],
)
def test_what_other_services_call_a_field_is_understood(name: str, meant: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        build_request("x", "GPT-5", {name: 1})  # type: ignore[misc]
    assert str(caught.value) == f"There is no request field called {name}; did you mean {meant}?"


@pytest.mark.parametrize("name", ["logit_bias", "reasoning_effort", "thinking", "endpoint", "safety_settings"])
def test_a_field_that_is_no_other_one_goes_into_extra(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f'called {name}; use extra for it: extra=.*"{name}"'):
        build_request("x", "GPT-5", {name: 1})  # type: ignore[misc]


ARGUMENTS = ["corrections", "response_model"]
ONLY_OF_RUN = sorted(RunOptions.__annotations__.keys() - RequestOptions.__annotations__.keys() - set(ARGUMENTS))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_no_field_but_an_argument_is_named_as_one(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"called {name}; it is an argument of chat, gather"):
        build_request("x", "GPT-5", {name: 1})  # type: ignore[misc]


@pytest.mark.parametrize("name", [*ONLY_OF_RUN, "on_bad_line", "on_message"])
def test_an_option_of_run_alone_is_named_as_one(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        build_request("x", "GPT-5", {name: 1})  # type: ignore[misc]
    assert str(caught.value) == f"{name} is an option of run: use client.run."


def test_messages_belong_into_the_prompt() -> None:
    with pytest.raises(InvalidRequestError, match="called messages; messages are given as the prompt"):
        build_request("x", "GPT-5", {"messages": []})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize("value", [True, False, None])
def test_streaming_as_an_option_is_refused_with_the_reason(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="cannot stream") as caught:
        build_request("x", "GPT-5", {"stream": value, "stop": "x"})  # type: ignore[typeddict-unknown-key]
    assert f"stream is {value!r}; " in str(caught.value)
    assert "OpenAPI" in caught.value.advice


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "tool", "content": "18", "tool_call_id": "c1"}, 'goes into extra={"messages": […]}'),
        ({"role": "assistant", "content": None, "tool_calls": []}, 'goes into extra={"messages": […]}'),
        ({"role": "tool", "content": "18"}, 'goes into extra={"messages": […]}'),
        ({"role": "model", "content": "x"}, "Did you mean assistant?"),
    ],
)
def test_a_message_of_another_api_says_how_it_can_be_sent(message: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatRequest("GPT-5", [message])
    assert words in str(caught.value)


def test_an_outcome_unwraps_to_its_response_or_raises_its_error() -> None:
    assert ChatOutcome(0, "x", ChatResponse("y")).unwrap().content == "y"
    assert ChatOutcome(0, "x", ChatResponse("")).ok
    error = AuthenticationError("no", status_code=401)
    with pytest.raises(AuthenticationError) as caught:
        ChatOutcome(0, "x", error=error).unwrap()
    assert caught.value is error
    assert not ChatOutcome(0, "x", error=error).ok
    with pytest.raises(OneLLMError, match="empty"):
        ChatOutcome(0, "x").unwrap()


@given(st.text(), st.sampled_from(["system", "user", "assistant"]))
def test_any_text_is_content(text: str, role: str) -> None:
    message = Message.of({"role": role, "content": text})
    assert (message.role, message.content) == (role, text)
    assert pickle.loads(pickle.dumps(message)) == message


def test_messages_have_a_short_way_for_each_role() -> None:
    short = (Message.system("x"), Message.user("x"), Message.assistant("x"))
    assert tuple(message.role for message in short) == ("system", "user", "assistant")


@pytest.mark.parametrize(
    ("word", "openai"),
    [
        ("stop", "stop"),
        ("end_turn", "stop"),
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("length", "length"),
        ("SAFETY", "content_filter"),
        ("refusal", "content_filter"),
        ("tool_use", "tool_calls"),
        ("new word", "stop"),
        (None, "stop"),
    ],
)
def test_the_reasons_of_all_providers_are_in_the_words_of_openai(word, openai):
    assert finish_kind(word) == openai
