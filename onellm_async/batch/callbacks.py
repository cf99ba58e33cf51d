"""Callbacks of a caller: what they raise is logged, and ends no run."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["GuardedCallback", "guarded"]

_log = logging.getLogger("onellm_async")
_T = TypeVar("_T")


class GuardedCallback(Generic[_T]):
    """A callback whose exceptions are logged: the first with its traceback, and the others as a number at the end.

    Args:
        callback: Takes one argument.
        name: What it is called in the log.
    """

    def __init__(self, callback: Callable[[_T], object], name: str) -> None:
        self._callback = callback
        self._name = name
        self._raised = 0

    def __call__(self, argument: _T) -> None:
        """Calls it. Raises no `Exception`."""
        try:
            self._callback(argument)
        except Exception:
            self._raised += 1
            if self._raised == 1:
                _log.exception("%s raised; the run continues.", self._name)

    def log_count(self) -> None:
        """Logs how often it raised, if that was more than once."""
        if self._raised > 1:
            _log.error("%s raised %d times in this run; the first is logged above.", self._name, self._raised)


def guarded(callback: Callable[[_T], object], name: str) -> GuardedCallback[_T]:
    """`callback` for use where an exception would cancel the requests in flight: it is logged instead.

    Args:
        callback: Takes one argument.
        name: What it is called in the log.
    """
    return callback if isinstance(callback, GuardedCallback) else GuardedCallback(callback, name)
