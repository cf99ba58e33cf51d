"""Callbacks of a caller: what they raise is logged, and ends no run."""

import logging
from collections.abc import Callable
from typing import TypeVar

__all__ = ["guarded"]

_log = logging.getLogger("onellm_async")
_T = TypeVar("_T")


def guarded(callback: Callable[[_T], object], name: str) -> Callable[[_T], None]:
    """`callback` for use where an exception would cancel the requests in flight: it is logged instead.

    Args:
        callback: Takes one argument.
        name: What it is called in the log.
    """

    def call(argument: _T) -> None:
        try:
            callback(argument)
        except Exception:
            _log.exception("%s raised; the run continues.", name)

    return call
