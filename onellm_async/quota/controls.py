"""What decides on the rate of a board: a declared limit as plain numbers, or any rate control of the limiter. Pure.

All times here are *control times*: the board stops this clock while it does not know what happened, so a control never
sees time run backwards and never counts a refill that may have been used.
"""

from collections.abc import Mapping
from math import ceil, sqrt
from operator import attrgetter
from random import Random
from typing import ClassVar, Protocol

from attrs import frozen

from onellm_async.chat import JSON
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_control import RateControl, control_for, reconfigured
from onellm_async.limits.rate_state import RateState
from onellm_async.quota.control_image import dump_control, load_control

__all__ = ["Control", "DeclaredBucket", "DeclaredLimit", "GeneralControl", "Level", "declared_limit"]


SLACK = 1e-9
"""Seconds that count as none, so that a visit at exactly the promised time suffices."""


class Level:
    """Tokens that come at a steady rate: plain numbers, so that Lua computes the same.

    Args:
        rate: Tokens per second.
        capacity: Most tokens that are saved up.
        level: Tokens at `updated_at`; negative while in debt.
        updated_at: Control time.
    """

    __slots__ = ("capacity", "level", "rate", "updated_at")

    def __init__(self, rate: float, capacity: float, level: float, updated_at: float) -> None:
        self.rate: float = rate
        self.capacity: float = capacity
        self.level: float = level
        self.updated_at: float = updated_at

    def at(self, now: float) -> float:
        """Tokens at `now`."""
        level = self.level + max(0.0, now - self.updated_at) * self.rate
        return min(self.capacity, level)

    def add(self, amount: float, now: float) -> None:
        """Adds tokens, or takes them if `amount` is negative, whatever the level."""
        self.level = min(self.capacity, self.at(now) + amount)
        self.updated_at = max(self.updated_at, now)

    def retune(self, rate: float, capacity: float, now: float) -> None:
        """Changes rate and capacity from `now` on. The level stays, cut to the new capacity."""
        self.level = min(capacity, self.at(now))
        self.updated_at = max(self.updated_at, now)
        self.rate, self.capacity = rate, capacity


