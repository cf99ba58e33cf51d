"""JSON codec: orjson, or the standard library for text that orjson rejects.

orjson rejects lone surrogates, NaN and a byte order mark; the service's answer is paid for all the same.
"""

import json
import math
from codecs import BOM_UTF8
from collections.abc import Mapping

import orjson

from onellm_async.chat import JSON

_TOO_DEEP = "the JSON is nested too deeply"
_DEPTH_LIMIT = ("depth limit", "Recursion limit")
"""Words of orjson, new and old, for its limit of 1,024 levels."""
_MAX_INT_DIGITS = 4300
"""Digits that Python converts by default (`sys.set_int_max_str_digits`)."""


def dump_json(value: JSON) -> bytes:
    """`value` as compact UTF-8 JSON. Lone surrogates are escaped, NaN and infinities become null.

    Raises:
        TypeError: If it holds something that JSON cannot.
    """
    try:
        return orjson.dumps(value, default=_plain)
    except TypeError:
        pass
    try:
        text = json.dumps(value, default=_plain, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def parse_json(text: bytes) -> JSON:
    """The value that `text` holds, with every leniency that keeps an answer readable.

    A byte order mark, NaN, lone surrogates and single broken UTF-8 bytes are accepted. Integers beyond 64 bits may
    become floats.

    Raises:
        ValueError: If it is not JSON, or nested too deeply.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if any(words in str(error) for words in _DEPTH_LIMIT):  # whether json takes it depends on the Python
            raise ValueError(_TOO_DEEP) from None
    try:
        # Not the codec "utf-8-sig": it is a file to import, which fails while all descriptors are in use.
        return json.loads(text.removeprefix(BOM_UTF8).decode("utf-8", "replace"), parse_int=_number)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _finite(value: JSON) -> JSON:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < _MAX_INT_DIGITS else float(digits)
