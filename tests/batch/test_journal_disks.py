import asyncio
import errno
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from journal_examples import IDENTITY, answer, duplicate, intent

from onellm_async.batch.journal import writer as journal_writer
from onellm_async.batch.journal.file import to_batch_error
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.lock import JournalLock
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import RecordState
from onellm_async.errors import BatchError

BIG = b'{"content":"%s"}' % (b"x" * 20_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.journal"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


async def filled(journal: Journal) -> tuple[int, BatchError]:
    """Writes until that fails; how many were said to be durable, and what was said then."""
    for index in range(1000):
        try:
            await journal.record_intent(intent(index))
            await journal.record_outcome(answer(index, result=BIG))
        except BatchError as error:
            return index, error
    raise AssertionError("the disk was never full")


def demand_advice_on_space(error: BatchError) -> None:
    assert "disk is full" in error.message
    assert "What was committed is kept. Free some space and run the same command again to resume." in error.advice


async def test_a_full_disk_fails_what_awaits_and_after_there_is_space_the_run_goes_on(small_disk: Path) -> None:
    path = small_disk / "out.jsonl.journal"
    (small_disk / "other").write_bytes(b"x" * 300_000)
    journal = Journal.open(path, IDENTITY)
    durable, error = await filled(journal)
    demand_advice_on_space(error)
    later = await asyncio.gather(
        *(journal.record_intent(intent(index)) for index in range(900, 905)), return_exceptions=True
    )
    assert {str(outcome) for outcome in later} == {str(error)}
    await journal.aclose()
    (small_disk / "other").unlink()
    async with Journal.open(path, IDENTITY) as journal:
        assert journal.counts().answered == durable
        assert [row.index for row in journal.records(0, 999) if row.state is RecordState.ANSWERED] == list(
            range(durable)
        )
        await journal.record_intent(intent(durable))
        await journal.record_outcome(answer(durable))


async def test_on_a_full_disk_outcomes_are_written_and_nothing_new_is_begun(small_disk: Path) -> None:
    path = small_disk / "out.jsonl.journal"
    async with Journal.open(path, IDENTITY) as journal:
        await asyncio.gather(*(journal.record_intent(intent(index)) for index in range(40)))
        (small_disk / "other").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
        for index in range(40):
            await journal.record_outcome(answer(index, result=BIG))
        with pytest.raises(BatchError) as refused:
            await journal.record_intent(intent(40))
        demand_advice_on_space(refused.value)
        with pytest.raises(BatchError, match="disk is full"):
            await journal.record_outcome(duplicate(41, answer(0)))
        assert journal.counts().answered == 40
        assert journal.counts().in_flight == 0
        journal.finish("stopped: the disk is full", complete=False)
    assert ".reserve" not in " ".join(file.name for file in small_disk.iterdir())  # noqa: ASYNC240
    with JournalReader.open(path) as reader:
        assert reader.counts().answered == 40
        assert reader.sessions()[-1].end_reason == "stopped: the disk is full"


async def test_the_reserve_is_not_used_to_copy_the_log_into_the_main_file(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_writer, "_CHECKPOINT_BYTES", 6_000_000)
    subprocess.run(["mount", "-o", "remount,size=14m", small_disk], check=True)  # noqa: ASYNC221
    path = small_disk / "out.jsonl.journal"
    async with Journal.open(path, IDENTITY) as journal:
        await asyncio.gather(*(journal.record_intent(intent(index)) for index in range(64)))
        for index in range(23):  # the log has 5.5 MB then, of which the main file has nothing
            await journal.record_outcome(answer(index, result=BIG * 10))
        assert 5_000_000 < path.with_name(path.name + "-wal").stat().st_size < 6_000_000
        (small_disk / "other").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
        for index in range(23, 64):
            await journal.record_outcome(answer(index, result=BIG))
        assert journal.counts().answered == 64


async def test_a_journal_that_may_not_grow_tells_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = journal_writer.connect

    def confined(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA max_page_count = 60")
        return connection

    monkeypatch.setattr(journal_writer, "connect", confined)
    journal = Journal.open(path, IDENTITY)
    durable, error = await filled(journal)
    demand_advice_on_space(error)
    await journal.aclose()
    monkeypatch.undo()
    with JournalReader.open(path) as reader:
        assert reader.counts().answered == durable > 0
        assert not reader.running


async def test_those_who_await_at_the_moment_of_a_failure_are_all_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: JournalLock, writes: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal.open(path, IDENTITY)
    monkeypatch.setattr(JournalLock, "note", broken)
    outcomes = await asyncio.gather(
        *(journal.record_intent(intent(index)) for index in range(300)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {BatchError}
    assert "Input/output error" in str(outcomes[0])
    assert outcomes[0] is not outcomes[1]
    monkeypatch.undo()
    await journal.aclose()


async def test_what_cannot_be_written_at_the_end_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: JournalLock, writes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal.open(path, IDENTITY)
    journal.finish("done", complete=True)
    monkeypatch.setattr(JournalLock, "note", broken)
    with pytest.raises(BatchError, match="No space left on device"):
        await journal.aclose()


async def test_another_program_that_locks_the_journal_is_told_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onellm_async.batch.journal.file._BUSY_TIMEOUT", 0.05)
    journal = Journal.open(path, IDENTITY)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BatchError, match="locked by another program"):
        await journal.record_intent(intent(0))
    other.rollback()
    other.close()
    await journal.aclose()


@pytest.mark.parametrize("parent", ["missing", "file/below"])
def test_a_place_that_is_not_there_is_refused(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BatchError, match=r"cannot be (written|used): (No such file|Not a directory)"):
        Journal.open(tmp_path / parent / "out.journal", IDENTITY)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BatchError, match="Permission denied"):
        Journal.open(tmp_path / "out.journal", IDENTITY)
    tmp_path.chmod(0o700)


def test_a_read_only_disk_can_be_read_and_is_not_written(small_disk: Path) -> None:
    path = small_disk / "out.jsonl.journal"
    Journal.open(path, IDENTITY).close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(BatchError, match="Read-only file system"):
        Journal.open(path, IDENTITY)
    with JournalReader.open(path) as reader:
        assert reader.identity == IDENTITY
        assert not reader.running
        assert list(reader.records()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_FULL, "disk is full"),
        (sqlite3.SQLITE_IOERR_FSYNC, "the disk reports an error"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "read-only"),
        (sqlite3.SQLITE_PERM, "read-only"),
        (sqlite3.SQLITE_CANTOPEN, "not accessible"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "locked by another program"),
        (sqlite3.SQLITE_CORRUPT, "is damaged"),
        (sqlite3.SQLITE_NOTADB, "is not a journal"),
        (sqlite3.SQLITE_TOOBIG, "cannot be used: it broke"),
    ],
)
def test_each_refusal_of_sqlite_says_what_happened_and_how_to_go_on(code: int, words: str, path: Path) -> None:
    refusal = sqlite3.OperationalError("it broke")
    refusal.sqlite_errorcode = code
    error = to_batch_error(refusal, path)
    assert words in error.message
    assert str(path) in error.message
    assert error.advice


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_a_file_system_without_locks_is_told_from_a_lock_that_is_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", without_locks)
    with pytest.raises(
        BatchError, match=r"cannot be locked: No locks available\. .* has no locks\. .*journal='PATH.journal'"
    ):
        Journal.open(path, IDENTITY)
    assert not path.exists()
