import csv
import io
import json

import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st
from settled_rows import ANSWER, LOST, REFUSED, answered, row

from onellm_async import BatchError, ChatRequest, ChatResponse, ConfigurationError
from onellm_async.batch import OutputFormat, ParsedEntry, output_format, output_format_named
from onellm_async.batch.journal.record import RecordState
from onellm_async.batch.outcomes import answer_json
from onellm_async.batch.outputs import formats
from onellm_async.batch.outputs.columns import COLUMNS
from onellm_async.batch.outputs.formats import FORMATS as OUTPUT_FORMATS
from onellm_async.wire import parse_json

JSONL_OUT, OPENAI_BATCH_OUT, CSV_OUT, TSV_OUT, PARQUET_OUT = OUTPUT_FORMATS


def record(of, shape=JSONL_OUT):
    line = shape.encode(of)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return json.loads(line)


def rows_of_csv(*rows):
    writer = CSV_OUT
    text = (writer.header(()) + b"".join(map(writer.encode, rows))).decode()
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_an_answer_in_the_plain_shape_is_what_the_journal_has():
    assert record(answered()) == {"index": 2, "custom_id": "a", "response": ANSWER, "error": None}


def test_a_failure_in_the_plain_shape_tells_type_message_and_status():
    assert record(row(RecordState.FAILED, REFUSED, custom_id=None)) == {"index": 2, "response": None, "error": REFUSED}


def test_how_often_it_was_tried_leaves_no_trace():
    for shape in OUTPUT_FORMATS:
        line = shape.encode
        assert line(row(RecordState.ANSWERED, ANSWER, attempts=1)) == line(
            row(RecordState.ANSWERED, ANSWER, attempts=3)
        )


@pytest.mark.parametrize("shape", OUTPUT_FORMATS, ids=str)
def test_a_prompt_without_an_outcome_is_an_error_that_says_it_may_be_billed(shape):
    line = shape.encode(evolve(row(RecordState.IN_FLIGHT, None), possibly_billed=1))

    assert b"PossiblyBilled" in line
    assert b"may be billed" in line


def test_an_answer_in_openais_shape_is_a_chat_completion():
    found = record(answered(), OPENAI_BATCH_OUT)

    assert (found["id"], found["custom_id"], found["error"]) == ("batch_req_2", "a", None)
    assert found["response"]["status_code"] == 200
    body = found["response"]["body"]
    assert (body["id"], body["object"], body["created"]) == ("chatcmpl-2", "chat.completion", 1234)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert body["onellm"] == {"provider": "OpenAI", "cost": 0.5}


def test_openais_shape_bears_a_reply_that_tells_nothing_but_its_text():
    body = record(answered(usage=None, role=None, cost=None), OPENAI_BATCH_OUT)["response"]["body"]

    assert body["usage"] is None
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}


def test_an_http_error_is_a_response_in_openais_shape_and_a_lost_request_an_error():
    http = record(row(RecordState.FAILED, REFUSED), OPENAI_BATCH_OUT)
    lost = record(row(RecordState.FAILED, LOST), OPENAI_BATCH_OUT)

    assert http["response"]["status_code"] == 401
    assert http["response"]["body"] == {"error": {"message": "No such key", "type": "AuthenticationError", "code": 401}}
    assert http["error"] is None
    assert lost["response"] is None
    assert lost["error"] == {"code": "APIConnectionError", "message": "reset"}


def test_csv_has_a_header_and_a_row_for_each_prompt():
    answer, failure = rows_of_csv(answered(content='She said "no",\r\nthen\nleft'), row(RecordState.FAILED, REFUSED))

    assert list(answer) == list(COLUMNS)
    assert answer["content"] == 'She said "no",\r\nthen\nleft'
    assert (answer["index"], answer["total_tokens"], answer["cost"], answer["error_type"]) == ("2", "8", "0.5", "")
    assert (failure["error_type"], failure["status_code"], failure["content"]) == ("AuthenticationError", "401", "")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_in_csv_is_a_formula(start):
    (found,) = rows_of_csv(evolve(answered(content=start + "1+1", model=start + "x"), custom_id=start + "id"))

    assert found["content"] == f"'{start}1+1"
    assert found["model"] == f"'{start}x"
    assert found["custom_id"] == f"{start}id"


