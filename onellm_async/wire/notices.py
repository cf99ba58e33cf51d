"""Warnings that a client logs once."""

import logging

_logger = logging.getLogger("onellm_async")


class Notices:
    """The warnings that a client has logged."""

    __slots__ = ("_logged",)

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def warn_once(self, notice: str) -> None:
        """Logs `notice` as a warning, unless it has been logged before."""
        if notice not in self._logged:
            self._logged.add(notice)
            _logger.warning(notice)
