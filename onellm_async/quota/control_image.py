"""A rate control of the limiter as a JSON value, and back. Pure.

The controls are written for one process and know nothing of boards. So this does not know their attributes either: it
follows the objects that a control is made of, and writes the attributes of each. It reads only classes of
`onellm_async.limits`, calls nothing of theirs, and refuses what does not fit: another version of the package wrote it.
"""

import math
from collections import deque
from collections.abc import Collection, Sequence
from functools import cache
from importlib import import_module
from random import Random
from types import ModuleType
from typing import Any

from onellm_async.chat import JSON
from onellm_async.limits.rate_control import RateControl

__all__ = ["ControlImageError", "dump_control", "load_control"]

_ROOM = "onellm_async.limits."
_NUMBERS = frozenset((float, int))
_SCALARS = frozenset((int, bool, str, type(None)))
_NESTED = frozenset((list, dict))
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
    kind: Any = type(thing)  # mypy takes a class for something that cannot be hashed
    for name in _slots(kind):
        try:
            found[name] = getattr(thing, name)
        except AttributeError:  # a slot may be empty
            continue
    return found


@cache
def _slots(kind: type[Any]) -> tuple[str, ...]:
    """The names of the slots of a class and of its bases."""
    declared = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
    names = [name for slots in declared for name in ((slots,) if isinstance(slots, str) else slots)]
    return tuple(name for name in names if not name.startswith("__"))


def _are_numbers(items: Collection[Any]) -> bool:
    """Whether all of them are numbers, as the times of a log: then they are not looked at one by one."""
    return _NUMBERS.issuperset(map(type, items))


class _Writer:
    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []

    def write(self, value: Any) -> JSON:
        kind = type(value)
        if kind is float:
            return value if math.isfinite(value) else {"~": "float", "is": str(value)}
        if kind in _SCALARS:
            return value
        if kind is list:
            return self._items(value)
        if kind is tuple:
            return {"~": "tuple", "items": self._items(value)}
        if kind is deque:
            return {"~": "deque", "most": value.maxlen, "items": self._items(list(value)[-MAX_ITEMS:])}
        if kind is dict:
            return {"~": "dict", "items": [[self.write(key), self.write(item)] for key, item in value.items()]}
        if isinstance(value, Random):
            return {"~": "random"}
        return self._write_object(value)

    def _items(self, items: Sequence[Any]) -> JSON:
        is_plain = _are_numbers(items) and all(map(math.isfinite, items))
        return [*items] if is_plain else [self.write(item) for item in items]

    def _write_object(self, value: Any) -> JSON:
        if id(value) in self._numbers:
            return {"~": "seen", "number": self._numbers[id(value)]}
        kind = type(value)
        if not kind.__module__.startswith(_ROOM):
            raise TypeError(f"{kind.__qualname__} cannot be written to a board.")
        self._numbers[id(value)] = len(self._kept)
        self._kept.append(value)
        write = self.write
        attributes = {
            name: item if type(item) in _SCALARS else write(item) for name, item in _attributes(value).items()
        }
        return {"~": f"{kind.__module__.removeprefix(_ROOM)}:{kind.__qualname__}", "has": attributes}


class _Reader:
    def __init__(self, random: Random) -> None:
        self._random = random
        self._kept: list[Any] = []

    def read(self, image: Any) -> Any:
        kind = type(image)
        if kind is list:
            return self._items(image)
        return self._read_marked(image) if kind is dict else image

    def _items(self, items: list[Any]) -> list[Any]:
        return [*items] if _are_numbers(items) else [self.read(item) for item in items]

    def _read_marked(self, image: dict[str, Any]) -> Any:
        match image["~"]:
            case "float":
                return float(image["is"])
            case "tuple":
                return tuple(self._items(image["items"]))
            case "deque":
                return deque(self._items(image["items"]), maxlen=image["most"])
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
        put = object.__setattr__
        for attribute, item in attributes.items():
            put(value, attribute, self.read(item) if type(item) in _NESTED else item)
        return value


@cache
def _class_of(name: str) -> type:
    module_name, _, class_name = name.partition(":")
    module: ModuleType = import_module(_ROOM + module_name)
    found = vars(module)[class_name]
    if not isinstance(found, type) or found.__module__ != module.__name__:
        raise TypeError(f"{name} is not a class of the limiter.")
    return found
