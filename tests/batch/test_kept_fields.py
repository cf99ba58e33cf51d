"""Fields of a line or row go beside its answer, into every output format, through crashes and pipes."""

import asyncio
import csv
import io
import json
import os
import re
import sys

import pytest

from onellm_async import AsyncOneLLM, Limits
from onellm_async.batch import JournalReader, open_source, output_format_named
from onellm_async.batch.outputs.columns import kept_names
from onellm_async.cli import main
from onellm_async.errors import BatchError
from onellm_async.testing import FakeTransport

PEOPLE = "id,prompt,note,content\n7,Hi,=1+1,mine\n8,Ho,,\n"


async def run(source, output, *, replies=None, **options):
    async with AsyncOneLLM(transport=FakeTransport(replies), limits=Limits.unlimited(4)) as client:
        return await client.run(source, output, **options)


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(PEOPLE)
    return path


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path, **options):
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True, **options))


async def test_a_table_keeps_all_columns_in_json_lines(people, tmp_path):
    await run(people, tmp_path / "out.jsonl")
    one, two = records(tmp_path / "out.jsonl")

    assert one["input"] == {"id": "7", "prompt": "Hi", "note": "=1+1", "content": "mine"}
    assert two["input"] == {"id": "8", "prompt": "Ho", "note": "", "content": ""}
    assert list(one) == ["index", "custom_id", "input", "response", "error"]


@pytest.mark.parametrize(("name", "delimiter"), [("out.csv", ","), ("out.tsv", "\t")])
async def test_a_table_keeps_all_columns_in_a_table_and_a_taken_name_gets_a_prefix(people, tmp_path, name, delimiter):
    await run(people, tmp_path / name)
    one, two = rows(tmp_path / name, delimiter=delimiter)

    assert (one["custom_id"], one["id"], one["prompt"], one["note"]) == ("7", "7", "Hi", "=1+1")
    assert (one["content"], one["input_content"]) == ("Hi", "mine")
    assert list(one)[:4] == ["index", "custom_id", "sample", "content"]
    assert (two["note"], two["input_content"]) == ("", "")


