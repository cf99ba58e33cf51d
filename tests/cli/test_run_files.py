import csv
import io
import json
from pathlib import Path

import pytest

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

FAST = ("--rpm", 60_000, "--burst", 1000)


async def test_csv_in_and_csv_out_safe_for_a_spreadsheet(onellm, at, tmp_path):
    (tmp_path / "in.csv").write_text('id,prompt\na,"Say ""hello"", please"\nb,=1+1\nc,"two\nlines"\n')
    ended = await onellm("run", "in.csv", "-o", "out.csv", *FAST, **at)

    assert ended.code == 0, ended.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_bytes().decode(), newline="")))
    assert [(row["custom_id"], row["content"]) for row in rows] == [
        ("a", 'Say "hello", please'),
        ("b", "'=1+1"),
        ("c", "two\nlines"),
    ]
    assert [row["error_type"] for row in rows] == ["", "", ""]


async def test_another_column_and_another_separator(onellm, at, tmp_path):
    (tmp_path / "in.csv").write_text("name;question\nx;Why?\n")
    ended = await onellm("run", "in.csv", "--field", "question", *FAST, **at)

    assert json.loads(ended.out)["response"]["content"] == "Why?"


async def test_a_table_without_a_column_for_the_prompt_is_refused_with_its_columns(onellm, at, tmp_path, backend):
    (tmp_path / "in.csv").write_text("name,question\nx,Why?\n")
    ended = await onellm("run", "in.csv", "-o", "out.csv", *FAST, **at)

    assert ended.code == 2
    assert "in.csv has no column 'prompt' (columns: 'name', 'question'). Name the prompt's column with" in ended.err
    assert backend.asked == []


async def test_parquet_in_and_parquet_out(onellm, at, tmp_path):
    table = pyarrow.table({"custom_id": ["a", "b"], "prompt": ["one", "two"]})
    parquet.write_table(table, tmp_path / "in.parquet")
    ended = await onellm("run", "in.parquet", "-o", "out.parquet", *FAST, **at)

    assert ended.code == 0, ended.err
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["index"], row["custom_id"], row["content"]) for row in rows] == [(0, "a", "one"), (1, "b", "two")]


async def test_parquet_cannot_go_into_a_pipe(onellm, at, tmp_path):
    (tmp_path / "in.txt").write_text("one\n")
    await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    ended = await onellm("export", "out.jsonl", "--format", "parquet")

    assert (ended.code, ended.out) == (2, "")
    assert "arquet" in ended.err


async def test_a_template_makes_the_prompts_of_columns_and_another_template_is_another_run(onellm, at, tmp_path):
    (tmp_path / "in.csv").write_text('name,first word\nAda,Dear\n"Bob",Hi\n')
    (tmp_path / "letter.j2").write_text('{{ row["first word"] }} {{ name }}')
    ended = await onellm("run", "in.csv", "-o", "out.jsonl", "--template", "letter.j2", *FAST, **at)

    assert ended.code == 0, ended.err
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["response"]["content"] for record in records] == ["Dear Ada", "Hi Bob"]

    ended = await onellm("run", "in.csv", "-o", "out.jsonl", "--template", "{{ name }}", *FAST, **at)
    assert ended.code == 2
    assert "the template has changed" in ended.err


async def test_a_template_that_cannot_be_filled_makes_a_bad_line(onellm, at, tmp_path, backend):
    (tmp_path / "in.jsonl").write_text('{"name": "Ada"}\n{"nom": "Bob"}\n{"name": null}\n')
    ended = await onellm("run", "in.jsonl", "--template", "Hi {{ name }}", *FAST, **at)

    assert ended.code == 1
    assert backend.asked == ["Hi Ada"]
    assert "in.jsonl:2: The template cannot be filled: 'name' is undefined (fields: 'nom')." in ended.err
    assert "in.jsonl:3: The template inserts a null" in ended.err


async def test_an_input_that_vanishes_between_two_sessions_is_named(onellm, at, tmp_path):
    (tmp_path / "in.txt").write_text("one\n")
    await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    (tmp_path / "in.txt").unlink()
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)

    assert (ended.code, ended.err) == (2, "onellm-async: in.txt cannot be read: No such file or directory.\n")


async def test_an_output_that_cannot_be_written_leaves_no_journal_behind(onellm, at, prompts, tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ImportError\n")
    ended = await onellm(
        "run", "in.txt", "-o", "out.parquet", *FAST, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}", **at
    )

    assert ended.code == 2
    assert "pyarrow is not installed" in ended.err
    assert not list(tmp_path.glob("out.*"))
