import datetime as dt
import decimal
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onellm_async import BatchError, Message
from onellm_async.batch import LineError, PromptTemplate, input_format_named, open_source
from onellm_async.batch.inputs.sources import InputFile

PARQUET = input_format_named("parquet")


def written(tmp_path, columns, name="in.parquet", **options):
    path = tmp_path / name
    pq.write_table(pa.table(columns), path, **options)
    return path


async def items(path, **options):
    async with open_source(str(path), **options) as source:
        return [entry.item() async for entry in source]


async def test_a_row_gives_its_prompt_its_id_and_its_instruction(tmp_path):
    columns = {"image": [b"\x89", b""], "prompt": ["Why?", "How?"], "id": [7, 8], "system": ["Be brief", None]}
    one, two = await items(written(tmp_path, columns))

    assert (one.request.messages, one.request.system, one.custom_id) == ((Message.user("Why?"),), "Be brief", "7")
    assert (two.request.system, two.line, two.index) == (None, 2, 1)


async def test_messages_are_a_column_of_lists(tmp_path):
    turns = [[{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]]
    (item,) = await items(written(tmp_path, {"messages": turns}))

    assert item.request.messages == (Message.system("S"), Message.user("Hi"))


async def test_all_rows_of_all_row_groups_come_in_order(tmp_path):
    path = written(tmp_path, {"q": [f"Prompt {number}" for number in range(7000)]}, row_group_size=3000)
    found = await items(path, field="q")

    assert [item.request.messages[0].content for item in found] == [f"Prompt {number}" for number in range(7000)]
    assert [item.line for item in found] == list(range(1, 7001))


async def test_a_bad_row_is_named_by_its_number_and_the_others_come(tmp_path):
    path = written(tmp_path, {"prompt": ["a", None, "c", ""], "custom_id": ["x", "y", "x", "z"]})
    found = await items(path)

    assert [str(item) for item in found if isinstance(item, LineError)] == [
        f"{path}:2: prompt is null or missing, not a string.",
        f"{path}:3: custom_id 'x' was used in line 1 already.",
        f"{path}:4: The prompt is empty.",
    ]


async def test_a_template_sees_every_column_that_has_a_text(tmp_path):
    columns = {
        "day": [dt.date(2026, 5, 4)],
        "price": [decimal.Decimal("1.50")],
        "word": pa.array(["cat"]).dictionary_encode(),
        "tags": [["a", "b"]],
        "image": [b"\x89"],
    }
    path = written(tmp_path, columns)
    (item,) = await items(path, template=PromptTemplate("{{ day }} {{ price }} {{ word }} {{ tags | join('+') }}"))

    assert item.request.messages[0].content == "2026-05-04 1.50 cat a+b"
    with pytest.raises(BatchError, match="has none of the columns that the template uses: image"):
        await items(path, template=PromptTemplate("{{ image }}"))


async def test_digests_are_those_of_the_values_and_the_survey_knows_the_file(tmp_path):
    path = written(tmp_path, {"prompt": ["a", "b", None]})
    async with open_source(str(path)) as source:
        counted, checked = source.scan(), source.scan(strict=True)
        first, second, _ = [entry.digest async for entry in source]

    assert first != second
    assert (counted.lines, counted.first_error, checked.lines) == (3, None, 3)
    assert checked.first_error.line == 3
    assert counted.digest == checked.digest
    assert len(counted.digest) == 32


@pytest.mark.parametrize(
    ("columns", "field", "message"),
    [
        (
            {"q": ["a"]},
            None,
            r"in\.parquet has no column 'prompt' \(columns: 'q'\)\. Name the prompt's column with fi",
        ),
        ({"q": ["a"]}, "p", r"has no column 'p' \(columns: 'q'\)"),
        ({"prompt": [1]}, None, r"the column 'prompt' holds int64, not text\. Name another"),
        ({"prompt": [b"a"]}, None, r"the column 'prompt' holds binary, not text"),
    ],
)
async def test_a_table_without_a_prompt_is_refused_by_the_names_of_its_columns(tmp_path, columns, field, message):
    path = written(tmp_path, columns)
    with pytest.raises(BatchError, match=message):
        await items(path, field=field)


async def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["prompt", "prompt"]), path)
    with pytest.raises(BatchError, match="has two columns that are called 'prompt'"):
        await items(path)


@pytest.mark.parametrize("kept", [0, 4, 0.5, 0.99])
async def test_a_truncated_file_is_a_batch_error(tmp_path, kept):
    path = written(tmp_path, {"prompt": ["a"] * 100})
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])

    with pytest.raises(BatchError, match=r"in\.parquet cannot be read as Parquet: \S"):
        await items(path)
    async with open_source(str(path)) as source:
        with pytest.raises(BatchError, match=r"in\.parquet cannot be read as Parquet: \S"):
            source.scan()


async def test_a_page_that_is_broken_inside_is_a_batch_error(tmp_path):
    path = written(tmp_path, {"prompt": [os.urandom(20).hex() for _ in range(1000)]}, compression="zstd")
    content = bytearray(path.read_bytes())
    content[40:4000] = bytes(3960)
    path.write_bytes(content)

    with pytest.raises(BatchError, match=r"in\.parquet cannot be read as Parquet: \S"):
        await items(path)


async def test_parquet_does_not_come_from_a_pipe():
    reading, writing = os.pipe()
    os.close(writing)
    async with InputFile("<stdin>", reading, forced_format=PARQUET) as source:
        with pytest.raises(BatchError, match=r"<stdin> is a pipe, from which Parquet cannot be read\. .*use a file"):
            await anext(aiter(source))
