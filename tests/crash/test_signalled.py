"""Ctrl-C, SIGTERM and SIGHUP at random moments. ``SIGNAL_SEEDS=60`` in the environment tries as many."""

import asyncio
import os
import signal
from random import Random

import pytest
from killing import Left, at_rest, billed_by_prompt, finish, prompts_file, quick_server, received, start_run

from onellm_async.server import Faults

PROMPTS = 100
CONCURRENCY = 16
SEEDS = range(int(os.environ.get("SIGNAL_SEEDS", "5")))


@pytest.fixture(scope="module")
def expected(undisturbed):
    return undisturbed(PROMPTS)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_run_that_is_told_to_stop_leaves_nothing_in_doubt(seed, expected, tmp_path):
    random, number = Random(seed), (signal.SIGTERM, signal.SIGINT)[seed % 2]
    source, output = prompts_file(tmp_path, PROMPTS), tmp_path / "answers.jsonl"
    async with quick_server() as server:
        process = await start_run(source, output, server)
        if seed % 5 == 4:  # before there is anything to drain: while Python still imports
            await asyncio.sleep(random.uniform(0, 1.0))
        else:
            await received(server, random.randint(1, PROMPTS - 20), process)
            await asyncio.sleep(random.uniform(0, 0.02))
        if process.returncode is None:
            process.send_signal(number)
        code, told = await finish(process)
        assert "Traceback" not in told or server.ledger.received == 0, told
        left = Left.by(output)
        assert left.sent == set()
        if server.ledger.received:
            assert code == (0 if len(left.answered) == PROMPTS else 128 + number), told
        assert set(billed_by_prompt(server)) == {f"prompt number {index}" for index in left.answered}

        code, told = await finish(await start_run(source, output, server))
        assert code == 0, told
        billed = billed_by_prompt(server)
    assert (len(billed), billed.total()) == (PROMPTS, PROMPTS)
    assert output.read_bytes() == expected


@pytest.mark.parametrize("seed", SEEDS[: max(2, len(SEEDS) // 2)])
async def test_a_second_ctrl_c_ends_at_once_and_the_journal_knows_what_was_under_way(seed, expected, tmp_path):
    random = Random(seed)
    source, output = prompts_file(tmp_path, PROMPTS), tmp_path / "answers.jsonl"
    async with quick_server(faults=Faults(seed=seed, latency=0.1, latency_sigma=0.5)) as server:
        process = await start_run(source, output, server)
        await received(server, random.randint(1, PROMPTS // 2), process)
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(random.uniform(0, 0.1))
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        code, told = await finish(process)
        assert code == 130, told
        assert "Traceback" not in told
        await at_rest(server)
        left, billed = Left.by(output), billed_by_prompt(server)
        assert len(left.sent) <= CONCURRENCY
        assert set(billed) <= {f"prompt number {index}" for index in left.answered | left.sent}

        code, told = await finish(await start_run(source, output, server))
        assert code == 0, told
        billed = billed_by_prompt(server)
    assert len(billed) == PROMPTS
    assert billed.total() - PROMPTS <= len(left.sent)
    assert output.read_bytes() == expected


MANY = 160
BUSY = ("--rpm", "600000", "--burst", "10000", "--concurrency", "48")
BEHIND_TEE = 'trap : INT; "$@" 2>&1 | tee log.txt; exit "${PIPESTATUS[0]}"'


async def interrupted_behind_tee(source, output, server, moment):
    """Ctrl-C goes to the whole process group, and ends `tee` as well."""
    within = ("setsid", "env", "--chdir", str(output.parent), "bash", "-c", BEHIND_TEE, "bash")
    process = await start_run(source, output, server, limits=BUSY, within=within)
    await moment(process)
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGINT)
    return await finish(process), signal.SIGINT


async def terminated(source, output, server, moment):
    process = await start_run(source, output, server, limits=BUSY)
    await moment(process)
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    return await finish(process), signal.SIGTERM


async def terminal_closed(source, output, server, moment):
    """The kernel sends a SIGHUP, and the terminal that is gone takes nothing more; the shell sends another SIGHUP."""
    ours, theirs = os.openpty()
    process = await start_run(source, output, server, limits=BUSY, within=("setsid", "--ctty"), terminal=theirs)
    os.close(theirs)
    await moment(process)
    os.close(ours)
    await asyncio.sleep(0.01)
    if process.returncode is None:
        process.send_signal(signal.SIGHUP)
    return await finish(process), signal.SIGHUP


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_prompt_is_billed_twice_whatever_ends_a_busy_run(seed, tmp_path):
    random, end = Random(seed), (interrupted_behind_tee, terminal_closed, terminated)[seed % 3]
    source, output = prompts_file(tmp_path, MANY), tmp_path / "answers.jsonl"
    async with quick_server(faults=Faults(seed=seed, latency=0.3, latency_sigma=0.5)) as server:

        async def moment(process):
            await received(server, random.randint(1, MANY - 50), process)
            await asyncio.sleep(random.uniform(0, 0.3))

        (code, told), number = await end(source, output, server, moment)
        await at_rest(server)
        assert "Traceback" not in told
        left = Left.by(output)
        assert left.sent == set()
        assert code == (0 if len(left.answered) == MANY else 128 + number), told
        assert set(billed_by_prompt(server)) == {f"prompt number {index}" for index in left.answered}

        code, told = await finish(await start_run(source, output, server, limits=BUSY))
        assert code == 0, told
        billed = billed_by_prompt(server)
    assert (len(billed), billed.total()) == (MANY, MANY)
