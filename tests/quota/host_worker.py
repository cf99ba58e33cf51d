"""A process that takes permits from the board in a file until it is killed: ``python host_worker.py JOB``.

It writes a byte to standard output for each permit, which the kernel keeps when it dies. A job with ``kills`` is a
crowd instead: it forks workers, kills them at random moments, and prints what became of their permits. An empty job
forks a worker for each job that standard input has, because the imports take longer than a short life.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from random import Random

from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand
from onellm_async.quota.host_file import HostFile, LockBusyError
from onellm_async.quota.host_quota import HostMember

POINTS = ("before lock", "after lock", "after read", "half of the write", "after write", "after unlock")
"""Where a worker can be told to die."""


class DeadlyFile(HostFile):
    """Dies at a point of a transaction."""

    def __init__(self, path, point, after):
        super().__init__(path)
        self.point = point
        self.left = after

    def die(self, point):
        if point == self.point:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def lock(self):
        self.die("before lock")
        super().lock()
        self.die("after lock")

    def read(self, known=0):
        found = super().read(known)
        self.die("after read")
        return found

    def _write_block(self, block, offset):
        if self.point == "half of the write" and self.left <= 0:
            super_write = os.pwrite(self._descriptor, block[: len(block) // 2], offset)
            assert super_write
        self.die("half of the write")
        super()._write_block(block, offset)
        self.die("after write")

    def unlock(self):
        super().unlock()
        self.die("after unlock")


def main(path, rate, burst, point, after, until):
    limits = Limits(requests_per_minute=rate * 60, burst=burst)
    file = DeadlyFile(Path(path), point, after)
    member = HostMember(Path(path), Declaration(limits, explicit=True), Random(), file=file)
    while time.time() < until:
        try:
            grant = member.transact(Demand(waiting=(0, 8, 0)))
        except LockBusyError:
            time.sleep(0.001)
            continue
        if grant.permits:
            os.write(1, b"." * grant.permits)
        time.sleep(grant.again_in or 0)


def crowd(path, rate, burst, kills, workers, seed):
    random, folder, begun = Random(seed), Path(path).parent, time.monotonic()
    running, taken, errors = {}, 0, []

    def start(number):
        output = folder / f"{number}.permits"
        child = os.fork()
        if child == 0:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            try:
                main(path, rate, burst, "", 0, time.time() + 600)
            except BaseException as error:  # a child of a fork must not go on in its parent's code
                (folder / f"{number}.error").write_text(repr(error))
            finally:
                os._exit(1)
        running[child] = output

    def end(child):
        nonlocal taken
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        output = running.pop(child)
        taken += output.stat().st_size if output.exists() else 0

    for number in range(workers):
        start(number)
    for number in range(kills):
        time.sleep(random.uniform(0, 0.03))
        end(random.choice(list(running)))
        start(workers + number)
    time.sleep(0.5)
    last = {child: output.stat().st_size if output.exists() else 0 for child, output in running.items()}
    time.sleep(1)
    survivors = sum(output.stat().st_size for output in running.values()) - sum(last.values())
    elapsed = time.monotonic() - begun
    for child in list(running):
        end(child)
    errors = [each.read_text() for each in folder.glob("*.error")]
    print(json.dumps({"taken": taken, "elapsed": elapsed, "errors": errors, "survivors": survivors}))


def fork(permits, errors, job):
    """Starts a worker that writes into these files, and returns its process id."""
    child = os.fork()
    if child == 0:
        for number, path in ((1, permits), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        try:
            main(**job)
        except BaseException:  # a child of a fork must not go on in its parent's code
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def serve_forks():
    """Reads orders: a worker to start, one that stops, or one whose exit code is wanted; it is null while it lives."""
    for line in sys.stdin:
        order = json.loads(line)
        if "pid" in order:
            pid, status = os.waitpid(order["pid"], 0 if order["ends"] else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif "stops" in order:
            answer = os.waitid(os.P_PID, order["stops"], os.WSTOPPED | os.WNOWAIT).si_pid
        else:
            answer = fork(**order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if given := json.loads(sys.argv[1]):
        (crowd if "kills" in given else main)(**given)
    else:
        serve_forks()
