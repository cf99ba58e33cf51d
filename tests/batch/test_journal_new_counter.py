"""A counter is one field of `JournalRecord`: this adds one to a copy of the package, and nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onellm_async

RECORD = "batch/journal/record.py"
BEFORE = "    # Last, so that nothing else lies behind a long answer.\n"
FIELD = """\
    cached_tokens: int = field(
        default=0, metadata=column(OUTCOMES, "INTEGER NOT NULL", summed("cached_tokens"), missing="0")
    )
"""
PROGRAM = """
import asyncio, json, sqlite3, sys
from onellm_async.batch import Journal, JournalReader, JournalRecord, ProgressTracker, RecordState, RunIdentity
from onellm_async.cli import main

END = "---- the next command"


def record(index, state, **known):
    done = {} if state is RecordState.IN_FLIGHT else {"completed_at": 2.0, "elapsed": 1.0, "result": b"{}"}
    return JournalRecord(index, index + 1, 0, b"d", state=state, possibly_billed=not done, **done, **known)

async def run(path):
    tracker = ProgressTracker(0.0)
    async with Journal.open(path, RunIdentity(input="in.txt")) as journal:
        await journal.record_intent(record(0, RecordState.IN_FLIGHT))
        for index, cached in enumerate((1234, 4000)):
            outcome = record(index, RecordState.ANSWERED, cached_tokens=cached, cost=0.5)
            await journal.record_outcome(outcome)
            tracker.settled(outcome, 1.0)
        journal.finish("complete", complete=True)
        return journal.counts(), tracker.snapshot(2.0)

path = sys.argv[1]
counts, progress = asyncio.run(run(path))
with JournalReader.open(path) as reader:
    (first, _), read = reader.records(), reader.counts()
with sqlite3.connect(path) as database:
    column = database.execute("SELECT cached_tokens FROM outcomes ORDER BY entry").fetchall()
    total = database.execute("SELECT cached_tokens FROM totals").fetchall()
database.close()
print(json.dumps({
    "column": column, "total": total, "record": first.to_dict()["cached_tokens"],
    "counts": counts.to_dict()["cached_tokens"], "read": read.cached_tokens,
    "progress": progress.to_dict()["counts"]["cached_tokens"],
}), flush=True)

for arguments in (["status", path, "--json"], ["status", path], ["report", path, "-o", "-"]):
    print(END, flush=True)
    assert main(arguments) == 0
"""
END = "---- the next command\n"


def test_a_new_field_is_in_the_tables_the_totals_to_dict_progress_status_and_report(tmp_path: Path) -> None:
    package = tmp_path / "onellm_async"
    shutil.copytree(Path(onellm_async.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    source = (package / RECORD).read_text("utf-8")
    assert source.count(BEFORE) == 1
    (package / RECORD).write_text(source.replace(BEFORE, FIELD + BEFORE), "utf-8")

    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, "out.jsonl.journal"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    library, as_json, status, report = ended.stdout.split(END)
    assert json.loads(library) == {
        "column": [[1234], [4000]],
        "total": [[5234]],
        "record": 1234,
        "counts": 5234,
        "read": 5234,
        "progress": 5234,
    }
    assert json.loads(as_json)["counts"]["cached_tokens"] == 5234
    assert "  cached tokens    5,234\n" in status
    assert 'Cached tokens</th><td class="n">5,234' in report
