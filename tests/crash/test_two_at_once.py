"""Two processes, one journal. ``RACES=20`` in the environment tries as many."""

import asyncio
import os
from random import Random

import pytest
from killing import billed_by_prompt, finish, prompts_file, quick_server, start_run

from onellm_async.server import Faults
from tests.held_backend import HeldBackend

PROMPTS = 32


@pytest.fixture(scope="module")
def expected(undisturbed):
    return undisturbed(PROMPTS)


async def test_the_second_on_a_journal_is_told_who_has_it_and_the_first_is_unharmed(expected, tmp_path):
    source, output = prompts_file(tmp_path, PROMPTS), tmp_path / "answers.jsonl"
    backend = HeldBackend()
    backend.held = {"prompt number 0"}
    async with quick_server(backend) as server:
        first = await start_run(source, output, server)
        backend.askers = [first]
        await backend.until_asked(1)
        second = await start_run(source, output, server)
        forced = await start_run(source, output, server, "--force")
        for code, told in await asyncio.gather(finish(second), finish(forced)):
            assert code == 2
            assert f"is in use by process {first.pid}" in told
        assert first.returncode is None
        await backend.release()
        code, told = await finish(first)
        assert code == 0, told
        assert (len(billed := billed_by_prompt(server)), billed.total()) == (PROMPTS, PROMPTS)
    assert output.read_bytes() == expected


@pytest.mark.parametrize("seed", range(int(os.environ.get("RACES", "2"))))
async def test_of_two_that_start_at_once_exactly_one_works(seed, expected, tmp_path):
    source, output = prompts_file(tmp_path, PROMPTS), tmp_path / "answers.jsonl"
    async with quick_server(faults=Faults(latency=0.8)) as server:
        first = await start_run(source, output, server)
        await asyncio.sleep(Random(seed).uniform(0, 0.02))
        second = await start_run(source, output, server)
        ended = await asyncio.gather(finish(first), finish(second))
        assert sorted(code for code, _ in ended) == [0, 2], ended
        loser = next(told for code, told in ended if code == 2)
        winner = first if first.returncode == 0 else second
        assert f"is in use by process {winner.pid}" in loser or "in use by another process" in loser
        assert (len(billed := billed_by_prompt(server)), billed.total()) == (PROMPTS, PROMPTS)
    assert output.read_bytes() == expected
