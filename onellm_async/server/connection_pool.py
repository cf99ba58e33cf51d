"""A database with few connections, as the published backend has one: who gets a place, and who waits in vain. Pure."""

from collections import OrderedDict
from collections.abc import Callable

POOL_TIMED_OUT = "pool timed out while waiting for an open connection"
"""What the published backend says then, with status 401."""


class ConnectionPool:
    """Places that requests hold while they are processed, given in order of arrival.

    Args:
        places: How many there are.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._holders: set[int] = set()
        self._waiting: OrderedDict[int, Callable[[], None]] = OrderedDict()

    def acquire(self, request: int, granted: Callable[[], None]) -> bool:
        """Takes a place for `request` if one is free; returns whether.

        Args:
            request: Its number.
            granted: Otherwise called when it gets one.
        """
        if self._free:
            self._free -= 1
            self._holders.add(request)
            return True
        self._waiting[request] = granted
        return False

    def release(self, request: int) -> None:
        """Ends what `request` has: its place goes to the one that has waited longest, or it waits no longer."""
        self._waiting.pop(request, None)
        if request not in self._holders:
            return
        self._holders.remove(request)
        if not self._waiting:
            self._free += 1
            return
        following, granted = self._waiting.popitem(last=False)
        self._holders.add(following)
        granted()
