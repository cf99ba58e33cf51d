"""Starts what must not share a process with anything else: the servers, and one fresh worker for each measurement."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from benchmarks.servers import nginx

_ROOT = Path(__file__).parents[1]
_PATIENCE = 600
"""Seconds after which a worker is ended: far more than any measurement takes."""


def _command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


@contextmanager
def python_server(module: str, *arguments: str) -> Iterator[int]:
    """Runs ``servers/<module>.py`` and yields the port it listens on."""
    with subprocess.Popen(_command(f"servers.{module}", *arguments), stdout=subprocess.PIPE, cwd=_ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"The {module} server did not start (exit status {process.wait()}).")
            yield json.loads(line)["port"]
        finally:
            process.terminate()


@frozen
class FastServer:
    """The server that should not be the limit.

    Attributes:
        port: Where it listens, on loopback.
        name: What it is.
        capacity: Requests per second that it answered to a client of next to no cost.
    """

    port: int
    name: str
    capacity: float


@contextmanager
def fast_server(seconds: float) -> Iterator[FastServer]:
    """Runs nginx if it is installed, else the stand-in, and measures its capacity for that long."""
    binary = nginx.installed()
    with nginx.running(binary) if binary else python_server("fast") as port:
        arguments = ("--port", str(port), "--seconds", str(seconds))
        raw = subprocess.run(
            _command("servers.capacity", *arguments), cwd=_ROOT, stdout=subprocess.PIPE, check=True, timeout=60
        )
        yield FastServer(port, _nginx_version(binary) if binary else "a bare asyncio.Protocol", float(raw.stdout))


def _nginx_version(binary: str) -> str:
    text = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stderr
    return text.rpartition(" ")[2].strip().replace("/", " ")


def measured(subject: str, peer: str, **job: Any) -> Mapping[str, Any]:
    """Runs one measurement in a fresh interpreter and returns what it found.

    A worker that fails is reported as ``{"broken": reason}``, one whose packages are absent as ``{"absent": name}``.
    """
    task = json.dumps({"subject": subject, "peer": peer, **job})
    try:
        worker = subprocess.run(
            _command("worker", task), cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {"broken": f"no end after {_PATIENCE} s"}
    if worker.returncode != 0:
        return {"broken": f"exit status {worker.returncode}"}
    found: Mapping[str, Any] = json.loads(worker.stdout.splitlines()[-1])
    return found
