"""One key, several processes: a shared quota beside no coordination, a rate split by hand, and shared limiters.

All ways of one setting follow each other in each repetition, so that what else the machine does meets all of them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

from attrs import frozen

from benchmarks.processes import python_server
from benchmarks.report import Section
from benchmarks.servers import redis
from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand
from onellm_async.quota.host_quota import HostMember

_ROOT = Path(__file__).parents[1]
BURST = 40
LATENCY = 0.1
PATIENCE = 6
"""Times the best possible time after which a run is given up."""
ALONE, SPLIT, HOST, REDIS = "each for itself", "rate split by hand", "quota on the host", "quota in Redis"
PEERS = ("pyrate-limiter, SQLite", "pyrate-limiter, Redis", "limits, Redis")
IN_REDIS = {REDIS, "pyrate-limiter, Redis", "limits, Redis"}


@frozen
class Setting:
    """Several processes with one key.

    Attributes:
        processes: How many.
        rate: Requests per second of the key.
        number: Prompts of all together.
        declared: Whether the clients are told the limit.
        even: Whether all have as much to do; else one has nearly everything.
        chats: Interactive chats of the first process beside the others' batches.
        ways: What is compared.
    """

    processes: int
    rate: float
    number: int
    declared: bool = True
    even: bool = True
    chats: int = 0
    ways: Sequence[str] = (ALONE, SPLIT, HOST, REDIS)

    @property
    def name(self) -> str:
        """As the table shows it."""
        told = "declared" if self.declared else "not declared"
        work = "" if self.even else ", one has the work"
        chats = ", interactive beside batches" if self.chats else ""
        return f"{self.processes} processes, {self.rate:g}/s, {told}{work}{chats}"

    @property
    def optimum(self) -> float:
        """The best possible time of the prompts, in seconds."""
        return max(0.0, (self.number - BURST) / self.rate) + LATENCY

    def share_of(self, process: int) -> int:
        """Prompts of one process."""
        if self.chats:
            return 0 if process == 0 else self.number // (self.processes - 1)
        if self.even:
            return self.number // self.processes
        return self.number - 2 * (self.processes - 1) if process == 0 else 2


SETTINGS = (
    Setting(4, 20, 800, ways=(ALONE, SPLIT, HOST, REDIS, *PEERS)),
    Setting(16, 20, 800, ways=(ALONE, HOST, REDIS)),
    Setting(4, 200, 4000, ways=(ALONE, HOST, REDIS)),
    Setting(16, 200, 4000, ways=(ALONE, SPLIT, HOST, REDIS, *PEERS)),
    Setting(4, 20, 400, even=False, ways=(SPLIT, HOST, REDIS)),
    Setting(16, 20, 400, even=False, ways=(HOST, REDIS)),
    Setting(4, 20, 800, declared=False, ways=(ALONE, HOST, REDIS)),
    Setting(16, 20, 800, declared=False, ways=(HOST, REDIS)),
    Setting(16, 200, 4000, declared=False, ways=(HOST, REDIS)),
    Setting(5, 20, 400, chats=30, ways=(ALONE, HOST, REDIS)),
    Setting(16, 20, 450, chats=30, ways=(HOST, REDIS)),
)
"""A repetition takes twenty minutes: runs of about 20 to 40 s each, where a start of 0.1 s does not count for much."""
QUICK = (
    Setting(4, 20, 120, ways=(ALONE, SPLIT, HOST, REDIS, *PEERS)),
    Setting(16, 200, 640, ways=(HOST, REDIS)),
    Setting(4, 20, 100, even=False, ways=(SPLIT, HOST, REDIS)),
    Setting(4, 20, 240, declared=False, ways=(HOST, REDIS)),
    Setting(5, 20, 120, chats=15, ways=(HOST, REDIS)),
)
"""It takes three minutes."""
REPETITIONS = 1
"""Where none are asked for."""


def run(*, repetitions: int, settings: Sequence[Setting] = SETTINGS, visits: int = 20_000) -> list[Section]:
    """Measures every setting, and what a visit costs."""
    found: dict[tuple[Setting, str], list[Mapping[str, Any]]] = {}
    with _redis() as place:
        for setting in settings:
            for repetition in range(repetitions):
                for way in setting.ways:
                    key = f"{setting.name}, {way}, {repetition}"
                    result = _once(setting, way, place)
                    found.setdefault((setting, way), []).append(result)
                    print(key, {name: value for name, value in result.items() if value is not None}, file=sys.stderr)
    shared = Section(
        "One key, several processes",
        f"Clients and the local server in processes of their own, on loopback; a bucket of {BURST}, full at the start; "
        f"an answer takes {LATENCY:g} s. The share of the limit is the best possible time over the real one, "
        "rate-limited are 429s per prompt, and Jain's index of the processes' rates tells how equal they are. "
        "Interactive: the 95th percentile of what single chats waited beyond the answer's time. The peers' limiters "
        "stand before each chat of a client without limits; they hold a window of a bucket's size, as they know no "
        f"bucket in these stores. All ways of a setting follow each other. Median of {repetitions} and the worst.",
        ("processes, limit, way", "share of the limit", "worst", "rate-limited", "Jain", "interactive p95", "CPU s"),
        [_row(setting, way, results) for (setting, way), results in found.items()],
    )
    return [shared, _costs(visits)]


@contextmanager
def _redis() -> Iterator[str | None]:
    program = redis.installed()
    if program is None:
        yield None
        return
    with redis.running(program) as url:
        yield url


def _once(setting: Setting, way: str, redis_url: str | None) -> Mapping[str, Any]:
    if way in IN_REDIS and redis_url is None:
        return {"absent": "redis"}
    arguments = (f"--rate={setting.rate}", f"--burst={BURST}", f"--latency={LATENCY}")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        port = stack.enter_context(python_server("local", *arguments))
        root = f"http://127.0.0.1:{port}"
        place = f"{folder}/pyrate.sqlite" if way == PEERS[0] else f"{redis_url}/1"
        if redis_url is not None:
            _empty(redis_url)
        jobs = [_job(setting, way, process, root, place, redis_url) for process in range(setting.processes)]
        processes = [stack.enter_context(_process(job, folder)) for job in jobs]
        results, begun = _results(processes, PATIENCE * setting.optimum + 30)
        if missing := next((each for each in results if "answered" not in each and "took" not in each), None):
            return missing
        return {**_figures(setting, results, begun), "rate_limited": _rate_limited(root) / setting.number}


def _empty(url: str) -> None:
    host, _, port = url.removeprefix("redis://").partition(":")
    import socket

    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        connection.recv(100)


def _job(setting: Setting, way: str, process: int, root: str, place: str, redis_url: str | None) -> Mapping[str, Any]:
    share = setting.processes if way == SPLIT else 1
    declared = {"requests_per_minute": setting.rate * 60 / share, "burst": max(1, BURST // share)}
    return {
        "way": way,
        "url": f"{root}/api",
        "rate": setting.rate,
        "burst": BURST,
        "place": place,
        "limits": declared if setting.declared else {"requests_per_minute": "auto"},
        "quota": {HOST: "host", REDIS: redis_url}.get(way, "off"),
        "number": setting.share_of(process),
        "chats": setting.chats if process == 0 else 0,
        "chat_rate": setting.chats / setting.optimum,
    }


@contextmanager
def _process(job: Mapping[str, Any], folder: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "benchmarks.quota_process", json.dumps(job)]
    environment = {**os.environ, "ONELLM_QUOTA_DIR": folder}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            with suppress(BrokenPipeError):
                process.communicate()


def _results(processes: Sequence["subprocess.Popen[str]"], give_up: float) -> tuple[list[Mapping[str, Any]], float]:
    """Lets all begin at one moment, and returns what each found and when they began."""
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    begun = time.time()
    for process in processes:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # one that has failed is reported below
            process.stdin.write("begin\n")
            process.stdin.flush()
    results: list[Mapping[str, Any]] = []
    for process in processes:
        try:
            output, _ = process.communicate(timeout=max(1.0, begun + give_up - time.time()))
            results.append(json.loads(output) if process.returncode == 0 else {"broken": process.returncode})
        except subprocess.TimeoutExpired:
            results.append({"broken": f"no end after {give_up:.0f} s"})
    return results, begun


def _rate_limited(root: str) -> int:
    with urllib.request.urlopen(f"{root}/ledger") as response:  # noqa: S310  # our own server
        return int(json.load(response)["rate_limited"])


def _figures(setting: Setting, results: Sequence[Mapping[str, Any]], begun: float) -> Mapping[str, Any]:
    answered = [each["answered"] for each in results if each.get("answered")]
    rates = [len(times) / (times[-1] - begun) for times in answered if setting.even or len(times) > 2]
    waits = sorted(took - LATENCY for each in results for took in each.get("took", ()))
    total = setting.number if not setting.chats else sum(map(len, answered)) + len(waits)
    best = max(0.0, (total - BURST) / setting.rate) + LATENCY
    return {
        "goodput": best / (max(times[-1] for times in answered) - begun),
        "fairness": sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates)),
        "p95": waits[int(0.95 * len(waits))] if waits else None,
        "cpu": sum(each["cpu"] for each in results),
    }


def _row(setting: Setting, way: str, results: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    name = f"{setting.name}: {way}"
    missing = next((each for each in results if "goodput" not in each), None)
    if missing is not None:
        why = f"{missing['absent']} is not installed" if "absent" in missing else str(missing.get("broken"))
        return (name, why, "", "", "", "", "")
    goodput = sorted(each["goodput"] for each in results)
    waits = [each["p95"] for each in results if each["p95"] is not None]
    return (
        name,
        f"{statistics.median(goodput):.3f}",
        f"{goodput[0]:.3f}",
        f"{statistics.median(each['rate_limited'] for each in results):.1%}",
        f"{statistics.median(each['fairness'] for each in results):.3f}" if setting.even else "",
        f"{1000 * statistics.median(waits):.0f} ms" if waits else "",
        f"{statistics.median(each['cpu'] for each in results):.1f}",
    )


# What a visit costs


def _costs(visits: int) -> Section:
    rows = [(f"a visit beside {rows - 1} participants", f"{_visit(rows, visits):.0f} µs") for rows in (1, 16, 64)]
    rows.extend(
        (f"permits for 4 processes, {waiting} with each visit", f"{_granted(4, waiting, visits):,.0f} per second")
        for waiting in (1, 8)
    )
    return Section(
        "What the quota on the host costs",
        "Hot visits of one participant in one process to a board with so many rows, of which the others have demand; "
        "and permits that four processes got from one file, whose clients had one request waiting, or eight.",
        ("figure", "value"),
        rows,
    )


def _member(folder: str, per_second: float = 1e6, burst: int = 100_000) -> HostMember:
    limits = Limits(requests_per_minute=per_second * 60, burst=burst)
    return HostMember(Path(folder) / "cost.board", Declaration(limits, explicit=True), Random(0))


def _visit(rows: int, visits: int) -> float:
    """Median microseconds of a visit, over ten blocks."""
    with tempfile.TemporaryDirectory() as folder:
        members = [_member(folder, 0.01, 1) for _ in range(rows)]
        demand, times = Demand(waiting=(0, 1, 0)), []
        for member in (*members, *members):  # with the second visit all have demand that is not met
            member.transact(demand)
        for _ in range(10):
            started = time.perf_counter()
            for _ in range(visits // 100):
                members[0].transact(demand)
            times.append((time.perf_counter() - started) / (visits // 100))
        for member in members:
            member.abandon()
    return statistics.median(times) * 1e6


_COUNTER = """
import sys, time
from benchmarks.quota import _member
from onellm_async.limits.quota import Demand
from onellm_async.quota.host_file import LockBusyError
member, demand, granted = _member(sys.argv[1]), Demand(waiting=(0, int(sys.argv[3]), 0)), 0
print("ready", flush=True)
sys.stdin.readline()
until = time.perf_counter() + float(sys.argv[2])
while time.perf_counter() < until:
    try:
        granted += member.transact(demand).permits
    except LockBusyError:
        pass
print(granted)
"""


def _granted(processes: int, waiting: int, visits: int) -> float:
    """Permits per second that so many processes get, each with so many requests waiting."""
    seconds = max(0.1, visits / 10_000)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _COUNTER, folder, str(seconds), str(waiting)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=_ROOT,
                )
            )
            for _ in range(processes)
        ]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("begin\n")
            process.stdin.flush()
        return sum(int(process.communicate()[0]) for process in running) / seconds
