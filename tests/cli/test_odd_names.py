"""Names of files that are not UTF-8, and ids that are no valid Unicode: everything works on them."""

import json
import os

import pytest

FAST = ("--rpm", 60_000, "--burst", 1000)


@pytest.fixture(autouse=True)
def _such_names_are_possible(tmp_path):
    try:
        (tmp_path / "\udce9").touch()
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (tmp_path / "\udce9").unlink()


def contents(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_every_command_takes_names_that_are_not_utf8(onellm, at, tmp_path):
    (tmp_path / "in\udce9.jsonl").write_text('{"prompt": "one"}\n{"prompt": 5}\n{"prompt": "two"}\n')
    ended = await onellm("run", "in\udce9.jsonl", "-o", "out\udce9.jsonl", *FAST, **at)

    assert ended.code == 1, ended.err
    assert "in\\udce9.jsonl:2: prompt is a number, not a string." in ended.err
    assert [line["index"] for line in contents(tmp_path / "out\udce9.jsonl")] == [0, 2]
    status = await onellm("status", "out\udce9.jsonl", "--json")
    assert json.loads(status.out)["input"] == "in\udce9.jsonl"
    assert "2 of 3 completed" in (await onellm("status", "out\udce9.jsonl")).out
    exported = await onellm("export", "out\udce9.jsonl", "-o", "again\udce9.jsonl")
    assert exported.code == 0, exported.err
    assert (tmp_path / "again\udce9.jsonl").read_bytes() == (tmp_path / "out\udce9.jsonl").read_bytes()
    reported = await onellm("report", "out\udce9.jsonl", "-o", "page\udce9.html")
    assert reported.code == 0, reported.err
    assert "prompt is a number" in (tmp_path / "page\udce9.html").read_text()
    again = await onellm("run", "in\udce9.jsonl", "-o", "out\udce9.jsonl", *FAST, **at)
    assert "Nothing is left to do: 2 prompts answered" in again.err
    (tmp_path / "more.txt").write_text("one\nthree\n")
    cached = await onellm("run", "more.txt", "-o", "more.jsonl", "--cache", "out\udce9.jsonl", *FAST, **at)
    assert "1 answered from a cache." in cached.err
    assert b"pause" not in os.fsencode(ended.err)
    paused = await onellm("pause", "out\udce9.jsonl")
    assert "out\\udce9.jsonl.journal" in paused.err


async def test_a_place_that_is_not_there_is_refused_in_a_sentence_and_nothing_is_left(onellm, at, tmp_path, prompts):
    ended = await onellm("run", "in.txt", "-o", "no\udce9where/out.jsonl", *FAST, **at)

    assert ended.code == 2
    assert ended.err == "onellm-async: no\\udce9where/out.jsonl cannot be written: No such file or directory.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


async def test_half_a_character_in_a_custom_id_costs_no_other_answer(onellm, at, tmp_path, backend):
    lines = [json.dumps({"custom_id": f"c{number}", "prompt": f"p {number}"}) for number in range(120)]
    lines.insert(60, '{"custom_id":"bad\\ud800","prompt":"y"}')
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    ended = await onellm("run", "in.jsonl", "-o", "out.jsonl", *FAST, **at)

    assert ended.code == 0, ended.err
    assert len(backend.asked) == 121
    written = (tmp_path / "out.jsonl").read_bytes()
    assert b'{"index":60,"custom_id":"bad\\ud800","response":{"content":"y"' in written
    again = await onellm("export", "out.jsonl")
    assert again.out.encode() == written
