"""A count of one stands before a singular noun."""

import re

import pytest

from onellm_async import OneLLMError
from onellm_async.cli.control import _in_words
from onellm_async.errors import BatchError

_PLURAL = re.compile(r"\b1 (?:field|line|prompt|record|shard|attempt|request|answer)s\b")


@pytest.mark.parametrize(
    ("before", "now", "flags", "told"),
    [
        ("", "a,b,prompt\n1\n", ("--strict",), "It has 1 field; the header names 3."),
        ("prompt\nHi\n", "prompt\nHo\nHe\n", (), "it had 1 line and has 2"),
        ("prompt\nHi\n", "prompt\nHo\n", (), "lacks 1 of the 1 prompt that was answered"),
    ],
)
async def test_a_refused_input_is_told_so(onellm, at, tmp_path, before, now, flags, told):
    run = ("run", "in.csv", "-o", "out.jsonl", "--rpm", 60_000)
    if before:
        (tmp_path / "in.csv").write_text(before)
        assert (await onellm(*run, **at)).code == 0
    (tmp_path / "in.csv").write_text(now)
    ended = await onellm(*run, *flags, **at)
    assert ended.code == 2
    assert told in ended.err
    assert not _PLURAL.search(ended.err)


async def test_one_record_of_one_shard_is_told_so(onellm, at, tmp_path):
    (tmp_path / "in.txt").write_text("Hi\n")
    said = [
        await onellm("shard", "in.txt", "--directory", "shards", "--prompts", 1),
        await onellm("shard", "merge", "shards", "-o", "early.jsonl"),
        await onellm("run", "in.txt", "-o", "out.jsonl", "--rpm", 60_000, **at),
        await onellm("export", "out.jsonl", "-o", "again.jsonl"),
    ]
    assert "1 shard in shards, 1 prompt each." in said[0].err
    assert "1 of 1 shard is not complete" in said[1].err
    assert "1 record written to again.jsonl." in said[3].err
    for each in said:
        assert not _PLURAL.search(each.err)


def test_one_request_per_minute_and_one_outcome_are_told_so():
    assert (
        _in_words({"requests_per_minute": 1.0, "tokens_per_minute": 2}) == "1 request per minute, 2 tokens per minute"
    )
    error: OneLLMError = BatchError("Cut.")
    error.partial_results = ["answer"]
    assert "1 outcome was already there" in str(error)
