"""The command and `AsyncOneLLM.run` are one door: the same journal, the same output, the same exit meaning."""

import csv
import io
import json
import re

import pytest
from attrs import asdict, evolve

from onellm_async import AsyncOneLLM, Limits
from onellm_async.batch import JournalReader, RunOptions
from onellm_async.batch.config import RunConfig
from onellm_async.cli.flag_words import told_in_flags
from onellm_async.cli.options import ASKING_EACH
from onellm_async.cli.reading import READING, SELECTING
from onellm_async.cli.run import GOING_ON, SESSION, SPENDING, WRITING, exit_code, options_from
from onellm_async.errors import BatchError

TEXT = "\n".join([*(f"p{number}" for number in range(12)), "p3", "bad", "bad"])
JSONL = "\n".join(
    [*(json.dumps({"custom_id": f"c{number}", "prompt": f"p{number}"}) for number in range(8)), "{", '{"prompt": 5}']
)
BATCH = "\n".join(
    json.dumps({"custom_id": f"c{n}", "body": {"model": "GPT-5", "messages": [{"role": "user", "content": f"p{n}"}]}})
    for n in range(5)
)


def table():
    text = io.StringIO()
    csv.writer(text).writerows([["name", "city"], *([f"n{number}", "x\ny"] for number in range(6))])
    return text.getvalue()


SCENES = {
    "failures and duplicates": ("in.txt", TEXT, "out.jsonl", [], {}, 1),
    "bad lines and ids": ("in.jsonl", JSONL, "out.csv", [], {}, 1),
    "an OpenAI batch": ("in.jsonl", BATCH, "out.jsonl", ["-m", "GPT-5-Mini"], {"model": "GPT-5-Mini"}, 0),
    "a table with a template": (
        *("in.csv", table(), "out.jsonl"),
        ["--template", "{{ name }} of {{ city }}", "--max-tokens", 40, "--system", "Be brief.", "--max-cost", 1],
        {"template": "{{ name }} of {{ city }}", "max_tokens": 40, "system": "Be brief.", "max_cost": 1},
        0,
    ),
    "options of every request": (
        *("in.txt", TEXT, "out.jsonl"),
        ["--top-p", 0.5, "--stop", "END", "--stop", ".", "--seed", 7, "--option", "top_k=40", "--option", "user=ada"],
        {"top_p": 0.5, "stop_sequences": ["END", "."], "seed": 7, "extra": {"top_k": 40, "user": "ada"}},
        1,
    ),
    "a strict run": ("in.jsonl", JSONL, "out.jsonl", ["--strict"], {"strict": True}, 2),
    "a cap that is reached": (
        *("in.txt", TEXT, "out.jsonl"),
        ["--max-tokens-total", 50, "--max-tokens", 5],
        {"max_tokens_total": 50, "max_tokens": 5},
        4,
    ),
    "samples of the first prompts": (
        *("in.jsonl", JSONL, "out.csv"),
        ["--samples", 3, "--limit", 4, "--deduplicate"],
        {"samples": 3, "limit": 4, "deduplicate": True},
        0,
    ),
    "nothing shared and a cap of failures": (
        *("in.txt", TEXT, "out.jsonl"),
        ["--no-deduplicate", "--keep-going"],
        {"deduplicate": False, "max_failure_share": 1.0},
        1,
    ),
}


def records(path):
    with JournalReader.open(path) as journal:
        found = [
            evolve(record, sent_at=None, completed_at=None, elapsed=None, latency=None) for record in journal.records()
        ]
        return found, journal.counts(), journal.complete, journal.identity


def written(path):
    written = path if path.exists() else path.with_name(f"{path.name}.partial")
    return re.sub(rb'"created":\d+', b"", written.read_bytes())  # the time of an answer


@pytest.mark.parametrize("scene", SCENES)
async def test_both_give_the_same_journal_the_same_output_and_the_same_exit(onellm, at, backend, tmp_path, scene):
    name, text, output, flags, options, code = SCENES[scene]
    backend.failing = {"bad"}
    (tmp_path / name).write_text(text)
    theirs, ours = tmp_path / f"command-{output}", tmp_path / f"client-{output}"
    ended = await onellm("run", name, "-o", theirs, *flags, "--concurrency", 1, "--rpm", 60_000, **at)
    assert ended.code == code, ended.err
    limits = Limits(max_concurrency=1, requests_per_minute=60_000)
    async with AsyncOneLLM("good", base_url=at["ONELLM_BASE_URL"], limits=limits) as client:
        if code == 2:
            with pytest.raises(BatchError) as raised:
                await client.run(tmp_path / name, ours, **options)
            assert told_in_flags(raised.value).removeprefix(f"{tmp_path}/") in ended.err
            assert {path.name for path in tmp_path.iterdir()} == {name}
            return
        report = await client.run(tmp_path / name, ours, **options)
    assert exit_code(report, None) == code
    assert written(ours) == written(theirs)
    mine, counts, complete, identity = records(f"{ours}.journal")
    assert (mine, counts, complete) == records(f"{theirs}.journal")[:3]
    assert report.counts == counts
    differences = identity.differences(records(f"{theirs}.journal")[3])
    assert [each for each in differences if not each.startswith("the input was")] == []


def test_the_flags_have_the_names_and_defaults_of_the_options():
    flags = {
        name
        for group in (READING, SELECTING, WRITING, SPENDING, GOING_ON, SESSION, ASKING_EACH)
        for name in asdict(group)
    }
    spelled = {
        "stop": "stop_sequences",
        "option": "extra",
        "format": "input_format",
        "keep_going": "max_failure_share",
        "preflight": "limit",
        "schema": "response_model",
    }
    beside = {"output", "estimate", "model"}
    only_in_python = {"output_format", "fallback_model"}  # the suffix of the output, and ONELLM_MODEL
    assert {spelled.get(flag, flag) for flag in flags - beside} == RunOptions.__annotations__.keys() - only_in_python

    def config(options):
        return RunConfig.from_options(
            "out.jsonl", None, options, limits=Limits(), base_url=None, dialect="documented", endpoints={}
        )

    assert config(options_from(READING, SELECTING, WRITING, SPENDING, GOING_ON, SESSION, ASKING_EACH)) == config({})
