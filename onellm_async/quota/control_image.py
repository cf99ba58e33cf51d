"""A rate control of the limiter as a JSON value, and back. Pure.

The controls are written for one process and know nothing of boards. So this does not know their attributes either: it
follows the objects that a control is made of, and writes the attributes of each. It reads only classes of
`onellm_async.limits`, calls nothing of theirs, and refuses what does not fit: another version of the package wrote it.
"""

import math
from collections import deque
from importlib import import_module
from random import Random
from types import ModuleType
from typing import Any

from onellm_async.chat import JSON
from onellm_async.limits.rate_control import RateControl

__all__ = ["ControlImageError", "dump_control", "load_control"]

_ROOM = "onellm_async.limits."
MAX_ITEMS = 256
"""Items of a deque that are written, the newest: a control keeps the times of its last sends in one. A 429 comes back
within the time of far fewer."""


class ControlImageError(ValueError):
    """An image that this version of the package cannot read."""


def dump_control(control: RateControl) -> JSON:
    """`control` as a JSON value.

    Raises:
        TypeError: If it holds something that cannot be written.
    """
    return _Writer().write(control)


def load_control(image: JSON, random: Random) -> RateControl:
    """The control that `dump_control` wrote.

    Args:
        image: What it returned.
        random: Source of jitter from now on; the image has none.

    Raises:
        ControlImageError: If the image does not fit the classes of this version.
    """
    try:
        control: RateControl = _Reader(random).read(image)
        control.time_until(1, 0.0)
    except (AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        raise ControlImageError(f"{type(error).__name__}: {error}") from None
    return control


def _attributes(thing: object) -> dict[str, Any]:
    found = dict(getattr(thing, "__dict__", {}))
    for base in type(thing).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(thing, name):
                found[name] = getattr(thing, name)
    return found


class _Writer:
    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []

    def write(self, value: Any) -> JSON:
        if isinstance(value, bool | int | str) or value is None:
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"~": "float", "is": str(value)}
        if isinstance(value, list):
            return [self.write(item) for item in value]
        if isinstance(value, tuple):
            return {"~": "tuple", "items": [self.write(item) for item in value]}
        if isinstance(value, deque):
            return {
                "~": "deque",
                "most": value.maxlen,
                "items": [self.write(item) for item in list(value)[-MAX_ITEMS:]],
            }
        if isinstance(value, dict):
            return {"~": "dict", "items": [[self.write(key), self.write(item)] for key, item in value.items()]}
        if isinstance(value, Random):
            return {"~": "random"}
        return self._write_object(value)

    def _write_object(self, value: Any) -> JSON:
        if id(value) in self._numbers:
            return {"~": "seen", "number": self._numbers[id(value)]}
        kind = type(value)
        if not kind.__module__.startswith(_ROOM):
            raise TypeError(f"{kind.__qualname__} cannot be written to a board.")
        self._numbers[id(value)] = len(self._kept)
        self._kept.append(value)
        attributes = {name: self.write(item) for name, item in _attributes(value).items()}
        return {"~": f"{kind.__module__.removeprefix(_ROOM)}:{kind.__qualname__}", "has": attributes}


class _Reader:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._kept: list[Any] = []

    def read(self, image: Any) -> Any:
        if isinstance(image, list):
            return [self.read(item) for item in image]
        return self._read_marked(image) if isinstance(image, dict) else image

    def _read_marked(self, image: dict[str, Any]) -> Any:
        match image["~"]:
            case "float":
                return float(image["is"])
            case "tuple":
                return tuple(self.read(item) for item in image["items"])
            case "deque":
                return deque((self.read(item) for item in image["items"]), maxlen=image["most"])
            case "dict":
                return {self.read(key): self.read(item) for key, item in image["items"]}
            case "random":
                return self._random
            case "seen":
                return self._kept[image["number"]]
            case name:
                return self._read_object(name, image["has"])

    def _read_object(self, name: str, attributes: dict[str, Any]) -> Any:
        value: Any = object.__new__(_class_of(name))
        self._kept.append(value)
        for attribute, item in attributes.items():
            object.__setattr__(value, attribute, self.read(item))
        return value


def _class_of(name: str) -> type:
    module_name, _, class_name = name.partition(":")
    module: ModuleType = import_module(_ROOM + module_name)
    found = vars(module)[class_name]
    if not isinstance(found, type) or found.__module__ != module.__name__:
        raise TypeError(f"{name} is not a class of the limiter.")
    return found
