"""The board: the small table that all participants of a key share. Pure: time and randomness are arguments.

**Theory of operation.** A visit reports a participant's demand and returns permits for now and the time of its next
visit. The board never calls a participant, no participant leads, and none polls: each computes its time from the table.
One that misses its time by `GRACE` is passed over; one that misses it by `LEASE` is dropped.

Lanes share the rate by stride scheduling: each grant moves the pass value of its lane by a stride, and the busy lane
with the lowest is next. Inside a lane, participants share in the same way, with equal strides. A lane or a participant
that becomes busy starts at the virtual time, the pass value of the last grant, so that no turns are saved up.

What *delays* a turn (a request in a higher lane, a 429, a lower rate) is found on arrival, at the price of one visit
without a permit. What *advances* it (a death, a cancelled wait, a returned permit) leaves a token in the bucket for the
next visitor. So no wake-ups are needed.

A row is a list, because 64 of them are read and written in each visit. Its columns are the constants below; a newer
version may add columns at the end, and they are kept. ``board.lua`` computes the same, step by step.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import ceil, floor
from random import Random
from typing import Any, TypeAlias

from onellm_async.chat import JSON
from onellm_async.limits.policy import LANES, Limits
from onellm_async.limits.quota import Declaration, Demand, Grant
from onellm_async.quota.controls import SLACK, Control, DeclaredBucket, GeneralControl, Level, declared_limit

__all__ = ["Board", "decode_limits", "encode_limits", "is_busy", "recent_grants"]

Row: TypeAlias = list[Any]

SEEN, DUE = 0, 1
"""Board time of the last visit, and of the next one that was promised. The second counts only while there is demand."""
WAITING, SINCE, PASS, COST = 2, 5, 8, 11
"""First of three columns, one for each lane: requests that could be sent; time since when the participant waits for its
turn, which is when its first request was queued or its last permit was granted, whichever is later; pass value; and
mean tokens of a request."""
MINUTE, GRANTS, GRANTS_BEFORE = 14, 15, 16
"""Number of the minute of the last grants, the permits granted in it, and in the minute before."""

STRIDES = tuple(1 / weight for weight in LANES.values())
ALL_LANES = range(len(STRIDES))
INTERACTIVE_RESERVE = 3.0
"""Tokens that the other lanes leave for interactive requests, once any participant has sent one."""
GRACE = 0.05
"""Seconds around its due time in which tokens are left in the bucket for a participant that is ahead."""
LEASE = 5.0
"""Seconds after its due time when a participant with demand counts as dead."""
IDLE = 60.0
"""Seconds after its last visit when a participant without demand is dropped."""
MAX_PARTICIPANTS = 64
"""Beyond it the participant that was not seen for longest is dropped. An unbounded table outgrows its place."""
SURE = 0.5
"""Confidence from which the rate is believed for the time of the next visit."""
LOOK_AGAIN = 0.25
"""Seconds until the next visit, while it is not, from which the time of the turn counts only in part."""
PART = 1 / 3
"""That part. The rate may turn out to be many times higher, and a participant that was told three seconds at 13 per
second misses what 200 per second give. It is a part, not a bound, so that not all come at one moment."""
MIN_WAIT = 0.001
"""Seconds until the next visit at least, so that participants with equal claims do not spin."""
CLOCK_STEP = 1.0
"""Seconds by which a clock that is corrected may run back; more is another clock."""
SAME_MOMENT = 0.05
"""Seconds within which two declarations count as simultaneous: the first that is heard stays."""
MAX_RETRY_AFTER = 300.0
"""Seconds that a Retry-After can count, whatever clock it was read from."""


class Board:
    """The table, and what a visit does to it.

    Args:
        declaration: The limits of the participant that makes the board.
        now: Board time.
        random: Source of jitter.
        age: Seconds since that participant was given its limits.
        empty: Whether the service's bucket may be empty, as an earlier board was lost.

    Attributes:
        at: Board time of the last visit.
        declared: The limits that count, as `encode_limits` writes them.
        rows: The participants by name, in the order of the names.
        clock_moves: How often the clock ran back by more than a correction.
    """

    __slots__ = (
        "at",
        "clock_moves",
        "control",
        "declared",
        "declared_at",
        "granted",
        "guests",
        "interactive_seen",
        "lane_pass",
        "lane_time",
        "offset",
        "pass_time",
        "random",
        "recent",
        "retry_at",
        "rows",
        "thawed_at",
        "tokens",
        "unknown",
    )

    def __init__(
        self, declaration: Declaration, now: float, random: Random, *, age: float = 0.0, empty: bool = False
    ) -> None:
        self.random: Random = random
        self.at: float = now
        self.offset: float = 0.0
        self.declared: list[JSON] = encode_limits(declaration.limits)
        self.declared_at: float = now - age if declaration.explicit else -1.0
        self.control: Control = _control_for(declaration, now, random)
        if empty and isinstance(self.control, DeclaredBucket):
            self.control.level.level = 0.0
        self.tokens: Level | None = _token_level(declaration.limits, now, empty=empty)
        self.lane_pass: list[float] = [0.0, 0.0, 0.0]
        self.lane_time: float = 0.0
        self.pass_time: list[float] = [0.0, 0.0, 0.0]
        self.interactive_seen: int = 0
        self.retry_at: float = -1.0
        self.thawed_at: float = now if empty else -1.0
        self.granted: int = 0
        self.clock_moves: int = 0
        self.recent: list[int] = [0, 0, 0]
        self.rows: dict[str, Row] = {}
        self.guests: dict[str, int] = {}
        self.unknown: dict[str, JSON] = {}

    # The image

    def dump(self) -> dict[str, JSON]:
        """The whole board as JSON, without null or infinity outside of the control."""
        tokens = self.tokens
        return {
            **self.unknown,
            "at": self.at,
            "offset": self.offset,
            "declared": self.declared,
            "declared_at": self.declared_at,
            "control": self.control.dump(),
            "tokens": [0, 0, 0, 0]
            if tokens is None
            else [tokens.rate, tokens.capacity, tokens.level, tokens.updated_at],
            "lane_pass": self.lane_pass,
            "lane_time": self.lane_time,
            "pass_time": self.pass_time,
            "interactive_seen": self.interactive_seen,
            "retry_at": self.retry_at,
            "thawed_at": self.thawed_at,
            "granted": self.granted,
            "clock_moves": self.clock_moves,
            "recent": self.recent,
            "rows": self.rows,
            **({"guests": self.guests} if self.guests else {}),
        }

    @classmethod
    def load(cls, image: Mapping[str, JSON], random: Random) -> "Board":
        """The board that `dump` wrote. Fields that this version does not know are kept.

        Args:
            image: What it returned; the board keeps parts of it.
            random: Source of jitter.

        Raises:
            ControlImageError: If another version of the package wrote it, whose controls are not these.
            LookupError: If it is no board.
        """
        board = cls.__new__(cls)
        fields = dict(image)
        board.random = random
        control = fields.pop("control")
        declared = control["kind"] == DeclaredBucket.kind
        board.control = DeclaredBucket.load(control) if declared else GeneralControl.load(control, random)
        tokens = fields.pop("tokens")
        board.tokens = Level(*tokens) if tokens[1] else None
        rows = fields.pop("rows")
        board.rows = _by_name(rows) if isinstance(rows, dict) else {}  # an empty table of Lua is a list
        board.guests = fields.pop("guests", {})
        for name in _NUMBERS:
            setattr(board, name, fields.pop(name))
        board.unknown = fields
        return board

    @classmethod
    def convert(cls, image: Mapping[str, JSON], declaration: Declaration, now: float, random: Random) -> "Board":
        """A board in place of one that an older version wrote and this one cannot read.

        Limits, participants and Retry-After are kept as far as they can be read. The bucket starts empty.

        Args:
            image: What can be read of it.
            declaration: The limits of the visitor, used where the image tells none.
            now: Board time.
            random: Source of jitter.
        """
        with suppress(LookupError, TypeError, ValueError):
            declaration = Declaration(decode_limits(image["declared"]), explicit=True)
        board = cls(declaration, now, random, empty=True)
        board.declared_at = _number(image.get("declared_at"), -1.0)
        board.retry_at = min(_number(image.get("retry_at"), -1.0), now + MAX_RETRY_AFTER)
        rows = image.get("rows")
        if isinstance(rows, dict):
            width = GRANTS_BEFORE + 1
            board.rows = _by_name(
                {
                    str(name): row
                    for name, row in rows.items()
                    if isinstance(row, list) and len(row) >= width and all(_is_number(value) for value in row[:width])
                }
            )
        return board

    # A visit

    def visit(self, name: str, demand: Demand, now: float, declaration: Declaration, declared_age: float) -> Grant:
        """Reports what a participant wants and did; returns its permits and the time of its next visit.

        Args:
            name: The participant.
            demand: Its report.
            now: Board time.
            declaration: Its limits.
            declared_age: Seconds since it was given them.
        """
        now = self._read_clock(now)
        draw = self.random.random()
        self._hear_declaration(declaration, declared_age, now)
        self._reconcile(demand, now, draw)
        self._hear_reports(demand, now)
        self.at = now
        if demand.leaving:
            self.rows.pop(name, None)
            return self._grant(0, None, 0, 0.0, None, now)
        me, others, waiting = self._find_rows(name, now)
        self._record_demand(me, waiting, demand, now)
        permits, charged, ahead, again_in = 0, 0.0, 0, None
        if is_busy(me) and self.retry_at > now:
            again_in = self.retry_at - now
        elif is_busy(me):
            permits, charged = self._deal(me, others, now, draw)
            if is_busy(me):
                ahead, again_in = self._next_visit(me, others, waiting, now)
                if self._is_searching:
                    again_in = min(again_in, LOOK_AGAIN + PART * (again_in - LOOK_AGAIN))
        me[DUE] = now if again_in is None else now + again_in
        if permits:
            _count_grants(me, permits, now)
            _count_grants(self.recent, permits, now, 0)
        return self._grant(permits, again_in, ahead, charged, me, now)

    @property
    def _is_searching(self) -> bool:
        """Whether a rate is discovered, and little is known of it so far."""
        control = self.control
        return isinstance(control, GeneralControl) and control.confidence < SURE and control.state is not None

    def _grant(
        self, permits: int, again_in: float | None, ahead: int, charged: float, me: Row | None, now: float
    ) -> Grant:
        control, own_time = self.control, now + self.offset
        state = control.state
        total = recent_grants(self.recent, now, 0)
        return Grant(
            permits=permits,
            again_in=again_in,
            ahead=ahead,
            rate=control.rate,
            burst=1.0 if state is None else state.burst,
            level=control.level_at(own_time),
            confidence=control.confidence,
            participants=len(self.rows),
            share=recent_grants(me, now) / total if me is not None and total > 0 else None,
            wants_answers=control.wants_answers,
            retry_in=self.retry_at - now if self.retry_at > now else None,
            charged_tokens=charged,
            tokens_level=None if self.tokens is None else self.tokens.at(own_time),
            low=0.0 if state is None else state.low,
            high=None if state is None else state.high,
            answers_at_once=state is None,
        )

    # The clock

    def _read_clock(self, now: float) -> float:
        if now >= self.at:
            return now
        if self.at - now <= CLOCK_STEP:
            return self.at
        self.move_clock(now)
        self.clock_moves += 1
        return now

    def move_clock(self, now: float) -> None:
        """Continues with another clock that says `now`. What it shows of the time in between is unknown: no refill."""
        before, self.at = self.at, now
        self.offset += before - now
        self.retry_at = min(self.retry_at, now + MAX_RETRY_AFTER)
        self.thawed_at = min(self.thawed_at, now)
        self.declared_at = min(self.declared_at, now)
        for row in self.rows.values():
            row[SEEN] = row[DUE] = now
            for lane in ALL_LANES:
                row[SINCE + lane] = min(row[SINCE + lane], now)

    def stop_clock(self, now: float) -> None:
        """Continues at `now` as if no time had passed since the last visit: what was sent meanwhile is unknown."""
        if now < self.at:
            self.move_clock(now)
        else:
            self.offset -= now - self.at
            self.at = now
        self.thawed_at = now

    def restart(self, now: float) -> None:
        """Continues after a restart of the host: all participants are gone."""
        self.move_clock(now)
        self.rows.clear()

    def charge_guests(self, sent: Mapping[str, int], now: float) -> None:
        """Accounts for participants that send beside the board, as they cannot read it.

        Args:
            sent: Requests that each has sent in all.
            now: Board time.
        """
        for name, total in sent.items():
            charged = self.guests.get(name, 0)
            if total > charged:
                self.control.charge(total - charged, now + self.offset, 0.5)
                self.granted += total - charged
        self.guests = dict(sent)

    # Step 1: declarations and reports

    def _hear_declaration(self, declaration: Declaration, age: float, now: float) -> None:
        """The newest explicit declaration counts."""
        if not declaration.explicit or now - age <= self.declared_at + SAME_MOMENT:
            return
        self.declared_at = now - age
        before, self.declared = self.declared, encode_limits(declaration.limits)
        if before == self.declared:
            return
        limits, own_time = declaration.limits, now + self.offset
        limit = declared_limit(limits)
        if limit is not None and isinstance(self.control, DeclaredBucket):
            self.control.redeclare(limit, own_time)
        elif isinstance(self.control, GeneralControl) and limit is None:
            self.control = self.control.redeclared(decode_limits(before), limits, own_time, self.random)
        else:
            empty = self.control.time_until(1, own_time, 0.0, paced=False) > 0
            self.control = _control_for(declaration, own_time, self.random)
            if empty and isinstance(self.control, DeclaredBucket):
                self.control.level.level = 0.0
        per_minute = limits.tokens_per_minute
        if self.tokens is None or per_minute is None:
            self.tokens = _token_level(limits, own_time, empty=False)
        else:
            self.tokens.retune(per_minute / 60, per_minute, own_time)

    def _reconcile(self, demand: Demand, now: float, draw: float) -> None:
        """Accounts for what a participant sent at its fair share while it could not reach the board.

        Where all were cut off, they used the refill of that time together. It is not counted, and none of them is
        charged: charging each leaves a debt, as the refill is cut at the capacity. The first to return finds no visit
        since it was cut off, and stops the clock for that time. A later one is charged from then on.
        """
        sent = demand.sent_alone
        if not sent:
            return
        left_at = now - demand.alone_for
        if self.at <= left_at:
            self.offset -= now - self.at
            self.thawed_at = now
            return
        if left_at < self.thawed_at:
            sent = floor(sent * (now - self.thawed_at) / max(demand.alone_for, 1e-9) + 0.5)
        self.control.charge(sent, now + self.offset, draw)
        self.granted += sent

    def _hear_reports(self, demand: Demand, now: float) -> None:
        own_time = now + self.offset
        if demand.given_back:
            self.control.give_back(demand.given_back, own_time)
        if self.tokens is not None and demand.settled_tokens:
            self.tokens.add(demand.settled_tokens, own_time)
        for sent, received in demand.answered:
            self.control.answered(own_time - sent, own_time - received)
        for report in demand.rate_limited:
            self.control.rate_limited(own_time - report.sent, own_time - report.received, report.retry_after)
            if report.retry_after is not None:
                asked = min(report.retry_after, MAX_RETRY_AFTER)
                self.retry_at = max(self.retry_at, now - report.received + asked)

    # Step 2: participants

    def _find_rows(self, name: str, now: float) -> tuple[Row, list[Row], list[int]]:
        """The row of the visitor, those of the others that have demand, by name, and how many requests wait in these.

        Those requests are counted by lane. There are up to 64 rows, so each is read once.
        """
        rows = self.rows
        me = rows.get(name)
        if me is None:
            me = [now, now, 0, 0, 0, 0, 0, 0, *self.pass_time, 0, 0, 0, 0, 0, 0]
            rows = self.rows = _by_name({**rows, name: me})
        me[SEEN] = now
        busy: list[Row] = []
        gone: list[str] = []
        interactive = default = batch = 0
        for other, row in rows.items():
            if row is me:
                continue
            first, second, third = row[WAITING:SINCE]
            if first or second or third:
                if row[DUE] + LEASE < now:
                    gone.append(other)
                    continue
                busy.append(row)
                interactive += first
                default += second
                batch += third
            elif row[SEEN] + IDLE < now:
                gone.append(other)
        for other in gone:
            del rows[other]
        waiting = [interactive, default, batch]
        while len(rows) > MAX_PARTICIPANTS:
            _, oldest = min((row[SEEN], other) for other, row in rows.items() if row is not me)
            dropped = rows.pop(oldest)
            if is_busy(dropped):
                busy = [row for row in busy if row is not dropped]
                waiting = [number - dropped[WAITING + lane] for lane, number in enumerate(waiting)]
        return me, busy, waiting

    # Step 3: demand

    def _record_demand(self, me: Row, waiting_elsewhere: Sequence[int], demand: Demand, now: float) -> None:
        if demand.waiting[0]:
            self.interactive_seen = 1
        for lane in ALL_LANES:
            waiting = demand.waiting[lane]
            if waiting and not me[WAITING + lane]:
                me[PASS + lane] = max(me[PASS + lane], self.pass_time[lane])
                if not waiting_elsewhere[lane]:
                    self.lane_pass[lane] = max(self.lane_pass[lane], self.lane_time)
            me[WAITING + lane] = waiting
            if waiting:
                me[SINCE + lane] = max(me[SINCE + lane], now - demand.ages[lane])
            me[COST + lane] = demand.tokens[lane]

    # Step 4: permits for now

    def _reserve(self, lane: int, *, interactive_waits: bool) -> float:
        return 0.0 if lane == 0 or interactive_waits or not self.interactive_seen else INTERACTIVE_RESERVE

    def _time_until(self, requests: int, tokens: float, reserve: float, own_time: float, *, paced: bool) -> float:
        wait = self.control.time_until(requests, own_time, reserve, paced=paced)
        if self.tokens is not None:
            wait = max(wait, (tokens - self.tokens.at(own_time)) / self.tokens.rate)
        return wait if wait > SLACK else 0.0

    def _cost(self, row: Row, lane: int) -> float:
        """Tokens of a request. One larger than the bucket waits until it is full, then overdraws it."""
        return 0.0 if self.tokens is None else min(row[COST + lane], self.tokens.capacity)

    def _deal(self, me: Row, others: list[Row], now: float, draw: float) -> tuple[int, float]:
        """Deals the tokens in the bucket one by one, in order, and takes those of the visitor.

        A token of a participant that is due about now stays in the bucket for it. One that is due later, or late, is
        passed over; it keeps its pass value, so it is first when it comes. The visitor wins ties.

        Returns:
            Its permits, and the tokens charged for them.
        """
        own_time = now + self.offset
        if self._time_until(1, 0.0, 0.0, own_time, paced=False) > 0:
            return 0, 0.0  # there is no token for anyone, as on most visits
        contenders = [me, *([*row] for row in others if abs(row[DUE] - now) <= GRACE)]  # copies: only dealt in thought
        busy = _waiting(contenders)
        lane_pass = [*self.lane_pass]
        permits, charged, left, left_tokens = 0, 0.0, 0, 0.0
        while any(busy):
            lane = min((lane for lane in ALL_LANES if busy[lane]), key=lambda lane: lane_pass[lane])
            queued = [row for row in contenders if row[WAITING + lane]]
            first = min(queued, key=lambda row: (row[PASS + lane], row[SINCE + lane]))
            reserve = self._reserve(lane, interactive_waits=busy[0] > 0)
            cost = self._cost(first, lane)
            paced = busy[0] == busy[1] == 0  # not while that would hold up another lane
            if self._time_until(1 + left, left_tokens + cost, reserve, own_time, paced=paced) > 0:
                break
            if first is me:
                self.control.take(own_time, draw)
                if self.tokens is not None:
                    self.tokens.add(-me[COST + lane], own_time)
                    charged += me[COST + lane]
                self.lane_time, self.pass_time[lane] = self.lane_pass[lane], me[PASS + lane]
                self.lane_pass[lane] += STRIDES[lane]
                self.granted += 1
                permits += 1
            else:
                left += 1
                left_tokens += cost
            first[PASS + lane] += 1
            first[SINCE + lane] = now
            first[WAITING + lane] -= 1
            busy[lane] -= 1
            lane_pass[lane] += STRIDES[lane]
        return permits, charged

    # Step 5: the next visit

    def _next_visit(
        self, me: Row, others: list[Row], waiting_elsewhere: Sequence[int], now: float
    ) -> tuple[int, float]:
        """Requests of others before the visitor's next one, and seconds until that.

        A participant that will not be there by then is not waited for. So a rate that rises is used at once, although
        others come only when the old one told them to.
        """
        waiting = [number + me[WAITING + lane] for lane, number in enumerate(waiting_elsewhere)]
        earliest = now - GRACE
        punctual = [row for row in others if row[DUE] >= earliest]
        while True:
            ahead, wait = self._turn(me, punctual, waiting, now)
            latest = now + wait + GRACE
            present = [row for row in punctual if row[DUE] <= latest]
            if len(present) == len(punctual):
                return ahead, wait
            punctual = present

    def _turn(self, me: Row, punctual: list[Row], waiting: Sequence[int], now: float) -> tuple[int, float]:
        """Requests of `punctual` before the visitor's next one, and seconds until that.

        Args:
            me: The row of the visitor.
            punctual: The rows that are waited for.
            waiting: Requests that wait in each lane, those of others included.
            now: Board time.
        """
        own_time = now + self.offset
        interactive_waits = waiting[0] > 0
        paced = waiting[0] == waiting[1] == 0
        best: tuple[int, float] | None = None
        for lane in ALL_LANES:
            if me[WAITING + lane]:
                ahead, mine, tokens = self._ahead(me, punctual, lane, waiting)
                reserve = self._reserve(lane, interactive_waits=interactive_waits)
                wait = self._time_until(ahead + 1, tokens + self._cost(me, lane), reserve, own_time, paced=paced)
                if best is None or wait < best[1]:
                    best = ahead - mine, wait
        assert best is not None  # noqa: S101  # only a busy visitor comes here
        return best[0], max(best[1], MIN_WAIT)

    def _ahead(self, me: Row, others: list[Row], lane: int, waiting: Sequence[int]) -> tuple[int, int, float]:
        """Requests sent before the visitor's next one in `lane`, how many of them are its own, and their tokens.

        In closed form: first the turns inside the lane, then those of the other lanes until this one has had as many.
        A participant that reaches the visitor's pass value has just had a permit, so the visitor is next. `waiting` has
        the requests of each lane, at least those of `me` and `others`.
        """
        has_costs = self.tokens is not None
        my_pass, my_since = me[PASS + lane], me[SINCE + lane]
        inside, tokens = 0, 0.0
        for other in others:  # up to 63, so it calls nothing that it need not
            turns = queued = other[WAITING + lane]
            if not queued:
                continue
            behind = my_pass - other[PASS + lane]
            if behind <= 0:
                turns = 1 if behind == 0 and other[SINCE + lane] < my_since else 0
            elif behind <= queued:
                turns = ceil(behind)
            inside += turns
            if has_costs:
                tokens += turns * self._cost(other, lane)
        reached = self.lane_pass[lane] + inside * STRIDES[lane]
        ahead, mine = inside, 0
        for another in ALL_LANES:
            if another == lane or not waiting[another]:  # as few rows are read as can be
                continue
            behind = reached - self.lane_pass[another]
            if behind < 0 or (behind == 0 and another > lane):
                continue
            present = me[WAITING + another] + sum([other[WAITING + another] for other in others])
            turns = min(present, floor(behind / STRIDES[another]) + 1)
            ahead += turns
            mine += min(turns, me[WAITING + another])
            if has_costs and turns:
                costs = sum([row[WAITING + another] * self._cost(row, another) for row in (me, *others)])
                tokens += turns * costs / present
        return ahead, mine, tokens


_NUMBERS = (
    "at",
    "offset",
    "declared",
    "declared_at",
    "lane_pass",
    "lane_time",
    "pass_time",
    "interactive_seen",
    "retry_at",
    "thawed_at",
    "granted",
    "clock_moves",
    "recent",
)


def _by_name(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows in the order of their names, in which every visit reads them."""
    return dict(sorted(rows.items()))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object, default: float) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def is_busy(row: Row) -> bool:
    """Whether a participant has demand."""
    return bool(row[WAITING] or row[WAITING + 1] or row[WAITING + 2])


