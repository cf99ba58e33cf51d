"""Answers every chat at once: the stand-in where nginx is not installed."""

from benchmarks.servers.http import Connection, encode, serve
from benchmarks.servers.replies import PATHS

_RESPONSES = {path: encode(200, body) for path, body in PATHS.items()}
_NOT_FOUND = encode(404, b"{}")


class FastConnection(Connection):
    """One client's connection."""

    def respond(self, path: str) -> None:
        """Success, whatever is asked."""
        self.send(_RESPONSES.get(path, _NOT_FOUND))


if __name__ == "__main__":
    serve(FastConnection)
