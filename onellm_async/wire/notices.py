"""Warnings that a client logs once."""

import logging

_logger = logging.getLogger("onellm_async")


class Notices:
    """The warnings that a client has logged."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, notice: str) -> None:
        """Logs `notice` as a warning, unless it has been logged before."""
        if notice not in self._told:
            self._told.add(notice)
            _logger.warning(notice)
