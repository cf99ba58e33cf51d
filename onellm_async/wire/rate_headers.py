"""Headers in which a service advertises its rate limit. Pure.

There is no standard, so the known spellings are read, and what is none of them is ignored:

=================================== ==================================================================================
service                             headers
=================================== ==================================================================================
OpenAI, Azure, Groq, Together       ``x-ratelimit-limit-requests``, ``-remaining-requests``, ``-reset-requests``
Mistral, Cerebras                   the same with a unit: ``x-ratelimit-limit-req-minute``, ``-limit-requests-day``
Anthropic                           ``anthropic-ratelimit-requests-limit``, ``-remaining``, ``-reset``
GitHub and many gateways            ``x-ratelimit-limit``, ``x-rate-limit-limit``, ``ratelimit-limit`` and relatives
IETF draft, up to 06                ``RateLimit-Limit: 100``, ``RateLimit-Policy: 100;w=60``
IETF draft, from 08 on              ``RateLimit: "a";r=50;t=30``, ``RateLimit-Policy: "a";q=100;w=60``
=================================== ==================================================================================

A reset is seconds, a duration such as ``1m26.4s`` or ``120ms``, a Unix time, or a date of RFC 3339.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from attrs import frozen

MAX_RESET = 2 * 86_400.0
"""Seconds. A later reset is none that a client could use, or a number of another meaning."""
_EPOCH = 1e9
"""A number from here on is a Unix time in seconds, from a thousand times that on in milliseconds."""
_MAX_NUMBER = 2.0**53
_SCANS = 8
"""Replies whose headers are all looked at. If none of them advertises a limit, only few of the later ones are."""
_SCAN_EVERY = 64
"""Of the later replies, one of so many is looked at."""

_NUMBER = re.compile(r"\d{1,16}(?:\.\d{1,9})?", re.ASCII)
_DURATION = re.compile(
    r"(?:(?P<d>\d{1,9})d)?(?:(?P<h>\d{1,9})h)?(?:(?P<m>\d{1,9})m(?!s))?(?:(?P<s>\d{1,9}(?:\.\d{1,9})?)s)?"
    r"(?:(?P<ms>\d{1,9}(?:\.\d{1,9})?)ms)?",
    re.ASCII,
)
_SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NAME = re.compile(
    r"(?:x-)?rate-?limit-(?P<part>limit|remaining|reset)(?:-(?:requests|req))?(?:-(?P<unit>second|minute|hour|day))?"
    r"|anthropic-ratelimit-requests-(?P<anthropic>limit|remaining|reset)",
    re.ASCII,
)
_UNIT_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}
_PARAMETER = re.compile(r"\b([a-z]+)\s*=\s*(\d{1,16}(?:\.\d{1,9})?)", re.ASCII)


@frozen(kw_only=True)
class AdvertisedLimit:
    """A rate limit as the headers of a reply advertise it. Each part may be missing, and any may be wrong.

    Attributes:
        limit: Requests in a window, or that a bucket holds.
        remaining: Of these, the number that may be sent now.
        reset: Seconds until the window ends or the bucket is full.
        window: Seconds of the window.
        is_moment: Whether the reset was a moment, not a number of seconds, so that it is exact when the reply arrives.
    """

    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None
    window: float | None = None
    is_moment: bool = False


def parse_rate_headers(headers: Mapping[str, str], now: float) -> AdvertisedLimit | None:
    """Returns the limit of requests that `headers` advertise; of several the one with the least remaining.

    Args:
        headers: Of a reply.
        now: Wall-clock seconds since 1970.

    Example:
        >>> parse_rate_headers({"X-RateLimit-Limit-Requests": "60", "X-RateLimit-Reset-Requests": "1m26.4s"}, now=0.0)
        AdvertisedLimit(limit=60.0, remaining=None, reset=86.4, window=None, is_moment=False)
    """
    found: dict[str | None, dict[str, float]] = {}
    windows: list[tuple[float, float]] = []
    for name, value in headers.items():
        folded = name.lower()
        if "limit" not in folded:
            continue
        if folded == "ratelimit":
            _add(found.setdefault(None, {}), _parameters(value))
        elif folded == "ratelimit-policy":
            windows += _policies(value)
        elif (match := _NAME.fullmatch(folded)) is not None:
            part = match["part"] or match["anthropic"]
            if part == "limit":
                windows += _policies(value.partition(",")[2])
            if read := _read(part, value, now):
                found.setdefault(match["unit"], {}).update(read)
    limits = [
        AdvertisedLimit(
            is_moment=bool(parts.pop("is_moment", False)),
            window=_UNIT_SECONDS.get(unit or "") or _window_of(parts.get("limit"), windows),
            **parts,
        )
        for unit, parts in found.items()
        if parts
    ]
    if not limits and windows:
        limits = [AdvertisedLimit(limit=limit, window=window) for limit, window in windows]
    return min(limits, key=_scarcity, default=None)


def parse_reset(text: str, now: float) -> float | None:
    """Returns the seconds until a reset; None for what is not understood, or is not within two days.

    Args:
        text: Seconds, a duration such as ``1m26.4s``, a Unix time, or a date of RFC 3339.
        now: Wall-clock seconds since 1970.

    Example:
        >>> [parse_reset(text, now=1e9) for text in ("7", "1m26.4s", "120ms", "1000000030", "soon")]
        [7.0, 86.4, 0.12, 30.0, None]
    """
    return _read("reset", text, now).get("reset")


def _read(part: str, text: str, now: float) -> dict[str, float]:
    """The parts of an `AdvertisedLimit` that one header tells; none if it is not understood."""
    if part != "reset":
        number = _number(text.partition(",")[0])
        return {} if number is None else {part: number}
    text = text.strip()
    seconds, is_moment = _number(text), False
    if seconds is not None and seconds >= _EPOCH:
        is_moment = True
        seconds = max(0.0, (seconds / 1000 if seconds >= 1000 * _EPOCH else seconds) - now)
    elif seconds is None and text and (match := _DURATION.fullmatch(text)) is not None:
        seconds = sum(float(value) * _SECONDS[unit] for unit, value in match.groupdict().items() if value)
    elif seconds is None:
        is_moment, seconds = True, _date(text, now)
    if seconds is None or seconds > MAX_RESET:
        return {}
    return {"reset": seconds, "is_moment": True} if is_moment else {"reset": seconds}


class RateHeaderReader:
    """Reads the headers of many replies, and looks at few of them once none was found."""

    __slots__ = ("_left", "_replies")

    def __init__(self) -> None:
        self._left = _SCANS
        self._replies = 0

    def read(self, headers: Mapping[str, str], now: float) -> AdvertisedLimit | None:
        """Returns what `headers` advertise; None if nothing, or if they are not looked at.

        Args:
            headers: Of a reply.
            now: Wall-clock seconds since 1970.
        """
        self._replies += 1
        if self._left <= 0 and self._replies % _SCAN_EVERY:
            return None
        found = parse_rate_headers(headers, now)
        self._left = self._left - 1 if found is None else _SCANS
        return found


def _number(text: str) -> float | None:
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if number <= _MAX_NUMBER else None


def _date(text: str, now: float) -> float | None:
    if len(text) < 19 or text[4:5] != "-":
        return None
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)


_NAMES = {"r": "remaining", "t": "reset", "remaining": "remaining", "reset": "reset", "limit": "limit"}


def _parameters(value: str) -> dict[str, float]:
    """The parts of the first item of a ``RateLimit`` field."""
    found = {_NAMES[name]: float(number) for name, number in _PARAMETER.findall(_first_item(value)) if name in _NAMES}
    if found.get("reset", 0.0) > MAX_RESET:
        del found["reset"]
    return found


def _first_item(value: str) -> str:
    # Draft 07 has limit=100, remaining=50, reset=5: one item in three members.
    return value if ";" not in value else value.partition(",")[0]


def _policies(value: str) -> Iterable[tuple[float, float]]:
    """Limit and window in seconds of each item of a ``RateLimit-Policy`` field."""
    found = []
    for item in value.split(","):
        parameters = dict(_PARAMETER.findall(item))
        limit = _number(parameters.get("q", item.partition(";")[0]))
        window = _number(parameters.get("w", ""))
        if limit is not None and window:
            found.append((limit, window))
    return found


def _add(parts: dict[str, float], more: Mapping[str, float]) -> None:
    for name, number in more.items():
        parts.setdefault(name, number)


def _window_of(limit: float | None, windows: Iterable[tuple[float, float]]) -> float | None:
    """The window of the policy with that limit; of the only one if there is no limit."""
    windows = list(windows)
    if limit is None:
        return windows[0][1] if len(windows) == 1 else None
    return next((window for found, window in windows if found == limit), None)


def _scarcity(limit: AdvertisedLimit) -> tuple[float, float]:
    inf = float("inf")
    return inf if limit.remaining is None else limit.remaining, inf if limit.limit is None else limit.limit
