"""The Ray example with real Ray and two actors killed; ``nox -s ray``. Not collected by pytest.

Every prompt is answered once in the output, at most the requests in flight at the kills are billed twice, and the limit
is used from the first request to the last answer. ``nox -s ray -- --rate 200`` tries another limit.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from onellm_async.batch import JournalReader
from onellm_async.batch.shard_split import read_manifest
from onellm_async.batch.shards import default_output
from onellm_async.server import Completion, ServerSettings
from onellm_async.server.backends import echo
from onellm_async.server.jobs import Job
from onellm_async.testing import ThreadedServer

ROOT = Path(__file__).parents[2]
BURST = 40
LATENCY = 0.1
TARGET = 0.97


class Service:
    """Echoes after a while, and remembers what it billed."""

    def __init__(self) -> None:
        self.billed: Counter[str] = Counter()
        self.in_flight = 0
        self.first = self.last = 0.0
        self.answered_at: list[float] = []

    async def complete(self, job: Job) -> Completion:
        self.first = self.first or time.monotonic()
        self.in_flight += 1
        await asyncio.sleep(LATENCY)
        self.in_flight -= 1
        self.billed[job.request.messages[-1].content] += 1
        self.last = time.monotonic()
        self.answered_at.append(self.last - self.first)
        return echo(job)

    async def aclose(self) -> None:
        pass


def a_busy_actor(directory: Path, sparing: set[int]) -> int | None:
    """Process id of an actor that runs a shard, from the lock of its journal."""
    for name in read_manifest(directory).names:
        output = default_output(directory / name)
        if output.with_name(output.name + ".journal").exists():
            with JournalReader.open(output) as journal:
                owner = journal.lock_owner
                if owner is not None and owner.pid is not None and owner.pid not in sparing:
                    return owner.pid
    return None


def kill_an_actor(directory: Path, service: Service, killed: set[int]) -> int:
    """Kills an actor that is at work, and returns how many requests were in flight then."""
    while (pid := a_busy_actor(directory, killed)) is None:
        time.sleep(0.05)
    in_flight = service.in_flight
    os.kill(pid, signal.SIGKILL)
    killed.add(pid)
    print(f"killed the actor {pid} with {in_flight} requests in flight, {service.billed.total():,} billed", flush=True)
    return in_flight


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--shard", type=int, default=500)
    parser.add_argument("--rate", type=float, default=50, help="requests per second of the limit; default 50")
    given = parser.parse_args()
    service = Service()
    settings = ServerSettings(requests_per_minute=given.rate * 60, burst=BURST)
    with tempfile.TemporaryDirectory() as folder, ThreadedServer(settings, backend=service) as server:
        place = Path(folder)
        prompts = [f"prompt {number}" for number in range(given.prompts)]
        (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        driver = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "examples" / "ray_shards.py"), str(place / "prompts.jsonl")),
                *(str(place / "shards"), "-o", str(place / "answers.jsonl"), "--quota", "host"),
                *("--rpm", str(given.rate * 60), "--burst", str(BURST), "--prompts-per-shard", str(given.shard)),
            ],
            env={
                **os.environ,
                "ONELLM_API_KEY": "any",
                "ONELLM_BASE_URL": server.url,
                "PYTHONPATH": str(ROOT),
                "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )
        at_kills, killed = 0, set[int]()
        for share in (0.3, 0.6):
            while service.billed.total() < share * given.prompts:
                assert driver.poll() is None, "the example ended early"
                time.sleep(0.05)
            at_kills += kill_an_actor(place / "shards", service, killed)
        assert driver.wait(1800) == 0
        answers = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
        seconds = service.last - service.first
    texts = [answer["response"]["content"] for answer in answers]
    twice = sum(service.billed.values()) - len(service.billed)
    share = (sum(service.billed.values()) - BURST) / given.rate / seconds
    refused = server.ledger.summary()["rate_limited"]
    print(f"{len(texts):,} answers in {seconds:.1f} s: {share:.3f} of the limit, {refused} × 429")
    tenths = Counter(min(9, int(10 * at / seconds)) for at in service.answered_at)
    print("of the limit in each tenth:", *(f"{tenths[n] * 10 / given.rate / seconds:.2f}" for n in range(10)))
    print(f"billed twice: {twice}; in flight at the kills: {at_kills}")
    assert texts == prompts
    assert [answer["index"] for answer in answers] == list(range(given.prompts))
    assert set(service.billed) == set(prompts)
    assert twice <= at_kills
    assert share >= TARGET, share


if __name__ == "__main__":
    main()
