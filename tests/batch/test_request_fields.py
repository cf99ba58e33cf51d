"""What a line says beside its prompt is obeyed, kept or named, and never dropped in silence."""

import json

import pytest

from onellm_async import InvalidRequestError, Message
from onellm_async.batch import LineError, PromptTemplate, RequestDefaults, open_source

BESIDE = {
    "model": "GPT-5",
    "system": "You are a pirate",
    "max_tokens": 5,
    "temperature": 0,
    "top_p": 0.5,
    "top_k": 3,
    "stop_sequences": ["END"],
    "seed": 7,
    "response_format": {"type": "json_object"},
    "frequency_penalty": 1,
    "presence_penalty": -1,
}


async def read(path, **options):
    async with open_source(str(path), **options) as source:
        return [entry.item() async for entry in source], source.notes.sentences()


async def requests(path, **options):
    found, _ = await read(path, **options)
    return [entry if isinstance(entry, LineError) else entry.request for entry in found]


def lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.mark.parametrize("shape", ["prompt", "messages", "field", "template", "body"])
async def test_the_fields_of_a_line_are_those_of_its_request(tmp_path, shape):
    messages = [{"role": "user", "content": "Hi"}]
    value, options = {
        "prompt": ({"prompt": "Hi", **BESIDE}, {}),
        "messages": ({"messages": messages, **BESIDE}, {}),
        "field": ({"q": "Hi", **BESIDE}, {"field": "q"}),
        "template": ({"q": "i", **BESIDE}, {"template": PromptTemplate("H{{ q }}")}),
        "body": ({"custom_id": "a", "body": {"messages": messages, **BESIDE}}, {}),
    }[shape]
    (request,) = await requests(lines(tmp_path / "in.jsonl", value), **options)

    assert request.messages == (Message.user("Hi"),)
    assert {name: getattr(request, name) for name in BESIDE} == {**BESIDE, "stop_sequences": ("END",)}


@pytest.mark.parametrize(
    ("name", "value", "field", "meant"),
    [
        ("stop", "END", "stop_sequences", ("END",)),
        ("stop", ["A", "B"], "stop_sequences", ("A", "B")),
        ("max_completion_tokens", 9, "max_tokens", 9),
        ("max_output_tokens", 9, "max_tokens", 9),
        ("system_prompt", "Sing", "system", "Sing"),
        ("max_tokens", 100.0, "max_tokens", 100),
        ("seed", 3.0, "seed", 3),
        ("response_format", "json_object", "response_format", {"type": "json_object"}),
        ("user", 7, "user", "7"),
        ("extra", {"min_p": 0.1}, "extra", {"min_p": 0.1}),
        ("safety_settings", [1], "extra", {"safety_settings": [1]}),
        ("max_tokens", None, "max_tokens", None),
        ("system", None, "system", None),
    ],
)
async def test_usual_spellings_whole_floats_and_nulls_are_understood(tmp_path, name, value, field, meant):
    (request,) = await requests(lines(tmp_path / "in.jsonl", {"prompt": "Hi", name: value}))

    assert getattr(request, field) == meant


async def test_two_spellings_that_disagree_are_a_bad_line(tmp_path):
    bad, good = await requests(
        lines(
            tmp_path / "in.jsonl",
            {"prompt": "Hi", "max_tokens": 5, "max_completion_tokens": 6},
            {"prompt": "Hi", "max_tokens": 5, "max_completion_tokens": 5},
        )
    )

    assert bad.message == "max_completion_tokens is 6, but another spelling of max_tokens is 5."
    assert good.max_tokens == 5


async def test_a_column_of_a_table_is_a_field_of_the_request(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(
        "prompt;model;max_tokens;temperature;top_p;stop;response_format;seed\n"
        'Hi;GPT-5;12;"0,7";0.5;"[""a"", ""b""]";json_object;\n'
        "Ho;;;;;;;4.0\n"
    )
    one, two = await requests(path)

    assert (one.model, one.max_tokens, one.temperature, one.top_p) == ("GPT-5", 12, 0.7, 0.5)
    assert (one.stop_sequences, one.response_format, one.seed) == (("a", "b"), {"type": "json_object"}, None)
    assert (two.model, two.max_tokens, two.seed) == ("GPT-5-Nano", None, 4)


async def test_an_instruction_may_be_text_parts_as_anthropic_has_it(tmp_path):
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    path = lines(tmp_path / "in.jsonl", {"prompt": "Hi", "system": parts})
    (request,) = await requests(path)
    assert request.system == "Be brief."

    image = lines(tmp_path / "image.jsonl", {"prompt": "Hi", "system": [{"type": "image"}]})
    (error,) = await requests(image)
    assert "OneLLM takes text only" in str(error)


async def test_columns_that_are_data_far_more_often_are_no_settings(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("prompt,n,user,tools\nHi,500,@bob,hammer\n")
    (request,) = await requests(path)

    assert (request.n, request.user, request.tools) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,temperature\nHi,35\n", "in.csv:2: temperature is 35; it must be a number from 0 to 2."),
        ("prompt,max_tokens\nHi,lots\n", "in.csv:2: max_tokens is 'lots'; it must be an integer of at least 1."),
    ],
)
async def test_a_setting_out_of_range_is_a_bad_row(tmp_path, text, message):
    path = tmp_path / "in.csv"
    path.write_text(text)
    (error,) = await requests(path)

    assert str(error).endswith(message)


async def test_a_field_that_the_template_uses_is_no_setting(tmp_path):
    path = lines(tmp_path / "in.jsonl", {"model": "Volvo 240", "temperature": 35})
    (request,) = await requests(path, template=PromptTemplate("Describe a {{ model }} at {{ temperature }} degrees."))

    assert request.messages[0].content == "Describe a Volvo 240 at 35 degrees."
    assert (request.model, request.temperature) == ("GPT-5-Nano", None)


