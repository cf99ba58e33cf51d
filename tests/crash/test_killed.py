"""SIGKILL at random moments; the server's ledger is the oracle. ``KILL_SEEDS=300`` in the environment tries as many."""

import json
import os
from random import Random

import pytest
from killing import Left, at_rest, billed_by_prompt, finish, kill_after, prompts_file, quick_server, start_run

from onellm_async.batch import JournalReader
from onellm_async.server import Faults

PROMPTS = 150
CONCURRENCY = 16


@pytest.fixture(scope="module")
def expected(undisturbed):
    return undisturbed(PROMPTS)


@pytest.mark.parametrize("kill_seed", range(int(os.environ.get("KILL_SEEDS", "5"))))
async def test_a_killed_run_asks_nothing_again_that_was_answered(kill_seed, expected, tmp_path):
    random = Random(kill_seed)
    source, output = prompts_file(tmp_path, PROMPTS), tmp_path / "answers.jsonl"
    async with quick_server() as server:
        in_flight = 0
        for _ in range(random.randint(1, 3)):
            process = await start_run(source, output, server)
            target = server.ledger.received + random.randint(0, PROMPTS // 2)
            killed = await kill_after(process, server, target, random.uniform(0, 0.02))
            await at_rest(server)
            if not killed:
                break
            left = Left.by(output)
            before = billed_by_prompt(server)
            assert len(left.sent) <= CONCURRENCY
            in_flight += len(left.sent)
            for index in left.answered:
                assert before[f"prompt number {index}"] >= 1
            process = await start_run(source, output, server)
            target = server.ledger.received + random.randint(0, PROMPTS // 2)
            killed = await kill_after(process, server, target, random.uniform(0, 0.02))
            await at_rest(server)
            in_flight += len(Left.by(output).sent) if killed else 0
            after = billed_by_prompt(server)
            assert {index: after[f"prompt number {index}"] for index in left.answered} == {
                index: before[f"prompt number {index}"] for index in left.answered
            }
        code, told = await finish(await start_run(source, output, server))
        assert code == 0, told
        billed = billed_by_prompt(server)

    assert len(billed) == PROMPTS
    assert billed.total() - PROMPTS <= in_flight
    assert output.read_bytes() == expected


@pytest.mark.parametrize("kill_seed", range(int(os.environ.get("KILL_SEEDS", "2"))))
async def test_a_run_with_corrections_that_is_killed_has_one_record_for_each_prompt_with_all_turns(kill_seed, tmp_path):
    random, prompts = Random(kill_seed), 100
    source, output, schema = prompts_file(tmp_path, prompts), tmp_path / "answers.jsonl", tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}')
    flags = ("--schema", str(schema), "--max-tokens", "50", "--max-cost", "1")
    faults = Faults(latency=0.01, latency_sigma=0.3, unfit_rate=0.3, seed=kill_seed)
    async with quick_server(faults=faults) as server:
        process = await start_run(source, output, server, *flags)
        await kill_after(process, server, random.randint(prompts // 4, prompts), random.uniform(0, 0.02))
        await at_rest(server)
        with JournalReader.open(output) as journal:
            killed = {record.index: record for record in journal.records()}
        code, told = await finish(await start_run(source, output, server, *flags))
        ledger = server.ledger
    assert code == 1, told  # some prompts fail, as two answers in a row did not fit
    with JournalReader.open(output) as journal:
        records, counts = list(journal.records()), journal.counts()
    assert [record.index for record in records] == list(range(prompts))
    assert counts.corrections > 0
    for record in records:
        before = killed.get(record.index)
        if before is not None and before.completed:
            assert record == before, "what has an outcome is not asked again"
        elif before is not None and before.cost:
            assert record.cost > before.cost, "a turn that was written down stays paid"
        assert record.corrections <= record.attempts + (before is not None)
    assert sum(record.cost for record in records) == pytest.approx(counts.cost)
    assert counts.cost <= ledger.billed_usd + 1e-9
    assert ledger.billed_usd <= counts.cost + counts.at_risk + 1e-9
    assert ledger.billed_usd <= 1
    costs = [(line["response"] or line["error"])["cost"] for line in map(json.loads, output.read_text().splitlines())]
    assert sum(costs) == pytest.approx(counts.cost)
