# ruff: noqa: PT017  # an error is one of several right results
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm_async import catalog
from onellm_async.chat import JSON, ROLES, ChatRequest, Message
from onellm_async.errors import ConfigurationError, InvalidRequestError
from onellm_async.wire import (
    Dialect,
    encode_request,
    fields_without_effect,
    parse_json,
    request_from_body,
    request_to_body,
    resolve_endpoints,
)

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=30)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(ANY_TEXT, JSON_VALUES, max_size=3)
KNOWN = {field.name for field in attrs.fields(ChatRequest)}
EXTRA = st.dictionaries(ANY_TEXT.filter(lambda name: name not in KNOWN | {"stream"}), JSON_VALUES, max_size=3)


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


REQUESTS = st.builds(
    ChatRequest,
    st.sampled_from([entry.name for entry in catalog.entries()]),
    st.lists(st.builds(Message, st.sampled_from(ROLES), ANY_TEXT), min_size=1, max_size=3),
    temperature=maybe(st.floats(0, 2)),
    max_tokens=maybe(st.integers(1, 2**60)),
    top_p=maybe(st.floats(0, 1)),
    stop_sequences=maybe(st.lists(ANY_TEXT, max_size=3)),
    system=maybe(ANY_TEXT),
    tools=maybe(st.lists(OBJECTS, max_size=2)),
    tool_choice=maybe(ANY_TEXT),
    response_format=maybe(OBJECTS),
    seed=maybe(st.integers(-(2**60), 2**60)),
    n=maybe(st.integers(1, 9)),
    user=maybe(ANY_TEXT),
    frequency_penalty=maybe(st.floats(-2, 2)),
    presence_penalty=maybe(st.floats(-2, 2)),
    logprobs=maybe(st.booleans()),
    top_logprobs=maybe(st.integers(0, 20)),
    top_k=maybe(st.integers(1, 100)),
    extra=maybe(EXTRA),
)


def normalised(request: ChatRequest) -> ChatRequest:
    return attrs.evolve(request, extra=request.extra or None)


@given(REQUESTS)
@settings(max_examples=100)
def test_a_request_written_as_documented_is_read_back_as_itself(request: ChatRequest) -> None:
    body = parse_json(encode_request(request, Dialect.DOCUMENTED))
    assert request_from_body(body) == normalised(request)
    assert body == parse_json(encode_request(request_from_body(body), Dialect.DOCUMENTED))


@given(REQUESTS)
@settings(max_examples=100)
def test_a_request_written_for_the_backend_has_all_it_demands_and_loses_nothing(request: ChatRequest) -> None:
    body = parse_json(encode_request(request, Dialect.BACKEND))
    assert {"model", "messages", "endpoint", "max_tokens", "top_p"} <= body.keys()
    entry = catalog.lookup(request.model)
    assert entry is not None
    assert body["messages"]
    said = "\n".join([str(body.get("system", "")), *(message["content"] for message in body["messages"])])
    for text in [request.system or "", *(message.content for message in request.messages)]:
        assert text in said
    plain = attrs.evolve(
        request,
        model=entry.backend_name or entry.name,
        system=None,
        max_tokens=request.max_tokens or 1024,
        top_p=1.0 if request.top_p is None else request.top_p,
        extra={"endpoint": body["endpoint"], **(request.extra or {})},
    )
    places = {"messages", "system"}
    expected = parse_json(encode_request(plain, Dialect.DOCUMENTED))
    assert {name: body[name] for name in body.keys() - places} == {
        name: expected[name] for name in expected.keys() - places
    }


HISTORY = [
    Message.system("Be brief."),
    Message.user("One?"),
    Message.assistant("1"),
    Message.system("Be kind."),
    Message.user("Two?"),
]


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("model", ["GPT-5-Mini", "DeepSeek-Chat", "Codestral"])
def test_system_messages_are_read_by_openai_deepseek_and_mistral(model: str) -> None:
    body = parse_json(encode_request(ChatRequest(model, HISTORY, system="In German."), Dialect.BACKEND))
    assert "system" not in body
    assert body["messages"] == messages(
        ("system", "In German."),
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "1"),
        ("system", "Be kind."),
        ("user", "Two?"),
    )


