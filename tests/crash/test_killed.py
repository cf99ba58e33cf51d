"""SIGKILL at random moments; the server's ledger is the oracle. ``KILL_SEEDS=300`` in the environment tries as many."""

import os
from random import Random

import pytest
from killing import Left, at_rest, billed_by_prompt, finish, kill_after, prompts_file, quick_server, start_run

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
