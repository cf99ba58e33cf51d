"""Kills processes and Redis again and again while clients share a key: ``python -m tests.quota.crashes``.

Workers are real clients on real sockets. After each crash the local server's own book has to say that the limit was
kept, and that requests are answered again; after an outage of Redis all clients are on its board again. Each of this
within a bound, so a hang is found. No figure depends on how fast the machine is. Not collected by pytest.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from onellm_async import AsyncOneLLM, Limits
from onellm_async.quota import HostQuota, RedisQuota, board_name, host_quota
from onellm_async.quota.board import LEASE, SEEN
from onellm_async.server import LocalServer, ServerSettings
from onellm_async.server.app import serve
from tests.quota.host_worker import POINTS, DeadlyFile
from tests.quota.redis_server import RedisServer, installed

RATE, BURST, WORKERS, IN_FLIGHT = 100, 40, 4, 4
SLACK = (WORKERS + 1) * IN_FLIGHT
"""Requests that the service's bucket holds beyond the declared burst, as many as can be in flight: if a busy machine
delays them, they arrive together. A board that is begun anew grants twice as many."""
PATIENCE = LEASE + 10.0
"""Seconds until something counts as a hang; a busy machine is given more than the documentation promises."""
MOVED_ON = 20
"""Requests that are answered after each crash before the next one."""
URL_KEY = "key"
CHILDREN: set[int] = set()
"""Processes to end, however this one ends."""
STOPPED = "stopped in the lock"
OUTAGES = ("killed", "stopped", "emptied", "slow", "scripts and connections dropped")


class StoppingFile(DeadlyFile):
    """Stops, instead of dying, while it holds the lock."""

    def die(self, point: str) -> None:
        if point == "after lock":
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGSTOP)


def fork(work: Callable[[], None]) -> int:
    """Runs `work` in a child, and returns its process id."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # a child of a fork must not go on in its parent's code
            traceback.print_exc()
        finally:
            os._exit(status)
    CHILDREN.add(child)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    CHILDREN.discard(child)


# The service


class Service:
    """The local server in a process of its own, and its book."""

    def __init__(self) -> None:
        reading, writing = os.pipe()
        settings = ServerSettings(requests_per_minute=RATE * 60, burst=BURST + SLACK, keep_rows=0)

        def announce(server: LocalServer) -> None:
            os.write(writing, f"{server.url}\n".encode())

        self.child = fork(lambda: asyncio.run(serve(settings, port=0, on_ready=announce)))
        self.url = os.read(reading, 1000).decode().strip()
        self.moments: list[float] = []

    def book(self) -> dict[str, float]:
        root = self.url.rpartition("/api")[0] or self.url
        with urllib.request.urlopen(f"{root}/ledger", timeout=PATIENCE) as response:  # noqa: S310  # our own server
            return dict(json.load(response))

    def check(self, after: str) -> None:
        """Waits until requests are answered again, and checks that the limit was kept."""
        begun, before = time.monotonic(), self.book()["answered"]
        while (book := self.book())["answered"] < before + MOVED_ON:
            if time.monotonic() - begun > PATIENCE:
                fail(f"no answers for {PATIENCE:.0f} s after: {after}")
            time.sleep(0.02)
        self.moments.append(time.monotonic() - begun)
        if book["rate_limited"]:
            fail(f"{book['rate_limited']} requests beyond the limit after: {after}")


def fail(what: str) -> NoReturn:
    raise SystemExit(f"FAILED: {what}")


# The workers


