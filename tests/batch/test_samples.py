"""Sampling is respected: a prompt is asked as often as it was meant to be."""

import asyncio
import csv
import json

import pyarrow.parquet as pq
import pytest

from onellm_async import AsyncOneLLM, ConfigurationError, Limits
from onellm_async.batch import InputFile, JournalReader, RunPolicy, open_source
from onellm_async.batch.config import RunConfig
from onellm_async.batch.work_list import WorkList
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.export import export
from onellm_async.cli.plan import plan
from onellm_async.cli.reading import SelectionFlags
from onellm_async.cli.status import status
from onellm_async.report.reading import read_report
from onellm_async.testing import FakeTransport


class Service(FakeTransport):
    """Each answer is another one; it stops answering after a number of requests."""

    def __init__(self, answers=10_000):
        super().__init__(self._reply_to)
        self.answers = answers
        self.stop = asyncio.Event()

    async def _reply_to(self, request):
        if request.number >= self.answers:
            self.stop.set()
        usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
        return {"content": f"{request.prompt} #{request.number}", "usage": usage}


async def ask(service, source, output, **options):
    async with AsyncOneLLM(transport=service, limits=Limits.unlimited(1)) as client:
        return await client.run(source, output, stop=service.stop, **options)


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


LINES = "\n".join(json.dumps({"custom_id": name, "prompt": name}) for name in "abc")


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(LINES, "utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, "aaab"),
        ({"temperature": 0.7}, "aaab"),
        ({"temperature": 0}, "ab"),
        ({"temperature": 0, "deduplicate": False}, "aaab"),
        ({"deduplicate": True}, "ab"),
    ],
)
async def test_identical_requests_are_sent_once_where_their_answers_would_be_alike(tmp_path, options, sent):
    service = Service()
    report = await ask(service, ["a", "a", "b", "a"], tmp_path / "out.jsonl", **options)
    assert "".join(sorted(service.prompts)) == sent
    assert report.counts.deduplicated == 4 - len(sent)
    costs = [record["response"]["cost"] for record in read(tmp_path / "out.jsonl")]
    assert report.counts.cost == pytest.approx(sum(costs))
    assert sorted(costs)[: 4 - len(sent)] == [0] * (4 - len(sent))


async def test_each_line_decides_by_its_own_temperature(tmp_path):
    service = Service()
    lines = [{"prompt": "a", "temperature": temperature} for temperature in (0, 0, 1, 1)]
    report = await ask(service, lines, tmp_path / "out.jsonl")
    assert (len(service.prompts), report.counts.deduplicated) == (3, 1)


async def test_each_prompt_is_asked_as_often_as_it_is_sampled(tmp_path, lines):
    service = Service()
    report = await ask(service, lines, tmp_path / "out.jsonl", samples=3)
    assert service.prompts == list("aaabbbccc")
    assert [(record["index"], record["custom_id"], record["sample"]) for record in read(tmp_path / "out.jsonl")] == [
        (index, name, sample) for index, name in enumerate("abc") for sample in (1, 2, 3)
    ]
    assert (report.progress.total, report.counts.answered, report.complete) == (9, 9, True)


async def test_every_format_has_the_sample(tmp_path, lines):
    for name in ("out.csv", "out.parquet"):
        await ask(Service(), lines, tmp_path / name, samples=2)
    await ask(Service(), lines, tmp_path / "batch.jsonl", samples=2, output_format="openai-batch")
    expected = [(index, name, sample) for index, name in enumerate("abc") for sample in (1, 2)]
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = [(int(row["index"]), row["custom_id"], int(row["sample"])) for row in csv.DictReader(file)]
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert rows == [(row["index"], row["custom_id"], row["sample"]) for row in table] == expected
    batch = read(tmp_path / "batch.jsonl")
    assert [(record["custom_id"], record["sample"]) for record in batch] == [each[1:] for each in expected]
    assert len({record["id"] for record in batch}) == 6


async def test_samples_of_one_prompt_are_never_copies_of_each_other(tmp_path):
    service = Service()
    await ask(service, ["a", "b", "a"], tmp_path / "out.jsonl", samples=2, temperature=0)
    assert sorted(service.prompts) == list("aabb")
    records = read(tmp_path / "out.jsonl")
    assert [record.get("copy_of") for record in records] == [None, None, None, None, 0, 0]
    contents = [record["response"]["content"] for record in records]
    assert contents[4:] == contents[:2]
    assert contents[0] != contents[1]


@pytest.mark.parametrize("answers", range(1, 9))
async def test_a_stopped_run_goes_on_with_the_samples_that_are_left(tmp_path, lines, answers):
    output, service = tmp_path / "out.jsonl", Service(answers)
    first = await ask(service, lines, output, samples=3)
    assert first.interrupted
    again = Service()
    report = await ask(again, lines, output, samples=3)
    assert report.complete
    assert service.prompts + again.prompts == list("aaabbbccc")
    assert [(record["index"], record["sample"]) for record in read(output)] == [
        (index, sample) for index in range(3) for sample in (1, 2, 3)
    ]


