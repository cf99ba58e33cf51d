"""Prompts in memory: what is no prompt is refused or told, as it is for a file."""

import json
from datetime import UTC, datetime

import pytest

from onellm_async import AsyncOneLLM, InvalidRequestError, Limits, Message
from onellm_async.errors import BatchError
from onellm_async.testing import FakeTransport


async def run(source, output, **options):
    transport = FakeTransport()
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited(4)) as client:
        report = await client.run(source, output, **options)
    return report, transport


@pytest.mark.parametrize("kind", [list, tuple, set, dict.fromkeys, lambda names: dict(enumerate(names)).values()])
@pytest.mark.parametrize("options", [{}, {"field": "text"}, {"template": "Say {{ text }}"}])
async def test_texts_that_all_name_files_are_refused_unsent(tmp_path, kind, options):
    paths = [tmp_path / f"part{number}.jsonl" for number in range(2)]
    for path in paths:
        path.write_text('{"prompt": "Hi", "text": "Ho"}\n')
    names = [str(path) for path in paths]
    source = kind(names)
    source = source.keys() if isinstance(source, dict) else source

    with pytest.raises(InvalidRequestError, match=r"all name files.*A list of Path is read as files"):
        await run(source, tmp_path / "out.jsonl", **options)
    assert not list(tmp_path.glob("out*"))

    report, transport = await run(paths, tmp_path / "out.jsonl")
    assert (report.counts.answered, {each.prompt for each in transport.requests}) == (2, {"Hi"})


async def test_a_column_of_file_names_is_refused_as_a_list_is(tmp_path):
    class Column:  # what a Series, an array and a column of a dataset have in common
        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

        def __getitem__(self, index):
            return self.values[index]

        def __iter__(self):
            return iter(self.values)

    (tmp_path / "a.txt").write_text("Hi")
    with pytest.raises(InvalidRequestError, match="all name files"):
        await run(Column([str(tmp_path / "a.txt")]), tmp_path / "out.jsonl")
    report, _ = await run(Column(["Hi"]), tmp_path / "out.jsonl")
    assert report.complete


async def test_texts_of_which_one_names_a_file_are_prompts(tmp_path):
    file = tmp_path / "a"
    file.write_text("x")
    report, _ = await run([str(file), "What is a file?", "x" * 9999, "\0"], tmp_path / "out.jsonl")

    assert report.counts.answered == 4


async def later(values):
    for value in values:
        yield value


async def test_a_list_of_dicts_is_read_like_json_lines(tmp_path):
    records = [
        {"id": 1, "prompt": "Hi", "model": "GPT-5", "score": float("nan")},
        {"id": 2, "messages": [{"role": "user", "content": "Ho"}], "max_tokens": 7},
        {"id": 3, "prompt": None},
    ]
    bad = []
    report, transport = await run(records, tmp_path / "out.jsonl", keep="all", on_bad_line=bad.append)
    one, two = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())

    assert (one["custom_id"], one["input"]["score"], two["custom_id"]) == ("1", None, "2")
    bodies = {each.prompt: json.loads(each.body) for each in transport.requests}
    assert (bodies["Hi"]["model"], bodies["Ho"]["max_tokens"]) == ("GPT-5", 7)
    assert [error.line for error in bad] == [3]
    assert report.progress.total == 3


@pytest.mark.parametrize("given", [list, iter, later])
async def test_field_and_template_make_the_prompt_of_a_dict(tmp_path, given):
    records = [{"text": "Hi", "n": 1}, {"text": "Ho", "n": 2}]
    _, transport = await run(given(records), tmp_path / "a.jsonl", field="text")
    assert {each.prompt for each in transport.requests} == {"Hi", "Ho"}
    _, transport = await run(given(records), tmp_path / "b.jsonl", template="{{ n }}: {{ text }}")
    assert {each.prompt for each in transport.requests} == {"1: Hi", "2: Ho"}


