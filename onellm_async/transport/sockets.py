"""Sockets that detect a dead peer within about a minute, which long waits for an answer need."""

import socket
from contextlib import suppress

_IDLE = 30
"""Seconds of silence before the first probe."""
_INTERVAL = 10
"""Seconds between probes."""
_PROBES = 3
"""Probes without an answer that end the connection."""

_OPTIONS = (
    ("TCP_KEEPIDLE", _IDLE),  # Linux, Windows
    ("TCP_KEEPALIVE", _IDLE),  # macOS
    ("TCP_KEEPINTVL", _INTERVAL),
    ("TCP_KEEPCNT", _PROBES),
    ("TCP_USER_TIMEOUT", (_IDLE + _INTERVAL * _PROBES) * 1000),  # Linux: probes are not sent while data is unconfirmed
)
"""Options by the names that platforms may lack, and their values."""


def keep_alive_socket(address: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
    """A new socket for `address`, with TCP keep-alive as far as the platform has it."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    with suppress(OSError):  # it works without, only later
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS:
            if (option := getattr(socket, name, None)) is not None:
                made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