def _waiting(rows: Sequence[Row]) -> list[int]:
    """Requests that wait in each lane."""
    return [sum([row[WAITING + lane] for row in rows]) for lane in ALL_LANES]


def _count_grants(row: Row, permits: int, now: float, first: int = MINUTE) -> None:
    minute, grants, before = range(first, first + 3)
    this_minute = floor(now / 60)
    if row[minute] != this_minute:
        row[before] = row[grants] if row[minute] == this_minute - 1 else 0
        row[minute], row[grants] = this_minute, 0
    row[grants] += permits


def recent_grants(row: Row, now: float, first: int = MINUTE) -> float:
    """Permits granted in the last minute, where the part of the minute before is estimated.

    Args:
        row: A row, or other numbers.
        now: Board time.
        first: Index of the first of the three columns.
    """
    minute, grants, before = row[first : first + 3]
    this_minute = floor(now / 60)
    rest = 1 - (now / 60 - this_minute)
    if minute == this_minute:
        return float(grants + before * rest)
    return float(grants * rest) if minute == this_minute - 1 else 0.0


def _control_for(declaration: Declaration, now: float, random: Random) -> Control:
    limit, limits, state = declared_limit(declaration.limits), declaration.limits, declaration.state
    if limit is None:
        return GeneralControl.new(limits, now, random, state)
    bucket = DeclaredBucket(limit, now)
    if not limit.strict and state is not None and state.rate < limit.ceiling:
        bucket.level.rate = max(limit.floor, state.rate)
    return bucket


def _token_level(limits: Limits, now: float, *, empty: bool) -> Level | None:
    per_minute = limits.tokens_per_minute
    return None if per_minute is None else Level(per_minute / 60, per_minute, 0.0 if empty else per_minute, now)


def encode_limits(limits: Limits) -> list[JSON]:
    """The part of `limits` that a board holds, without null: 0 stands for what is not declared."""
    per_minute, tokens = limits.declared_rate or 0, limits.tokens_per_minute or 0
    return [limits.mode, per_minute, limits.burst, tokens, limits.probe_every]


def decode_limits(declared: Sequence[JSON]) -> Limits:
    """The limits that `encode_limits` wrote."""
    mode, per_minute, burst, tokens, probe_every, *_ = declared
    return Limits(
        requests_per_minute=per_minute or "auto",
        burst=int(burst),
        tokens_per_minute=tokens or None,
        adaptive=mode,
        probe_every=int(probe_every),
    )
