import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onellm_async import BatchError, ConfigurationError, InvalidRequestError, Message
from onellm_async.batch import (
    EntryParser,
    InputFormat,
    LineError,
    ParsedEntry,
    RequestDefaults,
    input_format_named,
    recognize_format,
)
from onellm_async.batch.inputs.entry_parser import ParserOptions
from onellm_async.batch.inputs.formats import FORMATS as INPUT_FORMATS

CSV, JSON_DOCUMENT, JSONL, OPENAI_BATCH, PARQUET, TEXT, TSV = map(
    input_format_named, ("csv", "json", "jsonl", "openai-batch", "parquet", "text", "tsv")
)


def read(raw, shape=JSONL, *, prompt_field=None, **defaults):
    reader = EntryParser(
        "in.jsonl", shape.parse, ParserOptions(prompt_field=prompt_field, defaults=RequestDefaults(**defaults))
    )
    raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return reader.read(raw, line=7, index=3)


def batch_line(**changes):
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "GPT-5", "messages": [{"role": "user", "content": "Hi"}]},
    }
    return {name: value for name, value in (line | changes).items() if value is not ...}


def test_a_text_line_is_the_prompt_whatever_it_looks_like():
    item = read(b'{"prompt": "not read"}', TEXT)

    assert item.request.messages == (Message.user('{"prompt": "not read"}'),)
    assert (item.index, item.line, item.custom_id) == (3, 7, None)
    assert item.request.model == "GPT-5-Nano"


@pytest.mark.parametrize("value", [{"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}, "Hi"])
def test_a_json_line_holds_a_prompt_or_messages_or_is_a_string(value):
    assert read(value).request.messages == (Message.user("Hi"),)


def test_a_named_field_is_the_prompt_and_other_fields_are_no_prompts():
    item = read({"question": "Why?", "prompt": "no", "messages": "no", "custom_id": "q1"}, prompt_field="question")

    assert item.request.messages == (Message.user("Why?"),)
    assert item.request.model == "GPT-5-Nano"
    assert item.custom_id == "q1"


def test_a_named_field_may_hold_messages():
    item = read({"turns": [{"role": "user", "content": "Why?"}]}, prompt_field="turns")

    assert item.request.messages == (Message.user("Why?"),)


def test_what_the_run_asks_of_every_prompt_is_in_each_request():
    request = read({"prompt": "Hi"}, model="GPT-5", system="Be brief", max_tokens=9, temperature=0.5).request

    assert (request.model, request.system, request.max_tokens, request.temperature) == ("GPT-5", "Be brief", 9, 0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff", "Not UTF-8: invalid start byte at byte 1 of the line."),
        (b'{"prompt": "b"', "Not JSON: Expecting ',' delimiter at column 15."),
        (b'{\n"prompt" 1}', "Not JSON: Expecting ':' delimiter at column 10 of line 2 of the entry."),
        (b"[1]", "It is an array, not an object or a string."),
        (b"12", "It is a number, not"),
        (b"true", "It is a boolean, not"),
        (b"null", "It is null or missing, not"),
        (b'" "', "The prompt is empty."),
        ({"prompt": "  "}, "The prompt is empty."),
        ({"prompt": 5}, "prompt is a number, not a string."),
        ({"prompt": ["Hi"]}, "prompt is an array, not a string."),
        ({"question": "Hi"}, "neither prompt nor messages (fields: 'question'); name its field with field=, or"),
        ({}, "neither prompt nor messages (fields: none)"),
        ({"prompt": "a", "messages": []}, "both prompt and messages"),
        ({"messages": "Hi"}, "messages is a string, not an array."),
        ({"messages": []}, "at least one message is needed"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "'robot'"),
        ({"prompt": "Hi", "custom_id": 5.5}, "custom_id is a number, not a string."),
        (b"[" * 100_000, "Not JSON"),
    ],
)
def test_a_bad_json_line_is_named_with_file_line_and_value(line, message):
    error = read(line)

    assert isinstance(error, LineError)
    assert str(error).startswith("in.jsonl:7: ")
    assert message in error.message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"prompt": "Hi"}, "It has no field 'question' (fields: 'prompt')."),
        ({"question": 3}, "'question' is a number, not a string or messages."),
        ({"question": None}, "'question' is null or missing"),
        ("Hi", "It is a JSON string, not an object with 'question'."),
    ],
)
def test_a_line_without_the_named_field_is_bad(value, message):
    assert message in read(value, prompt_field="question").message


