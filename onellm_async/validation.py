"""Checks of values, as attrs validators. Each error names the value and the rule.

Requests and settings raise different errors, so a set of checks is made for an error class.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from onellm_async.errors import ConfigurationError, OneLLMError

Validator: TypeAlias = Callable[[Any, Any, Any], None]
"""Called with the object, an attrs attribute and its value, as attrs does; raises if the value is invalid."""

_MAX_CHARACTERS = 80
_MAX_DEPTH = 100
_MAX_PORT = 65_535
_MAX_BITS = 4096
"""Beyond it (1,233 digits) Python may refuse to write an integer out, and no JSON parser reads it."""


def truncated_repr(value: object) -> str:
    """Returns the repr of `value` for a message, at most 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "…"


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


class Checks:
    """Validators that raise one class of error.

    Args:
        error: What is raised, with a message naming the value and the rule.
        subject: Put before the attribute's name, for example ``"Limits."``.
    """

    def __init__(self, error: type[OneLLMError], subject: str = "") -> None:
        self._error = error
        self._subject = subject

    def error(self, name: str, value: object, rule: str, *, advice: str = "") -> OneLLMError:
        """The error for `value` of the attribute called `name`."""
        return self._error(f"{self._subject}{name} is {truncated_repr(value)}; {rule}.", advice=advice)

    def number(self, low: float, high: float = math.inf, *, above: bool = False, optional: bool = False) -> Validator:
        """A finite number from `low` (exclusive when `above`) to `high`."""

        def check(_: object, attribute: Any, value: object) -> None:
            if value is not None or not optional:
                self.check_number(attribute.name, value, low, high, above=above)

        return check

    def check_number(
        self, name: str, value: object, low: float, high: float = math.inf, *, above: bool = False
    ) -> None:
        """Raises the error if `value` is not a finite number from `low` (exclusive when `above`) to `high`."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
        if number and low <= value <= high and not (above and value == low):  # type: ignore[operator]
            return
        if above:
            rule = f"it must be a finite number above {low:g}"
        elif math.isinf(high):
            rule = f"it must be a finite number of at least {low:g}"
        else:
            rule = f"it must be a number from {low:g} to {high:g}"
        raise self.error(name, value, rule)

    def integer(self, low: int | None = None, *, optional: bool = False) -> Validator:
        """An integer of at least `low`. True and False are not integers here."""
        rule = "it must be an integer" if low is None else f"it must be an integer of at least {low}"

        def check(_: object, attribute: Any, value: object) -> None:
            if value is None and optional:
                return
            if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
                raise self.error(attribute.name, value, rule)
            if value.bit_length() > _MAX_BITS:
                raise self.error(attribute.name, value, "no service reads such a number")

        return check

    def kind(self, kind: type, rule: str, *, optional: bool = False) -> Validator:
        """An instance of `kind`."""

        def check(_: object, attribute: Any, value: object) -> None:
            if not isinstance(value, kind) and not (value is None and optional):
                raise self.error(attribute.name, value, rule)

        return check

    def sequence(self, kind: type, rule: str) -> Validator:
        """None, or a tuple of `kind` that JSON can hold."""

        def check(_: object, attribute: Any, value: object) -> None:
            if value is None:
                return
            if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):
                raise self.error(attribute.name, value, rule)
            self.json(attribute.name, value)

        return check

    def json_object(self, rule: str) -> Validator:
        """None, or a mapping that JSON can hold."""

        def check(_: object, attribute: Any, value: object) -> None:
            if value is None:
                return
            if not isinstance(value, Mapping):
                raise self.error(attribute.name, value, rule)
            self.json(attribute.name, value)

        return check

    def json(self, path: str, value: object, depth: int = 0) -> None:
        """Raises the error, with the path of the value, if JSON cannot represent it."""
        if value is None or isinstance(value, str):
            return
        if isinstance(value, int | float):
            if not _finite(value) or (isinstance(value, int) and value.bit_length() > _MAX_BITS):
                raise self.error(path, value, "JSON has no such number")
        elif depth == _MAX_DEPTH:
            raise self.error(path, value, f"it is nested deeper than {_MAX_DEPTH} levels")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise self.error(f"A key of {path}", key, "JSON keys are strings")
                self.json(f"{path}[{truncated_repr(key)}]", item, depth + 1)
        elif isinstance(value, list | tuple):
            for position, item in enumerate(value):
                self.json(f"{path}[{position}]", item, depth + 1)
        else:
            raise self.error(path, value, "it is not a JSON value")


def check_port(port: int) -> None:
    """Checks the port that a server shall listen on.

    Raises:
        ConfigurationError: If it is no integer from 0 to 65535.
    """
    if not 0 <= port <= _MAX_PORT:
        rule = f"it must be an integer from 0 to {_MAX_PORT}, where 0 takes any free one"
        raise Checks(ConfigurationError).error("port", port, rule)
