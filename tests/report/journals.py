"""Journals as real runs leave them, written through `Journal` itself at times of our choosing."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from unittest import mock

from attrs import evolve

from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.wire import dump_json

START = 1_767_258_000.0
IDENTITY = RunIdentity(
    input="questions.jsonl",
    input_digest="9f2c5d0e6b7a4c1f8e3d2b1a0c9d8e7f",
    lines=204,
    format="jsonl",
    model="GPT-5-Nano",
    max_tokens=100,
    base_url="http://127.0.0.1:8080/api/chat",
    dialect="documented",
)
SETTINGS = {
    "limits": {"requests_per_minute": 40.0, "burst": 40, "max_concurrency": 48},
    "budget": {"max_cost": 0.05, "max_tokens": None},
}
HOSTILE = "</script><script>window.hacked = true</script>"


class Clock:
    """The time of day, set by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@contextmanager
def time_of_day() -> Iterator[Clock]:
    clock = Clock()
    with mock.patch("time.time", clock):
        yield clock


@asynccontextmanager
async def session(path: Path) -> AsyncIterator[Journal]:
    journal = Journal.open(path, IDENTITY, settings=SETTINGS)
    try:
        yield journal
    finally:
        await journal.aclose()


def intent(index: int, at: float) -> JournalRecord:
    return JournalRecord(
        index=index,
        line=index + 1,
        line_digest=index,
        request_digest=index.to_bytes(16),
        custom_id=HOSTILE if index == 7 else f"question-{index}",
        reserved=0.0004,
        sent_at=at,
        possibly_billed=1,
    )


def answered(index: int, sent: float, latency: float, *, queued: float = 0.0, attempts: int = 1) -> JournalRecord:
    return evolve(
        intent(index, sent),
        state=RecordState.ANSWERED,
        completed_at=sent + latency,
        attempts=attempts,
        possibly_billed=attempts - 1,
        cost=0.0002,
        input_tokens=50,
        output_tokens=100,
        elapsed=queued + latency,
        latency=latency,
        result=dump_json({"content": f"answer {index}"}),
    )


def failed(index: int, sent: float, message: str) -> JournalRecord:
    return evolve(
        intent(index, sent),
        state=RecordState.FAILED,
        completed_at=sent + 1,
        attempts=1,
        possibly_billed=0,
        rate_limited=2,
        elapsed=1.0,
        latency=1.0,
        result=dump_json({"type": "BadRequestError", "message": message, "status_code": 400}),
    )


def sample(left: int, in_flight: int, refused: int = 0, repeated: int = 0) -> dict[str, object]:
    return {
        "progress": {
            "completed": 200 - left,
            "failed": 0,
            "total": 204,
            "counts": {
                "cost": (200 - left) * 0.0002,
                "input_tokens": (200 - left) * 50,
                "output_tokens": (200 - left) * 100,
            },
            "rate_limited": refused,
            "retries": repeated,
        },
        "snapshot": {
            "queued": {"interactive": 0, "default": 0, "batch": left},
            "in_flight": in_flight,
            "max_concurrency": 48,
            "declared_rate": 40.0,
            "rate": 40.0,
            "burst": 40.0,
            "limit_found": "40 requests in any 60 s",
            "bottleneck": "rate" if left else "idle",
            "answered": 200 - left,
            "rate_limited": refused,
            "retried": repeated,
        },
    }


async def ask(journal: Journal, first: int, last: int, begun: float, *, fail: tuple[int, ...] = ()) -> None:
    """Prompts `first` to `last` (excluded): 40 at once, then 40 a minute; each takes from 2 to 6 seconds."""
    steps = []
    earlier = {record.index: record.possibly_billed for record in journal.records(first, last)}
    for place, index in enumerate(range(first, last)):
        sent = begun + max(0, place - 40) * 1.5
        lost = earlier.get(index, 0)
        steps.append((sent, journal.record_intent(evolve(intent(index, sent), possibly_billed=1 + lost))))
        latency = 2 + 4 * (index * 37 % 101) / 101
        end = failed(index, sent, HOSTILE) if index in fail else answered(index, sent, latency, queued=sent - begun)
        end = evolve(end, possibly_billed=end.possibly_billed + lost)
        steps.append((end.completed_at, journal.record_outcome(end)))
    for _, step in sorted(steps, key=lambda step: step[0]):
        await step


async def killed_and_resumed(folder: Path, *, finished: bool = True) -> Path:
    """A run of 204 lines, two of them bad: killed after two minutes with three under way, resumed after an hour."""
    first, path = folder / "first.journal", folder / "answers.jsonl.journal"
    with time_of_day() as clock:
        async with session(first) as journal:
            await ask(journal, 0, 117, START, fail=(7, 80))
            journal.bad_line(LineError("questions.jsonl", 100, f"Not JSON: {HOSTILE}"))
            journal.bad_line(LineError("questions.jsonl", 150, "The prompt is empty."))
            for second in range(0, 120, 2):
                journal.sample(
                    START + second, sample(162 - second * 2 // 3, 2, refused=second // 60, repeated=second // 100)
                )
            for index in (117, 118, 119):
                await journal.record_intent(intent(index, START + 119))
            clock.now = START + 120
            await asyncio.to_thread(_copied, first, path)
        clock.now = START + 3720
        async with session(path) as journal:
            await ask(journal, 117, 202, START + 3720)
            for second in range(0, 76, 2):
                journal.sample(START + 3720 + second, sample(max(0, 45 - second * 2 // 3), 3, refused=1))
            clock.now = START + 3720 + 75
            if finished:
                journal.finish("all answered", complete=True)
            else:
                journal.finish("interrupted by Ctrl-C", complete=False)
    return path


def _copied(journal: Path, to: Path) -> None:
    """As a killed process leaves it: the log is not emptied, the session has no end, the lock's text stays."""
    for ending in ("", "-wal", ".lock"):
        shutil.copy(f"{journal}{ending}", f"{to}{ending}")