class Control(Protocol):
    """What a board needs of a rate control."""

    kind: ClassVar[str]

    @property
    def rate(self) -> float:
        """Requests per second."""
        ...

    @property
    def state(self) -> RateState | None:
        """What is known of the rate; None when nothing is."""
        ...

    @property
    def confidence(self) -> float:
        """How sure that is, from 0 to 1."""
        ...

    @property
    def wants_answers(self) -> bool:
        """Whether accepted requests teach anything now."""
        ...

    def level_at(self, now: float) -> float:
        """Requests that could be sent at once."""
        ...

    def time_until(self, requests: float, now: float, reserve: float, *, paced: bool) -> float:
        """Seconds until `requests` more may be sent beside `reserve` tokens; 0 if they may be sent now.

        Args:
            requests: How many.
            now: Control time.
            reserve: Tokens to leave in the bucket.
            paced: Whether an unconfirmed first burst is paced for them.
        """
        ...

    def take(self, now: float, draw: float) -> None:
        """Records that a request is granted. `draw` is a random number from 0 to 1."""
        ...

    def give_back(self, requests: int, now: float) -> None:
        """Records that granted requests are not sent."""
        ...

    def charge(self, requests: int, now: float, draw: float) -> None:
        """Records requests that were sent without a grant."""
        ...

    def answered(self, sent_at: float, received_at: float) -> None:
        """Records an accepted request."""
        ...

    def rate_limited(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Records a 429."""
        ...

    def dump(self) -> dict[str, JSON]:
        """The state, as JSON that holds neither null nor infinity at its top level."""
        ...


@frozen
class DeclaredLimit:
    """A declared limit of requests, as the numbers that a board is made of.

    Attributes:
        ceiling: Requests per second that are sent at most.
        floor: Requests per second below which 429s do not lower the rate.
        burst: Capacity of the service's bucket.
        capacity: Tokens that the board uses of it.
        empty_level: Level after a 429: the service has no token, and the margin is not there either.
        pacer_rate: Requests per second of an unconfirmed first burst, while only batches wait.
        refill: Seconds in which the service's bucket is filled once; then the first burst is confirmed.
        strict: 1 if 429s never lower the rate, else 0.
    """

    ceiling: float
    floor: float
    burst: float
    capacity: float
    empty_level: float
    pacer_rate: float
    refill: float
    strict: int


def declared_limit(limits: Limits) -> DeclaredLimit | None:
    """The declared limit as numbers; None if `limits` ask for another kind of control.

    The margins are those of `DeclaredRate`, for the same reasons: a request may travel faster than the one before it.
    """
    per_minute = limits.declared_rate
    if limits.mode not in {"correct", "off"} or per_minute is None:
        return None
    per_second, burst = per_minute / 60, float(limits.burst)
    jitter = per_second * DeclaredRate.TRAVEL_JITTER
    margin = min(burst / 4, 1 + jitter) if burst >= 2 else 0.0
    ceiling = per_second if burst >= 2 else per_second / (1 + jitter)
    floor = ceiling / DeclaredRate.MANY_CLIENTS
    return DeclaredLimit(
        ceiling=ceiling,
        floor=max(ceiling / DeclaredRate.MAX_CLIENTS, min(floor, 1 / DeclaredRate.MAX_GAP)),
        burst=burst,
        capacity=burst - margin,
        empty_level=-min(1.0, margin),
        pacer_rate=max(DeclaredRate.START_PACE, 4 * per_second),
        refill=burst / per_second,
        strict=int(limits.mode == "off"),
    )


class DeclaredBucket:
    """Holds a declared limit for all participants. A 429 empties it for all at once.

    Where 429s go on although the bucket was empty, other clients use the key without the board, or the declaration is
    not true: the rate is then lowered, and comes back with the answers. ``board.lua`` computes the same, step by step.

    Args:
        limit: The declared limit.
        now: Control time.
    """

    kind: ClassVar[str] = "declared"

    TRUST = 100.0
    """Tokens' worth of time after a 429 in which another one is no coincidence."""
    DECREASE = 0.7
    """Factor of the rate when it is lowered."""
    STEP = 0.01
    """What an answer adds to the square root of the rate (1/s). Equal shares follow, whatever the size of the limit."""
    ACCELERATE_AFTER = 10.0
    """Answers without a 429 after which a step is twice as large."""
    OUTAGE_AFTER = 6
    """Decreases without an answer after which the service must have been shut: the rate is then soon back."""

    __slots__ = (
        "answers",
        "burst",
        "ceiling",
        "confirmed_at",
        "consecutive_429s",
        "cost",
        "decreases",
        "empty_level",
        "fallen_from",
        "floor",
        "level",
        "pacer",
        "rate_limited_at",
        "refill",
        "strict",
    )

    def __init__(self, limit: DeclaredLimit, now: float) -> None:
        self.level: Level = Level(limit.ceiling, limit.capacity, limit.capacity, now)
        self.pacer: Level = Level(limit.pacer_rate, 1.0, 1.0, now)
        self.confirmed_at: float = now + limit.refill
        self.rate_limited_at: float = -1.0
        self.consecutive_429s: int = 0
        self._declare(limit)

    def _declare(self, limit: DeclaredLimit) -> None:
        self.ceiling: float = limit.ceiling
        self.floor: float = limit.floor
        self.burst: float = limit.burst
        self.empty_level: float = limit.empty_level
        self.refill: float = limit.refill
        self.strict: int = limit.strict
        self.fallen_from: float = limit.ceiling
        self.answers: int = 0
        self.decreases: int = 0
        self.cost: float = 1.0

    def redeclare(self, limit: DeclaredLimit, now: float) -> None:
        """Holds another limit from `now` on. The level stays, cut to the new capacity; a correction is forgotten."""
        if limit.ceiling == self.ceiling and limit.burst == self.burst and limit.strict == self.strict:
            return
        self.level.retune(limit.ceiling, limit.capacity, now)
        self.pacer.retune(limit.pacer_rate, 1.0, now)
        self.confirmed_at = min(self.confirmed_at, now + limit.refill)
        self._declare(limit)

    @property
    def rate(self) -> float:
        """Requests per second, corrections included."""
        return self.level.rate

    @property
    def state(self) -> RateState:
        """What is held now."""
        low = self.rate if self.rate >= self.ceiling else 0.0
        return RateState(self.rate, self.burst, low, self.ceiling)

    @property
    def confidence(self) -> float:
        """Share of the declared rate that 429s have left."""
        return self.rate / self.ceiling

    @property
    def wants_answers(self) -> bool:
        """Only answers end a series of 429s, or a correction."""
        return self.consecutive_429s > 0 or self.rate < self.ceiling

    def level_at(self, now: float) -> float:
        """Requests that could be sent at once."""
        return self.level.at(now)

    def time_until(self, requests: float, now: float, reserve: float, *, paced: bool) -> float:
        """Seconds until so many more may be sent."""
        kept = min(reserve, self.level.capacity - self.cost) + self.cost - 1
        wait = (requests + kept - self.level.at(now)) / self.level.rate
        if paced and now < self.confirmed_at:
            wait = max(wait, min((requests - self.pacer.at(now)) / self.pacer.rate, self.confirmed_at - now))
        return wait if wait > SLACK else 0.0

    def take(self, now: float, draw: float) -> None:
        """Records that a request is granted."""
        self.level.add(-1, now)
        if self.consecutive_429s > 1:  # one at a time, until one is accepted
            self.level.level = min(self.level.level, 0.0)
        self.cost = 1.0
        if self.level.rate < self.ceiling:  # uneven gaps, as the key is shared with clients that are not on the board
            self.cost = 0.5 + draw * (min(1.5, self.level.capacity) - 0.5)
        # Other lanes, which need no pacer, do not delay a batch. The slack is that of `time_until`.
        if now < self.confirmed_at and (1 - self.pacer.at(now)) / self.pacer.rate <= SLACK:
            self.pacer.add(-1, now)

    def give_back(self, requests: int, now: float) -> None:
        """Records that granted requests are not sent."""
        self.level.add(requests, now)

    def charge(self, requests: int, now: float, draw: float) -> None:
        """Records requests that were sent without a grant."""
        self.level.add(-requests, now)

    def answered(self, sent_at: float, received_at: float) -> None:
        """Records an accepted request. One that was in flight at the last 429 teaches nothing."""
        if sent_at <= self.rate_limited_at:
            return
        self.consecutive_429s = 0
        rate = self.level.rate
        if not self.decreases and rate >= self.ceiling:
            return
        if self.decreases >= self.OUTAGE_AFTER:
            rate = max(rate, self.DECREASE * self.fallen_from)
        self.decreases = 0
        self.answers += 1
        share = self.answers / self.ACCELERATE_AFTER
        root = sqrt(rate) + self.STEP * (1 + share * share)
        self.level.retune(min(self.ceiling, root * root), self.level.capacity, received_at)

    def rate_limited(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Records a 429. One of a request that was in flight at the last 429 says nothing new."""
        if sent_at <= self.rate_limited_at:
            return
        before, self.rate_limited_at = self.rate_limited_at, now
        self.consecutive_429s += 1
        told = retry_after is not None and self.consecutive_429s > 1  # the service says when to return, so it is shut
        if not told and not self.strict and before >= 0 and (now - before) * self.level.rate < self.TRUST:
            if not self.decreases:
                self.fallen_from = self.level.rate
            self.decreases += 1
            self.answers = 0
            self.level.retune(max(self.floor, self.DECREASE * self.level.rate), self.level.capacity, now)
        self.level.level = min(self.level.at(now), self.empty_level)
        self.level.updated_at = max(self.level.updated_at, now)

    def dump(self) -> dict[str, JSON]:
        """The state as JSON."""
        return dict(zip(_DECLARED_FIELDS, _read_declared(self), strict=True))

    @classmethod
    def load(cls, image: Mapping[str, JSON]) -> "DeclaredBucket":
        """The bucket that `dump` wrote. What a newer version wrote beside it is ignored."""
        bucket = cls.__new__(cls)
        for name in _PLAIN_FIELDS:
            setattr(bucket, name, image[name])
        for name, prefix in _LEVELS.items():
            setattr(bucket, name, Level(**{part: image[prefix + part] for part in Level.__slots__}))
        return bucket


_LEVELS = {"level": "", "pacer": "pacer_"}
"""The levels of a declared bucket, and what the names of their fields begin with."""
_PLAIN_FIELDS = tuple(name for name in DeclaredBucket.__slots__ if name not in _LEVELS)
_DECLARED_FIELDS = {name: name for name in ("kind", *_PLAIN_FIELDS)} | {
    prefix + part: f"{level}.{part}" for level, prefix in _LEVELS.items() for part in Level.__slots__
}
"""Where each field of the image is found in the bucket."""
_read_declared = attrgetter(*_DECLARED_FIELDS.values())


class GeneralControl:
    """Any rate control of the limiter, shared: one that is discovered, above all.

    Args:
        control: The control.
    """

    kind: ClassVar[str] = "general"

    def __init__(self, control: RateControl) -> None:
        self._control = control

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self._control.rate

    @property
    def state(self) -> RateState | None:
        """What is known of the rate."""
        return self._control.state

    @property
    def confidence(self) -> float:
        """How sure that is."""
        return self._control.confidence

    @property
    def wants_answers(self) -> bool:
        """Always: what teaches is known to the control alone."""
        return True

    def level_at(self, now: float) -> float:
        """Requests that could be sent at once, found by asking."""
        state = self.state
        most = 1 if state is None else ceil(state.burst) + 1
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self._control.time_until(middle, now) > 0:
                high = middle - 1
            else:
                low = middle
        return float(low)

    def time_until(self, requests: float, now: float, reserve: float, *, paced: bool) -> float:
        """Seconds until so many more may be sent."""
        return self._control.time_until(requests, now, reserve, paced=paced)

    def take(self, now: float, draw: float) -> None:
        """Records that a request is granted."""
        self._control.take(now)

    def give_back(self, requests: int, now: float) -> None:
        """Records that granted requests are not sent."""
        for _ in range(requests):
            self._control.give_back(now)

    def charge(self, requests: int, now: float, draw: float) -> None:
        """Records requests that were sent without a grant."""
        for _ in range(requests):
            self._control.take(now)

    def answered(self, sent_at: float, received_at: float) -> None:
        """Records an accepted request."""
        self._control.answered(sent_at, received_at)

    def rate_limited(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Records a 429."""
        self._control.rate_limited(sent_at, now, retry_after=retry_after)

    def redeclared(self, before: Limits, limits: Limits, now: float, random: Random) -> "GeneralControl":
        """The control to continue with when `before` becomes `limits`."""
        return GeneralControl(reconfigured(self._control, before, limits, now, random, is_shared=True))

    def dump(self) -> dict[str, JSON]:
        """The state as JSON."""
        return {"kind": self.kind, "control": dump_control(self._control)}

    @classmethod
    def load(cls, image: Mapping[str, JSON], random: Random) -> "GeneralControl":
        """The control that `dump` wrote.

        Raises:
            ControlImageError: If another version of the package wrote it, whose controls are not these.
        """
        return cls(load_control(image["control"], random))

    @classmethod
    def new(cls, limits: Limits, now: float, random: Random, state: RateState | None) -> "GeneralControl":
        """The control that `limits` ask for."""
        return cls(control_for(limits, now, random, state, is_shared=True))