@pytest.mark.parametrize("given", [list, tuple, iter])
@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ([], "prompts holds no prompts"),
        (["", None], "prompts:1: The prompt is empty. All prompts are bad"),
        ([{"question": "Hi"}], "neither prompt nor messages.*All prompts are bad"),
        ([""] * 20 + ["Hi"], "The first 20 prompts are all bad"),
    ],
)
async def test_prompts_that_cannot_be_sent_are_refused_and_leave_nothing(tmp_path, given, prompts, told):
    with pytest.raises(BatchError, match=told):
        await run(given(prompts), tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


async def test_an_async_source_without_usable_prompts_stops_the_run(tmp_path):
    empty, _ = await run(later([]), tmp_path / "empty.jsonl")
    bad, transport = await run(later([None] * 20 + ["Hi"]), tmp_path / "bad.jsonl")

    assert not empty.complete
    assert "holds no prompts" in str(empty.stopped_by)
    assert "The first 20 prompts are all bad" in str(bad.stopped_by)
    assert not transport.requests


async def test_a_generator_is_read_only_up_to_its_first_usable_prompt_before_the_run(tmp_path):
    read = []

    def prompts():
        for prompt in ["", "Hi", "Ho"]:
            read.append(prompt)
            yield prompt
        raise ValueError("gone")

    report, transport = await run(prompts(), tmp_path / "out.jsonl")

    assert {each.prompt for each in transport.requests} <= {"Hi", "Ho"}
    assert "gone" in str(report.stopped_by)
    assert read == ["", "Hi", "Ho"]


@pytest.mark.parametrize("bad", ["", None, {"prompt": ""}])
async def test_a_strict_run_refuses_a_list_with_a_bad_entry(tmp_path, bad):
    with pytest.raises(BatchError, match=r"^prompts:3: .*Nothing was sent \(strict\)"):
        await run(["Hi", "Ho", bad], tmp_path / "out.jsonl", strict=True)
    assert not list(tmp_path.iterdir())


async def test_a_strict_run_of_a_generator_stops_at_a_bad_entry(tmp_path):
    report, _ = await run(iter(["Hi", "", "Ho"]), tmp_path / "out.jsonl", strict=True)
    assert report.strict_error.line == 2
    assert not report.complete


async def test_a_list_gives_the_progress_a_total(tmp_path):
    seen = []
    await run(["Hi", "", "Ho"], tmp_path / "out.jsonl", on_progress=seen.append)
    assert {each.total for each in seen} == {3}
    assert seen[-1].eta == 0


async def test_bad_entries_are_logged_ten_of_each_reason_and_then_counted(tmp_path, caplog):
    report, _ = await run(["Hi", *[""] * 14, None], tmp_path / "out.jsonl")

    *told, last = caplog.messages
    assert told[:10] == [f"Bad line, not sent: prompts:{line}: The prompt is empty." for line in range(2, 12)]
    assert told[10].startswith("Bad line, not sent: prompts:16: ")
    assert last == "Bad lines, not sent: 4 further lines: The prompt is empty."
    assert {(record.name, record.levelname) for record in caplog.records} == {("onellm_async", "WARNING")}
    assert (report.complete, report.bad_lines, report.counts.answered) == (True, 15, 1)


async def test_bad_entries_are_told_by_on_message_or_on_bad_line_if_given(tmp_path, caplog):
    said, bad = [], []
    await run(["Hi", ""], tmp_path / "a.jsonl", on_message=said.append)
    assert said == ["Bad line, not sent: prompts:2: The prompt is empty."]
    await run(["Hi", ""], tmp_path / "b.jsonl", on_message=said.append, on_bad_line=bad.append)
    assert ([error.line for error in bad], len(said)) == ([2], 1)
    assert not caplog.messages


async def test_a_source_whose_length_is_unknown_when_asked_has_no_total(tmp_path):
    class Bar:  # as tqdm is, around a generator
        def __init__(self):
            self.opened = 0

        def __len__(self):
            raise TypeError("object of type 'generator' has no len()")

        def __iter__(self):
            self.opened += 1
            yield from ["Hi", "Ho"]

    bar = Bar()
    report, _ = await run(bar, tmp_path / "out.jsonl", strict=True)
    assert (report.progress.total, report.counts.answered, bar.opened) == (None, 2, 1)


async def test_values_that_json_lacks_are_text_and_missing_ones_are_null(tmp_path):
    class NaTType: ...  # as pandas calls it

    class Scalar:  # as those of numpy are
        def tolist(self):
            return 7

    moment = datetime(2026, 1, 2, tzinfo=UTC)
    record = {"prompt": [Message.user("Hi")], "at": moment, "gone": NaTType(), "n": Scalar(), "raw": b"x"}
    await run([{**record, "messages": record["prompt"], "prompt": None}], tmp_path / "out.jsonl", keep="all")
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    kept = json.loads(line)["input"]

    assert (kept["at"], kept["gone"], kept["n"], "raw" in kept) == (str(moment), None, 7, False)


async def test_a_single_history_is_refused_and_a_list_of_one_is_sent(tmp_path):
    history = [{"role": "user", "content": "Hi"}]
    with pytest.raises(InvalidRequestError, match=r"a single history.*Pass a list of histories"):
        await run(history, tmp_path / "out.jsonl")
    report, _ = await run([history], tmp_path / "out.jsonl")
    assert report.counts.answered == 1
