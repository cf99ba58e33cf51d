"""The limiter of a client that shares its key with other processes: it visits the board of a quota."""

import asyncio
import logging
from random import Random

from attrs import evolve

from onellm_async.errors import ConfigurationError, OneLLMError
from onellm_async.limits.admission import Admission
from onellm_async.limits.bottleneck import Bottleneck
from onellm_async.limits.leased_rate import LeasedRate
from onellm_async.limits.limiter import Limiter, LoopAdmission, _wake
from onellm_async.limits.permit import Permit, RequestGroup
from onellm_async.limits.policy import Limits
from onellm_async.limits.queue import Ticket
from onellm_async.limits.quota import LANE_NAMES, Declaration, Demand, Grant, Quota, QuotaMember
from onellm_async.limits.rate_control import RateControl
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import NO_RETRIES, Retries, Snapshot

__all__ = ["SharedLimiter"]

_log = logging.getLogger("onellm_async")
_TOKEN_NOISE = 1e-6
"""Tokens that are not worth a visit: what sums of fractions leave."""


class SharedAdmission(Admission):
    """Admission with permits of a board. The local queue decides which request uses a permit.

    Args:
        limits: What the user declared.
        rate: Holds the permits.
        now: The current time.
    """

    MAX_ESTIMATED = 16
    """Requests of a lane whose estimated tokens are reported, as their mean."""

    def __init__(self, limits: Limits, rate: LeasedRate, now: float) -> None:
        super().__init__(limits, rate, now)
        self._lease = rate
        self._share_tokens()

    def _share_tokens(self, taken_from: float = float("-inf")) -> None:
        ledger = self._lease.tokens if self.limits.tokens_per_minute is not None else None
        self._tokens.use(ledger, taken_from)  # type: ignore[arg-type]  # a ledger that is used as a bucket
        self._leave_out_unlimited()

    def retune(self, limits: Limits, rate: RateControl, now: float) -> None:
        """Continues with other limits; the board has those of the rate."""
        # The ledger knows the requests in flight.
        taken_from = now if self._tokens.bucket is None else self._tokens.taken_from
        self._tokens.use(None, now)
        super().retune(limits, rate, now)
        self._share_tokens(taken_from)

    @property
    def _asks_for_slots(self) -> bool:
        """No: the requests of the other participants are in flight, too."""
        return False

    def _rate_wait(self, requests: float, lane: str, now: float) -> float:
        return self._lease.expected_wait(requests, now)

    def _certain_wait(self, ticket: Ticket, now: float) -> float:
        return max(self._lease.certain_wait(now), self.gate.expected_at - now)

    def _bottleneck(self, ticket: Ticket, now: float) -> Bottleneck:
        found, grant = super()._bottleneck(ticket, now), self._lease.grant
        if found not in {"rate", "lane"} or grant is None or self._lease.is_alone:
            return found
        if grant.retry_in is not None and self._lease.granted_at + grant.retry_in > now:
            return "retry_after"
        return "quota" if grant.ahead else found

    def sendable(self, now: float) -> int:
        """Requests that could be sent now, were there permits for them."""
        gate = self.gate
        free = self.concurrency - self.in_flight
        if free <= 0 or gate.opens_at > now:
            return 0
        return 1 if gate.half_open else free

    def demand(
        self, newcomer: Permit | None, now: float
    ) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
        """What could be sent now: requests, ages of the oldest and mean tokens, by lane.

        Args:
            newcomer: A request that is not in the queue yet; None for none.
            now: The current time.
        """
        free = self.sendable(now)
        heads, lengths = self.queue.heads(), self.queue.lengths()
        if not free or (not heads and newcomer is None):
            return (0, 0, 0), (0.0, 0.0, 0.0), ()
        since = self.queue.waiting_since()
        wanted = [lengths[lane] + (newcomer is not None and newcomer.lane == lane) for lane in LANE_NAMES]
        if self.tokens is not None:
            wanted = [min(number, self.MAX_ESTIMATED) for number in wanted]
        head = self.queue.head()
        first = LANE_NAMES.index(head.lane if head is not None else newcomer.lane if newcomer is not None else "")
        waiting = [0, 0, 0]
        waiting[first] = 1  # the request that is next must be among them, however few slots there are
        free -= 1
        for lane, number in enumerate(wanted):
            added = max(0, min(number - waiting[lane], free))
            waiting[lane] += added
            free -= added
        ages = tuple(now - since[lane] if lane in since else 0.0 for lane in LANE_NAMES)
        tokens = () if self.tokens is None else tuple(self._mean_tokens(lane, newcomer) for lane in LANE_NAMES)
        return tuple(waiting), ages, tokens

    def _mean_tokens(self, lane: str, newcomer: Permit | None) -> float:
        estimates = [ticket.tokens for ticket in self.queue.upcoming(lane, self.MAX_ESTIMATED)]
        if newcomer is not None and newcomer.lane == lane and len(estimates) < self.MAX_ESTIMATED:
            estimates.append(newcomer.tokens)
        return sum(estimates) / len(estimates) if estimates else 0.0


