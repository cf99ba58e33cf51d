import dataclasses
import json
import subprocess
import sys
from typing import Annotated, TypedDict

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import (
    AsyncOneLLM,
    ChatRequest,
    ConfigurationError,
    DeadlineExceededError,
    Limits,
    Message,
    OneLLMError,
    StructureError,
)
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.structured_output import (
    MAX_CORRECTION,
    UnfitReplyError,
    json_in,
    schema_for,
    shape_of,
    structure,
)
from onellm_async.testing import FakeReply, FakeTransport, answer, failure
from onellm_async.transport import RawReply

MODEL = "GPT-5-Nano"


@attrs.frozen
class Item:
    name: str
    price: Annotated[float, msgspec.Meta(ge=0)]


@attrs.frozen
class Order:
    customer: str
    items: list[Item]
    note: str | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: int


class City(TypedDict):
    name: str
    people: int


class Star(msgspec.Struct):
    name: str


class Planet(pydantic.BaseModel):
    name: str
    moons: int = pydantic.Field(ge=0)


@attrs.frozen
class Even:
    number: int = attrs.field()

    @number.validator
    def _check(self, attribute, value):
        if value % 2:
            raise ValueError("it must be even")


ORDER = {"customer": "Ada", "items": [{"name": "tea", "price": 2.5}]}


def chats(replies, **options):
    """The answer, and the requests that were sent."""
    transport = FakeTransport(replies)

    async def ask():
        async with AsyncOneLLM(transport=transport, limits=Limits.unlimited()) as client:
            return await client.chat("Order tea.", model=MODEL, **options)

    return run_in_virtual_time(ask()), transport.requests


def error_of(replies, **options):
    transport = FakeTransport(replies)

    async def ask():
        async with AsyncOneLLM(transport=transport, limits=Limits.unlimited()) as client:
            with pytest.raises(OneLLMError) as caught:
                await client.chat("Order tea.", model=MODEL, **options)
            return caught.value

    return run_in_virtual_time(ask()), transport.requests


@pytest.mark.parametrize(
    ("response_model", "text", "value"),
    [
        (Order, json.dumps(ORDER), Order("Ada", [Item("tea", 2.5)])),
        (Point, '{"x": 1, "y": 2}', Point(1, 2)),
        (City, '{"name": "Oslo", "people": 700000}', {"name": "Oslo", "people": 700000}),
        (Star, '{"name": "Sol"}', Star("Sol")),
        (Planet, '{"name": "Mars", "moons": 2}', Planet(name="Mars", moons=2)),
        (list[Point], '[{"x": 1, "y": 2}]', [Point(1, 2)]),
        (dict, '{"anything": [1]}', {"anything": [1]}),
    ],
    ids=lambda value: getattr(value, "__name__", "") if isinstance(value, type) else "",
)
def test_an_answer_becomes_a_value_of_every_kind_of_class(response_model, text, value):
    reply, (request,) = chats(answer(text), response_model=response_model)
    assert reply.parsed == value
    assert (reply.content, reply.corrections) == (text, 0)
    assert json.dumps(schema_for(response_model), separators=(",", ":")) in request.fields["system"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ORDER),
        f"```json\n{json.dumps(ORDER, indent=2)}\n```",
        f"```\n{json.dumps(ORDER)}\n```",
        f"Here is your order: {json.dumps(ORDER)} Anything else?",
        f"\ufeff {json.dumps(ORDER)}\n".strip("\ufeff"),
    ],
)
def test_a_fence_and_words_around_the_value_are_left_out(text):
    assert structure(text, Order) == Order("Ada", [Item("tea", 2.5)])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("I cannot do that.", "There is no JSON value"),
        ('{"customer": "Ada", "items": [', "cannot be read"),
        ('{"customer": "Ada"} {"customer": "Bob"}', "more than one"),
        ("[[[" * 5000, "cannot be read"),
        ("[" * 100_000 + "]" * 100_000, "cannot be read"),
    ],
)
def test_what_holds_no_single_value_is_unfit(text, fault):
    with pytest.raises(UnfitReplyError, match=fault):
        structure(text, Order)