async def test_a_flag_goes_before_the_line_the_line_before_the_environment_and_it_is_said_once(tmp_path):
    path = lines(
        tmp_path / "in.jsonl",
        {"prompt": "a", "model": "GPT-5", "temperature": 1},
        {"prompt": "b", "model": "GPT-5-Mini"},
        {"prompt": "c"},
    )
    flagged, notes = await read(path, defaults=RequestDefaults(model="Sonnet-4"))
    left, silent = await read(path, defaults=RequestDefaults(fallback_model="Sonnet-4"))

    assert [entry.request.model for entry in flagged] == ["Sonnet-4"] * 3
    assert notes == ["model=… (--model) replaces the model of 2 lines."]
    assert [entry.request.model for entry in left] == ["GPT-5", "GPT-5-Mini", "Sonnet-4"]
    assert [entry.request.temperature for entry in left] == [1, None, None]
    assert silent == []


async def test_under_a_cost_cap_the_smaller_limit_of_tokens_counts(tmp_path):
    path = lines(tmp_path / "in.jsonl", {"prompt": "a", "max_tokens": 5}, {"prompt": "b", "max_tokens": 500})
    capped = await requests(path, defaults=RequestDefaults(max_tokens=50, least_max_tokens=True))
    free = await requests(path, defaults=RequestDefaults(max_tokens=50))

    assert [request.max_tokens for request in capped] == [5, 50]
    assert [request.max_tokens for request in free] == [50, 50]


async def test_what_is_neither_sent_nor_kept_is_named_once(tmp_path):
    path = lines(
        tmp_path / "in.jsonl",
        {"messages": [{"role": "user", "content": "Hi"}], "metadata": {"row": 1}, "note": None, "id": 1},
        {"prompt": "Ho", "metadata": {"row": 2}, "reasoning_effort": "low"},
    )
    _, notes = await read(path)
    _, kept = await read(path, keep="all")
    _, named = await read(path, keep=["metadata", "reasoning_effort"])

    assert notes == [
        "Ignored in all lines: metadata, reasoning_effort. keep=… (--keep) carries fields into the output."
    ]
    assert kept == named == []


async def test_what_a_batch_sends_beyond_the_documented_fields_is_named_once(tmp_path):
    body = {"messages": [{"role": "user", "content": "Hi"}], "min_p": 0.1, "seed": 4, "stream": False}
    _, notes = await read(lines(tmp_path / "in.jsonl", *({"custom_id": str(n), "body": body} for n in range(3))))

    assert notes == ["Sent as they are, although the API does not document them: min_p."]


async def test_streaming_cannot_be_asked_for(tmp_path):
    (error,) = await requests(lines(tmp_path / "in.jsonl", {"prompt": "Hi", "stream": True}))

    assert error.message == "stream is True; OneLLM answers in one piece and cannot stream."


MESSAGES = [
    {"role": "developer", "content": "S", "name": None},
    {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]},
    {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None},
]
UNDERSTOOD = (Message.system("S"), Message.user("Hello there"), Message.assistant("x"))


async def test_the_same_messages_are_understood_in_every_format(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    records = lines(tmp_path / "a.jsonl", {"messages": MESSAGES}, {"prompt": MESSAGES})
    batch = lines(tmp_path / "b.jsonl", {"custom_id": 1, "body": {"messages": MESSAGES}})
    table = tmp_path / "c.csv"
    table.write_text('messages\n"' + json.dumps(MESSAGES).replace('"', '""') + '"\n')
    (tmp_path / "d.json").write_text(json.dumps([{"messages": MESSAGES}], indent=2))
    turns = [{"role": "user", "content": "Hi", "name": None}]
    parquet.write_table(pa.table({"messages": [turns], "x": [1]}), tmp_path / "e.parquet")

    for path in (records, batch, table, tmp_path / "d.json"):
        assert {request.messages for request in await requests(path)} == {UNDERSTOOD}, path
    assert [request.messages for request in await requests(tmp_path / "e.parquet")] == [(Message.user("Hi"),)]


async def test_a_cell_of_messages_that_is_no_json_is_a_bad_row(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('messages\n"[{""role"": "\n')
    (error,) = await requests(path)

    assert "messages is no JSON array" in error.message


def test_turns_of_another_chat_export_say_how_to_rename_them():
    with pytest.raises(InvalidRequestError, match=r"Rename from to role \(human: user, gpt: assistant\)"):
        Message.of({"from": "human", "value": "Hi"})


async def test_an_empty_cell_is_null_in_a_template_and_a_default_fills_it(tmp_path):
    path = tmp_path / "h.csv"
    path.write_text("name,city\nAnn,Oslo\nBob,\n")
    one, two = await requests(path, template=PromptTemplate("Write to {{ name }} in {{ city }}."))
    _, filled = await requests(path, template=PromptTemplate("Write to {{ name }} in {{ city or 'town' }}."))

    assert one.messages[0].content == "Write to Ann in Oslo."
    assert two.message == "The template inserts a null (null here: 'city')."
    assert filled.messages[0].content == "Write to Bob in town."


async def test_a_template_of_none_of_the_columns_is_refused_at_once(tmp_path):
    path = tmp_path / "h.csv"
    path.write_text("name,city\nAnn,Oslo\n")
    with pytest.raises(Exception, match=r"has none of the columns that the template uses: nane \(columns: 'name'"):
        await requests(path, template=PromptTemplate("Write to {{ nane }}."))