@pytest.mark.parametrize("model", ["Sonnet-4", "Haiku-3"])
def test_instructions_to_anthropic_are_in_its_system_field(model: str) -> None:
    body = parse_json(encode_request(ChatRequest(model, HISTORY, system="In German."), Dialect.BACKEND))
    assert body["system"] == "In German.\n\nBe brief.\n\nBe kind."
    assert body["messages"] == messages(("user", "One?"), ("assistant", "1"), ("user", "Two?"))
    alone = parse_json(encode_request(ChatRequest(model, [Message.system("Go.")], system="Now."), Dialect.BACKEND))
    assert ("system" in alone, alone["messages"]) == (False, messages(("user", "Now.\n\nGo.")))


@pytest.mark.parametrize("model", ["2.0-Flash", "1.5-Pro"])
def test_the_first_turn_to_gemini_begins_with_the_instructions(model: str) -> None:
    body = parse_json(encode_request(ChatRequest(model, HISTORY, system="In German."), Dialect.BACKEND))
    assert "system" not in body
    assert body["messages"] == messages(
        ("user", "In German.\n\nBe brief.\n\nBe kind.\n\nOne?"), ("model", "1"), ("user", "Two?")
    )
    for history, expected in (
        ([Message.system("Go.")], messages(("user", "Go."))),
        ([Message.assistant("Hello"), Message.user("Hi")], messages(("model", "Hello"), ("user", "S\n\nHi"))),
        ([Message.assistant("Hello")], messages(("user", "S"), ("model", "Hello"))),
    ):
        system = None if history == [Message.system("Go.")] else "S"
        request = ChatRequest(model, history, system=system)
        assert parse_json(encode_request(request, Dialect.BACKEND))["messages"] == expected


@pytest.mark.parametrize("model", ["GPT-5-Mini", "Sonnet-4", "2.0-Flash"])
def test_nothing_is_rewritten_where_there_is_no_instruction(model: str) -> None:
    body = parse_json(encode_request(ChatRequest(model, "Hi", system=""), Dialect.BACKEND))
    assert body["messages"] == messages(("user", "Hi"))
    assert "system" not in body


@pytest.mark.parametrize("model", ["GPT-5-Mini", "Sonnet-4", "2.0-Flash"])
def test_what_extra_says_is_sent_as_it_is_in_the_backend_dialect(model: str) -> None:
    raw = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "x"}]
    request = ChatRequest(model, HISTORY, extra={"messages": raw, "system": ["S"]})
    body = parse_json(encode_request(request, Dialect.BACKEND))
    assert (body["messages"], body["system"]) == (raw, ["S"])
    body = parse_json(encode_request(ChatRequest(model, "Hi", system="A", extra={"system": "B"}), Dialect.BACKEND))
    assert (body["messages"], body["system"]) == (messages(("user", "Hi")), "B")


def test_the_documented_dialect_moves_no_instruction() -> None:
    body = parse_json(encode_request(ChatRequest("2.0-Flash", HISTORY, system="S"), Dialect.DOCUMENTED))
    assert (body["system"], len(body["messages"])) == ("S", 5)


def endpoint(model: str, endpoints: dict[str, str], **options: JSON) -> str:
    body = parse_json(encode_request(ChatRequest(model, "x", **options), Dialect.BACKEND, endpoints))
    return str(body["endpoint"])


def test_an_endpoint_replaces_the_url_of_its_provider_alone() -> None:
    endpoints = {"openai": "http://proxy/v1", "google": "http://proxy/{model}:do?m={model}"}
    assert endpoint("GPT-5-Mini", endpoints) == "http://proxy/v1"
    assert endpoint("2.0-Flash", endpoints) == "http://proxy/gemini-2.0-flash:do?m=gemini-2.0-flash"
    assert endpoint("Sonnet-4", endpoints) == "https://api.anthropic.com/v1/messages"
    assert endpoint("GPT-5-Mini", endpoints, extra={"endpoint": "http://mine"}) == "http://mine"
    assert "endpoint" not in parse_json(encode_request(ChatRequest("GPT-5", "x"), Dialect.DOCUMENTED, endpoints))


