"""A disk that fills up in the middle of a run. ``DISK_SEEDS=30`` in the environment tries as many."""

import os
import shutil
import subprocess
from random import Random

import pytest
from killing import Left, at_rest, billed_by_prompt, finish, quick_server, received, start_run

from onellm_async.server import Faults

PROMPTS = 120


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many kB; the same call with more makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def sized(kilobytes, access="rw"):
        again = "remount," if os.path.ismount(disk) else ""
        options = f"{again}{access},size={kilobytes}k"
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, check=False)
        if made.returncode:
            pytest.skip("a file system can be mounted by root only")
        return disk

    yield sized
    if os.path.ismount(disk):
        subprocess.run(["umount", "--lazy", disk], check=True)


def long_prompts(folder, seed):
    """Prompts of 1 to 16 kB, which is what their answers have, too."""
    random, path = Random(seed), folder / "prompts.txt"
    path.write_text(
        "".join(f"prompt number {n} {random.randbytes(random.randint(500, 8000)).hex()}\n" for n in range(PROMPTS))
    )
    return path


def billed_indices(server):
    return {int(prompt.split()[2]): times for prompt, times in billed_by_prompt(server).items()}


@pytest.mark.parametrize("apart", [False, True], ids=["together", "output elsewhere"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("DISK_SEEDS", "1"))))
async def test_a_full_disk_costs_nothing_and_with_more_space_the_run_goes_on(seed, apart, small_disk, tmp_path):
    source = long_prompts(tmp_path, seed)
    disk = small_disk(Random(seed).randint(4700, 5500))
    output = (tmp_path if apart else disk) / "answers.jsonl"
    flags = ("--journal", str(disk / "answers.jsonl.journal"))
    async with quick_server(faults=Faults(seed=seed, latency=0.05, latency_sigma=0.5)) as server:
        code, told = await finish(await start_run(source, output, server, *flags))
        await at_rest(server)
        assert code == 3, told
        assert "disk is full" in told or "No space left on device" in told
        assert "Run the same command again to resume." in told
        assert "Traceback" not in told
        left = Left.by(disk / "answers.jsonl")
        billed = billed_indices(server)
        assert 0 < len(billed) < PROMPTS
        assert left.sent == set()
        assert left.answered == set(billed)

        small_disk(64 * 1024)
        code, told = await finish(await start_run(source, output, server, *flags))
        assert code == 0, told
        assert billed_indices(server) == dict.fromkeys(range(PROMPTS), 1)
    assert len(output.read_bytes().splitlines()) == PROMPTS
    assert not list(disk.glob("*.reserve"))


async def test_where_a_run_could_not_keep_what_is_under_way_nothing_is_sent(small_disk, tmp_path):
    disk = small_disk(2048)
    async with quick_server() as server:
        code, told = await finish(await start_run(long_prompts(tmp_path, 0), disk / "answers.jsonl", server))
        assert code == 2
        assert "no 4 MiB of free space" in told
        assert "Nothing was sent" in told
        assert server.ledger.received == 0
    assert list(disk.glob("*.reserve")) == []


async def test_an_output_directory_that_is_read_only_is_refused_before_anything_is_sent(small_disk, tmp_path):
    disk = small_disk(8192, access="ro")
    async with quick_server() as server:
        code, told = await finish(await start_run(long_prompts(tmp_path, 0), disk / "answers.jsonl", server))
        assert code == 2
        assert "Read-only file system" in told
        assert "Traceback" not in told
        assert server.ledger.received == 0


async def test_an_output_directory_that_is_removed_meanwhile_ends_with_a_message(tmp_path):
    source, folder = long_prompts(tmp_path, 0), tmp_path / "folder"
    folder.mkdir()
    async with quick_server(faults=Faults(latency=0.05)) as server:
        process = await start_run(source, folder / "answers.jsonl", server)
        await received(server, 20, process)
        shutil.rmtree(folder)
        code, told = await finish(process)
        assert code in (2, 3), told
        assert "Traceback" not in told
        assert str(folder) in told