class _SharedLoopAdmission(LoopAdmission):
    """One event loop's part of a limiter that shares its rate."""

    __slots__ = ()

    limiter: "SharedLimiter"
    core: SharedAdmission

    def dispatch(self) -> None:
        """Grants what can be granted now, and visits the board if that is due."""
        super().dispatch()
        self.limiter.visit_if_due(self)


class SharedLimiter(Limiter):
    """Admits requests with permits of a quota.

    A visit is made when the promised time has come, when a lane gets its first request, when there is a 429 to report,
    and when a permit is left over. While the board is out of reach, the client sends at its fair share; if it was never
    reached, nothing is sent, and after `START_PATIENCE` the waiting requests fail.

    Args:
        limits: What the user declared.
        random: Source of jitter.
        state: What an earlier client learned about the rate.
        quota: Where the board is.
        name: Name of the board.
    """

    core: SharedAdmission

    START_PATIENCE = 10.0
    """Seconds in which a board that was never reached is tried before the waiting requests fail."""
    RETRY = 0.5
    """Seconds between two attempts to reach the board."""

    def __init__(
        self, limits: Limits, *, random: Random, state: RateState | None = None, quota: Quota, name: str
    ) -> None:
        super().__init__(limits, random=random, state=state)
        self._quota = quota
        self._name = name
        self._declaration = Declaration.of(as_requests_per_minute(limits), state)
        self._lease = LeasedRate()
        self._member: QuotaMember | None = None
        self._demand = Demand()
        self._visit_number = 0
        self._is_busy = False
        self._retry_timer: asyncio.TimerHandle | None = None
        self._unreached_since: float | None = None
        self._unreachable: Exception | None = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes `loop` the home of the limiter, and joins the quota."""
        super().bind(loop)
        if self._member is None:
            self._member = self._quota.join(self._name, self._declaration, self._random)

    def _new_rate(self, now: float) -> RateControl:
        return self._lease

    def _new_home(self, loop: asyncio.AbstractEventLoop, rate: RateControl, now: float) -> LoopAdmission:
        return _SharedLoopAdmission(self, loop, SharedAdmission(self.limits, self._lease, now))

    def _move(self, home: LoopAdmission, now: float) -> None:
        earlier = self.home
        super()._move(home, now)
        if earlier is not None and earlier is not home:  # connections and timers belong to a loop
            self._visit_number += 1
            self._retry_timer = None
            self._lease.reset()
            if self._member is not None:
                self._member.abandon()
            self._member = self._quota.join(self._name, self._declaration, self._random)

    def enter(self, permit: Permit, group: RequestGroup | None) -> bool:
        """Grants a new permit at once, or queues it.

        Args:
            permit: The permit.
            group: Requests whose wait can be ended together with this one.

        Returns:
            Whether it is granted.
        """
        if group is not None and group.ended is not None:
            raise group.ended()
        self.bind(asyncio.get_running_loop())
        self.core.queue.check_lane(permit.lane)
        self._visit_for(permit)
        if self._unreachable is not None and not self._lease.is_visiting:
            raise self._unreachable_error()
        try:
            entered = super().enter(permit, group)
        except OneLLMError:
            self.dispatch()  # a permit may be left over
            raise
        if not entered and self._lease.held:
            self.dispatch()
        return entered

    def _visit_for(self, permit: Permit) -> None:
        """Visits for a request that is not in the queue yet, so that it need not wait if there is a permit."""
        lease, core, now = self._lease, self.core, self.time()
        if lease.is_visiting or lease.held or now < lease.retry_at or not core.sendable(now):
            return
        first_of_lane = not lease.reported[LANE_NAMES.index(permit.lane)]
        if not core.waiting or first_of_lane or lease.again_at is None or lease.again_at <= now:
            self._is_busy = True
            try:
                self._visit(permit)
            finally:
                self._is_busy = False

    def visit_if_due(self, home: LoopAdmission) -> None:
        """Visits the board if that is due, and grants what it gives.

        Args:
            home: The event loop that asks; one that is not the limiter's home has no access to the board.
        """
        if self._is_busy or self._member is None or home is not self.home or home.loop.is_closed():
            return
        self._is_busy = True
        try:
            while self._is_visit_due(self.time()):
                self._visit(None)
        finally:
            self._is_busy = False

    def _is_visit_due(self, now: float) -> bool:
        lease, core = self._lease, self.core
        if lease.is_visiting or now < lease.retry_at:
            return False
        if lease.held or lease.has_reports or lease.is_alone:  # a full client, too, returns to the board
            return True
        if not core.waiting:  # withdraw demand that is cancelled, and settle tokens
            return lease.again_at is not None or abs(lease.tokens.owed) > _TOKEN_NOISE
        if not core.sendable(now):
            return False
        if lease.again_at is None or lease.again_at <= now:
            return True
        lanes = zip(LANE_NAMES, lease.reported, strict=True)
        if all(reported or not core.queue.length(lane) for lane, reported in lanes):
            return False
        waiting, _, _ = core.demand(None, now)  # a lane that waits may have no part in the few free slots
        return any(now_waiting and not reported for now_waiting, reported in zip(waiting, lease.reported, strict=True))

    def _visit(self, newcomer: Permit | None) -> None:
        assert self._member is not None  # noqa: S101  # joined in `bind`
        now, lease = self.time(), self._lease
        self._demand = lease.demand(*self.core.demand(newcomer, now), now)
        self._visit_number += 1
        number = self._visit_number
        lease.started(self._demand)
        self._member.visit(
            self._demand, lambda grant: self._on_grant(number, grant), lambda error: self._on_failure(number, error)
        )

    def _on_grant(self, number: int, grant: Grant) -> None:
        if number != self._visit_number:
            return  # of an event loop that is not this limiter's home any more
        if self._lease.is_alone:
            _log.info("The quota in %s is within reach again.", self._quota.place)
        self._lease.returned(grant, self._demand, self.time())
        self._unreached_since = self._unreachable = None
        self._cancel_retry()
        self.dispatch()

    def _on_failure(self, number: int, error: Exception) -> None:
        home = self.home
        if number != self._visit_number or home is None:
            return
        now, lease = self.time(), self._lease
        lease.failed(self._demand, now, now + self.RETRY)
        rows = getattr(error, "rows", None)
        if lease.grant is not None or isinstance(rows, int):
            self._send_alone(error, now, rows)
        else:
            self._give_up_in_time(error, now)
        self.dispatch()
        if self.core.waiting and self._retry_timer is None:
            self._retry_timer = home.loop.call_at(lease.retry_at, self._on_retry)

    def _send_alone(self, error: Exception, now: float, rows: int | None) -> None:
        lease, grant = self._lease, self._lease.grant
        if lease.is_alone:
            return
        if grant is not None:
            rate, burst, participants = grant.rate, grant.burst, grant.participants
        else:
            rate, burst, participants = (self.limits.declared_rate or 40) / 60, self.limits.burst, (rows or 0) + 1
        lease.send_alone(participants, now, rate, burst, fixed=self.limits.mode == "off")
        _log.warning(
            "The quota in %s is out of reach: %s Requests are sent at 1/%d of the rate until it is back.",
            self._quota.place, _sentence(error), participants,
        )  # fmt: skip

    def _give_up_in_time(self, error: Exception, now: float) -> None:
        if self._unreached_since is None:
            self._unreached_since = now
        patience = 0.0 if isinstance(error, ConfigurationError) else self.START_PATIENCE
        if self._unreachable is None and now - self._unreached_since < patience:
            return
        self._unreachable = error
        for ticket in self.core.drain():
            _wake(ticket, self._unreachable_error())

    def _unreachable_error(self) -> ConfigurationError:
        error = self._unreachable
        if isinstance(error, ConfigurationError):
            return ConfigurationError(error.message, advice=error.advice)
        return ConfigurationError(
            f"The quota in {self._quota.place} could not be reached: {_sentence(error)} Nothing was sent, as the share "
            "of this client in the rate is not known.",
            advice="Correct quota or ONELLM_QUOTA, start what keeps the quota, or set quota='off'.",
        )

    def _on_retry(self) -> None:
        self._retry_timer = None
        self.dispatch()

    def _cancel_retry(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None

    def retune(self, limits: Limits) -> None:
        """Continues with other limits, and declares them to all participants.

        Raises:
            ConfigurationError: If they have no rate that could be shared.
        """
        check_shareable(limits)
        self.limits = limits
        self._declaration = Declaration.of(as_requests_per_minute(limits), retuned=True)
        if self._member is not None:
            self._member.redeclare(self._declaration)
            self._lease.is_redeclared = True
        if self._rate is not None:
            self.core.retune(limits, self._lease, self.time())
            self._wake_all()

    def close(self) -> None:
        """Ends every wait with `ClientClosedError`."""
        self._cancel_retry()
        super().close()

    async def aclose(self) -> None:
        """Returns permits and leaves the quota. Joins it again when it is used again."""
        member, self._member = self._member, None
        self._cancel_retry()
        self._visit_number += 1
        if member is None:
            return
        if self.home is None or self.home.loop is not asyncio.get_running_loop():
            member.abandon()
            return
        demand = self._lease.demand((0, 0, 0), (0.0, 0.0, 0.0), (), self.time())
        self._lease.reset()
        await member.aclose(demand)

    def snapshot(self, retries: Retries = NO_RETRIES) -> Snapshot:
        """What is going on now. Changes nothing."""
        lease, grant = self._lease, self._lease.grant
        snapshot = evolve(
            super().snapshot(retries),
            quota="alone" if lease.is_alone else self._quota.kind,
            participants=None if grant is None else grant.participants,
            quota_share=None if grant is None else grant.share,
        )
        if grant is None:
            return evolve(snapshot, rate=None, confidence=None, level=None, tokens_level=None)
        return snapshot if lease.is_alone else evolve(snapshot, level=max(0, int(grant.level)))


def check_shareable(limits: Limits) -> None:
    """Refuses limits that a board cannot share: it has one rate.

    Raises:
        ConfigurationError: If there is no rate, more than one, or a window.
    """
    if limits.mode == "unlimited":
        raise ConfigurationError(
            "A quota shares a rate limit, and Limits.unlimited() has none.",
            advice="Declare a rate, let it be discovered with requests_per_minute='auto', or set quota='off'.",
        )
    beside = len(limits.declared_rates) - (limits.mode != "discover")
    if beside or any(rate.is_window for rate in limits.declared_rates):
        raise ConfigurationError(
            "A quota shares one rate limit, a token bucket, and these Limits have "
            + ("several rates." if beside else "a window."),
            advice="Declare the tightest one as requests_per_minute with a burst, or set quota='off' and give each "
            "process a part of the rates.",
        )


def as_requests_per_minute(limits: Limits) -> Limits:
    """Returns the same limits with their only rate as `Limits.requests_per_minute`, which is what a board holds."""
    if limits.requests_per_minute is not None or not limits.declared_rates:
        return limits
    rate = limits.declared_rates[0]
    return evolve(limits, requests_per_minute=rate.per_minute, burst=rate.capacity, requests_per_second=None, rates=())


def _sentence(error: Exception | None) -> str:
    text = str(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
