import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from journal_examples import IDENTITY

from onellm_async.batch.journal import reader as journal_reader
from onellm_async.batch.journal import schema as journal_schema
from onellm_async.batch.journal.commands import Command, send_command
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.schema import APPLICATION_ID, VERSION, create_schema, migrate
from onellm_async.errors import BatchError

STEPS = (
    "CREATE TABLE first (a); INSERT INTO first VALUES (1);",
    "ALTER TABLE first ADD COLUMN b; UPDATE first SET b = a + 1;",
    "CREATE TABLE third AS SELECT a + b AS c FROM first;",
)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        yield connection


def version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_a_file_of_any_earlier_version_becomes_one_of_the_newest(connection: sqlite3.Connection, start: int) -> None:
    create_schema(connection)
    migrate(connection, "j", STEPS[:start])
    assert version(connection) == VERSION + start
    migrate(connection, "j", STEPS)
    assert version(connection) == VERSION + 3
    assert connection.execute("SELECT c FROM third").fetchall() == [(3,)]
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


def test_a_step_that_fails_leaves_the_version_before_it(connection: sqlite3.Connection) -> None:
    create_schema(connection)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, "j", (STEPS[0], "CREATE TABLE second (a); INSERT INTO nowhere VALUES (1);"))
    assert version(connection) == VERSION + 1
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'second'").fetchone() == (0,)


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.journal"
    Journal.open(path, IDENTITY).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    for attempt in (lambda: Journal.open(path, IDENTITY), lambda: JournalReader.open(path)):
        with pytest.raises(BatchError, match=rf"later version .*journal version {VERSION + 1}") as caught:
            attempt()
        assert "Upgrade" in caught.value.advice


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ("PRAGMA user_version = 1", 1),
        ("ALTER TABLE intents ADD COLUMN session INTEGER", 2),
        ("ALTER TABLE outcomes RENAME COLUMN rate_limited TO refusals", 2),
    ],
)
def test_a_journal_of_before_the_first_release_is_refused_and_can_be_discarded(
    tmp_path: Path, change: str, number: int
) -> None:
    path = tmp_path / "out.journal"
    Journal.open(path, IDENTITY).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
    commands = (
        lambda: Journal.open(path, IDENTITY),
        lambda: JournalReader.open(path),
        lambda: send_command(path, Command("pause")),
    )
    for attempt in commands:
        with pytest.raises(BatchError, match=rf"before 0\.1\.0 \(journal version {number}, now 2\)") as caught:
            attempt()
        assert "Use another output, or force=True" in caught.value.advice
    with Journal.open(path, IDENTITY, force=True) as journal:
        assert not journal.resumed


def test_an_earlier_version_is_migrated_by_its_run_and_not_by_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.journal"
    Journal.open(path, IDENTITY).close()
    newer = VERSION + 1
    monkeypatch.setattr(journal_schema, "VERSION", newer)
    for function in (journal_schema.check_version, journal_reader.check_version):
        monkeypatch.setitem(function.__kwdefaults__, "max_version", newer)
    monkeypatch.setattr(journal_reader, "VERSION", newer)
    with pytest.raises(BatchError, match="earlier version") as caught:
        JournalReader.open(path)
    assert "bring it up to date" in caught.value.advice
    monkeypatch.setattr(journal_schema.migrate, "__defaults__", (("CREATE TABLE beyond (a);",),))
    with Journal.open(path, IDENTITY) as journal:
        assert journal.resumed
    with JournalReader.open(path) as reader:
        assert reader.complete is False
