"""The names of boards and participants."""

import os
import re
import socket
from hashlib import sha256
from itertools import count
from secrets import token_hex

__all__ = ["ParticipantName", "board_name"]

_numbers = count(1)
_MAX_HOST = 20
"""Characters of a host's name: a board has room for 64 rows."""


def board_name(base_url: str, key: str) -> str:
    """Name of the board that all clients of a URL and key share. It tells neither of them.

    Args:
        base_url: The API URL.
        key: The API key.
    """
    return sha256(f"{base_url}\n{key}".encode()).hexdigest()[:16]


class ParticipantName:
    """Name of one client in one process: host, process id, number, and a random part.

    A fork needs another name, or parent and child would write each other's row.
    """

    __slots__ = ("_name", "_pid")

    def __init__(self) -> None:
        self._pid = 0
        self._name = ""

    def current(self) -> str:
        """The name in this process."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            host = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname())[:_MAX_HOST] or "host"
            self._name = f"{host}:{self._pid}:{next(_numbers)}:{token_hex(3)}"
        return self._name
