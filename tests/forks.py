"""Commands as real processes that start at once: forks of a process that has imported everything.

Half a second of imports is most of what a command of a test does, and the tests start hundreds. So each worker of
pytest keeps one process that has imported the command line and nothing else, and a command is a fork of it: with an
exit code, signals, standard streams, a folder and an environment of its own. What it has not is a beginning of its own,
and it ends without taking apart what was imported. Where the beginning is the subject, a test starts its command
itself. `start_command` does so for variables that Python reads at its beginning, for terminals, and under another
program. A stream may be `CLOSED`: then the command finds None in its place, as it would at its beginning.

How it works: the worker sends arguments, environment and three descriptors through a socket, and gets the process id. A
descriptor of the process (``pidfd``) tells it when the process has ended, and the parent is asked for the exit code. It
is the parent that reaps, so the id cannot mean another process before.
"""

import array
import asyncio
import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from asyncio import base_subprocess
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process, SubprocessStreamProtocol
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
_READ_AT_THE_BEGINNING = ("PYTHON", "LC_", "LANG", "COVERAGE_")
_AT_THE_BEGINNING = dict(os.environ)
"""The environment before any test changed it."""
_LIMIT = 1 << 20
"""Bytes of a request: an environment and arguments."""
_STREAM_LIMIT = 1 << 16
"""Bytes that asyncio reads ahead of a stream, its own default."""
_NOT_FLUSHED = 120
"""Python's exit code where a standard stream does not take what is left at the end."""
CLOSED = -4
"""In place of a stream: its descriptor is closed. asyncio's own numbers end at -3."""
_IMPORTED_WHEN_NEEDED = ("tenacity", "tenacity.asyncio", "encodings.idna", "concurrent.futures.thread", "cyclopts.help")
"""Modules that most commands import only when they send a request or have a mistake to explain."""
_CLOSED_BY_A_SHELL = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}


# In the worker of pytest


