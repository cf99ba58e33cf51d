"""A killed run whose journal, or its log, lost its end: at every page. ``CUTS=all`` in the environment tries all."""

import asyncio
import os
import shutil
from random import Random

import pytest
from in_process import run_again, server_beside
from killing import Left, at_rest, billed_by_prompt, kill_after, prompts_file, start_run

from onellm_async.errors import BatchError

PROMPTS = 60
PAGE = 16_384


@pytest.fixture(scope="module")
def server():
    with server_beside() as server:
        yield server


@pytest.fixture(scope="module")
def killed(server, tmp_path_factory):
    """What a killed run left; its log holds some of it, and so does the main file."""
    folder = tmp_path_factory.mktemp("killed")

    async def killed():
        for count in (
            PROMPTS // 4,
            PROMPTS * 3 // 4,
        ):  # whoever goes on after the first one moves its log into the file
            process = await start_run(prompts_file(folder, PROMPTS), folder / "answers.jsonl", server)
            assert await kill_after(process, server, count, 0)
            await at_rest(server)

    asyncio.run(killed())
    return folder


def cuts(folder, ending):
    """Just before, at and just after each boundary; of the log those of its frames, too."""
    size = (folder / f"answers.jsonl.journal{ending}").stat().st_size
    places = {at for page in range(0, size + 1, PAGE) for at in (page - 1, page, page + 1)}
    if ending:
        places |= set(range(32, size, PAGE + 24))
    return sorted(at for at in places if 0 <= at < size)


def chosen(places):
    return places if os.environ.get("CUTS") == "all" else Random(0).sample(places, min(6, len(places)))


@pytest.mark.parametrize("ending", ["", "-wal"], ids=["the file", "its log"])
@pytest.mark.parametrize("lock", ["its lock is there", "its lock is gone"])
def test_a_cut_journal_is_refused_or_goes_on_with_what_it_has(
    ending, lock, server, killed, undisturbed, tmp_path, monkeypatch, capfd
):
    expected, refused, went_on = undisturbed(PROMPTS), 0, 0
    for at in chosen(cuts(killed, ending)):
        folder = tmp_path / str(at)
        shutil.copytree(killed, folder)
        output = folder / "answers.jsonl"
        if lock == "its lock is gone":
            (folder / "answers.jsonl.journal.lock").unlink()
        os.truncate(folder / f"answers.jsonl.journal{ending}", at)
        shutil.copytree(folder, folder / "looked at")
        try:
            has = Left.by(folder / "looked at" / "answers.jsonl").answered
        except BatchError:
            has = set()
        before = billed_by_prompt(server)
        code = run_again(killed / "prompts.txt", output, server, monkeypatch)
        told = capfd.readouterr().err
        assert "Traceback" not in told
        billed = {int(prompt.split()[-1]) for prompt in billed_by_prompt(server) - before}
        if code == 2:
            refused += 1
            assert "answers.jsonl.journal" in told
            assert any(found in told for found in ("is damaged", "is not a journal", "lacks answers"))
            assert not billed
        else:
            went_on += 1
            assert code == 0, told
            assert not billed & has
            assert output.read_bytes() == expected
        shutil.rmtree(folder)
    print(f"{ending or 'file'}, {lock}: {refused} refused, {went_on} went on")
    assert went_on if ending and lock == "its lock is gone" else refused
