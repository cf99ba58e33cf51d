"""DataFrames, relations and datasets are tables of prompts, and never the names of their columns."""

import json

import pytest

from onellm_async import AsyncOneLLM, InvalidRequestError, Limits
from onellm_async.batch import PromptTemplate
from onellm_async.batch.inputs.table import is_table
from onellm_async.errors import BatchError
from onellm_async.testing import FakeTransport

pa = pytest.importorskip("pyarrow")
DATA = {"id": [1, 2, 3], "question": ["a", "b", None], "model": ["GPT-5", None, None], "score": [0.5, 1.0, 2.0]}


class Frame:
    """What polars, duckdb and newer versions of pandas have in common."""

    columns = tuple(DATA)

    def __arrow_c_stream__(self, requested_schema=None):
        return pa.table(DATA).__arrow_c_stream__(requested_schema)

    def __iter__(self):
        return iter(self.columns)


def polars():
    return pytest.importorskip("polars").DataFrame(DATA)


def pandas():
    return pytest.importorskip("pandas").DataFrame(DATA)


def duckdb():
    module = pytest.importorskip("duckdb")
    connection = module.connect()
    connection.register("data", pa.table(DATA))
    return connection.sql("select * from data")


def dataset():
    return pytest.importorskip("datasets").Dataset.from_dict(DATA)


TABLES = {
    "frame": Frame,
    "arrow": lambda: pa.table(DATA),
    "batch": lambda: pa.record_batch(DATA),
    "reader": lambda: pa.table(DATA).to_reader(),
    "polars": polars,
    "pandas": pandas,
    "duckdb": duckdb,
    "dataset": dataset,
}


async def run(source, output, **options):
    transport = FakeTransport()
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited(4)) as client:
        report = await client.run(source, output, **options)
    return report, transport


@pytest.mark.parametrize("kind", TABLES)
async def test_a_table_is_asked_row_by_row(tmp_path, kind):
    bad = []
    report, transport = await run(
        TABLES[kind](), tmp_path / "out.jsonl", field="question", model="GPT-5-Mini", on_bad_line=bad.append
    )
    one, two = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    assert (one["custom_id"], one["response"]["content"]) == ("1", "a")
    assert two["input"] | {"id": 2} == {"id": 2, "question": "b", "model": None, "score": 1.0}
    assert {json.loads(request.body)["model"] for request in transport.requests} == {"GPT-5-Mini"}
    assert [error.line for error in bad] == [3]
    assert report.counts.answered == 2


async def test_a_table_resumes_and_takes_templates(tmp_path):
    options = {"template": "Say {{ question }}.", "keep": ["score"]}
    await run(Frame(), tmp_path / "out.csv", limit=1, **options)
    report, transport = await run(Frame(), tmp_path / "out.csv", **options)

    assert [request.prompt for request in transport.requests] == ["Say b."]
    assert (report.counts.answered, report.progress.bad_lines) == (2, 1)
    assert (tmp_path / "out.csv").read_text().splitlines()[0].endswith(",extra,score")


async def test_a_table_without_a_prompt_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BatchError, match=r"Frame has no column 'prompt' \(columns: 'id', 'question'"):
        await run(Frame(), tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["frame", "arrow", "polars", "pandas", "dataset"])
async def test_a_fan_out_refuses_a_table(kind):
    async with AsyncOneLLM(transport=FakeTransport()) as client:
        with pytest.raises(InvalidRequestError, match="the names of its columns"):
            await client.gather_chats(TABLES[kind](), model="GPT-5")


async def test_a_single_column_is_prompts(tmp_path):
    frame = polars()
    assert not is_table(frame["question"])
    assert not is_table(pandas()["question"])
    report, _ = await run(frame["question"].head(2), tmp_path / "out.jsonl")

    assert report.counts.answered == 2


