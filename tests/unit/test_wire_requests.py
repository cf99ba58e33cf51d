# ruff: noqa: PT017  # an error is one of several right results
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm_async import catalog
from onellm_async.chat import ROLES, ChatRequest, Message
from onellm_async.errors import ConfigurationError, InvalidRequestError
from onellm_async.wire import Dialect, encode_request, parse_json, request_from_body, request_to_body

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
    again = request_from_body(body)
    entry = catalog.lookup(request.model)
    assert entry is not None
    expected = attrs.evolve(
        request,
        model=entry.backend_name or entry.name,
        max_tokens=request.max_tokens or 1024,
        top_p=1.0 if request.top_p is None else request.top_p,
        extra={"endpoint": body["endpoint"], **(request.extra or {})},
    )
    assert again == expected


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
