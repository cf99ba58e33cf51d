"""What a client tells once: logged at the first time, silent afterwards."""

import logging

__all__ = ["Notices"]

_logger = logging.getLogger("onellm_async")


class Notices:
    """The notices that a client has logged, each of them once."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, notice: str) -> None:
        """Logs `notice` as a warning, unless it has been logged before."""
        if notice not in self._told:
            self._told.add(notice)
            _logger.warning(notice)
