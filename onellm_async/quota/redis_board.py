"""The arguments and replies of the scripts that keep a board in Redis. Pure.

There are two ways to visit. Where the limit is declared, ``board.lua`` makes the whole visit in Redis: one round trip.
Where it is discovered, the board is Python's: the visitor reads the image, computes, and writes it if it is unchanged
(compare-and-set). Meanwhile it holds a lock, since of many visitors at once all but one would compute for nothing. The
lock only saves that work: it expires, and a visit without it is as safe. A board can pass from one way to the other,
since both know the same fields.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TypeAlias

from onellm_async.limits.quota import Declaration, Demand, Grant
from onellm_async.quota.board import encode_limits
from onellm_async.quota.controls import declared_limit
from onellm_async.quota.versions import NewerBoardError

__all__ = ["EXPORT", "REPLACE", "needs_python", "read_grant", "visit_arguments", "visit_script"]

Reply: TypeAlias = Sequence[bytes | int | float]

EXPORT = """\
-- The board as JSON with every digit, the digest of its bytes, and the time. The JSON is '' if there is no board.
-- Nothing if another visitor holds the lock.
if KEYS[2] and not redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {} end
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local image = redis.call('GET', KEYS[1])
if not image then return {'', '', string.format('%.17g', now)} end
local digest = redis.sha1hex(image)
if string.sub(image, 1, 1) == '{' then return {image, digest, string.format('%.17g', now)} end

local function encode(value)
  if type(value) == 'number' then return string.format('%.17g', value) end
  if type(value) ~= 'table' then return cjson.encode(value) end
  local parts = {}
  if #value > 0 or next(value) == nil then
    for index, item in ipairs(value) do parts[index] = encode(item) end
    return '[' .. table.concat(parts, ',') .. ']'
  end
  for name, item in pairs(value) do parts[#parts + 1] = cjson.encode(name) .. ':' .. encode(item) end
  return '{' .. table.concat(parts, ',') .. '}'
end

return {encode(cmsgpack.unpack(image)), digest, string.format('%.17g', now)}
"""
"""Reads a board. With a second key, that of its lock, it takes that first: ARGV  1 the holder   2 milliseconds."""

REPLACE = """\
-- Writes a board if the bytes there still have a digest.
-- ARGV  1 the digest, '' for no board   2 JSON   3 seconds to live   4 the holder of the lock, KEYS[2]
if redis.call('GET', KEYS[2]) == ARGV[4] then redis.call('SET', KEYS[2], '', 'PX', 1) end
local image = redis.call('GET', KEYS[1])
if (image and redis.sha1hex(image) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
"""Writes a board that was computed in Python, and gives the lock back."""


@cache
def visit_script() -> str:
    """``board.lua``."""
    return files("onellm_async.quota").joinpath("board.lua").read_text(encoding="utf-8")


def visit_arguments(
    name: str,
    demand: Demand,
    declaration: Declaration,
    *,
    declared_age: float,
    seen: bool,
    draw: float,
    now: float | None = None,
) -> list[str]:
    """The arguments of ``board.lua``, in its order.

    Args:
        name: The participant.
        demand: Its report.
        declaration: Its limits.
        declared_age: Seconds since it was given them.
        seen: Whether it has seen a board before.
        draw: A random number from 0 to 1.
        now: Board time, in tests; None for the clock of Redis.
    """
    limit = declared_limit(declaration.limits)
    state = declaration.state
    numbers: list[float] = [
        *demand.waiting,
        *demand.ages,
        *demand.tokens,
        demand.given_back,
        demand.settled_tokens,
        demand.sent_alone,
        demand.alone_for,
        int(demand.leaving),
    ]
    reports = [
        ",".join(f"{sent!r}:{received!r}" for sent, received in demand.answered),
        ",".join(
            f"{report.sent!r}:{report.received!r}:{-1 if report.retry_after is None else report.retry_after!r}"
            for report in demand.rate_limited
        ),
    ]
    limits: list[float] = [0.0] * 8
    if limit is not None:
        limits = [
            limit.ceiling,
            limit.floor,
            limit.burst,
            limit.capacity,
            limit.empty_level,
            limit.pacer_rate,
            limit.refill,
            limit.strict,
        ]
    return [
        name,
        *map(repr, numbers),
        *reports,
        repr(draw),
        str(int(declaration.explicit)),
        repr(declared_age),
        str(int(seen)),
        *map(str, encode_limits(declaration.limits)),
        *map(repr, limits),
        repr(0.0 if state is None else state.rate),
        "" if now is None else repr(now),
    ]


def needs_python(reply: Reply) -> bool:
    """Whether ``board.lua`` left the visit to Python, as the limit of the board is discovered.

    Raises:
        NewerBoardError: If a newer version of the package keeps the board.
    """
    verdict = _text(reply[0])
    if verdict == "newer":
        raise NewerBoardError("It is kept by a newer version of onellm-async.", int(_text(reply[1])))
    return verdict == "general"


def read_grant(reply: Reply) -> Grant:
    """What ``board.lua`` returned."""
    _, permits, again_in, ahead, rate, burst, level, confidence, participants, share, *rest = map(_text, reply)
    wants_answers, retry_in, charged, tokens_level, low, high = rest
    return Grant(
        permits=int(permits),
        again_in=_optional(again_in),
        ahead=int(ahead),
        rate=float(rate),
        burst=float(burst),
        level=float(level),
        confidence=float(confidence),
        participants=int(participants),
        share=_optional(share),
        wants_answers=wants_answers == "1",
        retry_in=_optional(retry_in),
        charged_tokens=float(charged),
        tokens_level=float(tokens_level) if tokens_level else None,
        low=float(low),
        high=float(high),
    )


def _text(value: bytes | float | str) -> str:
    if isinstance(value, bytes):
        return value.decode()
    return str(int(value)) if isinstance(value, float) else str(value)


def _optional(text: str) -> float | None:
    value = float(text)
    return None if value < 0 else value