def test_all_faults_are_named_with_their_paths():
    with pytest.raises(UnfitReplyError) as caught:
        structure('{"customer": 3, "items": [{"name": "tea", "price": -1}, {"price": "2"}]}', Order)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "$.customer",
        "$.items[0].price",
        "$.items[1]",
        "$.items[1].price",
    ]
    with pytest.raises(UnfitReplyError) as caught:
        structure('{"moons": -1}', Planet)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["$.name", "$.moons"]
    with pytest.raises(UnfitReplyError, match="it must be even"):
        structure('{"number": 3}', Even)


@pytest.mark.parametrize("text", ['{"x": "1", "y": 2}', '{"x": 1.5, "y": 2}', '{"x": true, "y": 2}', "null"])
def test_a_value_of_another_type_is_never_coerced(text):
    with pytest.raises(UnfitReplyError):
        structure(text, Point)


def test_a_misfit_is_corrected_once_with_all_its_faults_and_costs_what_both_turns_cost():
    replies = [answer('{"customer": 3}'), answer(json.dumps(ORDER))]
    reply, requests = chats(replies, response_model=Order)
    assert (reply.parsed.customer, reply.corrections, reply.attempts) == ("Ada", 1, 2)
    first, second = requests
    assert second.messages[:-2] == first.messages
    assert second.messages[-2] == {"role": "assistant", "content": '{"customer": 3}'}
    assert "- $.customer: 3 is not of type 'string'" in second.messages[-1]["content"]
    assert "- $: 'items' is a required property" in second.messages[-1]["content"]
    alone, _ = chats([answer(json.dumps(ORDER))], response_model=Order)
    assert reply.usage.output_tokens > alone.usage.output_tokens
    assert reply.cost > alone.cost


@pytest.mark.parametrize("corrections", [0, 2])
def test_an_answer_that_never_fits_fails_with_the_answer_and_its_cost(corrections):
    error, requests = error_of(answer("no"), response_model=Order, corrections=corrections)
    assert isinstance(error, StructureError)
    assert (error.response.content, error.response.corrections) == ("no", corrections)
    assert len(requests) == error.response.attempts == corrections + 1
    assert error.problems == ("There is no JSON value in it.",)
    assert error.response.cost > 0


def test_the_corrective_turns_of_an_error_are_counted_in_words():
    one, _ = error_of(answer("no"), response_model=Order, corrections=1)
    two, _ = error_of(answer("no"), response_model=Order, corrections=2)
    assert "after 1 corrective turn." in str(one)
    assert "after 2 corrective turns." in str(two)


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "content_filter"])
def test_what_is_cut_off_or_filtered_is_not_sent_back(reason):
    reply = {"content": '{"customer": "A', "finish_reason": reason}
    raw = FakeReply(raw=RawReply(200, {}, json.dumps(reply).encode()))
    error, requests = error_of(raw, response_model=Order)
    assert isinstance(error, StructureError)
    assert len(requests) == 1


def test_a_correction_that_fails_keeps_the_answer_that_was_paid_for():
    error, _ = error_of([answer("no"), failure(422)], response_model=Order)
    assert isinstance(error, StructureError)
    assert error.response.content == "no"
    assert "Its correction failed: 422" in error.message
    error, requests = error_of(answer("no", delay=6), response_model=Order, deadline=10)
    assert isinstance(error, StructureError)
    assert isinstance(error.__cause__, DeadlineExceededError)
    assert len(requests) == 2


@pytest.mark.parametrize("broken", [3, "Order", lambda: 1, {"type": 5}, type("Empty", (), {})])
def test_what_has_no_schema_is_refused_unsent(broken):
    error, requests = error_of(answer("{}"), response_model=broken)
    assert isinstance(error, ConfigurationError)
    assert error.message.startswith("response_model is ")
    assert requests == []