@given(content=st.text(), custom_id=st.none() | st.text(), finish_reason=st.none() | st.text())
@example(content="a\0b\u2028c\x85d", custom_id="\ufeff", finish_reason=None)
def test_text_comes_back_out_of_csv_but_for_the_apostrophe(content, custom_id, finish_reason):
    (found,) = rows_of_csv(evolve(answered(content=content, finish_reason=finish_reason), custom_id=custom_id))

    assert found["custom_id"] == (custom_id or "")
    assert found["content"] in {content, "'" + content}
    assert not found["content"].startswith(("=", "+", "-", "@", "\t", "\r")) or found["content"][1:2].isdecimal()


@given(content=st.text(st.characters()), custom_id=st.none() | st.text(st.characters()))
@example(content="a\ud800b", custom_id="\udfff")
def test_json_records_are_one_line_that_parses_whatever_the_text(content, custom_id):
    for shape in (JSONL_OUT, OPENAI_BATCH_OUT):
        found = record(evolve(answered(content=content), custom_id=custom_id), shape)
        body = found["response"] if shape is JSONL_OUT else found["response"]["body"]["choices"][0]["message"]
        assert body["content"] == content
        assert found.get("custom_id") == custom_id


def test_half_a_character_is_replaced_in_csv_which_has_no_escapes():
    assert "\ufffd" in rows_of_csv(answered(content="a\ud800b"))[0]["content"]


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("answers.csv", "openai-batch", CSV_OUT),
        ("answers.PARQUET", "text", PARQUET_OUT),
        ("answers.jsonl", "csv", JSONL_OUT),
        ("results.jsonl", "openai-batch", OPENAI_BATCH_OUT),
        (None, "openai-batch", OPENAI_BATCH_OUT),
        (None, "parquet", JSONL_OUT),
    ],
)
def test_the_output_format_follows_from_the_name_and_from_the_input(name, source, expected):
    assert output_format(name, source) is expected


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        (
            "a.xlsx",
            r"no output format is called .xlsx \(known: .jsonl, .ndjson, .csv, .tsv, .tab, .parquet, .pq\). Write .csv",
        ),
        ("a.json", "jq -s"),
        ("a.csv.gz", "Write it without .gz and compress it afterwards: gzip a.csv"),
        ("a.jsonl.gz", "compress it afterwards: gzip a.jsonl"),
        ("a.journal", "Name the output with one of these"),
    ],
)
def test_an_ending_of_no_format_is_refused_with_the_cure(name, cure):
    with pytest.raises(BatchError, match=cure):
        output_format(name)


async def test_a_new_output_format_is_one_function_and_one_row(monkeypatch, tmp_path):
    def encode_ids(record):
        return f"{record.index} {record.custom_id}\n".encode()

    row_of_it = OutputFormat("ids", (".ids",), encode_ids, formats.open_text, lambda columns: b"index id\n")
    monkeypatch.setattr(formats, "FORMATS", (*OUTPUT_FORMATS, row_of_it))
    shape = output_format(tmp_path / "a.ids")
    async with formats.open_sink(tmp_path / "a.ids", shape) as sink:
        await sink.write(shape.encode(answered()))

    assert (tmp_path / "a.ids").read_text() == "index id\n2 a\n"
    assert output_format_named("ids") is row_of_it


def test_an_unknown_output_format_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"'xlsx'.*jsonl, openai-batch, csv, tsv, parquet"):
        output_format_named("xlsx")


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
RAW_USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 5,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2},
}


def test_what_a_reply_holds_beyond_the_known_fields_is_in_its_openai_places():
    extra = {
        "tool_calls": [CALL],
        "logprobs": {"content": []},
        "system_fingerprint": "fp",
        "usage": RAW_USAGE,
        "safety": {"blocked": False},
    }
    found = answered(content="", finish_reason="tool_calls", extra=extra)
    body = record(found, OPENAI_BATCH_OUT)["response"]["body"]

    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert (choice["finish_reason"], choice["logprobs"]) == ("tool_calls", {"content": []})
    assert body["system_fingerprint"] == "fp"
    assert body["usage"] == RAW_USAGE
    assert body["onellm"]["extra"] == {"safety": {"blocked": False}}
    assert record(found)["response"]["extra"] == extra