def test_an_openai_batch_line_keeps_its_own_parameters():
    body = {
        "model": "GPT-5",
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}],
        "max_completion_tokens": 5,
        "stop": "END",
        "stream": False,
    }
    item = read(batch_line(body=body), OPENAI_BATCH, fallback_model="GPT-5-Mini")

    assert item.custom_id == "a"
    assert item.request.model == "GPT-5"
    assert item.request.max_tokens == 5
    assert item.request.stop_sequences == ("END",)
    assert item.request.messages[0] == Message.system("S")


def test_flags_win_over_an_openai_batch_line_and_a_fallback_model_does_not():
    line = batch_line(body={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 1})
    item = read(line, OPENAI_BATCH, fallback_model="GPT-5-Mini", max_tokens=7)
    overridden = read(batch_line(), OPENAI_BATCH, model="Claude-Sonnet-4")

    assert (item.request.model, item.request.max_tokens, item.request.temperature) == ("GPT-5-Mini", 7, 1)
    assert overridden.request.model == "Claude-Sonnet-4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["a"], "It is an array, not an object."),
        (batch_line(custom_id=...), "It has no custom_id."),
        (batch_line(custom_id=True), "custom_id is a boolean"),
        (batch_line(method="GET"), "method is 'GET'; only POST can be sent."),
        (batch_line(url="/v1/embeddings"), "url is '/v1/embeddings'; only /v1/chat/completions can be sent."),
        (batch_line(url=3), "url is 3; only"),
        (batch_line(body=...), "body is null or missing, not an object."),
        (batch_line(body={"model": "GPT-5"}), "no messages"),
        (batch_line(body={"messages": "Hi", "stream": True}), "stream"),
        (batch_line(body={"messages": "Hi", "temperature": 9}), "temperature is 9"),
    ],
)
def test_a_bad_openai_batch_line_is_named(line, message):
    assert message in read(line, OPENAI_BATCH).message


def test_a_custom_id_used_twice_names_the_first_line():
    reader = EntryParser("in.jsonl", OPENAI_BATCH.parse)
    raw = json.dumps(batch_line()).encode()

    assert isinstance(reader.read(raw, line=3, index=0), ParsedEntry)
    assert reader.read(raw, line=9, index=1) == LineError("in.jsonl", 9, "custom_id 'a' was used in line 3 already.")


def test_vllms_own_parameters_are_passed_on_and_nulls_left_out():
    body = {
        "model": "GPT-5",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
        "max_completion_tokens": None,
        "temperature": None,
        "guided_json": {"type": "object"},
        "chat_template_kwargs": {"enable_thinking": False},
        "min_p": 0.1,
    }
    request = read(batch_line(body=body), OPENAI_BATCH).request

    assert (request.max_tokens, request.temperature) == (5, None)
    assert request.extra == {
        "guided_json": {"type": "object"}, "chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.1
    }  # fmt: skip


def test_openais_other_ways_of_writing_a_message_are_understood():
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    messages = [{"role": "developer", "content": "S"}, {"role": "user", "content": parts}]
    request = read(batch_line(body={"messages": messages}), OPENAI_BATCH).request

    assert request.messages == (Message.system("S"), Message.user("Hello there"))


