import json
import re
from collections import Counter

FAST = ("--rpm", 60_000, "--burst", 1000)
GPT5 = ("--model", "GPT-5", "--max-tokens", 1000)


def contents(path):
    records = map(json.loads, path.read_text().splitlines())
    return [record["response"] and record["response"]["content"] for record in records]


async def test_a_budget_ends_the_run_and_a_larger_one_goes_on(onellm, at, backend, server, tmp_path):
    prompts = [f"{number:03} " + "word " * 80 for number in range(20)]
    (tmp_path / "in.txt").write_text("\n".join(prompts))
    run = ("run", "in.txt", "-o", "out.jsonl", "--model", "GPT-5", "--max-tokens", 150, *FAST)
    ended = await onellm(*run, "--max-cost", 0.01, **at)

    assert ended.code == 4
    assert re.search(
        r"stopped early: The budget is used up: \$0\.\d{4} of \$0\.01 are left, "
        r"and the next prompt could cost \$0\.\d{4}\.",
        ended.err,
    )
    assert "Run the same command with a higher cost cap to resume." in ended.err
    answered = contents(tmp_path / "out.jsonl.partial")
    assert 3 < len(answered) < 20
    status = json.loads((await onellm("status", "out.jsonl", "--json")).out)
    assert 0 < status["counts"]["cost"] <= 0.01
    assert (status["counts"]["in_flight"], status["counts"]["at_risk"]) == (0, 0)
    told = (await onellm("status", "out.jsonl")).out
    assert told.endswith("Run its `run` command with a higher cost cap to resume.\n")
    assert (await onellm("report", "out.jsonl")).code == 0
    page = (tmp_path / "out.jsonl.report.html").read_text()
    assert "Run the same command with a higher cost cap to resume." in page

    ended = await onellm(*run, "--max-cost", 1, **at)
    assert ended.code == 0, ended.err
    assert Counter(backend.asked).most_common(1)[0][1] == 1
    assert len(backend.asked) == 20


async def test_a_budget_in_tokens_ends_the_run_too(onellm, at, prompts, backend):
    ended = await onellm(
        "run",
        "in.txt",
        "-o",
        "out.jsonl",
        "--max-tokens",
        10,
        "--max-tokens-total",
        50,
        "--concurrency",
        1,
        *FAST,
        **at,
    )

    assert ended.code == 4
    assert re.search(r"\d+ of 50 tokens are left, and the next prompt could use \d+\.", ended.err)
    assert 0 < len(backend.asked) < 10


async def test_a_budget_needs_a_bound_and_a_price(onellm, at, prompts, backend):
    unbounded = await onellm("run", "in.txt", "-o", "a.jsonl", "--max-cost", 1, *FAST, **at)
    unpriced = await onellm(
        "run", "in.txt", "-o", "b.jsonl", "--max-cost", 1, "--max-tokens", 9, "--model", "Mistral-7B", *FAST, **at
    )

    assert (unbounded.code, unpriced.code, backend.asked) == (2, 2, [])
    assert unbounded.err == (
        "onellm-async: Without max_tokens an answer has no highest price, so no budget can hold. "
        "Set --max-tokens, or leave the budget out.\n"
    )
    assert unpriced.err.startswith("onellm-async: The price of 'Mistral-7B' is not known")


async def test_identical_requests_are_sent_once_unless_each_is_wanted(onellm, at, backend, tmp_path):
    (tmp_path / "in.txt").write_text("same\nother\nsame\nsame\n")
    ended = await onellm("run", "in.txt", "-o", "once.jsonl", "--temperature", 0, *FAST, **at)
    assert sorted(backend.asked) == ["other", "same"]
    assert "4 answered (2 copied from identical ones), 0 failed" in ended.err
    assert contents(tmp_path / "once.jsonl") == ["same", "other", "same", "same"]

    backend.asked.clear()
    await onellm("run", "in.txt", "-o", "each.jsonl", *FAST, **at)
    assert sorted(backend.asked) == ["other", "same", "same", "same"]
    assert contents(tmp_path / "each.jsonl") == ["same", "other", "same", "same"]
    once, each = (
        list(map(json.loads, (tmp_path / name).read_text().splitlines())) for name in ("once.jsonl", "each.jsonl")
    )
    assert [record.get("copy_of") for record in once] == [None, None, 0, 0]
    assert [record["response"]["cost"] > 0 for record in once] == [True, True, False, False]
    assert all(record["response"]["cost"] > 0 for record in each)


async def test_answers_of_an_earlier_run_are_used_instead_of_asking(onellm, at, backend, tmp_path):
    (tmp_path / "monday.txt").write_text("one\ntwo\n")
    (tmp_path / "tuesday.txt").write_text("three\ntwo\none\n")
    await onellm("run", "monday.txt", "-o", "monday.jsonl", *FAST, **at)
    backend.asked.clear()
    ended = await onellm("run", "tuesday.txt", "-o", "tuesday.jsonl", "--cache", "monday.jsonl", *FAST, **at)

    assert ended.code == 0, ended.err
    assert backend.asked == ["three"]
    assert "2 answered from a cache." in ended.err
    assert contents(tmp_path / "tuesday.jsonl") == ["three", "two", "one"]

    piped = await onellm("run", "tuesday.txt", "--cache", "tuesday.jsonl", "--cache", "monday.jsonl", *FAST, **at)
    assert (piped.code, backend.asked) == (0, ["three"])
    records = list(map(json.loads, piped.out.splitlines()))
    assert [(record["response"]["content"], record["response"]["cost"]) for record in records] == [
        ("three", 0),
        ("two", 0),
        ("one", 0),
    ]


async def test_a_cache_that_cannot_be_used_is_refused_and_nothing_is_begun(onellm, at, prompts, backend, tmp_path):
    await onellm("run", "in.txt", "-o", "local.jsonl", "--local")
    missing = await onellm("run", "in.txt", "-o", "out.jsonl", "--cache", "nowhere.jsonl", *FAST, **at)
    foreign = await onellm("run", "in.txt", "-o", "out.jsonl", "--cache", "local.jsonl", *FAST, **at)

    assert (missing.code, foreign.code, backend.asked) == (2, 2, [])
    assert "There is no journal at nowhere.jsonl.journal." in missing.err
    assert "The answers in local.jsonl came from local, and this run sends to http://127.0.0.1:" in foreign.err
    assert not list(tmp_path.glob("out*"))
