"""What a rate control knows about the rate, as a value that can be saved and restored. Pure and strict."""

from collections.abc import Mapping

from attrs import NOTHING, fields, frozen

from onellm_async import serialization
from onellm_async.errors import ConfigurationError
from onellm_async.serialization import JSON
from onellm_async.validation import Checks, truncated_repr

_check = Checks(ConfigurationError, "rate_state.")
_ABOVE_ZERO = {"rate", "burst"}
"""Fields that must be greater than zero."""
_LONGEST = 1e9
"""Seconds of a window, less than."""


@frozen
class RateState:
    """What a rate control knows, to be given to another one: after a restart, or as a prior that may be wrong.

    Attributes:
        rate: Requests per second that it keeps up.
        burst: Requests that the service accepts at once after a pause, as far as that was seen.
        low: Requests per second that the service certainly allows; 0 when that is not known.
        high: Requests per second that it certainly does not exceed; None when that is not known.
        windows: Windows that were found: a number of requests, and the seconds in which no more are accepted.

    Example:
        A limit from a document, as a prior: ``RateState(rate=40 / 60, burst=40)``.
    """

    rate: float
    burst: float
    low: float = 0.0
    high: float | None = None
    windows: tuple[tuple[int, float], ...] = ()

    def to_dict(self) -> dict[str, JSON]:
        """Returns the state as a dict that JSON can hold, without what is not set.

        Example:
            >>> RateState(rate=0.66, burst=40).to_dict()["rate"]
            0.66
        """
        return serialization.to_dict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, object]) -> "RateState":
        """Returns the state that `to_dict` wrote.

        Args:
            saved: The dict, perhaps read from JSON.

        Raises:
            ConfigurationError: If a value is missing, unknown or no number; the message names it.

        Example:
            >>> RateState.from_dict({"rate": 0.66, "burst": 40}).burst
            40
        """
        if not isinstance(saved, Mapping):
            raise ConfigurationError(
                f"rate_state is {truncated_repr(saved)}; it must be what RateState.to_dict returned."
            )
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(str(name) for name in saved if name not in known):
            raise ConfigurationError(
                f"rate_state has {truncated_repr(unknown[0])}, which is none of {', '.join(known)}."
            )
        if missing := [name for name, field in known.items() if name not in saved and field.default is NOTHING]:
            raise ConfigurationError(f"rate_state has no {missing[0]!r}; it must be what RateState.to_dict returned.")
        numbers: dict[str, float] = {}
        windows = _windows(saved.get("windows", ()))
        for name, value in saved.items():
            if name == "windows" or (value is None and known[name].default is None):
                continue
            _check.check_number(name, value, 0, above=name in _ABOVE_ZERO)
            numbers[name] = value  # type: ignore[assignment]  # it has just been checked
        return cls(**numbers, windows=windows)


def _windows(saved: object) -> tuple[tuple[int, float], ...]:
    wrong = ConfigurationError(
        f"rate_state.windows is {truncated_repr(saved)}; it must be a list of a number of requests and seconds each."
    )
    if not isinstance(saved, list | tuple):
        raise wrong
    windows: list[tuple[int, float]] = []
    for pair in saved:
        if not isinstance(pair, list | tuple) or len(pair) != 2:  # a pair
            raise wrong
        count, seconds = pair
        if type(count) is not int or count < 1 or type(seconds) not in {int, float} or not 0 < seconds < _LONGEST:
            raise wrong
        windows.append((count, float(seconds)))
    return tuple(windows)