@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/responses"])
def test_what_else_vllm_and_openai_run_in_batches_is_refused_by_its_url(url):
    assert f"url is '{url}'; only /v1/chat/completions" in read(batch_line(url=url), OPENAI_BATCH).message


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, "text", {"type": "text"}])
def test_a_message_with_more_than_text_is_refused(part):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, part]}]
    error = read(batch_line(body={"messages": messages}), OPENAI_BATCH)

    assert "A message holds a part of type" in error.message


@pytest.mark.parametrize("bad", [{"max_tokens": 0}, {"temperature": 3}, {"model": " "}, {"fallback_model": ""}])
def test_defaults_that_would_spoil_every_line_are_refused_at_once(bad):
    with pytest.raises(InvalidRequestError, match=next(iter(bad)).removeprefix("fallback_")):
        RequestDefaults(**bad)


def test_an_unknown_format_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"'xml'.*openai-batch, json, jsonl, csv, tsv, parquet, arrow, text"):
        input_format_named("xml")


@pytest.mark.parametrize(
    ("name", "first_line", "expected"),
    [
        ("a.txt", b'{"prompt": "Hi"}', TEXT),
        ("a.md", b"# Hi", TEXT),
        ("a.jsonl", b'{"prompt": "Hi"}', JSONL),
        ("a.NDJSON", b'"Hi"', JSONL),
        ("a.jsonl", b"broken", JSONL),
        ("a.json", b"[", JSON_DOCUMENT),
        ("a.jsonl", b'{"custom_id": "a", "body": {}}', OPENAI_BATCH),
        ("<stdin>", b'{"custom_id": "a", "body": {}}', OPENAI_BATCH),
        ("<stdin>", b'{"custom_id": "a", "prompt": "Hi"}', JSONL),
        ("<stdin>", b"Hi there", TEXT),
        ("<stdin>", b'"quoted"', TEXT),
        ("prompts", b"[INST] Hi", TEXT),
        ("a.csv", b"prompt", CSV),
        ("a.TSV", b"prompt", TSV),
        ("a.parquet", b"PAR1", PARQUET),
    ],
)
def test_the_format_follows_from_name_and_first_line(name, first_line, expected):
    assert recognize_format(name, first_line) is expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["prompt", "messages", "custom_id", "body", "method", "url", "model", "role", "content", "stop"]
            )
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(
    raw=st.binary() | json_values.map(lambda value: json.dumps(value).encode()), shape=st.sampled_from(INPUT_FORMATS)
)
@example(raw=b'{"prompt": "\\ud800"}', shape=JSONL)
@example(raw=b'{"custom_id": "\\ud800", "body": {"messages": "x", "extra": 1}}', shape=OPENAI_BATCH)
@example(raw=b'{"custom_id": "a", "body": {"messages": "x", "stop": {"a": 1}}}', shape=OPENAI_BATCH)
def test_any_line_is_an_item_or_a_line_error(raw, shape):
    entry = EntryParser("in", shape.parse).read(raw, line=1, index=0)

    assert isinstance(entry, ParsedEntry | LineError)
    with contextlib.suppress(BatchError):
        assert isinstance(recognize_format("in", raw), InputFormat)


@pytest.mark.parametrize("field", ["id", "custom_id"])
@pytest.mark.parametrize(
    ("value", "expected"), [("7", "7"), ("7.0", "7"), ("-1", "-1"), ("18446744073709551615", "18446744073709551615")]
)
def test_numbers_are_ids_whether_or_not_a_program_wrote_them_as_floats(field, value, expected):
    found = read(f'{{"{field}": {value}, "prompt": "Hi"}}'.encode())
    assert found.custom_id == expected


@pytest.mark.parametrize("value", ["1e300", "123456789012345678901234567890"])
def test_a_number_that_was_rounded_while_it_was_read_is_no_id(value):
    found = read(f'{{"custom_id": {value}, "prompt": "Hi"}}'.encode())
    assert "too large a number to be read exactly; write it as a string" in found.message
    assert read(f'{{"id": {value}, "prompt": "Hi"}}'.encode()).custom_id is None
