"""The database connections of the published backend: a pool of fixed size. Pure."""

from collections import OrderedDict
from collections.abc import Callable

POOL_TIMED_OUT = "pool timed out while waiting for an open connection"
"""Text of the published backend's 401 if no connection becomes free in time."""


class ConnectionPool:
    """Connections that requests hold while they are processed, granted in order of arrival.

    Args:
        size: Number of connections.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._holders: set[int] = set()
        self._queued: OrderedDict[int, Callable[[], None]] = OrderedDict()

    def acquire(self, request: int, on_granted: Callable[[], None]) -> bool:
        """Takes a connection for `request` if one is free; otherwise queues it. Returns whether it took one.

        Args:
            request: Number of the request.
            on_granted: Called when a queued request gets its connection.
        """
        if self._free:
            self._free -= 1
            self._holders.add(request)
            return True
        self._queued[request] = on_granted
        return False

    def release(self, request: int) -> None:
        """Removes `request` from the queue, or passes its connection to the longest-waiting request."""
        self._queued.pop(request, None)
        if request not in self._holders:
            return
        self._holders.remove(request)
        if not self._queued:
            self._free += 1
            return
        following, on_granted = self._queued.popitem(last=False)
        self._holders.add(following)
        on_granted()
