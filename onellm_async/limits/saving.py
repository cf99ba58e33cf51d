"""What was learned about the rate, as a dict that JSON can hold, and back. Pure and strict."""

from collections.abc import Mapping

from attrs import NOTHING, asdict, fields

from onellm_async.errors import ConfigurationError
from onellm_async.limits.adaptive import RateState
from onellm_async.validation import Checks, shown

__all__ = ["rate_state_from_dict", "rate_state_to_dict"]

_check = Checks(ConfigurationError, "rate_state.")
_ABOVE_ZERO = {"rate", "burst"}


def rate_state_to_dict(state: RateState) -> dict[str, float]:
    """`state` as a dict that JSON can hold.

    Example:
        >>> rate_state_to_dict(RateState(rate=0.66, burst=40))["rate"]
        0.66
    """
    return asdict(state)


def rate_state_from_dict(saved: Mapping[str, object]) -> RateState:
    """The state that `rate_state_to_dict` wrote.

    Raises:
        ConfigurationError: If something is missing, unknown or no number; the message names it.

    Example:
        >>> rate_state_from_dict({"rate": 0.66, "burst": 40}).burst
        40
    """
    if not isinstance(saved, Mapping):
        raise ConfigurationError(f"rate_state is {shown(saved)}; it must be what rate_state_to_dict returned.")
    known = {field.name: field for field in fields(RateState)}
    if unknown := sorted(str(name) for name in saved if name not in known):
        raise ConfigurationError(f"rate_state has {shown(unknown[0])}, which is none of {', '.join(known)}.")
    if missing := [name for name, field in known.items() if name not in saved and field.default is NOTHING]:
        raise ConfigurationError(f"rate_state has no {missing[0]!r}; it must be what rate_state_to_dict returned.")
    numbers: dict[str, float] = {}
    for name, value in saved.items():
        if value is None and known[name].default is None:
            continue
        _check.check_number(name, value, 0, above=name in _ABOVE_ZERO)
        numbers[name] = value  # type: ignore[assignment]  # it has just been checked
    return RateState(**numbers)