def test_a_model_that_the_catalog_lacks_goes_to_the_only_endpoint() -> None:
    assert endpoint("smollm2", {"openai": "http://proxy/v1"}) == "http://proxy/v1"
    assert endpoint("SmolLM2", {"mistral": "http://proxy/{model}"}) == "http://proxy/smollm2"
    with pytest.raises(InvalidRequestError, match=r"--endpoint OpenAI=https://…\), or extra=\{\"endpoint\""):
        endpoint("smollm2", {"openai": "http://a", "mistral": "http://b"})
    body = parse_json(encode_request(ChatRequest("x", "Hi", system="S"), Dialect.BACKEND, {"anthropic": "http://a"}))
    assert (body["system"], body["messages"]) == ("S", messages(("user", "Hi")))


def test_the_endpoint_of_a_single_request_tells_the_provider_of_an_unknown_model() -> None:
    url = "https://api.anthropic.com/v1/messages"
    body = parse_json(encode_request(ChatRequest("x", "Hi", system="S", extra={"endpoint": url}), Dialect.BACKEND))
    assert (body["system"], body["messages"]) == ("S", messages(("user", "Hi")))
    url = "https://elsewhere.example/v1"
    body = parse_json(encode_request(ChatRequest("x", "Hi", system="S", extra={"endpoint": url}), Dialect.BACKEND))
    assert body["messages"] == messages(("system", "S"), ("user", "Hi"))


EVERYTHING: dict[str, JSON] = {
    "temperature": 1,
    "max_tokens": 5,
    "top_p": 1,
    "stop_sequences": ["x"],
    "system": "S",
    "tools": [{"type": "function"}],
    "tool_choice": "auto",
    "response_format": {"type": "json_object"},
    "seed": 1,
    "n": 1,
    "user": "u",
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": True,
    "top_logprobs": 1,
    "top_k": 1,
}
PENALTIES = {"frequency_penalty", "presence_penalty"}


@pytest.mark.parametrize(
    ("model", "name", "lost"),
    [
        ("GPT-5-Mini", "OpenAI", {"logprobs", "top_logprobs", "top_k"}),
        (
            "Sonnet-4",
            "Anthropic",
            PENALTIES | {"tools", "tool_choice", "response_format", "seed", "n", "user", "logprobs", "top_logprobs"},
        ),
        ("DeepSeek-Chat", "DeepSeek", {"tool_choice", "response_format", "seed", "n", "user", "top_k"}),
        (
            "2.0-Flash",
            "Gemini",
            PENALTIES | {"tool_choice", "response_format", "seed", "n", "user", "logprobs", "top_logprobs", "top_k"},
        ),
        (
            "Codestral",
            "Mistral",
            PENALTIES
            | {"tools", "tool_choice", "response_format", "seed", "n", "user", "logprobs", "top_logprobs", "top_k"},
        ),
    ],
)
def test_fields_that_the_backend_does_not_forward_are_named(model: str, name: str, lost: set[str]) -> None:
    notices = fields_without_effect(ChatRequest(model, "x", **EVERYTHING))
    assert set(notices) == {f"The backend does not forward {each} to {name}: it has no effect there." for each in lost}
    assert fields_without_effect(ChatRequest(model, "x", temperature=1, stop_sequences=["x"], system="S")) == ()


def test_fields_in_extra_and_parts_of_fields_that_are_lost_are_named_too() -> None:
    schema = {"type": "json_schema", "json_schema": {}}
    extra = {"reasoning_effort": "low", "system": "S", "logit_bias": None}
    assert fields_without_effect(ChatRequest("GPT-5", "x", response_format=schema, extra=extra)) == (
        "The backend does not forward reasoning_effort to OpenAI: it has no effect there.",
        "The backend does not forward system to OpenAI: it has no effect there.",
        "Of response_format, the backend forwards type to OpenAI, and nothing else.",
    )
    config = {"generation_config": {"top_k": 3, "temperature": 1}, "contents": [], "safety_settings": []}
    assert fields_without_effect(ChatRequest("2.0-Flash", "x", extra=config)) == (
        "Of generation_config, the backend forwards candidate_count and top_k to Gemini, and nothing else.",
    )
    assert fields_without_effect(ChatRequest("unknown", "x", seed=1)) == ()
    assert len(fields_without_effect(ChatRequest("unknown", "x", seed=1), {"mistral": "http://a"})) == 1


