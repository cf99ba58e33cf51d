"""The arguments and replies of the scripts that keep a board in Redis. Pure.

There are two ways to visit. Where the limit is declared, ``board.lua`` makes the whole visit in Redis: one round trip.
Where it is discovered, the board is Python's: a visitor reads the image, computes, and writes it if it is unchanged
(compare-and-set). Meanwhile it holds a lock, since of many visitors at once all but one would compute for nothing. The
others do not try for it again and again: they *post* their visits and wait for a reply. The one with the lock, the
leader, computes all visits that are posted and writes the board; in the same step of Redis they are taken off and their
replies sent, and if others were posted meanwhile, one of those visitors gets the lock, with the board. So each visit
counts once, even if one of them dies: a posted visit is there until a board that includes it is written. A leader that
died is replaced when its lock expires, by those that get no reply. A board can pass from one way to the other, since
both know the same fields.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TypeAlias

from attrs import frozen

from onellm_async.limits.quota import Declaration, Demand, Grant
from onellm_async.quota.board import encode_limits
from onellm_async.quota.controls import declared_limit
from onellm_async.quota.versions import NewerBoardError
from onellm_async.quota.visit_message import load_grant
from onellm_async.wire import parse_json

__all__ = [
    "ENTER",
    "EXPORT",
    "REPLACE",
    "Computed",
    "Lead",
    "needs_python",
    "read_grant",
    "read_reply",
    "visit_arguments",
    "visit_script",
]

Reply: TypeAlias = Sequence[bytes | int | float]

_READ = """\
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

local function time()
  local clock = redis.call('TIME')
  return string.format('%.17g', clock[1] + clock[2] / 1000000)
end

local function board()
  local image = redis.call('GET', KEYS[1])
  if not image then return {'', '', time()} end
  local digest = redis.sha1hex(image)
  if string.sub(image, 1, 1) ~= '{' then image = encode(cmsgpack.unpack(image)) end
  return {image, digest, time()}
end

"""

EXPORT = (
    _READ
    + """\
-- The board as JSON with every digit, the digest of its bytes, and the time. The JSON is '' if there is no board.
return board()
"""
)
"""Reads a board."""

ENTER = (
    _READ
    + """\
-- Takes the lock and reads the board, or posts a visit where another visitor leads.
-- KEYS  1 the board   2 its lock   3 the posted visits   4 replies to this visitor
-- ARGV  1 the visitor   2 milliseconds of the lock   3 the visit   4 milliseconds for which it is kept
-- Returns what `board` returns, followed by the visitors that wait and their visits; or a reply that is there already;
-- or nothing: then there will be one.
local reply = redis.call('LPOP', KEYS[4])
if reply then return {reply} end
local leader = redis.call('GET', KEYS[2])
if leader and leader ~= ARGV[1] then
  redis.call('HSETNX', KEYS[3], ARGV[1], time() .. ' ' .. ARGV[3])
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
  return {}
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local found = board()
for _, each in ipairs(redis.call('HGETALL', KEYS[3])) do found[#found + 1] = each end
return found
"""
)
"""Begins a visit in Python."""

REPLACE = """\
-- Writes a board if the bytes there still have a digest, replies to the visits that it has, and passes the lock on.
-- KEYS  1 the board   2 its lock   3 the posted visits
-- ARGV  1 the digest, '' for no board   2 JSON   3 seconds to live   4 the leader   5 milliseconds of the lock
--       6 milliseconds for which replies are kept   7 when the board was read   then each visitor and its grant, '' for
--       one that needs no reply
local image = redis.call('GET', KEYS[1])
if (image and redis.sha1hex(image) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000

local function send(visitor, text)
  local replies = KEYS[1] .. ':reply:' .. visitor
  redis.call('RPUSH', replies, text)
  redis.call('PEXPIRE', replies, ARGV[6])
end

for index = 8, #ARGV, 2 do
  redis.call('HDEL', KEYS[3], ARGV[index])
  local grant = ARGV[index + 1]
  if grant ~= '' then send(ARGV[index], string.format('grant %.6f ', now - ARGV[7]) .. grant) end
end
if redis.call('GET', KEYS[2]) ~= ARGV[4] then return 1 end
local posted = redis.call('HGETALL', KEYS[3])
if #posted == 0 then
  redis.call('DEL', KEYS[2])
  return 1
end
redis.call('SET', KEYS[2], posted[1], 'PX', ARGV[5])
local found = {ARGV[2], redis.sha1hex(ARGV[2]), string.format('%.17g', now)}
for _, each in ipairs(posted) do found[#found + 1] = each end
send(posted[1], 'lead ' .. cjson.encode(found))
return 1
"""
"""Ends a visit in Python."""


@frozen
class Lead:
    """The board, for the visitor that leads.

    Attributes:
        image: JSON; empty if there is no board.
        digest: Of its bytes.
        clock: Board time, with every digit.
        posted: The visitors that wait, and the visit of each with the time when it was posted.
    """

    image: bytes
    digest: bytes
    clock: bytes
    posted: Sequence[tuple[bytes, bytes]]

    @classmethod
    def of(cls, reply: Sequence[bytes]) -> "Lead":
        """What `ENTER` returned, or a leader passed on."""
        image, digest, clock, *posted = reply
        return cls(image, digest, clock, list(zip(posted[::2], posted[1::2], strict=True)))


@frozen
class Computed:
    """A grant that the leader computed.

    Attributes:
        grant: The grant.
        age: Seconds since it was computed.
    """

    grant: Grant
    age: float


def read_reply(text: bytes) -> Lead | Computed:
    """A reply to a visitor that waits.

    Raises:
        ValueError: If it is none.
    """
    kind, _, rest = text.partition(b" ")
    if kind == b"lead":
        return Lead.of([part.encode() for part in parse_json(rest)])
    age, _, grant = rest.partition(b" ")
    return Computed(load_grant(grant), float(age))


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
