"""SIGKILL of any participant at any moment: the others go on with the whole rate, and no token is spent twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand
from onellm_async.quota.host_file import HostFile, LockBusyError
from onellm_async.quota.host_quota import HostMember
from tests.quota import host_worker

KILLS = int(os.environ.get("ONELLM_QUOTA_KILLS", "100"))
"""The gate kills 100 times; ``ONELLM_QUOTA_KILLS=1000`` is the long run."""
RATE, BURST = 500, 40
WORKERS = 4


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


class Forks:
    """A process that starts workers as its forks."""

    def __init__(self):
        command = [sys.executable, host_worker.__file__, "{}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def ask(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.communicate()


@pytest.fixture(scope="module")
def forks():
    forks = Forks()
    yield forks
    forks.close()


class Worker:
    """A worker in a process of its own."""

    def __init__(self, forks, path, folder, *, point="", after=0):
        self.path = path
        self.permits, self.errors = (folder / f"{time.time_ns()}.{kind}" for kind in ("permits", "errors"))
        job = {"path": str(path), "rate": RATE, "burst": BURST, "point": point, "after": after}
        job["until"] = time.time() + 300
        self.forks, self.code = forks, None
        self.pid = forks.ask(permits=str(self.permits), errors=str(self.errors), job=job)

    def exit_code(self, *, ends):
        """None while it lives, unless it `ends`, which is waited for."""
        if self.code is None:
            self.code = self.forks.ask(pid=self.pid, ends=ends)
        return self.code

    def send_signal(self, number):
        if self.exit_code(ends=False) is None:
            os.kill(self.pid, number)

    def taken(self):
        return self.permits.stat().st_size if self.permits.exists() else 0

    def wait_for_permits(self, number=1):
        give_up_at = time.monotonic() + 60
        while self.taken() < number:
            assert time.monotonic() < give_up_at, "a worker got no permit for a minute"
            assert self.exit_code(ends=False) is None, self.errors.read_text()
            time.sleep(0.002)

    def end(self):
        """Kills it, and returns its permits."""
        self.send_signal(signal.SIGKILL)
        self.exit_code(ends=True)
        errors = self.errors.read_text() if self.errors.exists() else ""
        assert not errors, errors
        return self.taken()


@pytest.fixture
def start(tmp_path, forks):
    """Starts workers, and ends those that are left."""
    started = []

    def start(**how):
        started.append(Worker(forks, tmp_path / "name.board", tmp_path, **how))
        return started[-1]

    yield start
    for worker in started:
        worker.send_signal(signal.SIGKILL)
        worker.exit_code(ends=True)


def board_of(path):
    member = HostMember(path, Declaration(Limits(requests_per_minute=RATE * 60, burst=BURST), explicit=True), Random(0))
    for _ in range(5000):
        try:
            member.transact(Demand())
        except LockBusyError:
            time.sleep(0.001)
            continue
        board = member._board
        member.abandon()
        return board
    raise AssertionError("the lock was never free")


@pytest.mark.timeout(max(120, KILLS))
def test_workers_that_are_killed_at_random_moments_lose_two_tokens_each_at_most(tmp_path):
    path = tmp_path / "name.board"
    job = {"path": str(path), "rate": RATE, "burst": BURST, "kills": KILLS, "workers": WORKERS, "seed": 0}
    run = subprocess.run(
        [sys.executable, host_worker.__file__, json.dumps(job)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    found, board = json.loads(run.stdout), board_of(path)
    assert not found["errors"]
    assert not run.stderr
    assert found["survivors"] > 0.5 * RATE
    assert 0 <= board.granted - found["taken"] <= 2 * KILLS + 8 * WORKERS
    assert found["taken"] <= RATE * found["elapsed"] + BURST
    assert board.clock_moves == 0


@pytest.mark.parametrize("point", host_worker.POINTS)
def test_a_worker_that_dies_at_a_point_of_a_transaction_stops_no_other(tmp_path, start, point):
    path = tmp_path / "name.board"
    survivor = start()
    survivor.wait_for_permits()
    for after in (0, 1, 7):
        before = board_of(path).granted
        victim = start(point=point, after=after)
        assert victim.exit_code(ends=True) == -signal.SIGKILL
        survivor.wait_for_permits(survivor.taken() + 20)
        assert board_of(path).granted >= before
        victim.end()
    survivor.end()


def stop_outside_of_the_lock(worker):
    """Stops it. One that stops inside of the lock keeps it, and its companions send alone (`crashes`)."""
    file = HostFile(worker.path)
    for _ in range(100):
        worker.send_signal(signal.SIGSTOP)
        worker.forks.ask(stops=worker.pid)
        for _ in range(100):  # another worker holds the lock for a moment only
            try:
                file.lock()
            except LockBusyError:
                time.sleep(0.001)
                continue
            file.unlock()
            file.close()
            return
        worker.send_signal(signal.SIGCONT)
    raise AssertionError("it always stopped inside of the lock")


def test_a_participant_that_stands_still_is_passed_over(start):
    first, second = start(), start()
    for worker in (first, second):
        worker.wait_for_permits(20)
    stop_outside_of_the_lock(first)
    second.wait_for_permits(second.taken() + 300)
    first.send_signal(signal.SIGCONT)
    first.wait_for_permits(first.taken() + 20)
    for worker in (first, second):
        worker.end()
