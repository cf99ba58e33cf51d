"""What each key has spent, in one SQLite file that several gateways may share.

An intent is in the file before its attempt is sent, so the death of a gateway at any moment leaves nothing uncounted:
the attempt then counts with the most that it can cost. Writes of one moment share a transaction, in a thread of their
own; the file decides about caps, because another gateway may spend from the same ones.

The file is a write-ahead log with ``synchronous=NORMAL``: it survives the death of every process. A power failure may
cost the last moments before it.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from attrs import evolve, frozen

from onellm_async.errors import ConfigurationError, OneLLMError, QueueFullError
from onellm_async.files import describe_os_error
from onellm_async.gateway.budget import Account, build_cap_error

if sys.platform == "win32":  # pragma: no cover
    fcntl = None
else:
    try:
        import fcntl
    except ImportError:  # a system without file locks
        fcntl = None  # type: ignore[assignment]

_log = logging.getLogger("onellm_async")
_VERSION = 1
_APPLICATION_ID = 0x6F6E676C
"""``ongl``: a file of another program is not taken for a ledger."""
_BUSY_TIMEOUT = 5.0
"""Seconds to wait for another gateway that writes."""
_RETRY_AFTER = 1.0
_SCHEMA = f"""
CREATE TABLE spent (
    name TEXT PRIMARY KEY,
    requests INTEGER NOT NULL DEFAULT 0,
    answered INTEGER NOT NULL DEFAULT 0,
    billed INTEGER NOT NULL DEFAULT 0,
    at_risk INTEGER NOT NULL DEFAULT 0,
    possibly_billed INTEGER NOT NULL DEFAULT 0,
    unpriced INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE intents (id INTEGER PRIMARY KEY, name TEXT NOT NULL, units INTEGER NOT NULL, sent_at REAL NOT NULL);
CREATE TABLE factors (model TEXT PRIMARY KEY, factor REAL NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
"""


@frozen(kw_only=True)
class KeySpending:
    """What one key has spent.

    Attributes:
        requests: Attempts that were sent.
        answered: Of these, answered.
        billed: List price of the answers, in units.
        at_risk: Most that attempts without an answer may have cost, in units.
        possibly_billed: Number of these attempts.
        unpriced: Answers without a list price.
        input_tokens: Of all answers.
        output_tokens: Of all answers.
        reserved: For attempts whose outcome is not known yet, in units.
    """

    requests: int = 0
    answered: int = 0
    billed: int = 0
    at_risk: int = 0
    possibly_billed: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reserved: int = 0

    @property
    def spent(self) -> int:
        """What counts against a cap, in units."""
        return self.billed + self.at_risk


@frozen
class Intent:
    """An attempt that is about to be sent.

    Attributes:
        name: The key.
        units: The most that it can cost.
        cap: Cap of the key, in units; None for none.
        total_cap: Cap of all keys together; likewise.
        sent_at: Seconds since 1970.
    """

    name: str
    units: int
    cap: int | None
    total_cap: int | None
    sent_at: float


@frozen(kw_only=True)
class Settlement:
    """How an attempt ended.

    Attributes:
        intent: Its id.
        name: The key.
        outcome: ``"answered"``, ``"at risk"`` if it may have been billed without an answer, or ``"released"`` if not.
        units: Its cost, or the most that it may have cost.
        priced: Whether its cost is known.
        input_tokens: Of the answer.
        output_tokens: Of the answer.
        model: The model whose replies bill more than asked for; "" if this one did not.
        factor: How many times the asked output tokens it billed.
    """

    intent: int
    name: str
    outcome: str
    units: int = 0
    priced: bool = True
    input_tokens: int = 0
    output_tokens: int = 0
    model: str = ""
    factor: float = 1.0


@frozen
class _Reading:
    """Stands between the writes, so that it sees those before it."""


@frozen
class _Marker:
    """Likewise, and only tells that these are written."""


_Operation: TypeAlias = Intent | Settlement | _Reading | _Marker
_Result: TypeAlias = int | Mapping[str, KeySpending] | OneLLMError
_Waiting: TypeAlias = "tuple[_Operation, asyncio.Future[int] | asyncio.Future[Mapping[str, KeySpending]] | None]"


class _Accounts:
    """Units spent and reserved, by key and in all: read once in a transaction, and counted on from there.

    To read them again for each intent would go through all that is in flight each time.

    Args:
        database: In a transaction, so that nothing else changes it.
        names: The keys that the transaction is about.
    """

    def __init__(self, database: sqlite3.Connection, names: Iterable[str]) -> None:
        own = (
            "SELECT (SELECT billed + at_risk FROM spent WHERE name = ?1), "
            "(SELECT sum(units) FROM intents WHERE name = ?1)"
        )
        total = "SELECT (SELECT sum(billed + at_risk) FROM spent), (SELECT sum(units) FROM intents)"
        self.by_name = {name: _read_units(database, own, name) for name in names}
        self.total = _read_units(database, total)

    def add(self, name: str, *, spent: int = 0, reserved: int = 0) -> None:
        """Counts what is written."""
        own, total = self.by_name[name], self.total
        self.by_name[name] = own[0] + spent, own[1] + reserved
        self.total = total[0] + spent, total[1] + reserved


def _read_units(database: sqlite3.Connection, query: str, *values: str) -> tuple[int, int]:
    spent, reserved = database.execute(query, values).fetchone()
    return spent or 0, reserved or 0


class LedgerError(OneLLMError):
    """The ledger cannot be written, so nothing is sent."""


class SpendingLedger:
    """The ledger of a gateway, for one event loop.

    Args:
        path: The file; it is made if there is none, readable by its owner alone.

    Raises:
        ConfigurationError: If the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[_Waiting] = []
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self._accounts: dict[str, tuple[int, int]] = {}
        self._total_spent = 0
        self.factors: dict[str, float] = {}
        """How many times its ``max_tokens`` a reply of a model has billed."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onellm-async-ledger")
        self._lock = -1
        try:
            self._database = _open(path)
            try:
                self._lock = self._count_the_dead()
                self._refresh()
            except BaseException:
                self._database.close()
                raise
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            if self._lock >= 0:
                os.close(self._lock)
            raise ConfigurationError(f"The ledger {path} cannot be used: {error}.") from None
        except BaseException:
            self._thread.shutdown()
            if self._lock >= 0:
                os.close(self._lock)
            raise

    def spent(self, name: str) -> int:
        """What a key had spent when the ledger was last written, in units. It only grows."""
        return self._accounts.get(name, (0, 0))[0]

    @property
    def total_spent(self) -> int:
        """What all keys had spent together, in units."""
        return self._total_spent

    async def record_intent(self, intent: Intent) -> int:
        """Makes it durable that an attempt is about to be sent. Safe to cancel: then nothing stays recorded.

        Returns:
            Its id, for `settle`.

        Raises:
            BudgetExceededError: If a cap does not allow it.
            QueueFullError: If it would fit once requests in flight are settled.
            LedgerError: If the ledger cannot be written.
        """
        result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._add(intent, result)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            result.add_done_callback(lambda done: self._retract(intent, done))
            raise

    def settle(self, settlement: Settlement) -> None:
        """Records how an attempt ended, soon. Until then it counts with the most that it can cost."""
        self._add(settlement, None)

    def call_after_writes(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once what was settled until now is in `spent`, or cannot be written for now."""
        if self._idle.is_set() and not self._pending:
            callback()
            return
        result: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def written(done: "asyncio.Future[int]") -> None:
            done.exception()
            callback()

        result.add_done_callback(written)
        self._add(_Marker(), result)

    def _retract(self, intent: Intent, done: "asyncio.Future[int]") -> None:
        if not done.cancelled() and done.exception() is None:
            self.settle(Settlement(intent=done.result(), name=intent.name, outcome="released"))

    async def read(self) -> Mapping[str, KeySpending]:
        """What each key has spent, by name."""
        result: asyncio.Future[Mapping[str, KeySpending]] = asyncio.get_running_loop().create_future()
        self._add(_Reading(), result)
        return await result

    async def aclose(self) -> None:
        """Writes what is pending and closes the file."""
        for _ in range(3):  # a full disk may have room again; what stays unwritten counts with its worst case
            await self._idle.wait()
            if not self._pending:
                break
            self._write()
        await self._idle.wait()
        if self._pending:
            _log.warning(
                "%s cannot be written: %d outcomes are lost, and count with the most that they can cost.",
                self._path, len(self._pending),
            )  # fmt: skip
        self._thread.shutdown()
        self._database.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # One transaction for all that came while the last one was written.

    def _add(
        self,
        operation: _Operation,
        result: "asyncio.Future[int] | asyncio.Future[Mapping[str, KeySpending]] | None",
    ) -> None:
        self._pending.append((operation, result))
        if self._idle.is_set():  # soon, not now: what else comes in this turn of the loop shares the transaction
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._idle.clear()
        batch, self._pending = self._pending, []
        writing = asyncio.get_running_loop().run_in_executor(
            self._thread, self._commit, [operation for operation, _ in batch]
        )
        writing.add_done_callback(lambda done: self._written(batch, done))

    def _written(self, batch: list[_Waiting], done: "asyncio.Future[Sequence[_Result]]") -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            # Outcomes are kept for the next transaction. Intents fail, so nothing is sent that is not recorded.
            self._pending[:0] = [(operation, None) for operation, result in batch if result is None]
            for _, result in batch:
                if result is not None and not result.done():
                    result.set_exception(_ledger_error(self._path, error))
        else:
            for (_, result), found in zip(batch, done.result(), strict=True):
                if result is None or result.done():
                    continue
                if isinstance(found, OneLLMError):
                    result.set_exception(found)
                else:
                    result.set_result(found)  # type: ignore[arg-type]  # each operation has its kind of result
        if self._pending and error is None:
            self._write()
        else:
            self._idle.set()

    def _commit(self, operations: Sequence[_Operation]) -> Sequence[_Result]:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            names = {operation.name for operation in operations if isinstance(operation, Intent | Settlement)}
            accounts, found = _Accounts(database, names), list[_Result]()
            for operation in operations:
                if isinstance(operation, Intent):
                    found.append(self._intend(operation, accounts))
                elif isinstance(operation, _Reading):
                    found.append(_read_all(database))
                else:
                    if isinstance(operation, Settlement):
                        self._settle(operation, accounts)
                    found.append(0)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self._accounts.update(accounts.by_name)
        self._total_spent = accounts.total[0]
        for operation in operations:
            if isinstance(operation, Settlement) and operation.model:
                self.factors[operation.model] = max(operation.factor, self.factors.get(operation.model, 1.0))
        return found

    def _intend(self, intent: Intent, accounts: "_Accounts") -> int | OneLLMError:
        for scope, account in (
            (f"key {intent.name}", Account(intent.cap, *accounts.by_name[intent.name])),
            ("all keys", Account(intent.total_cap, *accounts.total)),
        ):
            verdict = account.verdict(intent.units)
            if verdict == "spent":
                return build_cap_error(scope, account, intent.units)
            if verdict == "reserved":
                return _held_by_others(scope)
        cursor = self._database.execute(
            "INSERT INTO intents (name, units, sent_at) VALUES (?, ?, ?)", (intent.name, intent.units, intent.sent_at)
        )
        accounts.add(intent.name, reserved=intent.units)
        return int(cursor.lastrowid or 0)

    def _settle(self, settlement: Settlement, accounts: "_Accounts") -> None:
        gone = self._database.execute(
            "DELETE FROM intents WHERE id = ? RETURNING units", (settlement.intent,)
        ).fetchone()
        if gone is None:
            return
        accounts.add(settlement.name, reserved=-gone[0])
        if settlement.outcome == "released":
            return
        accounts.add(settlement.name, spent=settlement.units)
        answered = settlement.outcome == "answered"
        self._database.execute(
            "INSERT INTO spent (name, requests, answered, billed, at_risk, possibly_billed, unpriced, input_tokens, "
            "output_tokens) VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
            "requests = requests + 1, answered = answered + excluded.answered, billed = billed + excluded.billed, "
            "at_risk = at_risk + excluded.at_risk, possibly_billed = possibly_billed + excluded.possibly_billed, "
            "unpriced = unpriced + excluded.unpriced, input_tokens = input_tokens + excluded.input_tokens, "
            "output_tokens = output_tokens + excluded.output_tokens",
            (
                settlement.name,
                int(answered),
                settlement.units if answered else 0,
                0 if answered else settlement.units,
                int(not answered),
                int(answered and not settlement.priced),
                settlement.input_tokens,
                settlement.output_tokens,
            ),
        )
        if settlement.model:
            self._database.execute(
                "INSERT INTO factors VALUES (?, ?) "
                "ON CONFLICT (model) DO UPDATE SET factor = max(factor, excluded.factor)",
                (settlement.model, settlement.factor),
            )

    def _refresh(self) -> None:
        database = self._database
        accounts = _Accounts(database, [name for (name,) in database.execute("SELECT name FROM spent")])
        self._accounts = accounts.by_name
        self._total_spent = accounts.total[0]
        self.factors = dict(database.execute("SELECT model, factor FROM factors"))

    def _count_the_dead(self) -> int:
        """Counts the intents of gateways that were killed as spent, if no other gateway uses the file.

        Returns:
            The descriptor of a lock that all living gateways share; -1 where there are no file locks.
        """
        if fcntl is None:  # pragma: no cover - without locks a second gateway cannot be told from a dead one
            _settle_the_dead(self._database)
            return -1
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _settle_the_dead(self._database)
            fcntl.flock(lock, fcntl.LOCK_SH)
        except BaseException:
            os.close(lock)
            raise
        return lock


def read_spending(path: Path) -> Mapping[str, KeySpending]:
    """What each key has spent, by name, while gateways run or not; empty if there is no ledger yet.

    Raises:
        ConfigurationError: If the file is no ledger.
    """
    if not path.exists():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            _check_version(database, path)
            return _read_all(database)
    except sqlite3.Error as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from None


def _read_all(database: sqlite3.Connection) -> Mapping[str, KeySpending]:
    columns = "requests, answered, billed, at_risk, possibly_billed, unpriced, input_tokens, output_tokens"
    found = {
        name: KeySpending(**dict(zip(columns.split(", "), values, strict=True)))
        for name, *values in database.execute(f"SELECT name, {columns} FROM spent ORDER BY name")  # noqa: S608  # constant
    }
    for name, units in database.execute("SELECT name, sum(units) FROM intents GROUP BY name"):
        found[name] = evolve(found.get(name, KeySpending()), reserved=units)
    return found


def _settle_the_dead(database: sqlite3.Connection) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.execute(
        "INSERT INTO spent (name, requests, at_risk, possibly_billed) "
        "SELECT name, count(*), sum(units), count(*) FROM intents GROUP BY name ON CONFLICT (name) DO UPDATE SET "
        "requests = requests + excluded.requests, at_risk = at_risk + excluded.at_risk, "
        "possibly_billed = possibly_billed + excluded.possibly_billed"
    )
    database.execute("DELETE FROM intents")
    database.execute("COMMIT")


def _open(path: Path) -> sqlite3.Connection:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(f"The ledger {path} cannot be written: {describe_os_error(error)}.") from None
    if not regular:
        raise ConfigurationError(f"The ledger {path} is not a regular file.")
    database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN IMMEDIATE")
        empty = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if empty:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                database.execute(statement)
        database.execute("COMMIT")
        _check_version(database, path)
    except sqlite3.Error as error:
        database.close()
        raise ConfigurationError(f"The ledger {path} cannot be used: {error}.") from None
    except BaseException:
        database.close()
        raise
    return database


def _check_version(database: sqlite3.Connection, path: Path) -> None:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise ConfigurationError(f"{path} is not the ledger of a gateway.", advice="Name another file with --ledger.")
    if version != _VERSION:
        raise ConfigurationError(f"{path} is of version {version}; this program reads version {_VERSION}.")


def _held_by_others(scope: str) -> QueueFullError:
    return QueueFullError(
        f"The rest of the cost cap of {scope} is reserved for requests in flight.", pending=0, retry_after=_RETRY_AFTER
    )


def _ledger_error(path: Path, error: BaseException) -> LedgerError:
    return LedgerError(f"The ledger {path.name} cannot be written ({error}), so nothing was sent.")