@given(st.dictionaries(st.sampled_from(sorted(KNOWN)) | ANY_TEXT, JSON_VALUES, max_size=5), st.sampled_from(Dialect))
@settings(max_examples=100)
def test_any_json_object_is_a_request_or_refused_as_one(body: dict[str, object], dialect: Dialect) -> None:
    for extended in (body, {"model": "GPT-5", "messages": [{"role": "user", "content": "x"}], **body}):
        try:
            encode_request(request_from_body(extended), dialect)
        except InvalidRequestError as error:
            assert str(error)


@pytest.mark.parametrize("model", [5, ["GPT-5"], None, {"a": 1}, ""])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_extra_may_replace_the_model_in_any_dialect(model: object, dialect: Dialect) -> None:
    request = ChatRequest("GPT-5", "x", extra={"model": model, "endpoint": "https://llm.example"})
    assert parse_json(encode_request(request, dialect))["model"] == model


@pytest.mark.parametrize("model", [5, ["GPT-5"], None, {"a": 1}])
def test_the_backend_dialect_names_a_model_it_cannot_place(model: object) -> None:
    with pytest.raises(InvalidRequestError, match="provider of model") as caught:
        encode_request(ChatRequest("GPT-5", "x", extra={"model": model}), Dialect.BACKEND)
    assert repr(model) in str(caught.value)


def test_extra_wins_over_everything() -> None:
    request = ChatRequest("GPT-5", "x", temperature=1, extra={"temperature": 7, "messages": []})
    assert request_to_body(request) == {"model": "GPT-5", "messages": [], "temperature": 7}


@pytest.mark.parametrize("entry", catalog.entries(), ids=lambda entry: entry.name)
def test_the_backend_gets_its_own_model_id_and_the_provider_it_forwards_to(entry: catalog.CatalogEntry) -> None:
    body = parse_json(encode_request(ChatRequest(entry.name, "x"), Dialect.BACKEND))
    assert body["model"] == (entry.backend_name or entry.name)
    hosts = {
        "openai": "https://api.openai.com/v1/chat/completions",
        "anthropic": "https://api.anthropic.com/v1/messages",
        "deepseek": "https://api.deepseek.com/chat/completions",
        "mistral": "https://api.mistral.ai/v1/chat/completions",
        "google": "https://generativelanguage.googleapis.com/v1beta/models/gemini-",
    }
    assert body["endpoint"].startswith(hosts[entry.provider])


@pytest.mark.parametrize("dialect", ["", "DOCUMENTED", None, 5, [], {}])
def test_an_unknown_dialect_is_a_configuration_error_that_names_it(dialect: object) -> None:
    with pytest.raises(ConfigurationError, match="it must be 'documented' or 'backend'") as caught:
        Dialect(dialect)
    assert repr(dialect) in str(caught.value)


def test_dialects_are_plain_words() -> None:
    assert [str(dialect) for dialect in Dialect] == ["documented", "backend"]


def test_endpoints_are_known_by_every_name_of_their_provider() -> None:
    urls = {"OpenAI": "http://a/v1", "claude": "https://b", "GEMINI": "https://c/{model}", "Mistral ": "https://d?e=f"}
    assert resolve_endpoints(urls) == {
        "openai": "http://a/v1",
        "anthropic": "https://b",
        "google": "https://c/{model}",
        "mistral": "https://d?e=f",
    }
    assert resolve_endpoints(None) == resolve_endpoints({}) == {}


@pytest.mark.parametrize(
    ("endpoints", "words"),
    [
        ({"Groq": "https://a"}, "provider 'Groq'; the known ones are OpenAI, Anthropic, DeepSeek, Gemini, Mistral"),
        ({"": "https://a"}, "provider ''"),
        ({5: "https://a"}, "provider 5"),
        ({"Claude": "https://a", "Anthropic": "https://a"}, "the provider Anthropic twice"),
        ({"OpenAI": "api.openai.com"}, "The endpoint of OpenAI 'api.openai.com' is not an http or https URL"),
        ({"OpenAI": 5}, "The endpoint of OpenAI is 5; it must be a string"),
        ({"OpenAI": "https://user:hunter2@a"}, "The endpoint of OpenAI holds a user name or password"),
        ("OpenAI=https://a", "it must be a mapping"),
        ([("OpenAI", "https://a")], "it must be a mapping"),
    ],
)
def test_endpoints_that_cannot_be_used_are_refused_by_name(endpoints: object, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_endpoints(endpoints)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