@pytest.mark.parametrize("corrections", [-1, 6, True, 1.5, "1"])
def test_a_number_of_corrections_out_of_range_is_refused_unsent(corrections):
    error, requests = error_of(answer("{}"), response_model=Order, corrections=corrections)
    assert isinstance(error, ConfigurationError)
    assert "corrections is" in error.message
    assert requests == []


def test_the_instruction_joins_the_system_message_that_is_there():
    schema = schema_for(Point)
    plain = shape_of(schema).asked_in(ChatRequest(MODEL, "Hi"))
    assert plain.system.startswith("Answer with one JSON value")
    field = shape_of(schema).asked_in(ChatRequest(MODEL, "Hi", system="Be brief."))
    assert field.system.startswith("Be brief.\n\nAnswer with")
    history = [Message.system("Be kind."), Message.user("Hi")]
    message = shape_of(schema).asked_in(ChatRequest(MODEL, history))
    assert message.system is None
    assert message.messages[0].content.startswith("Be kind.\n\nAnswer with")


def test_json_mode_is_asked_for_where_the_provider_has_one_and_the_value_is_an_object():
    assert shape_of(schema_for(Point)).asked_in(ChatRequest(MODEL, "Hi")).response_format == {"type": "json_object"}
    assert shape_of(schema_for(list[Point])).asked_in(ChatRequest(MODEL, "Hi")).response_format is None
    assert shape_of(schema_for(Point)).asked_in(ChatRequest("Sonnet-4", "Hi")).response_format is None
    own = ChatRequest(MODEL, "Hi", response_format={"type": "text"})
    assert shape_of(schema_for(Point)).asked_in(own).response_format == {"type": "text"}


@pytest.mark.parametrize("text", ['{"x": NaN}', '{"x": -Infinity}', '{"x": 1, "name": "\\ud800"}', '{"x": 1e999}'])
def test_what_python_takes_for_json_and_no_other_reader_does_is_unfit(text):
    @attrs.frozen
    class Place:
        x: float
        name: str = ""

    with pytest.raises(UnfitReplyError):
        structure(text, Place)


def test_whatever_the_code_of_a_class_raises_is_a_fault_of_the_answer():
    @attrs.frozen
    class Moody:
        number: int = attrs.field()

        @number.validator
        def _check(self, attribute, value):
            raise KeyError("mood")

    with pytest.raises(UnfitReplyError, match="KeyError: 'mood'"):
        structure('{"number": 1}', Moody)


@pytest.mark.parametrize("reference", ["#/$defs/Itm", "item.json", "http://localhost:1/item.json"])
def test_a_reference_to_nothing_is_refused_unsent_and_never_fetched(reference):
    schema = {"type": "object", "properties": {"item": {"$ref": reference}}, "$defs": {"Item": {}}}
    error, requests = error_of(answer("{}"), response_model=schema)
    assert isinstance(error, ConfigurationError)
    assert f"refers to {reference!r}" in error.message
    assert requests == []


def test_references_that_lead_somewhere_are_followed():
    schema = {
        "$defs": {
            "Item": {"type": "string"},
            "other": {"$id": "other", "$defs": {"a": {}}, "items": {"$ref": "#/$defs/a"}},
        },
        "properties": {"item": {"$ref": "#/$defs/Item"}, "schema": {"$ref": "http://json-schema.org/draft-07/schema#"}},
        "enum": [{"item": "a"}, {"$ref": "nowhere"}],
    }
    assert structure('{"item": "a"}', schema) == {"item": "a"}
    with pytest.raises(UnfitReplyError, match="item"):
        structure('{"item": 1}', schema)


def test_the_text_of_a_correction_is_bounded_and_names_as_many_faults_as_fit():
    wrong = json.dumps({f"{number:03} {'ä' * 200}": 1 for number in range(20)})
    schema = {"type": "object", "additionalProperties": {"type": "string"}}
    replies = [answer(wrong), answer("{}")]
    reply, (_, second) = chats(replies, response_model=schema)
    assert reply.parsed == {}
    assert len(second.messages[-1]["content"].encode()) <= MAX_CORRECTION
    assert second.messages[-1]["content"].count("is not of type 'string'") >= 3


