import json

import pytest

FAST = ("--rpm", 60_000, "--burst", 1000)
GPT5 = ("--model", "GPT-5", "--max-tokens", 1000)


def contents(path):
    records = map(json.loads, path.read_text().splitlines())
    return [record["response"] and record["response"]["content"] for record in records]


async def test_a_complete_run_sends_nothing_and_says_so(onellm, at, prompts, backend, tmp_path):
    await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    before = (tmp_path / "out.jsonl").read_bytes()
    backend.asked.clear()
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)

    assert (ended.code, ended.out, backend.asked) == (0, "", [])
    assert ended.err == (
        "Nothing is left to do: 10 prompts answered, 0 failed, $0.0000047 spent; the answers are in out.jsonl. "
        "--force starts over.\n"
    )
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (("--model", "GPT-5-Mini"), "the model was not given and is now GPT-5-Mini"),
        (("--max-tokens", 5), "max_tokens was not given and is now 5"),
        (("--system", "Be brief"), "the system prompt was not given and is now"),
        (("--dialect", "backend"), "the dialect was documented and is now backend"),
    ],
)
async def test_another_question_is_another_run(onellm, at, prompts, backend, tmp_path, flags, difference):
    await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    backend.asked.clear()
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *flags, *FAST, **at)

    assert (ended.code, backend.asked) == (2, [])
    assert f"out.jsonl.journal belongs to another run: {difference}" in ended.err
    assert "Or use another output, or --force to discard its answers." in ended.err.replace("\n", " ")
    assert contents(tmp_path / "out.jsonl") == prompts


async def test_a_grown_input_is_a_larger_run_and_a_shorter_one_is_refused(onellm, at, prompts, backend, tmp_path):
    await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    backend.asked.clear()
    (tmp_path / "in.txt").write_text("first\n" + (tmp_path / "in.txt").read_text())
    run = ("run", "in.txt", "-o", "out.jsonl", *FAST)
    plan, grown = await onellm(*run, "--estimate", **at), await onellm(*run, **at)
    for ended in (plan, grown):
        assert "The input has changed: 1 of 11 prompts is new; 10 keep their answers." in ended.err
    assert (grown.code, backend.asked, contents(tmp_path / "out.jsonl")) == (0, ["first"], ["first", *prompts])

    (tmp_path / "in.txt").write_text("\n".join(prompts[:6]))
    shorter = await onellm(*run, **at)
    assert (shorter.code, backend.asked, len(contents(tmp_path / "out.jsonl"))) == (2, ["first"], 11)
    assert "in.txt is shorter than in the last session (it had 11 lines and has 6)." in shorter.err
    assert "--accept-removed" in shorter.err


async def test_another_input_is_refused_and_force_begins_anew(onellm, at, prompts, backend, tmp_path):
    await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    assert ended.code == 2
    assert "the input has changed (it had 10 lines and has 2), and lacks 10 of the 10 prompts" in ended.err

    ended = await onellm("run", "in.txt", "-o", "out.jsonl", "--force", *FAST, **at)
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "out.jsonl") == ["one", "two"]
    assert "Resuming" not in ended.err


async def test_an_input_that_was_moved_is_the_same_run(onellm, at, prompts, backend, tmp_path):
    await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    (tmp_path / "in.txt").rename(tmp_path / "moved.txt")
    ended = await onellm("run", "moved.txt", "-o", "out.jsonl", *FAST, **at)

    assert ended.code == 0
    assert "Nothing is left to do" in ended.err


async def test_a_second_process_on_one_run_is_refused_and_told_who_is_at_work(start, onellm, at, prompts, backend):
    backend.held = {"p0"}
    command = await start("run", "in.txt", "-o", "out.jsonl", *FAST, **at)
    await backend.until_asked(10)
    ended = await onellm("run", "in.txt", "-o", "out.jsonl", *FAST, **at)

    assert ended.code == 2
    assert f"out.jsonl.journal is in use by process {command.process.pid} on " in ended.err
    await backend.release()
    assert (await command.ended()).code == 0


async def test_no_file_that_a_run_leaves_tells_the_query_of_its_address(onellm, server, prompts, tmp_path):
    at = {"ONELLM_BASE_URL": f"{server.url}?key=s3cret", "ONELLM_API_KEY": "good"}
    run = ("run", "in.txt", "-o", "out.jsonl", *FAST)
    ended = await onellm(*run, **at)
    assert ended.code == 0, ended.err
    reported = await onellm("report", "out.jsonl", "-o", "page.html")
    again = await onellm(*run, **at)
    elsewhere = await onellm(*run, **at | {"ONELLM_BASE_URL": f"{server.url}?key=other"})
    cached = await onellm(
        "run", "in.txt", "-o", "b.jsonl", "--cache", "out.jsonl", *FAST, **at | {"ONELLM_BASE_URL": server.url}
    )

    assert "Nothing is left to do" in again.err
    assert elsewhere.code == 2
    assert "the base URL was http://127.0.0.1:" in elsewhere.err
    assert "came from http://127.0.0.1:" in cached.err
    told = "".join(each.out + each.err for each in (ended, reported, again, elsewhere, cached))
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left.keys() >= {"out.jsonl", "out.jsonl.journal", "page.html"}
    for name, text in {**left, "told": told.encode()}.items():
        assert b"s3cret" not in text, name