async def test_a_table_keeps_all_columns_in_parquet(people, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    await run(people, tmp_path / "out.parquet")
    one, two = parquet.read_table(tmp_path / "out.parquet").to_pylist()

    assert (one["custom_id"], one["prompt"], one["note"], one["input_content"]) == ("7", "Hi", "=1+1", "mine")
    assert (two["prompt"], two["content"]) == ("Ho", "Ho")


async def test_named_fields_are_kept_of_lines_and_all_of_them_on_request(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "Hi", "x": {"y": [1, null]}, "z": 1}\n{"prompt": "Ho", "z": 2.50}\n"He"\n')
    await run(path, tmp_path / "none.jsonl")
    await run(path, tmp_path / "x.jsonl", keep=["x"])
    await run(path, tmp_path / "all.jsonl", keep="all")
    await run(path, tmp_path / "x.csv", keep=["x", "z"])
    await run(path, tmp_path / "all.csv", keep="all")

    assert [record.get("input") for record in records(tmp_path / "none.jsonl")] == [None, None, None]
    assert [record.get("input") for record in records(tmp_path / "x.jsonl")] == [{"x": {"y": [1, None]}}, {}, {}]
    assert [record.get("input") for record in records(tmp_path / "all.jsonl")] == [
        {"prompt": "Hi", "x": {"y": [1, None]}, "z": 1},
        {"prompt": "Ho", "z": 2.5},
        {"prompt": "He"},
    ]
    assert [(row["x"], row["z"]) for row in rows(tmp_path / "x.csv")] == [
        ('{"y":[1,null]}', "1"),
        ("", "2.5"),
        ("", ""),
    ]
    assert json.loads(rows(tmp_path / "all.csv")[0]["input"]) == {"prompt": "Hi", "x": {"y": [1, None]}, "z": 1}


async def test_nothing_is_kept_on_request(people, tmp_path):
    await run(people, tmp_path / "out.jsonl", keep=[])

    assert [list(record) for record in records(tmp_path / "out.jsonl")] == [
        ["index", "custom_id", "response", "error"]
    ] * 2


async def test_an_openai_batch_keeps_its_lines_and_bad_lines_have_error_records(tmp_path):
    path = tmp_path / "in.jsonl"
    good = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Hi"}]}, "team": "x"}
    bad = {"custom_id": "b", "body": {"messages": []}}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\nbroken\n")
    report = await run(path, tmp_path / "out.jsonl", keep=["team"])
    one, two, three = records(tmp_path / "out.jsonl")

    assert one["input"] == {"team": "x"}
    assert (two["custom_id"], two["response"], two["error"]["code"]) == ("b", None, "InvalidRequestError")
    assert "at least one message is needed" in two["error"]["message"]
    assert (three["custom_id"], three["id"]) == (None, "batch_req_2")
    assert report.progress.bad_lines == 2


async def test_what_was_kept_is_there_after_a_resume_and_in_an_export(people, tmp_path, capfd):
    await run(people, tmp_path / "out.csv", limit=1)
    report = await run(people, tmp_path / "out.csv")
    await run(people, tmp_path / "again.csv")

    assert report.counts.answered == 2
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()
    with JournalReader.open(tmp_path / "out.csv") as journal:
        assert [json.loads(record.kept)["note"] for record in journal.records()] == ["=1+1", ""]
    assert await asyncio.to_thread(main, ["export", str(tmp_path / "out.csv"), "-o", str(tmp_path / "e.csv")]) == 0
    assert (tmp_path / "e.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


async def test_other_fields_to_keep_are_another_run(people, tmp_path):
    await run(people, tmp_path / "out.jsonl", limit=1)
    with pytest.raises(BatchError, match=r"the kept fields was not given and is now note"):
        await run(people, tmp_path / "out.jsonl", keep=["note"])


async def test_copies_keep_their_own_fields(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("prompt,who\nHi,Ann\nHi,Bob\n")
    await run(path, tmp_path / "out.jsonl", temperature=0)

    assert [record["input"]["who"] for record in records(tmp_path / "out.jsonl")] == ["Ann", "Bob"]


@pytest.mark.parametrize(("keep", "message"), [(["nope"], "no column 'nope', which keep= names"), ("nope", "'all'")])
async def test_a_column_that_is_not_there_cannot_be_kept(people, tmp_path, keep, message):
    with pytest.raises(Exception, match=message):
        await run(people, tmp_path / "out.jsonl", keep=keep)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("forced", [None, "text"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"keep": ["zzz"]},
            "in.txt has no field 'zzz', which keep= names: it is plain text, whose only field is 'prompt'",
        ),
        ({"keep": ["prompt", "zzz"]}, "no field 'zzz', which keep= names"),
        ({"id_field": "zzz"}, "no field 'zzz', which id_field= names"),
        ({"id_field": "prompt"}, "has no ids, which id_field= names"),
        ({"template": "Say {{ prompt }}", "keep": ["zzz"]}, "no field 'zzz', which keep= names"),
    ],
)
async def test_plain_text_refuses_names_of_fields_that_it_cannot_have(tmp_path, forced, options, message):
    path = tmp_path / "in.txt"
    path.write_text("Hi\nHo\n")
    with pytest.raises(BatchError, match=re.escape(message)):
        await run(path, tmp_path / "out.jsonl", input_format=forced, **options)
    assert not list(tmp_path.glob("out*"))


async def test_plain_text_keeps_its_prompt(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("Hi\n")
    for keep in ("all", ["prompt"], []):
        await run(path, tmp_path / f"{len(keep)}.jsonl", keep=keep)
    kept = [records(tmp_path / f"{number}.jsonl")[0].get("input") for number in (3, 1, 0)]
    assert kept == [{"prompt": "Hi"}, {"prompt": "Hi"}, None]


async def test_a_pipe_of_plain_text_is_refused_likewise():
    reading, writing = os.pipe()
    os.write(writing, b"Hi\n")
    os.close(writing)
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "onellm_async", "run", "-", "--keep", "zzz", "--local"),
        stdin=reading,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(reading)
    out, told = await command.communicate()

    assert (command.returncode, out) == (2, b"")
    assert b"no field 'zzz', which --keep names: it is plain text" in told


async def test_a_pipe_keeps_its_columns_too(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, PEOPLE.encode())
    os.close(writing)
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "onellm_async", "run", "-", "--format", "csv", "--local"),
        *("-o", str(tmp_path / "out.csv")),
        stdin=reading,
        stderr=asyncio.subprocess.DEVNULL,
    )
    os.close(reading)

    assert await command.wait() == 0
    assert [json.loads(row["input"])["note"] for row in rows(tmp_path / "out.csv")] == ["=1+1", ""]


async def test_failures_can_be_exported_alone(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("prompt,who\nHi,Ann\nHo,Bob\n")
    await run(path, tmp_path / "out.jsonl", replies=lambda request: 400 if request.prompt == "Ho" else "ok")
    assert (
        await asyncio.to_thread(
            main, ["export", str(tmp_path / "out.jsonl"), "--failed", "-o", str(tmp_path / "f.csv")]
        )
        == 0
    )
    (row,) = rows(tmp_path / "f.csv")

    assert (row["who"], row["error_type"]) == ("Bob", "BadRequestError")


def test_ids_and_numbers_are_not_taken_for_formulas(tmp_path):
    from settled_rows import answered

    shape = output_format_named("csv")
    texts = ("=1+1", "-5", "+49", "-1,5 %", "+49 30 1", "@x", "- a", "1e5", "-1e5")
    table = shape.header(()) + b"".join(shape.encode(answered(content=text)) for text in texts)
    cells = {text: row["content"] for text, row in zip(texts, csv.DictReader(io.StringIO(table.decode())), strict=True)}

    assert {text for text, cell in cells.items() if cell != text} == {"=1+1", "+49 30 1", "@x", "- a"}
    assert kept_names(["a", "model", "input_model", "model_"]) == ["a", "input_input_model", "input_model", "model_"]


async def test_two_columns_of_ids_are_as_the_user_says(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("prompt,custom_id,sku\nHi,1,-5\nHo,1,-6\n")
    await run(path, tmp_path / "out.csv", id_field="sku")
    one, two = rows(tmp_path / "out.csv")

    assert [(row["custom_id"], row["input_custom_id"]) for row in (one, two)] == [("-5", "1"), ("-6", "1")]
    path.write_text("prompt,sku\nHi,a\nHo,a\n")
    async with open_source(str(path), id_field="sku") as source:
        _, second = [entry.item() async for entry in source]
    assert second.message == "sku 'a' was used in line 2 already."