async def test_a_bad_line_is_one_bad_line(tmp_path):
    (tmp_path / "in.jsonl").write_text(f"{LINES}\n{{\n")
    output, told = tmp_path / "out.jsonl", []
    report = await ask(Service(), tmp_path / "in.jsonl", output, samples=3, on_bad_line=told.append)
    assert (report.bad_lines, len(told), report.progress.total) == (1, 1, 10)
    assert len(read(output)) == 9
    again = await ask(Service(), tmp_path / "in.jsonl", output, samples=3)
    assert (again.already_complete, again.bad_lines) == (True, 1)


async def test_a_limit_counts_prompts_and_not_samples(tmp_path, lines):
    service = Service()
    report = await ask(service, lines, tmp_path / "out.jsonl", samples=2, limit=2)
    assert (service.prompts, report.limit_reached, report.estimate.left) == (list("aabb"), True, 2)


async def test_a_cap_bounds_all_samples_together(tmp_path):
    service = Service()
    report = await ask(service, ["a"], tmp_path / "out.jsonl", samples=50, max_tokens=5, max_tokens_total=200)
    assert len(service.prompts) < 50
    assert report.stopped_by is not None


async def test_another_number_of_samples_is_another_run(tmp_path, lines):
    await ask(Service(), lines, tmp_path / "out.jsonl", samples=2)
    with pytest.raises(Exception, match="samples was 2 and is now 3"):
        await ask(Service(), lines, tmp_path / "out.jsonl", samples=3)


async def test_a_cache_has_each_sample_once(tmp_path, lines):
    await ask(Service(), lines, tmp_path / "one.jsonl")
    await ask(Service(), lines, tmp_path / "two.jsonl", samples=2, cache=[tmp_path / "one.jsonl"])
    service = Service()
    await ask(service, lines, tmp_path / "three.jsonl", samples=3, cache=[tmp_path / "two.jsonl"])
    assert service.prompts == list("abc")
    two, three = read(tmp_path / "two.jsonl"), read(tmp_path / "three.jsonl")
    known = [record["response"]["content"] for record in three if record["sample"] < 3]
    assert known == [record["response"]["content"] for record in two]
    assert sum(record["response"]["cost"] > 0 for record in three) == 3


async def test_status_report_and_export_count_samples(tmp_path, lines, capsys):
    output = tmp_path / "out.jsonl"
    await ask(Service(4), lines, output, samples=2)
    status(str(output))
    assert "4 of 6 completed" in (text := capsys.readouterr().out)
    assert "remaining        2" in text
    with JournalReader.open(output) as journal:
        report = read_report(journal, now=0)
    assert (report.totals.total, report.totals.remaining) == (6, 2)
    assert {record.index for record in report.slowest} == {0, 1}
    await asyncio.to_thread(export, str(output), output=str(tmp_path / "so-far.jsonl"))
    exported = read(tmp_path / "so-far.jsonl")
    assert [(record["index"], record["sample"]) for record in exported] == [(0, 1), (0, 2), (1, 1), (1, 2)]


async def test_the_estimate_has_every_request_of_the_run(tmp_path):
    (tmp_path / "in.jsonl").write_text(
        f'{LINES}\n{{"prompt": "x", "temperature": 0}}\n{{"prompt": "x", "temperature": 0}}'
    )
    policy = RunPolicy(samples=3, first=5)
    source: InputFile = open_source([str(tmp_path / "in.jsonl")], defaults=RunConfig(output=None).defaults)
    async with source:
        work = WorkList(source, policy)
        requests = [request async for request in work]
    service = Service()
    await ask(service, tmp_path / "in.jsonl", tmp_path / "out.jsonl", samples=3, limit=5)
    assert (len(requests), work.duplicates) == (len(service.prompts), 3) == (12, 3)


def test_plan_counts_samples(tmp_path, lines, capsys):
    assert plan(str(lines), selecting=SelectionFlags(samples=4, limit=2), json=True) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["prompts"] == 8


@pytest.mark.parametrize("samples", [0, -1, 1.5, True])
async def test_a_number_of_samples_that_is_none_is_refused(tmp_path, samples):
    with pytest.raises(ConfigurationError, match="samples"):
        await ask(Service(), ["a"], tmp_path / "out.jsonl", samples=samples)


@pytest.mark.parametrize("named", [True, False])
async def test_only_the_samples_of_new_prompts_are_asked_when_the_input_has_grown(tmp_path, named):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    def write(prompts):
        records = ({"custom_id": name, "prompt": name} if named else {"prompt": name} for name in prompts)
        source.write_text("\n".join(map(json.dumps, records)))

    write("abc")
    await ask(Service(), source, output, samples=2)
    write("xabcd" if named else "abcd")
    service = Service()
    report = await ask(service, source, output, samples=2)
    assert report.complete
    assert service.prompts == list("xxdd" if named else "dd")
    records = read(output)
    assert [record["response"]["content"][0] for record in records] == list("xxaabbccdd" if named else "aabbccdd")
    assert [(record["index"], record["sample"]) for record in records] == [
        (index, sample) for index in range(len(records) // 2) for sample in (1, 2)
    ]