class Crowd:
    """Processes that send as fast as they may until they are killed."""

    def __init__(self, service: Service, quota: str, folder: Path) -> None:
        self.service, self.quota, self.folder = service, quota, folder
        self.running: list[int] = []
        for _ in range(WORKERS):
            self.start()

    def start(self, point: str = "", after: int = 0) -> int:
        child = fork(lambda: self._work(point, after))
        self.running.append(child)
        return child

    def _work(self, point: str, after: int) -> None:
        if point:
            kind = StoppingFile if point == STOPPED else DeadlyFile
            host_quota.HostFile = lambda path, mode: kind(path, point, after)  # type: ignore[misc,assignment]
        asyncio.run(self._send())

    async def _send(self) -> None:
        limits = Limits(max_concurrency=IN_FLIGHT, requests_per_minute=RATE * 60, burst=BURST)

        async def chats() -> None:
            while True:
                await client.chat("prompt", model="GPT-5-Nano")

        async with AsyncOneLLM(URL_KEY, base_url=self.service.url, limits=limits, quota=self.quota) as client:
            try:
                await asyncio.gather(*(chats() for _ in range(2 * IN_FLIGHT)))
            except Exception as error:
                (self.folder / f"{os.getpid()}.error").write_text(repr(error))
                raise

    def kill(self, child: int) -> None:
        end(child)
        self.running.remove(child)

    def await_death(self, child: int, what: str) -> None:
        give_up_at = time.monotonic() + PATIENCE
        while os.waitpid(child, os.WNOHANG | os.WUNTRACED) == (0, 0):
            if time.monotonic() > give_up_at:
                fail(f"did not come to the point: {what}")
            time.sleep(0.005)

    def check_errors(self, after: str) -> None:
        for path in self.folder.glob("*.error"):
            fail(f"{path.read_text()} after: {after}")

    def close(self) -> None:
        for child in list(self.running):
            self.kill(child)


def crash_processes(kills: int, seed: int) -> None:
    """Kills workers at random moments and at points of a transaction."""
    random, service = Random(seed), Service()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o700)
        os.environ["ONELLM_QUOTA_DIR"] = str(folder)
        crowd = Crowd(service, "host", folder)
        service.check("the start")
        counts: dict[str, int] = {}
        for number in range(kills):
            point = random.choice(("", "", "", *POINTS, STOPPED)) if number % 20 else STOPPED
            what = f"kill {number + 1}, {point or 'at a random moment'}"
            counts[point or "at a random moment"] = counts.get(point or "at a random moment", 0) + 1
            if point:
                victim = crowd.start(point, random.randrange(12))
                crowd.await_death(victim, what)
                if point == STOPPED:  # the others go on alone after 0.3 s
                    time.sleep(random.uniform(0.0, 0.8))
                    os.kill(victim, random.choice((signal.SIGCONT, signal.SIGSTOP)))
                    time.sleep(random.choice((0.0, 0.05)))
                    end(victim)
                CHILDREN.discard(victim)
                crowd.running.remove(victim)
            else:
                time.sleep(random.uniform(0, 0.1))
                crowd.kill(random.choice(crowd.running))
                crowd.start()
            service.check(what)
            crowd.check_errors(what)
            tell(number, kills, what, service)
        name = board_name(service.url, f"Bearer {URL_KEY}")
        found = wait_for_rows(lambda: HostQuota().read(name), WORKERS, "the last kill")
        book = service.book()
        crowd.close()
        print(f"{kills} kills: {counts}")
        print(f"  answered {book['answered']:,.0f}, beyond the limit {book['rate_limited']:.0f}")
        print(
            f"  only the living on the board after {found:.1f} s; until {MOVED_ON} answers: {spread(service.moments)}"
        )
    end(service.child)


def wait_for_rows(read: Callable[[], Any], number: int, after: str, patience: float = PATIENCE) -> float:
    """Waits until so many participants have visited the board within the lease, and returns the seconds."""
    begun = time.monotonic()
    while True:
        image = read()
        rows = image["rows"] if image else ()
        present = sum(row[SEEN] >= image["at"] - LEASE for row in rows.values()) if image and rows else 0
        if present == number:
            return time.monotonic() - begun
        if time.monotonic() - begun > patience:
            fail(f"{present} participants on the board, not {number}, after: {after}")
        time.sleep(0.05)


def tell(number: int, of: int, what: str, service: Service) -> None:
    if (number + 1) % 50 == 0 or number + 1 == of:
        print(f"{number + 1}/{of} ({what}); until {MOVED_ON} answers: {spread(service.moments)}", flush=True)


def spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"median {statistics.median(ordered):.2f} s, most {ordered[-1]:.2f} s"


# Redis


def slow_proxy(listening: Path, target: Path) -> None:
    """Passes bytes on; between SIGUSR1 and SIGUSR2 it takes 15 ms each way."""

    async def run() -> None:
        delay = 0.0
        loop = asyncio.get_running_loop()

        def be_slow(seconds: float) -> None:
            nonlocal delay
            delay = seconds

        loop.add_signal_handler(signal.SIGUSR1, be_slow, 0.015)
        loop.add_signal_handler(signal.SIGUSR2, be_slow, 0.0)

        async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(1 << 16):
                    await asyncio.sleep(delay)
                    writer.write(data)
            except OSError:
                pass
            finally:
                writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there, back = await asyncio.open_unix_connection(target)
            except OSError:
                writer.close()
                return
            await asyncio.gather(pipe(reader, back), pipe(there, writer))

        async with await asyncio.start_unix_server(serve, listening) as server:
            await server.serve_forever()

    asyncio.run(run())


def crash_redis(outages: int, seed: int) -> None:
    """Kills, stops, empties and slows Redis down."""
    program = installed()
    if program is None:
        fail("no Redis is installed")
    import redis.asyncio  # noqa: F401  # before the forks, or each of them imports it

    random, service = Random(seed), Service()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        server = RedisServer(program, folder)
        server.start()
        proxy = fork(lambda: slow_proxy(folder / "proxy.sock", server.socket))
        while not (folder / "proxy.sock").exists():
            time.sleep(0.01)
        crowd = Crowd(service, f"unix://{folder}/proxy.sock", folder)
        name, quota = board_name(service.url, f"Bearer {URL_KEY}"), RedisQuota(server.url)
        wait_for_rows(lambda: asyncio.run(quota.read(name)), WORKERS, "the start", 4 * PATIENCE)
        returns: dict[str, list[float]] = {kind: [] for kind in OUTAGES}
        service.check("the start")
        for number in range(outages):
            kind = OUTAGES[number % len(OUTAGES)]
            what = f"outage {number + 1}, {kind}"
            if kind == "killed":
                server.kill()
                time.sleep(random.uniform(0, 1.5))
                server.start()
            elif kind == "stopped":
                server.signal(signal.SIGSTOP)
                time.sleep(random.uniform(0.2, 1.5))
                server.signal(signal.SIGCONT)
            elif kind == "emptied":
                server.command("FLUSHALL")
            elif kind == "slow":
                os.kill(proxy, signal.SIGUSR1)
                service.check(what)
                os.kill(proxy, signal.SIGUSR2)
            else:
                server.command("SCRIPT", "FLUSH")
                server.command("CLIENT", "KILL", "TYPE", "normal")
            returns[kind].append(wait_for_rows(lambda: asyncio.run(quota.read(name)), WORKERS, what))
            service.check(what)
            crowd.check_errors(what)
            tell(number, outages, what, service)
        book = service.book()
        crowd.close()
        end(proxy)
        server.kill()
        print(f"{outages} outages of Redis: {', '.join(OUTAGES)}")
        print(f"  answered {book['answered']:,.0f}, beyond the limit {book['rate_limited']:.0f}")
        print(f"  until {MOVED_ON} answers: {spread(service.moments)}")
        for kind, seconds in returns.items():
            if seconds:
                print(f"  {kind}: all on the board again, {spread(seconds)}")
    end(service.child)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.quota.crashes", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="of processes; default 1000")
    parser.add_argument("--outages", type=int, default=100, help="of Redis; default 100")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default 0")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        if given.kills:
            crash_processes(given.kills, given.seed)
        if given.outages:
            crash_redis(given.outages, given.seed)
    finally:
        for child in list(CHILDREN):
            end(child)


if __name__ == "__main__":
    main()
