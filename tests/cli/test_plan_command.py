import json
import re
import sys

import pytest

from onellm_async.cli import main
from onellm_async.cli.plan_text import progress_chart


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"What is {number} squared?" for number in range(100)))
    return path


def lines_of(text):
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())


async def test_a_plan_tells_duration_cause_load_and_cost_without_key_or_service(onellm, prompts):
    ended = await onellm("plan", prompts, "--latency", 6, "--max-tokens", 300)

    assert (ended.code, ended.err) == (0, "")
    said = lines_of(ended.out)
    assert said["prompts"] == f"100 prompts in {prompts} for GPT-5-Nano"
    assert said["tokens"] == "about 472 of input", "a token for each four bytes"
    assert re.fullmatch(
        r"1:3\d min \(1:3\d min to 1:[34]\d min\); started now, it would end (at \d\d:\d\d|on .*)", said["duration"]
    )
    assert said["bottleneck"].startswith("rate limit: 9")
    assert re.fullmatch(r"\d\d s shorter if the service allowed 80 requests per minute", said["suggestion"])
    assert said["rate-limited"] == "0 requests, at no cost"
    assert re.fullmatch(r"about \$0\.\d+; at least \$0\.\d+, at most \$0\.\d+", said["cost"])
    assert said["basis"] == "5 simulated runs"


async def test_machines_read_the_same_as_json(onellm, prompts):
    ended = await onellm("plan", prompts, "--json", "--rpm", "auto", "--max-tokens", 300)
    plan = json.loads(ended.out)

    assert ended.code == 0, ended.err
    assert plan["prompts"] == 100
    assert 90 < plan["duration"]["low"] <= plan["duration"]["median"] <= plan["duration"]["high"] < 120
    assert plan["bottleneck"] == "rate"
    assert sum(plan["bottleneck_shares"].values()) == pytest.approx(1)
    assert plan["suggestions"][0]["flag"] == "--rpm"
    assert plan["rate_limited"]["median"] >= 1
    assert 0 < plan["cost"]["low"] < plan["cost"]["typical"] <= plan["cost"]["high"]
    assert plan["progress"][-1] == {"seconds": pytest.approx(plan["duration"]["median"]), "done": 100}
    assert plan["simulated_prompts"] == 100


async def test_flags_for_slots_tokens_and_failures_reach_the_simulation(onellm, prompts):
    few = json.loads(
        (await onellm("plan", prompts, "--json", "--rpm", 600, "--burst", 100, "--concurrency", 4, "--seeds", 2)).out
    )
    assert (few["bottleneck"], few["suggestions"][0]["flag"], few["seeds"]) == ("concurrency", "--concurrency", 2)
    tokens = ("--tpm", 3000, "--output-tokens", 60, "--max-tokens", 100)
    dear = json.loads((await onellm("plan", prompts, "--json", "--rpm", 600, "--burst", 100, *tokens)).out)
    assert (dear["bottleneck"], dear["suggestions"][0]["flag"]) == ("tokens", "--tpm")
    broken = json.loads((await onellm("plan", prompts, "--json", "--failure-rate", 0.5, "--seeds", 1)).out)
    assert broken["failed"]["median"] > 0
    strict = json.loads((await onellm("plan", prompts, "--json", "--service-rpm", 20, "--seeds", 1)).out)
    assert strict["rate_limited"]["median"] > 0


async def test_every_input_of_run_can_be_planned(onellm, tmp_path):
    (tmp_path / "batch.jsonl").write_text(
        json.dumps({"custom_id": "a", "body": {"model": "GPT-5", "messages": [{"role": "user", "content": "Hi"}]}})
    )
    batch = json.loads((await onellm("plan", "batch.jsonl", "--json")).out)
    assert batch["models"] == {"GPT-5": 1}
    piped = json.loads((await onellm("plan", "-", "--json", stdin="one\ntwo\n")).out)
    assert piped["prompts"] == 2
    (tmp_path / "q.jsonl").write_text('{"question": "Why?"}\n')
    named = json.loads((await onellm("plan", "q.jsonl", "--field", "question", "--json")).out)
    assert named["prompts"] == 1
    (tmp_path / "empty.txt").write_text("")
    nothing = await onellm("plan", "empty.txt")
    assert (nothing.code, nothing.out, nothing.err) == (2, "", "onellm-async: empty.txt holds no prompts.\n")


async def test_bad_lines_are_named_left_out_and_change_the_exit_code(onellm, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "one"}\n{"prompt"\n"three"\n')
    ended = await onellm("plan", "in.jsonl", "--json")

    assert ended.code == 1
    assert "in.jsonl:2: Not JSON" in ended.err
    assert "bad lines, which are not in the plan: 1" in ended.err
    assert (json.loads(ended.out)["prompts"], json.loads(ended.out)["bad_lines"]) == (2, 1)
    strict = await onellm("plan", "in.jsonl", "--strict")
    assert (strict.code, strict.out) == (2, "")
    assert "Nothing was planned (--strict)." in strict.err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--latency", "-1"), "latency is -1"),
        (("--failure-rate", "2"), "--failure-rate is 2"),
        (("--seeds", "0"), "seeds is 0"),
        (("--output-tokens", "-3"), "output_tokens is -3"),
        (("--rpm", "0"), "requests_per_minute is 0"),
        (("--max-tokens", "0"), "--max-tokens is 0"),
    ],
)
def test_impossible_values_are_refused_before_the_input_is_opened(flags, named, capsys, monkeypatch):
    assert main(["plan", "there-is-no-such-file", *flags]) == 2
    assert named in capsys.readouterr().err


