"""Back into input order: what arrives early is held until everything before it is there. Pure."""

from typing import Generic, TypeVar

__all__ = ["ReorderBuffer"]

_T = TypeVar("_T")


class ReorderBuffer(Generic[_T]):
    """Values that arrive by position in any order and leave in order of position.

    It is as large as the gap that its user allows: compare `next_position` with the newest position let in.

    Example:
        >>> order = ReorderBuffer()
        >>> order.put(1, "b"), order.put(0, "a")
        ([], ['a', 'b'])
    """

    def __init__(self) -> None:
        self._next = 0
        self._early: dict[int, _T] = {}

    @property
    def next_position(self) -> int:
        """The position that everything else waits for."""
        return self._next

    def __len__(self) -> int:
        return len(self._early)

    def put(self, position: int, value: _T) -> list[_T]:
        """Takes the value of `position`, once.

        Returns:
            What can leave now, in order.
        """
        self._early[position] = value
        ready = []
        while self._next in self._early:
            ready.append(self._early.pop(self._next))
            self._next += 1
        return ready

    def drain(self) -> list[_T]:
        """Everything still held, in order, over the gaps: nothing more will come."""
        ready = [self._early[position] for position in sorted(self._early)]
        self._early.clear()
        return ready