def test_a_refusal_is_in_the_message_and_an_empty_answer_stays_empty():
    refused = record(answered(content="", extra={"refusal": "I will not."}), OPENAI_BATCH_OUT)
    empty = record(answered(content="", finish_reason="length"), OPENAI_BATCH_OUT)

    message = refused["response"]["body"]["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "refusal": "I will not."}
    assert empty["response"]["body"]["choices"][0]["message"] == {"role": "assistant", "content": ""}


def test_several_choices_are_all_written():
    choices = [{"index": number, "message": {"role": "assistant", "content": str(number)}} for number in range(3)]
    body = record(answered(extra={"choices": choices}), OPENAI_BATCH_OUT)["response"]["body"]

    assert body["choices"] == choices
    assert "extra" not in body["onellm"]


@pytest.mark.parametrize(
    "odd", [{"choices": "none"}, {"choices": []}, {"usage": "much"}, {"usage": {"total_tokens": "8"}}]
)
def test_odd_fields_of_a_reply_are_kept_as_they_came(odd):
    body = record(answered(extra=odd), OPENAI_BATCH_OUT)["response"]["body"]

    assert body["onellm"]["extra"] == odd
    assert body["choices"][0]["message"]["content"] == "Hello"


def test_tables_have_the_rest_of_the_reply_as_json():
    (found,) = rows_of_csv(answered(extra={"tool_calls": [CALL]}))

    assert json.loads(found["extra"]) == {"tool_calls": [CALL]}


@pytest.mark.parametrize("shape", OUTPUT_FORMATS, ids=str)
def test_a_copy_says_so_and_costs_nothing(shape):
    copy = evolve(answered(), index=7, attempts=0, copy_of=2)
    if shape in {CSV_OUT, TSV_OUT, PARQUET_OUT}:
        (found,) = rows_of_csv(copy)
        assert (found["copy_of"], found["cost"], found["content"]) == ("2", "0.0", "Hello")
        assert rows_of_csv(answered())[0]["copy_of"] == ""
        return
    found, original = record(copy, shape), record(answered(), shape)
    own = found["response"] if shape is JSONL_OUT else found["response"]["body"]["onellm"]
    assert own["cost"] == 0
    assert (found if shape is JSONL_OUT else own)["copy_of"] == 2
    assert "copy_of" not in json.dumps(original)


def test_an_answer_from_a_cache_costs_nothing():
    found = record(evolve(answered(), attempts=0))

    assert found["response"] == ANSWER | {"cost": 0.0}
    assert "copy_of" not in found


def replied(extra):
    item = ParsedEntry(0, 1, ChatRequest("GPT-5", "?"))
    return answer_json(ChatResponse("Hello", extra=extra), item)


@pytest.mark.parametrize("depth", [10, 200, 201, 996, 1023])
def test_a_field_that_is_nested_too_deeply_costs_neither_the_answer_nor_the_other_fields(depth):
    deep = parse_json(b"[" * depth + b"]" * depth)
    result = replied({"deep": deep, "flat": 1})
    found = record(evolve(row(RecordState.ANSWERED, None), result=result))

    assert found["response"]["content"] == "Hello"
    assert found["response"]["extra"]["flat"] == 1
    assert found["response"]["extra"]["deep"] == (deep if depth <= 200 else "It is nested too deeply to be kept.")
    for shape in (OPENAI_BATCH_OUT, CSV_OUT):
        assert shape.encode(evolve(row(RecordState.ANSWERED, None), result=result))


@given(
    extra=st.dictionaries(
        st.text(),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters()),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_whatever_a_reply_holds_every_output_is_readable(extra):
    found = evolve(row(RecordState.ANSWERED, None), result=replied(extra))

    assert record(found)["response"].get("extra", {}).keys() == extra.keys()
    assert record(found, OPENAI_BATCH_OUT)["response"]["status_code"] == 200
    assert rows_of_csv(found)[0]["content"] == "Hello"
