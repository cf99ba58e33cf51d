"""The local server answers requests with a schema, and a share of them with what does not fit."""

import json
from datetime import date
from typing import Annotated, Literal

import attrs
import msgspec
import pytest

from onellm_async import ChatRequest
from onellm_async.server import Faults, Outcome, ServerSettings, Service, echo
from onellm_async.server.json_answers import conforming_text, unfit_text
from onellm_async.structured_output import UnfitReplyError, schema_for, schema_in, shape_of, structure
from onellm_async.wire import Dialect, encode_request, parse_json


@attrs.frozen
class Item:
    name: str
    price: Annotated[float, msgspec.Meta(gt=0, le=9)]
    kind: Literal["tea", "cake"]


@attrs.frozen
class Order:
    customer: Annotated[str, msgspec.Meta(max_length=5)]
    items: Annotated[list[Item], msgspec.Meta(min_length=2)]
    day: date
    pair: tuple[int, bool]
    note: str | None = None
    children: "list[Order]" = attrs.Factory(list)


HEADERS = {"Authorization": "Bearer k", "Content-Type": "application/json"}
NODE = {"type": "object", "properties": {"next": {"$ref": "#"}, "n": {"type": "integer"}}, "required": ["n"]}


def replies(number, **faults):
    """The contents of so many replies of a service, and its ledger."""
    service = Service(ServerSettings(requests_per_minute=1e9, burst=1e9, faults=Faults(**faults)))
    request = shape_of(schema_for(Order)).asked_in(ChatRequest("GPT-5", "Ada Lovelace", max_tokens=900))
    contents = []
    for _ in range(number):
        job = service.receive("POST", "/api", HEADERS, encode_request(request, Dialect.DOCUMENTED), 0.0)
        contents.append(parse_json(service.complete(job, echo(job)).reply.body)["content"])
    return contents, service.ledger


def fits(content):
    try:
        return structure(content, Order)
    except UnfitReplyError:
        return None


@pytest.mark.parametrize(
    "schema",
    [
        schema_for(Order),
        NODE,
        {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"type": "number", "maximum": -3}}}]},
        {"type": ["array", "null"], "maxItems": 0},
        {"type": "string", "minLength": 99, "maxLength": 120},
        {"enum": ["only"]},
        {"const": [1]},
        {"type": "null"},
        True,
    ],
)
def test_a_value_conforms_to_its_schema(schema):
    text = conforming_text(schema, "Ada Lovelace")
    if isinstance(schema, dict):
        structure(text, schema)
    assert json.loads(text) == json.loads(conforming_text(schema, "Ada Lovelace"))


def test_the_echo_of_a_request_with_a_schema_has_the_first_prompt_in_it():
    (content,), _ = replies(1)
    assert fits(content).customer == "Ada L"
    assert fits(content).items[0].name == "Ada Lovelace"


def test_the_schema_of_a_request_is_found_and_others_have_none():
    schema = schema_for(Order)
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for plain in (
        ChatRequest("GPT-5", "Hi"),
        ChatRequest("GPT-5", "Hi", system="Be brief."),
        ChatRequest("GPT-5", history),
    ):
        assert schema_in(plain) is None
        assert schema_in(shape_of(schema).asked_in(plain)) == schema


def test_a_share_of_the_answers_is_unfit_billed_and_the_same_for_a_seed():
    contents, ledger = replies(200, unfit_rate=0.1, seed=5)
    unfit = [number for number, content in enumerate(contents) if fits(content) is None]
    assert 10 <= len(unfit) <= 30
    assert len({contents[number] for number in unfit}) == 2, "words, and a value that is cut off"
    assert [row.outcome for row in ledger.rows] == [Outcome.ANSWERED] * 200
    assert replies(200, unfit_rate=0.1, seed=5)[0] == contents
    assert len({row.cost for row in ledger.rows}) == 1


@pytest.mark.parametrize("content", ['"a"', "12", "[]", '{"a": 1}', "true", "1", ""])
@pytest.mark.parametrize("number", [1, 2])
def test_an_unfit_text_is_no_json_and_no_longer_than_the_answer(content, number):
    text = unfit_text(content, number)
    assert len(text) <= len(content)
    with pytest.raises(UnfitReplyError):
        structure(text, {})


def test_a_request_without_a_schema_is_answered_as_usual():
    service = Service(ServerSettings(faults=Faults(unfit_rate=1.0)))
    body = encode_request(ChatRequest("GPT-5", "Hi"), Dialect.DOCUMENTED)
    job = service.receive("POST", "/api", HEADERS, body, 0.0)
    assert parse_json(service.complete(job, echo(job)).reply.body)["content"] == "Hi"
