"""What a durable run pays for its journal: intents and results per second, and how long one waits to be durable."""

import asyncio
import shutil
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import TypeAlias

from benchmarks.peers import Contender
from benchmarks.repetitions import Found, interleaved, spread
from benchmarks.report import Section
from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.record import JournalRecord, RecordState

Remember: TypeAlias = Callable[[int], Awaitable[None]]
Store: TypeAlias = tuple[Remember, Remember, Callable[[], float]]
"""How an intent and a result become durable, and how many commits there were so far."""

_ANSWER = b'{"content":"%s"}' % (b"x" * 400)
CONTENDERS = (
    Contender("journal, 200 tasks", "journal", {"tasks": 200, "rows": 40_000}),
    Contender("journal, 1 task", "journal", {"tasks": 1, "rows": 1_000}),
    Contender("a commit for each row, 200 tasks", "naive", {"tasks": 200, "rows": 2_000}),
    Contender("a commit for each row, 1 task", "naive", {"tasks": 1, "rows": 1_000}),
)


@asynccontextmanager
async def _journal(directory: Path) -> AsyncIterator[Store]:
    """The journal of this package; its rows are those of a run."""
    async with Journal.open(directory / "journal", RunIdentity(input="benchmark")) as journal:

        async def intend(index: int) -> None:
            await journal.record_intent(
                JournalRecord(index, index + 1, index * 7919, b"d" * 16, None, 0.01, 100, 1.0, 1)
            )

        async def settle(index: int) -> None:
            sent = (index, index + 1, index * 7919, b"d" * 16, None, 0.01, 100, 1.0, 0)
            await journal.record_outcome(
                JournalRecord(*sent, RecordState.ANSWERED, 2.0, 1, 0, 0.001, 10, 20, 1.0, 0.5, None, _ANSWER)
            )

        yield intend, settle, lambda: journal.commits


@asynccontextmanager
async def _naive(directory: Path) -> AsyncIterator[Store]:
    """What comes to mind first: a connection, a lock, and a thread that commits each row by itself."""
    commits = 0
    lock = asyncio.Lock()
    with closing(sqlite3.connect(directory / "naive", isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE rows (item INTEGER PRIMARY KEY, digest, cost, result)")

        async def write(statement: str, *values: object) -> None:
            nonlocal commits
            async with lock:
                await asyncio.to_thread(connection.execute, statement, values)
                commits += 1

        async def intend(index: int) -> None:
            await write("INSERT INTO rows (item, digest) VALUES (?, ?)", index, b"d" * 16)

        async def settle(index: int) -> None:
            await write("UPDATE rows SET cost = ?, result = ? WHERE item = ?", 0.001, _ANSWER, index)

        yield intend, settle, lambda: commits


_STORES: dict[str, Callable[[Path], AbstractAsyncContextManager[Store]]] = {"journal": _journal, "naive": _naive}


async def _measure(store: Callable[[Path], AbstractAsyncContextManager[Store]], tasks: int, rows: int) -> Found:
    waits: list[float] = []
    directory = Path(tempfile.mkdtemp(prefix="benchmark-journal-"))
    try:
        async with store(directory) as (intend, settle, commits):
            numbers = iter(range(rows))

            async def work() -> None:
                for index in numbers:
                    began = time.perf_counter()
                    await intend(index)
                    waits.append(time.perf_counter() - began)
                    await settle(index)

            began, busy = time.perf_counter(), time.thread_time()
            await asyncio.gather(*(work() for _ in range(tasks)))
            elapsed, busy = time.perf_counter() - began, time.thread_time() - busy
            found = {"rows": 2 * rows / elapsed, "commits": commits() / elapsed, "loop": busy / rows * 1e6}
    finally:
        shutil.rmtree(directory)
    waits.sort()
    return found | {"p50": waits[rows // 2] * 1e3, "p99": waits[rows * 99 // 100] * 1e3}


def run(contenders: Sequence[Contender], *, repetitions: int, share: float = 1.0) -> Section:
    """Measures each in turn.

    Args:
        contenders: Those of `CONTENDERS` that are wanted.
        repetitions: How often.
        share: Of the rows, for a smoke run.
    """

    def measure(contender: Contender) -> Found:
        tasks, rows = int(contender.options["tasks"]), int(contender.options["rows"])
        return asyncio.run(_measure(_STORES[contender.peer], tasks, max(100, int(rows * share))))

    return Section(
        "Journal",
        "Each task makes an intent durable, then a result of 415 bytes, and begins anew, as the requests of a run do "
        "that take no time. A row is durable when the disk was synchronised (SQLite, WAL, synchronous = FULL). The "
        "CPU time is that of the event loop's thread for an intent and its result together; the waits are those of "
        f"one intent. Median of {repetitions} (minimum to maximum).",
        ("writer", "durable rows/s", "commits/s", "loop µs/prompt", "p50 ms", "p99 ms"),
        [_row(contender, found) for contender, found in interleaved(contenders, repetitions, measure)],
    )


def _row(contender: Contender, found: Sequence[Found]) -> Sequence[str]:
    def shown(key: str, digits: int = 0) -> str:
        return spread((each[key] for each in found), digits)

    return (contender.name, shown("rows"), shown("commits"), shown("loop", 1), shown("p50", 2), shown("p99", 2))