@pytest.mark.parametrize("name", ["in.arrow", "in.feather", "in.arrows", "in", "in.parquet"])
async def test_a_file_of_arrow_is_read_by_name_or_first_bytes(tmp_path, name):
    table = pa.table({"prompt": ["a", "b"], "n": [1, 2]})
    with (tmp_path / name).open("wb") as file:
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow.parquet").write_table(table, file)
        else:
            make = pa.ipc.new_stream if name == "in.arrows" else pa.ipc.new_file
            with make(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=1)
    report, _ = await run(tmp_path / name, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    assert [line["input"] for line in lines] == [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]
    assert report.complete


async def test_a_broken_file_of_arrow_is_refused(tmp_path):
    (tmp_path / "in.arrow").write_bytes(b"ARROW1\0\0 and no more")
    with pytest.raises(BatchError, match=r"in.arrow cannot be read as Arrow"):
        await run(tmp_path / "in.arrow", tmp_path / "out.jsonl")


async def test_columns_of_bytes_are_left_out_wherever_they_are(tmp_path):
    table = pa.table(
        {"prompt": ["a"], "image": [b"x"], "parts": [[b"y"]], "boxes": [[{"raw": b"z", "n": 1}]], "n": [1]}
    )
    with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    await run(tmp_path / "in.arrow", tmp_path / "out.jsonl", template="{{ prompt }}!")

    assert json.loads((tmp_path / "out.jsonl").read_text())["input"] == {"prompt": "a", "n": 1}
    assert PromptTemplate("{{ prompt }}").fields == {"prompt"}


async def test_a_table_without_usable_rows_is_refused(tmp_path):
    with pytest.raises(BatchError, match="holds no prompts"):
        await run(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "out.jsonl")
    with pytest.raises(BatchError, match=r"^Table:1: .*All rows are bad, so nothing was sent"):
        await run(pa.table({"prompt": ["", None]}), tmp_path / "out.jsonl")
    with pytest.raises(BatchError, match="The first 20 rows are all bad"):
        await run(pa.table({"prompt": [None] * 20 + ["Hi"]}), tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            pa.table({"q": ["Hi"]}),
            {},
            "Name the prompt's column with field=, or make the prompt of several with template=",
        ),
        (pa.table({"prompt": ["Hi"]}), {"keep": ["x"]}, "has no column 'x', which keep= names"),
        (pa.table({"prompt": ["Hi"]}), {"id_field": "x"}, "has no column 'x', which id_field= names"),
        (pa.table({"prompt": [1]}), {}, "Name another with field=, or make the prompt with template="),
        ([{"q": "Hi"}], {}, "name its field with field=, or make the prompt with template="),
    ],
)
async def test_messages_on_what_is_in_memory_name_arguments_and_no_flags(tmp_path, source, options, message):
    with pytest.raises(BatchError) as caught:
        await run(source, tmp_path / "out.jsonl", **options)
    assert message in str(caught.value)
    assert "--" not in str(caught.value)


async def test_a_strict_run_refuses_a_table_with_a_bad_row(tmp_path):
    table = pa.table({"prompt": ["Hi", "", "Ho"]})
    with pytest.raises(BatchError, match=r"^Table:2: .*Nothing was sent \(strict\)"):
        await run(table, tmp_path / "out.jsonl", strict=True)
    report, _ = await run(table.to_reader(), tmp_path / "out.jsonl", strict=True)
    assert report.strict_error.line == 2


async def test_a_table_gives_the_progress_a_total(tmp_path):
    report, _ = await run(pa.table({"prompt": ["Hi", "Ho"]}), tmp_path / "out.jsonl")
    assert (report.progress.total, report.progress.eta) == (2, 0)


async def test_a_strict_run_of_a_relation_stops_at_a_bad_row(tmp_path):
    module = pytest.importorskip("duckdb")
    relation = module.connect().sql("select * from (values ('Hi'), (''), ('Ho')) as prompts(prompt)")
    report, _ = await run(relation, tmp_path / "out.jsonl", strict=True)
    assert report.strict_error.line == 2
