import os
import re
import shutil
import subprocess

import pytest

FAST = ("--rpm", 60_000, "--burst", 1000)
RUN = ("run", "in.txt", "-o", "out.jsonl", *FAST)

if os.name != "posix":
    pytest.skip("permissions and mounts of POSIX", allow_module_level=True)


@pytest.fixture
def confined():
    """What to put before a command so that permissions mean something to it, which they do not to root."""
    if os.geteuid():
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere")
    return ("setpriv", "--bounding-set", "-all")


@pytest.fixture
def restored(tmp_path):
    yield
    for path in [tmp_path, *tmp_path.iterdir()]:
        path.chmod(0o700)


async def test_an_input_that_may_not_be_read_is_refused(start, at, prompts, confined, restored, tmp_path):
    (tmp_path / "in.txt").chmod(0)
    ended = await (await start(*RUN, without=confined, **at)).ended()

    assert (ended.code, ended.err) == (2, "onellm-async: in.txt cannot be read: Permission denied.\n")


async def test_a_directory_that_may_not_be_written_is_refused_before_anything_is_sent(
    start, at, prompts, confined, restored, tmp_path, backend
):
    tmp_path.chmod(0o500)
    ended = await (await start(*RUN, without=confined, **at)).ended()

    assert ended.code == 2
    assert re.fullmatch(r"onellm-async: out\.jsonl\S* cannot be written: Permission denied\.\n", ended.err)
    assert backend.asked == []


async def test_a_journal_that_may_not_be_written_is_refused_and_can_be_read(
    start, onellm, at, prompts, confined, restored, tmp_path, backend
):
    await onellm(*RUN, **at)
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "out.jsonl.journal").chmod(0o400)
    backend.asked.clear()
    ended = await (await start(*RUN, without=confined, **at)).ended()

    assert (ended.code, backend.asked) == (2, [])
    assert "out.jsonl.journal cannot be written: the file or its directory is read-only." in ended.err
    assert "Make it writable and run the same command again to resume." in ended.err

    tmp_path.chmod(0o500)
    status = await (await start("status", "out.jsonl", without=confined)).ended()
    assert (status.code, status.err) == (0, "")
    assert "10 of 10 completed" in status.out


async def test_a_journal_that_may_not_be_read_is_refused(start, onellm, at, prompts, confined, restored, tmp_path):
    await onellm(*RUN, **at)
    (tmp_path / "out.jsonl.journal").chmod(0)
    ended = await (await start("status", "out.jsonl", without=confined)).ended()

    assert ended.code == 2
    assert "out.jsonl.journal cannot be opened: it, or its directory, is missing, read-only or not" in ended.err


async def test_what_is_no_journal_is_left_alone(onellm, at, prompts, tmp_path, backend):
    (tmp_path / "out.jsonl.journal").write_text("Dear diary, today nobody replaced me by a database.")
    for flags in ((), ("--force",)):
        ended = await onellm(*RUN, *flags, **at)
        assert ended.code == 2
        assert "out.jsonl.journal is not a journal. Use another output, or move that file away." in ended.err
    assert backend.asked == []
    assert (tmp_path / "out.jsonl.journal").read_text().startswith("Dear diary")


async def test_a_journal_that_is_a_symbolic_link_is_not_followed(onellm, at, prompts, tmp_path, backend):
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "out.jsonl.journal").symlink_to("elsewhere")
    ended = await onellm(*RUN, "--force", **at)

    assert ended.code == 2
    assert "symbolic link" in ended.err
    assert backend.asked == []
    assert (tmp_path / "elsewhere").read_text() == "precious"


async def test_a_journal_that_lost_its_log_is_noticed_before_anything_is_sent(
    start, onellm, at, prompts, tmp_path, backend, journal_has
):
    backend.held = {"p9"}
    command = await start(*RUN, **at)
    await journal_has("out.jsonl", lambda journal: journal.counts().answered == 9)
    await command.killed()
    (tmp_path / "out.jsonl.journal-wal").unlink()
    asked = len(backend.asked)
    ended = await onellm(*RUN, **at)

    assert (ended.code, len(backend.asked)) == (2, asked)
    assert "out.jsonl.journal lacks answers: it holds " in ended.err
    assert "its -wal file is missing or cut. Restore out.jsonl.journal-wal from where the run was." in ended.err


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MiB, and how to make it another size."""
    where = tmp_path / "disk"
    where.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", where], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a file system can be mounted by root only")

    def resized(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", where], check=True)

    yield where, resized
    subprocess.run(["umount", "--lazy", where], check=True)


async def test_a_full_disk_ends_the_run_and_after_there_is_space_it_goes_on(onellm, at, tmp_path, disk, backend):
    where, resized = disk
    (tmp_path / "long.txt").write_text("\n".join(f"{number:04} " + "x" * 10_000 for number in range(500)))
    run = ("run", "long.txt", "-o", "disk/out.jsonl", *FAST)
    ended = await onellm(*run, **at)

    assert ended.code == 3, ended.err
    assert "stopped early: " in ended.err
    assert "No space left on device" in ended.err or "the disk is full" in ended.err
    assert "Run the same command again to resume." in ended.err
    assert "Traceback" not in ended.err
    asked = len(backend.asked)
    assert 0 < asked < 500

    resized("40m")
    ended = await onellm(*run, **at)
    assert ended.code == 0, ended.err
    assert len((where / "out.jsonl").read_text().splitlines()) == 500
    assert len(backend.asked) <= 500 + 48


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.jsonl"])
async def test_an_output_that_does_not_fit_its_disk_ends_the_run_alike_in_all_formats(
    onellm, at, tmp_path, disk, backend, name
):
    where, resized = disk
    resized("100k")
    (tmp_path / "long.txt").write_text("\n".join(f"{number:04} {os.urandom(1000).hex()}" for number in range(100)))
    run = ("run", "long.txt", "-o", f"disk/{name}", "--journal", "out.journal", *FAST)
    for _ in range(2):
        ended = await onellm(*run, **at)
        assert ended.code == 3, ended.err
        assert f"stopped early: disk/{name}.partial cannot be written: No space left on device." in ended.err
        assert "Run the same command again to resume." in ended.err
        assert "not sent yet: 0" not in ended.err
        status = await onellm("status", "out.journal")
        assert "ended            stopped: disk/" in status.out

    resized("40m")
    ended = await onellm(*run, **at)
    assert ended.code == 0, ended.err
    assert len(set(backend.asked)) == len(backend.asked) == 100
    assert (where / name).exists()