class Forks:
    """The process that has imported everything, and a socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LIMIT)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_AT_THE_BEGINNING | {"PYTHONPATH": str(ROOT)},
            )

    def start(
        self, arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str], streams: list[int]
    ) -> int:
        """Starts a command and returns its process id."""
        request = {
            "arguments": arguments,
            "folder": os.fspath(folder),
            "environment": dict(environment),
            "closed": [number for number, stream in enumerate(streams) if stream == CLOSED],
        }
        return self._ask(request, [stream for stream in streams if stream != CLOSED])

    def reap(self, pid: int) -> int:
        """The exit code of a command that has ended; negative: the signal that killed it."""
        return self._ask({"reap": pid}, [])

    def close(self) -> None:
        """Ends the process. Commands that still run go on."""
        self._socket.close()
        self._process.wait()

    def _ask(self, request: Mapping[str, object], descriptors: list[int]) -> int:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._socket.sendmsg([json.dumps(request).encode()], ancillary)
        if not (reply := self._socket.recv(100)):
            raise RuntimeError("The process that forks commands has ended; standard error says why.")
        return int(reply)


class _Forked:
    """What asyncio knows of a process, as `subprocess.Popen` has it."""

    def __init__(self, pid: int, stdin: IO[bytes] | None, stdout: IO[bytes] | None, stderr: IO[bytes] | None) -> None:
        self.pid, self.stdin, self.stdout, self.stderr = pid, stdin, stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Transport(base_subprocess.BaseSubprocessTransport):
    def _start(  # type: ignore[override]
        self,
        args: tuple[str, ...],
        shell: bool,  # asyncio's signature
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        *,
        forks: Forks,
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        with contextlib.ExitStack() as theirs:

            def pipe(stream: Any, *, is_input: bool = False) -> tuple[int, IO[bytes] | None]:
                """The end of the command, and ours if there is one."""
                if stream not in {PIPE, DEVNULL}:
                    return stream if isinstance(stream, int) else stream.fileno(), None
                ours = None
                if stream == DEVNULL:
                    descriptor = os.open(os.devnull, os.O_RDWR)
                else:
                    read, write = os.pipe()
                    descriptor, our_end = (read, write) if is_input else (write, read)
                    ours = os.fdopen(our_end, "wb" if is_input else "rb", buffering=0)
                theirs.callback(os.close, descriptor)
                return descriptor, ours

            (read, our_stdin), (write, our_stdout) = pipe(stdin, is_input=True), pipe(stdout)
            complain, our_stderr = (write, None) if stderr == STDOUT else pipe(stderr)
            pid = forks.start(args, folder, environment, [read, write, complain])
        self._proc = _Forked(pid, our_stdin, our_stdout, our_stderr)
        descriptor = os.pidfd_open(pid)

        def ended() -> None:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
            self._process_exited(forks.reap(pid))

        self._loop.add_reader(descriptor, ended)


_forks: Forks | None = None


def close_forks() -> None:
    """Ends what `start_command` began for this process."""
    global _forks  # noqa: PLW0603  # one for each worker of pytest
    if _forks is not None:
        _forks.close()
        _forks = None


def _must_begin_anew(environment: Mapping[str, str]) -> bool:
    changed = any(
        name.startswith(_READ_AT_THE_BEGINNING) and environment.get(name) != _AT_THE_BEGINNING.get(name)
        for name in environment.keys() | _AT_THE_BEGINNING.keys()
    )
    return changed or not hasattr(os, "pidfd_open") or "coverage" in sys.modules


async def _begin_anew(*command: str, **how: Any) -> Process:
    """Starts a process of its own, by a shell if it has closed streams."""
    closed = [name for name in _CLOSED_BY_A_SHELL if how[name] == CLOSED]
    if closed:
        command = ("bash", "-c", f'exec "$@" {" ".join(map(_CLOSED_BY_A_SHELL.__getitem__, closed))}', "bash", *command)
    return await asyncio.create_subprocess_exec(*command, **how | dict.fromkeys(closed, DEVNULL))


async def start_command(
    *arguments: str,
    stdin: Any = DEVNULL,
    stdout: Any = PIPE,
    stderr: Any = PIPE,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    within: tuple[str, ...] = (),
) -> Process:
    """Starts ``python -m onellm_async`` with arguments, as `asyncio.create_subprocess_exec` does.

    Args:
        arguments: Of the command.
        stdin: As of `asyncio.create_subprocess_exec`, or `CLOSED`.
        stdout: As `stdin`.
        stderr: As `stdin`.
        cwd: As of `asyncio.create_subprocess_exec`.
        env: As of `asyncio.create_subprocess_exec`.
        within: A program that starts it, such as ``("setsid",)``.
    """
    global _forks  # noqa: PLW0603
    folder, environment = Path.cwd() if cwd is None else Path(cwd), dict(os.environ) if env is None else dict(env)
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    is_terminal = any(isinstance(stream, int) and stream >= 0 and os.isatty(stream) for stream in streams.values())
    if within or is_terminal or _must_begin_anew(environment):
        environment.setdefault("PYTHONPATH", str(ROOT))
        command = (*within, sys.executable, "-m", "onellm_async", *arguments)
        return await _begin_anew(*command, **streams, cwd=folder, env=environment)
    if _forks is None:
        _forks = Forks()
    loop = asyncio.get_running_loop()
    protocol = SubprocessStreamProtocol(limit=_STREAM_LIMIT, loop=loop)
    waiter = loop.create_future()
    transport = _Transport(
        loop,
        protocol,
        arguments,
        False,
        **streams,
        bufsize=0,
        waiter=waiter,
        forks=_forks,
        folder=folder,
        environment=environment,
    )
    await waiter
    return Process(transport, protocol, loop)


# In the process that has imported everything


def _import_everything() -> None:
    for room in ("cli", "batch", "server", "simulation", "report"):
        package = importlib.import_module(f"onellm_async.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in _IMPORTED_WHEN_NEEDED:
        importlib.import_module(name)


def _take_streams(descriptors: list[int], closed: list[int]) -> None:
    """Puts descriptors in the places of the standard streams that are not closed."""
    for target, descriptor in zip([number for number in range(3) if number not in closed], descriptors, strict=True):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    for number in closed:
        os.close(number)
        name = ("stdin", "stdout", "stderr")[number]
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)


def _serve(connection: socket.socket) -> list[str]:
    """Forks a process for each request; in the child, returns its arguments. Ends with the worker of pytest."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(connection, _LIMIT, 3)
        if not data:
            os._exit(0)
        request = json.loads(data)
        if "reap" in request:
            connection.send(str(os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            connection.close()
            _take_streams(descriptors, request["closed"])
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            time.tzset()
            random.seed()
            return list(request["arguments"])
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(str(pid).encode())


def _end(code: int) -> NoReturn:
    """Ends the process as Python does, but the modules stay: to remove them takes longer than a short command."""
    threading._shutdown()  # type: ignore[attr-defined]  # as Python does it
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = _NOT_FLUSHED
    os._exit(code)


if __name__ == "__main__":
    _import_everything()
    gc.collect()
    gc.freeze()
    _given = _serve(socket.socket(fileno=int(sys.argv[1])))
    from onellm_async.cli import main

    sys.argv = [str(ROOT / "onellm_async" / "__main__.py"), *_given]
    _code = 1
    try:
        _code = main()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    _end(_code)