def test_an_error_counts_the_attempts_of_all_turns_and_says_why_the_last_got_no_answer():
    error, _ = error_of([answer("no"), failure(422)], response_model=Order)
    assert (error.attempts, error.correction_error.attempts, error.response.attempts) == (2, 1, 1)
    assert error.correction_error.status_code == 422
    error, _ = error_of(answer("no"), response_model=Order)
    assert (error.attempts, error.correction_error) == (2, None)


def test_a_fan_out_has_a_value_or_an_error_for_each_prompt():
    def reply(request):
        prompt = request.messages[0]["content"]
        number = int(prompt.split()[-1])
        corrected = len(request.messages) > 1
        return answer('{"x": 1, "y": 2}' if number % 10 or (corrected and number % 20) else "no")

    async def ask():
        async with AsyncOneLLM(transport=FakeTransport(reply), limits=Limits.unlimited()) as client:
            prompts = [f"Prompt {n}" for n in range(200)]
            listed = await client.gather_chats(prompts, model=MODEL, response_model=Point, return_exceptions=True)
            streamed = [one async for one in client.iter_chats(prompts[:40], model=MODEL, response_model=Point)]
            return listed, streamed

    listed, streamed = run_in_virtual_time(ask())
    failed = [index for index, one in enumerate(listed) if isinstance(one, StructureError)]
    assert failed == list(range(0, 200, 20))
    assert sum(one.corrections for one in listed if not isinstance(one, OneLLMError)) == 10
    assert all(one.parsed == Point(1, 2) for one in listed if not isinstance(one, OneLLMError))
    assert {one.index for one in streamed if one.error is not None} == {0, 20}


def test_a_wrong_class_is_refused_before_a_fan_out_sends_anything():
    transport = FakeTransport()

    async def ask():
        async with AsyncOneLLM(transport=transport) as client:
            with pytest.raises(ConfigurationError):
                await client.gather_chats(["a", "b"], model=MODEL, response_model=3)

    run_in_virtual_time(ask())
    assert transport.requests == []


def test_without_msgspec_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "msgspec", None)

    @attrs.frozen
    class Fresh:
        number: int

    with pytest.raises(ConfigurationError, match="structured") as caught:
        schema_for(Fresh)
    assert "onellm-async[structured]" in str(caught.value)


def test_a_recursive_class_keeps_its_definition():
    @attrs.frozen
    class Node:
        value: int
        children: "list[Node]" = attrs.Factory(list)

    globals()["Node"] = Node
    try:
        schema = schema_for(Node)
        assert schema["type"] == "object"
        assert "Node" in schema["$defs"]
        assert structure('{"value": 1, "children": [{"value": 2}]}', Node) == Node(1, [Node(2, [])])
    finally:
        del globals()["Node"]


@given(st.text())
def test_no_text_whatsoever_raises_anything_else(text):
    try:
        json.loads(json_in(text))
        structure(text, Point)
    except UnfitReplyError as error:
        faults = error.faults
    else:
        faults = ("none",)
    assert faults


@given(
    st.dictionaries(st.text(min_size=1), st.none() | st.booleans() | st.integers() | st.text(), max_size=4),
    st.text(st.characters(exclude_characters="{}[]`", exclude_categories=["Cs"])),
    st.text(st.characters(exclude_characters="{}[]`", exclude_categories=["Cs"])),
)
def test_a_value_between_words_is_found(value, before, after):
    assert json.loads(json_in(f"{before}{json.dumps(value)}{after}")) == value


def test_the_extra_is_not_loaded_where_it_is_not_used():
    code = "import sys, onellm_async.client; sys.exit('msgspec' in sys.modules or 'jsonschema' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