def test_a_missing_input_is_said(capsys):
    assert main(["plan", "there-is-no-such-file"]) == 2
    assert "there-is-no-such-file cannot be read" in capsys.readouterr().err


def test_an_unknown_price_and_an_open_upper_bound_are_said(tmp_path, capsys):
    path = tmp_path / "p.txt"
    path.write_text("one\ntwo\n")
    assert main(["plan", str(path), "--seeds", "1"]) == 0
    assert "without --max-tokens there is no upper bound" in lines_of(capsys.readouterr().out)["cost"]
    assert main(["plan", str(path), "--seeds", "1", "-m", "my-own"]) == 0
    assert lines_of(capsys.readouterr().out)["cost"] == "unknown: no price is listed for the model"


def test_a_long_input_is_extrapolated_and_says_so(tmp_path, capsys):
    path = tmp_path / "p.txt"
    path.write_text("".join(f"{number:05}\n" for number in range(10_000)))
    assert main(["plan", str(path), "--seeds", "1"]) == 0
    said = lines_of(capsys.readouterr().out)
    assert said["basis"] == "1 simulated run of the first 2,000 prompts, extrapolated"
    assert said["duration"].startswith("4:09:")
    assert "; started now, it would end " in said["duration"]


def test_a_terminal_also_gets_a_chart(tmp_path, capsys, monkeypatch):
    path = tmp_path / "p.txt"
    path.write_text("".join(f"prompt {number}\n" for number in range(90)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["plan", str(path), "--seeds", "1"]) == 0
    assert "█" in capsys.readouterr().out


def test_the_chart_climbs_from_the_lower_left_to_the_upper_right():
    chart = progress_chart([(float(step), step * 25) for step in range(1, 41)])
    *area, axis = chart.splitlines()

    assert area[0].startswith("1,000 ")
    assert area[0].rstrip().endswith("█")
    widths = [line.count("█") for line in area]
    assert widths == sorted(widths)
    assert axis.split() == ["0", "0", "s", "40", "s"]
    assert max(map(len, chart.splitlines())) <= 72


async def test_the_estimate_of_a_run_counts_identical_prompts_once(onellm, tmp_path):
    (tmp_path / "one.txt").write_text("the same\n")
    (tmp_path / "many.txt").write_text("the same\n" * 200)
    costs = []
    for name in ("one.txt", "many.txt"):
        ended = await onellm("run", name, "--max-tokens", 100, "--temperature", 0, "--estimate")
        assert ended.code == 0, ended.err
        costs.append(next(line for line in ended.out.splitlines() if line.startswith("cost")))
    assert costs[0] == costs[1]


async def test_an_estimate_leaves_out_what_the_run_would_not_send(onellm, at, backend, tmp_path):
    lines = [f"p{number}" for number in range(30)]
    (tmp_path / "in.txt").write_text("\n".join([*lines, "p0", "p29"]))
    (tmp_path / "first.txt").write_text("\n".join(lines[20:25]))
    fast = ("--rpm", 60_000, "--burst", 1000)
    assert (await onellm("run", "first.txt", "-o", "first.jsonl", *fast, **at)).code == 0
    run = ("run", "in.txt", "-o", "out.jsonl", "--cache", "first.jsonl", "--deduplicate", *fast)
    before = await onellm(*run, "--estimate", **at)
    assert lines_of(before.out)["prompts"].startswith("25 prompts in in.txt")
    assert lines_of(before.out)["not sent"] == "2 identical to another, 5 answered from a cache"


async def test_an_estimate_asks_the_journal_what_is_left(onellm, at, backend, tmp_path):
    (tmp_path / "in.txt").write_text("p0\np1\nbad\np1")
    backend.failing = {"bad"}
    run = ("run", "in.txt", "-o", "out.jsonl", "--rpm", 60_000, "--burst", 1000)
    assert (await onellm(*run, **at)).code == 1
    again = await onellm(*run, "--estimate", **at)
    assert again.out == (
        "prompts   0 prompts in in.txt\nnot sent  4 completed in earlier sessions\ntokens    about 0 of input\n"
    )
    retried = await onellm(*run, "--estimate", "--retry-failed", **at)
    assert lines_of(retried.out)["prompts"].startswith("1 prompt in in.txt")
    other = await onellm(*run, "--estimate", "--max-tokens", 5, **at)
    assert (other.code, other.out) == (2, "")
    assert "out.jsonl.journal belongs to another run: max_tokens was not given and is now 5." in other.err


async def test_the_help_of_plan_names_the_command_that_takes_an_output(onellm):
    assert "-o OUTPUT --estimate`" in (await onellm("plan", "--help", COLUMNS=80)).out


async def test_a_prompt_of_one_letter_is_a_token(onellm, tmp_path):
    (tmp_path / "in.txt").write_text("a\n")
    assert "tokens        about 1 of input\n" in (await onellm("plan", "in.txt")).out
