import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random

import pytest
from journal_examples import IDENTITY, answer, duplicate, intent

from onellm_async.batch.journal.file import create
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import RecordState
from onellm_async.errors import BatchError
from onellm_async.wire import dump_json

ROOT = Path(__file__).parents[2]
SESSIONS = 8
CHILD = """
import asyncio, sys
from onellm_async.batch.journal.journal import Journal
from journal_examples import IDENTITY, answer, intent

async def main(path, first):
    journal = Journal.open(path, IDENTITY)
    numbers = iter(range(int(first), 10**9))
    async def work():
        for index in numbers:
            await journal.record_intent(intent(index))
            print("sent", index, flush=True)
            await journal.record_outcome(answer(index))
            print("done", index, flush=True)
    await asyncio.gather(*(work() for _ in range(20)))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.journal"


def copied(directory: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(directory, to)
    return to / "out.jsonl.journal"


def child(path: Path, first: int) -> subprocess.Popen[bytes]:
    known = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    command = [sys.executable, "-c", CHILD, path, str(first)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": known}, stdout=subprocess.PIPE)


def killed_after(path: Path, first: int, lines: int) -> list[tuple[str, int]]:
    """What a process that was killed in the midst of its work had said to be durable."""
    with child(path, first) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().splitlines(keepends=True)
    whole = [line.split() for line in said if line.endswith(b"\n")]
    return [(word.decode(), int(index)) for word, index in whole]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_whatever_was_said_to_be_durable_is_there_after_a_kill(path: Path) -> None:
    random, known = Random(4), dict[int, str]()
    for session in range(SESSIONS):
        said = killed_after(path, 100_000 * session, random.randrange(1, 200))
        known |= {index: word for word, index in said}
        with JournalReader.open(path) as reader:
            assert not reader.running
            rows = {row.index: row for row in reader.records()}
            counts = reader.counts()
        for index, word in known.items():
            assert rows[index].state is RecordState.ANSWERED or word == "sent"
        unsaid = [
            index for index, row in rows.items() if row.state is RecordState.ANSWERED and known.get(index) != "done"
        ]
        assert len(unsaid) <= 20 * (session + 1)
        assert counts.answered == sum(row.state is RecordState.ANSWERED for row in rows.values())
        assert (
            counts.in_flight == sum(row.state is RecordState.IN_FLIGHT for row in rows.values()) <= 20 * (session + 1)
        )
    with JournalReader.open(path) as reader:
        assert [session.ended_at for session in reader.sessions()] == [None] * SESSIONS


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_second_process_is_told_who_has_the_journal_and_a_kill_frees_it_at_once(path: Path) -> None:
    with child(path, 0) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BatchError, match=f"in use by process {process.pid} on ") as caught:
            Journal.open(path, IDENTITY)
        assert "onellm-async stop" in str(caught.value)
        with JournalReader.open(path) as reader:
            assert reader.lock_owner is not None
            assert reader.lock_owner.pid == process.pid
        process.kill()
    Journal.open(path, IDENTITY).close()


def test_one_process_cannot_open_a_journal_twice(path: Path) -> None:
    with Journal.open(path, IDENTITY), pytest.raises(BatchError, match=f"in use by process {os.getpid()}"):
        Journal.open(path, IDENTITY)
    Journal.open(path, IDENTITY).close()


async def test_looking_whether_a_run_is_at_work_keeps_nobody_from_beginning(path: Path) -> None:
    Journal.open(path, IDENTITY).close()
    stop = asyncio.Event()

    def look() -> None:
        while not stop.is_set():
            with JournalReader.open(path) as reader:
                assert reader.running in {True, False}

    looking = asyncio.create_task(asyncio.to_thread(look))
    for _ in range(20):
        (await asyncio.to_thread(Journal.open, path, IDENTITY)).close()
    stop.set()
    await looking


async def _crashed(path: Path, rows: int) -> Path:
    """The files as a kill would leave them, with some rows in the main file and some in the log."""
    journal = Journal.open(path, IDENTITY)
    with closing(sqlite3.connect(path)) as connection:
        for index in range(rows):
            await journal.record_intent(intent(index))
            await journal.record_outcome(answer(index, result=b'{"content":"%s"}' % (b"x" * 900)))
            if index == rows // 2:
                connection.execute("PRAGMA wal_checkpoint")
    crash = copied(path.parent, path.parent.with_name("crash"))
    await journal.aclose()
    return crash


def demand_telling(error: BatchError, path: Path) -> None:
    assert str(path) in error.message
    assert error.advice


def _holds_all_or_says_so(path: Path, rows: int) -> bool:
    """Opens it as a resumed run does; whether all rows are there."""
    try:
        journal = Journal.open(path, IDENTITY)
    except BatchError as error:
        demand_telling(error, path)
        return False
    with journal:
        found = journal.records(0, rows)
        assert [row.index for row in found] == list(range(rows))
        assert all(row.state is RecordState.ANSWERED for row in found)
        assert journal.counts().answered == rows
    return True


@pytest.mark.parametrize("ending", ["", "-wal"])
async def test_a_journal_cut_anywhere_after_a_crash_opens_whole_or_is_refused(path: Path, ending: str) -> None:
    rows = 30
    crash = await _crashed(path, rows)
    size = crash.with_name(crash.name + ending).stat().st_size
    page = 16_384 if not ending else 16_384 + 24
    random = Random(7)
    cuts = {*range(0 if not ending else 32, size, page), *(random.randrange(size) for _ in range(10)), 0, 1, 15, 16, 99}
    outcomes = set()
    for cut in sorted(cuts):
        trial = copied(crash.parent, path.parent.with_name("trial"))
        os.truncate(trial.with_name(trial.name + ending), cut)
        outcomes.add(_holds_all_or_says_so(trial, rows))
    assert False in outcomes
    assert _holds_all_or_says_so(crash, rows)


async def _ended_cleanly(path: Path) -> None:
    async with Journal.open(path, IDENTITY) as journal:
        for index in range(30):
            await journal.record_outcome(duplicate(index, answer(0)))


def test_a_journal_cut_after_a_clean_end_is_refused_wherever_it_is_cut(path: Path) -> None:
    asyncio.run(_ended_cleanly(path))
    size, random = path.stat().st_size, Random(7)
    for cut in {*range(0, size, 4096), *(random.randrange(size) for _ in range(10)), 1, 15, 16, 99}:
        trial = copied(path.parent, path.parent.with_name("trial"))
        os.truncate(trial, cut)
        for attempt in (partial(Journal.open, trial, IDENTITY), partial(JournalReader.open, trial)):
            with pytest.raises(BatchError) as caught:
                attempt()
            demand_telling(caught.value, trial)


async def test_bytes_that_were_overwritten_open_whole_or_are_refused_but_never_as_an_error_of_sqlite(
    path: Path,
) -> None:
    crash = await _crashed(path, 30)
    random = Random(3)
    for ending in ("", "-wal"):
        size = crash.with_name(crash.name + ending).stat().st_size
        for _ in range(10):
            trial = copied(crash.parent, path.parent.with_name("trial"))
            with trial.with_name(trial.name + ending).open("r+b") as file:
                file.seek(random.randrange(size - 64))
                file.write(random.randbytes(64))
            try:
                with Journal.open(trial, IDENTITY) as journal:
                    journal.records(0, 30)
            except BatchError as error:
                demand_telling(error, trial)


@pytest.mark.parametrize("with_lock", [True, False])
async def test_a_missing_log_is_noticed_and_an_empty_lock_accepts_the_loss(path: Path, with_lock: bool) -> None:
    crash = await _crashed(path, 30)
    crash.with_name(crash.name + "-wal").unlink()
    lock = crash.with_name(crash.name + ".lock")
    if not with_lock:
        lock.unlink()
    found = r"holds \d+ of 60 steps .* -wal file is missing or cut" if with_lock else "its last session was killed, and"
    for _ in range(2):
        with pytest.raises(BatchError, match=rf"\.journal lacks answers: .*{found}") as caught:
            Journal.open(crash, IDENTITY)
    assert "Restore out.jsonl.journal-wal" in caught.value.advice
    assert f"Or make {lock} an empty file" in caught.value.advice
    lock.write_bytes(b"")
    with Journal.open(crash, IDENTITY) as journal:
        assert 0 < journal.counts().answered < 30
    Journal.open(crash, IDENTITY).close()


@pytest.mark.parametrize("left_out", ["-wal", ".lock", None])
async def test_a_journal_copied_with_its_log_or_its_lock_is_used_or_refused_for_what_is_missing(
    path: Path, left_out: str | None
) -> None:
    crash = await _crashed(path, 30)
    if left_out is not None:
        crash.with_name(crash.name + left_out).unlink()
    with JournalReader.open(crash) as reader:
        assert not reader.log_missing  # the lock tells the next session
    if left_out == "-wal":
        with pytest.raises(BatchError, match="lacks answers"):
            Journal.open(crash, IDENTITY)
    else:
        with Journal.open(crash, IDENTITY) as journal:
            assert journal.counts().answered == 30


def test_a_copy_of_a_resumed_run_without_its_log_is_noticed_although_the_first_session_ended_well(path: Path) -> None:
    Journal.open(path, IDENTITY).close()
    looking = JournalReader.open(path)  # so that the next one is not the last to close the file
    with Journal.open(path, IDENTITY):
        moved = shutil.copy(path, path.with_name("moved.journal"))
    looking.close()
    with pytest.raises(BatchError, match="lacks answers"):
        Journal.open(moved, IDENTITY)
    with JournalReader.open(moved) as reader:
        assert reader.log_missing
        assert reader.warning is not None
        assert reader.warning.endswith("Restore moved.journal-wal from where the run was.")
    assert not Path(f"{moved}.lock").exists()
    Journal.open(moved, IDENTITY, force=True).close()


def test_a_journal_that_ended_well_may_be_moved_alone(path: Path) -> None:
    asyncio.run(_ended_cleanly(path))
    moved = path.rename(path.with_name("moved.journal"))
    with JournalReader.open(moved) as reader:
        assert not reader.log_missing
        assert reader.warning is None
    with Journal.open(moved, IDENTITY) as journal:
        assert journal.counts().answered == 30


def test_a_journal_killed_right_after_it_was_made_is_used_again_but_not_without_its_lock(path: Path) -> None:
    begin = "INSERT INTO run (id, identity, started_at) VALUES (1, ?, ?)"
    create(path, ((begin, (dump_json(IDENTITY.as_json()).decode(), 1.0)),))
    with JournalReader.open(path) as reader:
        assert reader.log_missing
    with pytest.raises(BatchError, match="lacks answers"):
        Journal.open(path, IDENTITY)
    path.with_name(path.name + ".lock").touch()
    Journal.open(path, IDENTITY).close()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_new_journal_that_cannot_be_begun_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("onellm_async.batch.journal.file._version", partial(full, path))
    with pytest.raises(BatchError):
        Journal.open(path, IDENTITY)
    assert list(path.parent.iterdir()) == []


async def test_a_reader_says_nothing_of_a_run_that_begins_or_ends_meanwhile(path: Path) -> None:
    stop, warnings = asyncio.Event(), []

    def look() -> None:
        while not stop.is_set():
            with JournalReader.open(path) as reader:
                warnings.append(reader.warning)

    Journal.open(path, IDENTITY).close()
    looking = asyncio.create_task(asyncio.to_thread(look))
    for _ in range(10):
        (await asyncio.to_thread(Journal.open, path, IDENTITY)).close()
    stop.set()
    await looking
    assert set(warnings) == {None}


async def test_a_log_without_its_journal_is_not_mistaken_for_a_new_run(path: Path) -> None:
    crash = await _crashed(path, 30)
    crash.unlink()
    with pytest.raises(BatchError, match=r"it is gone, but out\.jsonl\.journal-wal is there"):
        Journal.open(crash, IDENTITY)
    with Journal.open(crash, IDENTITY, force=True) as journal:
        assert journal.records(0, 99) == []


def test_a_journal_that_was_being_made_when_its_process_died_is_made_anew(path: Path) -> None:
    path.with_name(path.name + ".new").write_bytes(b"SQLite format 3\0 and no more")
    path.with_name(path.name + ".lock").write_bytes(b"")
    with Journal.open(path, IDENTITY) as journal:
        assert not journal.resumed
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"{}\n", b"SQLite format 3\0", b"x" * 10_000])
def test_a_file_that_is_no_journal_is_neither_used_nor_replaced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for force in (False, True):
        with pytest.raises(BatchError, match="is not a journal"):
            Journal.open(path, IDENTITY, force=force)
    assert path.read_bytes() == content


def test_a_database_of_somebody_else_is_neither_used_nor_replaced(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (name)")
    for force in (False, True):
        with pytest.raises(BatchError, match="is not a journal"):
            Journal.open(path, IDENTITY, force=force)


def test_an_empty_file_in_the_place_of_a_journal_is_refused_unless_forced(path: Path) -> None:
    path.touch()
    with pytest.raises(BatchError, match="it is empty"):
        Journal.open(path, IDENTITY)
    Journal.open(path, IDENTITY, force=True).close()


def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(BatchError, match="not a regular file"):
        Journal.open(path, IDENTITY)


def test_an_answer_of_usual_length_takes_little_more_room_than_its_text(path: Path) -> None:
    async def write() -> None:
        async with Journal.open(path, IDENTITY) as journal:
            await asyncio.gather(*(journal.record_intent(intent(index)) for index in range(2000)))
            await asyncio.gather(*(journal.record_outcome(answer(index, result=b"x" * 2200)) for index in range(2000)))

    asyncio.run(write())
    assert path.stat().st_size / 2000 < 1.2 * 2200


async def test_a_cut_in_the_midst_of_the_last_page_is_noticed_by_readers_of_a_killed_run(path: Path) -> None:
    crash = await _crashed(path, 30)
    size = crash.stat().st_size
    os.truncate(crash, size - 3000)
    crash.with_name(crash.name + "-wal").write_bytes(b"")
    with pytest.raises(BatchError, match=r"\.journal is damaged"):
        JournalReader.open(crash)
