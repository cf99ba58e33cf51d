"""Inbound keys: the file that lists them, as values. Pure.

::

    [alice]
    sha256 = "…"             # of the key; the key itself is stored nowhere
    lane = "interactive"     # default "default"
    max-cost = 5.0           # USD; without it no cap
    admin = true             # may see the status page and the metrics
"""

import re
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import cast, get_args

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import LANES, Lane
from onellm_async.validation import Checks, truncated_repr

KEY_PREFIX = "sk-onellm-"
"""Clients and secret scanners recognize keys by it."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"sha256": "sha256", "lane": "lane", "max-cost": "max_cost", "admin": "admin"}
_check = Checks(ConfigurationError)


@frozen(kw_only=True)
class InboundKey:
    """One key of the gateway.

    Attributes:
        name: Under which it is listed and counted.
        sha256: Hash of the key, in hexadecimal digits.
        lane: The lane of its requests.
        max_cost: Cost cap in USD; None for no cap.
        admin: Whether it may see the status page and the metrics.

    Raises:
        ConfigurationError: If a value is unusable.
    """

    name: str
    sha256: str = field(repr=False)
    lane: Lane = "default"
    max_cost: float | None = None
    admin: bool = False

    def __attrs_post_init__(self) -> None:
        check_name(self.name)
        where = f"[{self.name}] "
        if not _DIGEST.fullmatch(str(self.sha256)):
            raise ConfigurationError(f"{where}sha256 must be 64 hexadecimal digits in lower case.")
        if self.lane not in tuple(LANES):  # of any type: it may come from a file
            raise _check.error(f"{where}lane", self.lane, f"it must be one of {', '.join(LANES)}")
        if self.max_cost is not None:
            _check.check_number(f"{where}max-cost", self.max_cost, 0, above=True)
        if not isinstance(self.admin, bool):
            raise _check.error(f"{where}admin", self.admin, "it must be true or false")


def check_name(name: str) -> None:
    """Checks the name of a key.

    Raises:
        ConfigurationError: If it has other characters than letters, digits, ``_`` and ``-``, or more than 64.
    """
    if not _NAME.fullmatch(str(name)):
        raise ConfigurationError(
            f"The name of a key is {truncated_repr(name)}; it must be 1 to 64 letters, digits, _ or - of ASCII."
        )


def hash_key(key: str) -> str:
    """The SHA-256 of a key, in hexadecimal digits."""
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def parse_keys(text: str) -> Mapping[str, InboundKey]:
    """The keys of a file, by their hash.

    Args:
        text: The content of the file.

    Raises:
        ConfigurationError: If it is not TOML, or a key in it is unusable.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"It is not TOML: {error}.") from None
    keys: dict[str, InboundKey] = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigurationError(f"{name} stands outside of a table; each key has a table such as [alice].")
        unknown = sorted(table.keys() - _FIELDS)
        if unknown:
            raise ConfigurationError(f"[{name}] has {unknown[0]!r}; the fields are {', '.join(_FIELDS)}.")
        if "sha256" not in table:
            raise ConfigurationError(
                f"[{name}] has no sha256.", advice="Add keys with `onellm-async gateway keys add`."
            )
        key = InboundKey(name=name, **{_FIELDS[spelled]: value for spelled, value in table.items()})
        if key.sha256 in keys:
            raise ConfigurationError(f"[{name}] and [{keys[key.sha256].name}] are the same key.")
        keys[key.sha256] = key
    return MappingProxyType(keys)


def render_key(key: InboundKey) -> str:
    """The table of a key, as it stands in the file."""
    lines = [f"[{key.name}]", f'sha256 = "{key.sha256}"']
    if key.lane != "default":
        lines.append(f'lane = "{key.lane}"')
    if key.max_cost is not None:
        lines.append(f"max-cost = {float(key.max_cost)!r}")
    if key.admin:
        lines.append("admin = true")
    return "\n".join(lines) + "\n"


def add_key(text: str, key: InboundKey) -> str:
    """The content of a file with one key more.

    Raises:
        ConfigurationError: If a key of that name is in it.
    """
    if any(key.name == there.name for there in parse_keys(text).values()):
        raise ConfigurationError(
            f"There is a key called {key.name}.", advice="Remove it first, or choose another name."
        )
    return f"{text.rstrip()}\n\n{render_key(key)}" if text.strip() else render_key(key)


def remove_key(text: str, name: str) -> str:
    """The content of a file without one of its keys. Comments and all other keys stay as they are.

    Raises:
        ConfigurationError: If there is no such key, or its table cannot be found.
    """
    check_name(name)
    before = parse_keys(text)
    if all(key.name != name for key in before.values()):
        known = ", ".join(key.name for key in before.values()) or "none"
        raise ConfigurationError(f"There is no key called {name}; the keys are: {known}.")
    lines, kept, dropping = text.splitlines(keepends=True), [], False
    for line in lines:
        header = re.match(r"\s*\[\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*\]", line)
        if header is not None:
            dropping = header[1] == name
        if not dropping:
            kept.append(line)
    remaining = "".join(kept)
    expected = {digest: key for digest, key in before.items() if key.name != name}
    if dict(parse_keys(remaining)) != expected:
        raise ConfigurationError(f"The table of {name} is written in an unusual way.", advice="Remove it by hand.")
    return remaining


def choose_lane(key_lane: Lane, wanted: str | None, *, any_lane: bool) -> Lane | None:
    """The lane of a request: the key's, or a lower one that the request asks for; None if it may not have it.

    Args:
        key_lane: Lane of the key.
        wanted: Lane that the request names; None for the key's.
        any_lane: Whether a request may also choose a higher lane.

    Example:
        >>> [choose_lane("default", wanted, any_lane=False) for wanted in (None, "batch", "interactive", "fast")]
        ['default', 'batch', None, None]
    """
    if wanted is None:
        return key_lane
    found = next((lane for lane in get_args(Lane) if lane == wanted), None)
    if found is None or (not any_lane and LANES[found] > LANES[key_lane]):
        return None
    return cast("Lane", found)
