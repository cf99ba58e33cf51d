"""SIGKILL while the service fails, too. ``FAULT_SEEDS=40`` in the environment tries as many."""

import json
import os
from random import Random

import pytest
from killing import Left, at_rest, billed_by_prompt, finish, kill_after, prompts_file, quick_server, start_run

from onellm_async.server import Faults, Outcome

PROMPTS = 300


@pytest.mark.parametrize("seed", range(int(os.environ.get("FAULT_SEEDS", "1"))))
async def test_faults_and_kills_together_cost_no_more_than_what_was_lost(seed, tmp_path):
    random = Random(seed)
    source, output = prompts_file(tmp_path, PROMPTS), tmp_path / "answers.jsonl"
    faults = Faults(
        seed=seed,
        latency=0.01,
        latency_sigma=0.3,
        server_error_rate=0.02,
        reset_before_rate=0.01,
        reset_after_rate=0.01,
        truncate_rate=0.01,
    )
    async with quick_server(faults=faults) as server:
        in_flight = 0
        for _ in range(2):
            process = await start_run(source, output, server)
            target = server.ledger.received + random.randint(1, PROMPTS // 3)
            killed = await kill_after(process, server, target, random.uniform(0, 0.05))
            await at_rest(server)
            in_flight += len(Left.by(output).sent) if killed else 0
        code, told = await finish(await start_run(source, output, server))
        assert code == 0, told
        await at_rest(server)
        billed, ledger = billed_by_prompt(server), server.ledger
    assert len(billed) == PROMPTS
    assert billed.total() <= PROMPTS + ledger.outcomes[Outcome.LOST] + in_flight
    answers = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [answer["response"]["content"] for answer in answers] == source.read_text().splitlines()
