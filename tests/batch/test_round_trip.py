"""Records in any format give the same requests, and with everything kept they come back with their answers."""

import asyncio
import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm_async.batch import LineError, open_sink, open_source, output_format_named
from onellm_async.batch.journal.record import JournalRecord, RecordState

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
names = st.lists(st.sampled_from(["note", "city", "content", "index", "größe", "a b"]), max_size=3, unique=True)
ANSWER = {
    "content": "ok",
    "role": "assistant",
    "model": "M",
    "provider": None,
    "usage": None,
    "finish_reason": None,
    "cost": 0.0,
}


@st.composite
def tables(draw):
    columns = ["prompt", *draw(names)]
    rows = draw(st.lists(st.tuples(*(cells for _ in columns)), min_size=1, max_size=5))
    return columns, [("p" + prompt, *others) for prompt, *others in rows]


def as_lines(columns, rows):
    return "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows).encode()


def as_document(columns, rows):
    return json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=1).encode()


def as_sheet(columns, rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([columns, *rows])
    return text.getvalue().encode()


def as_table(columns, rows):
    return pa.table(
        {name: pa.array(values, pa.string()) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}
    )


def as_parquet(columns, rows):
    file = io.BytesIO()
    parquet.write_table(as_table(columns, rows), file)
    return file.getvalue()


def as_arrow(columns, rows, make=pa.ipc.new_file):
    file, table = io.BytesIO(), as_table(columns, rows)
    with make(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


WRITERS = {
    "in.jsonl": as_lines,
    "in.json": as_document,
    "in.csv": as_sheet,
    "in.tsv": lambda columns, rows: as_sheet(columns, rows, "\t"),
    "in.parquet": as_parquet,
    "in.arrow": as_arrow,
    "in.arrows": lambda columns, rows: as_arrow(columns, rows, pa.ipc.new_stream),
}
PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": lambda content: pa.compress(content, "zstd", asbytes=True)}


async def parsed(path):
    async with open_source(str(path), keep="all") as source:
        source.scan()
        return [entry.item() async for entry in source], source.kept_columns


async def write(path, shape, content):
    async with open_sink(path, shape, force=True) as sink:
        await sink.write(content)


def read_back(shape, records, path):
    content = b"".join(map(shape.encode, records))
    if shape.name == "parquet":  # of a file, which is made durable: slower than text
        asyncio.run(write(path, shape, content))
        return parquet.read_table(path).to_pylist()
    if shape.name in {"jsonl", "openai-batch"}:
        return [json.loads(line) for line in content.splitlines()]
    delimiter, text = "\t" if shape.name == "tsv" else ",", (shape.header(shape.columns) + content).decode()
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))


def answer_of(name, row):
    if name == "openai-batch":
        return row["response"]["body"]["choices"][0]["message"]["content"]
    return row["response"]["content"] if name == "jsonl" else row["content"]


@settings(max_examples=25, deadline=None)
@given(tables(), st.sampled_from(sorted(PACKERS)))
def test_the_same_records_in_any_format_are_the_same_requests_and_come_back(table, packer):
    columns, rows = table
    expected = [dict(zip(columns, row, strict=True)) for row in rows]
    with tempfile.TemporaryDirectory() as directory:
        seen = set()
        for name, write in WRITERS.items():
            suffix = "" if name in {"in.parquet", "in.arrow", "in.arrows"} else packer
            path = Path(directory) / (name + suffix)
            path.write_bytes(PACKERS[suffix](write(columns, rows)))
            items, kept = asyncio.run(parsed(path))

            assert not [item for item in items if isinstance(item, LineError)], name
            assert [item.request.messages[0].content for item in items] == [row[0] for row in rows], name
            tables = () if kept in seen else ("parquet",)
            seen.add(kept)
            check_outputs(("jsonl", "openai-batch", "csv", "tsv", *tables), Path(directory), items, kept, expected)


def check_outputs(names, directory, items, kept, expected):
    records = [
        JournalRecord(
            index=item.index,
            line=item.line,
            line_digest=0,
            request_digest=b"",
            state=RecordState.ANSWERED,
            attempts=1,
            kept=item.kept,
            result=json.dumps(ANSWER).encode(),
        )
        for item in items
    ]
    for name in names:
        shape = output_format_named(name).keeping(kept)
        for row, record in zip(read_back(shape, records, directory / "out"), expected, strict=True):
            assert answer_of(name, row) == "ok"
            if name in {"jsonl", "openai-batch"}:
                assert row["input"] == record
            elif kept == ("*",):
                assert json.loads(row["input"]) == record
            else:
                assert {key: row[f"input_{key}" if key in {"content", "index"} else key] for key in record} == record
