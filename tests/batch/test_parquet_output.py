import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from attrs import evolve
from settled_rows import REFUSED, answered, row

from onellm_async import BatchError
from onellm_async.batch import StreamSink, open_sink, output_format_named
from onellm_async.batch.journal.record import RecordState
from onellm_async.batch.outputs import parquet as module
from onellm_async.batch.outputs.columns import COLUMNS

CSV, PARQUET = map(output_format_named, ("csv", "parquet"))

WRITER = PARQUET


def lines(count, **changes):
    return [WRITER.encode(evolve(answered(**changes), index=index)) for index in range(count)]


async def write(path, pieces):
    async with open_sink(path, WRITER) as sink:
        for piece in pieces:
            await sink.write(piece)
    return path


async def test_parquet_has_typed_columns_and_a_row_for_each_prompt(tmp_path):
    failed = WRITER.encode(row(RecordState.FAILED, REFUSED, index=1, custom_id=None))
    path = await write(tmp_path / "answers.parquet", [lines(1)[0] + failed])
    table = pq.read_table(path)

    assert table.column_names == list(COLUMNS)
    assert [str(kind) for kind in table.schema.types] == [
        {int: "int64", str: "string", float: "double"}[kind] for kind in COLUMNS.values()
    ]
    answer, failure = table.to_pylist()
    assert (answer["content"], answer["total_tokens"], answer["cost"], answer["error_type"]) == ("Hello", 8, 0.5, None)
    assert (failure["index"], failure["error_type"], failure["status_code"]) == (1, "AuthenticationError", 401)
    assert failure["content"] is None
    assert [name.name for name in tmp_path.iterdir()] == ["answers.parquet"]


async def test_row_groups_are_full_and_the_bytes_do_not_depend_on_the_portions(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP", 10)
    records = lines(25)
    one = await write(tmp_path / "one.parquet", [b"".join(records)])
    many = await write(tmp_path / "many.parquet", [b"".join(records[:7]), b"".join(records[7:8]), *records[8:]])
    metadata = pq.read_metadata(one)

    assert one.read_bytes() == many.read_bytes()
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [10, 10, 5]


async def test_an_output_without_a_row_is_parquet_too(tmp_path):
    assert pq.read_table(await write(tmp_path / "none.parquet", [])).num_rows == 0


async def test_half_a_character_and_a_missing_usage_are_written(tmp_path):
    path = await write(tmp_path / "odd.parquet", lines(1, content="a\ud800b", usage=None, cost=None))
    (found,) = pq.read_table(path).to_pylist()

    assert found["content"].startswith("a\ufffd")
    assert found["input_tokens"] is None


async def test_an_exception_leaves_what_was_written_in_the_partial_file(tmp_path):
    async def crash():
        async with open_sink(tmp_path / "answers.parquet", WRITER) as sink:
            await sink.write(lines(1)[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await crash()

    assert pq.read_table(tmp_path / "answers.parquet.partial").num_rows == 1
    assert not (tmp_path / "answers.parquet").exists()


async def test_a_full_disk_is_named_and_nothing_takes_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP", 100)

    async def fill():
        async with open_sink(tmp_path / "answers.parquet", WRITER) as sink:
            os.dup2(full, sink._place.descriptor)
            for _ in range(20):
                await sink.write(b"".join(lines(100, content=os.urandom(2000).hex())))

    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(BatchError, match=r"answers\.parquet\.partial cannot be written: No space left"):
            await fill()
    finally:
        os.close(full)
    assert not (tmp_path / "answers.parquet").exists()


async def test_a_sink_that_lost_rows_does_not_take_the_place_although_its_user_went_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP", 1)

    async def go_on():
        async with open_sink(tmp_path / "answers.parquet", WRITER) as sink:
            with pytest.raises(BatchError):
                await sink.write(b'["not a number"' + b",null" * 12 + b"]\n")

    with pytest.raises(BatchError, match="cannot be written"):
        await go_on()
    assert not (tmp_path / "answers.parquet").exists()


def test_parquet_is_not_written_to_standard_output():
    with pytest.raises(BatchError, match=r"Parquet cannot be written to standard output\. Name a file"):
        open_sink(None, WRITER)


def test_an_existing_parquet_file_is_refused(tmp_path):
    (tmp_path / "answers.parquet").touch()

    with pytest.raises(BatchError, match="already exists"):
        open_sink(tmp_path / "answers.parquet", WRITER)


def test_without_pyarrow_the_message_names_the_extra(tmp_path):
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from onellm_async.batch import output_format_named, open_sink, open_source\n"
        "import asyncio\n"
        "def told(call):\n"
        "    try:\n"
        "        call()\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
        "told(lambda: open_sink('a.parquet', output_format_named('parquet')))\n"
        "told(lambda: open_source('in.parquet').scan())\n"
    )
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    environment = {"PYTHONPATH": str(Path(module.__file__).parents[3])}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )

    writing, reading = ended.stdout.splitlines()
    assert writing == (
        "BatchError Parquet cannot be written, because pyarrow is not installed. pip install 'onellm-async[parquet]'"
    )
    assert reading == (
        "BatchError in.parquet is Parquet, and pyarrow is not installed. pip install 'onellm-async[parquet]'"
    )


async def test_a_csv_file_begins_with_its_header(tmp_path, capfd):
    writer = CSV
    async with open_sink(tmp_path / "answers.csv", writer) as sink:
        await sink.write(writer.encode(answered()))
    stream = open_sink(None, writer)
    assert isinstance(stream, StreamSink)
    async with stream as sink:
        await sink.write(writer.encode(answered()))

    assert (tmp_path / "answers.csv").read_bytes() == writer.header(()) + writer.encode(answered())
    assert capfd.readouterr().out.startswith("index,custom_id,sample,content,")
