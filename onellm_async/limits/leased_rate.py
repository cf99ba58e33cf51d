"""The rate of a client that shares its key through a quota: permits from a board instead of a bucket. Pure."""

from collections import deque
from collections.abc import Sequence

from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.quota import LANE_NAMES, Demand, Grant, RateLimitReport
from onellm_async.limits.rate_state import RateState

__all__ = ["LeasedRate", "LeasedTokens"]

_NEVER = float("inf")


class LeasedRate:
    """A rate control whose permits come from visits to a board.

    It holds the permits of the last visit, the time of the next one, and what the next one has to report. While the
    board is out of reach, it sends *alone*: at its fair share of the rate, from an empty bucket. The rate may be wrong
    by then, and 429s of others are not known, so a 429 halves the pace, and answers bring the share back.

    Attributes:
        held: Permits that are not used yet.
        again_at: Time of the next visit; None while the board knows of no demand.
        reported: Demand by lane in the last visit.
        is_visiting: Whether a visit is in flight.
        grant: What the last visit returned; None before the first.
        granted_at: Time of that.
        retry_at: Earliest time of the next visit while the board is out of reach.
        is_redeclared: Whether limits were declared anew and the board has not heard of them.
    """

    __slots__ = (
        "_alone",
        "_alone_share",
        "_alone_since",
        "_answered",
        "_is_fixed",
        "_rate_limited",
        "_sent_alone",
        "_slowed_at",
        "again_at",
        "grant",
        "granted_at",
        "held",
        "is_redeclared",
        "is_visiting",
        "reported",
        "retry_at",
        "tokens",
    )

    found: str | None = None
    """The board discovers."""
    max_in_flight = _NEVER
    """A board says nothing of concurrency."""
    MAX_REPORTS = 64
    """Answers and 429s that are kept for the next visit; the oldest are dropped."""
    SOON = 0.001
    """Seconds until a visit that is due."""
    SLOWER = 0.5
    """Factor of the pace of a client that sends alone, for a 429 to a request that it sent since the last one."""
    FASTER = 1.1
    """Factor for an answer, up to the fair share. Where the service takes less than the share, one in eight requests
    is refused."""
    MAX_GAP = 30.0
    """Seconds between two requests of a client that sends alone, at most, unless its share is less."""

    def __init__(self) -> None:
        self.grant: Grant | None = None
        self.granted_at: float = 0.0
        self.tokens: LeasedTokens = LeasedTokens(self)
        self.reset()

    def reset(self) -> None:
        """Forgets everything that belongs to an event loop which has ended."""
        self.held: int = 0
        self.again_at: float | None = None
        self.reported: tuple[int, int, int] = (0, 0, 0)
        self.is_visiting: bool = False
        self.is_redeclared: bool = False
        self.retry_at: float = -_NEVER
        self.tokens.owed = 0.0
        self._answered: deque[tuple[float, float]] = deque(maxlen=self.MAX_REPORTS)
        self._rate_limited: deque[tuple[float, float, float | None]] = deque(maxlen=self.MAX_REPORTS)
        self._alone: TokenBucket | None = None
        self._alone_share = 0.0
        self._alone_since = 0.0
        self._is_fixed = False
        self._sent_alone = 0
        self._slowed_at = -_NEVER

    # A rate control, as the admission core knows it

    @property
    def rate(self) -> float:
        """Requests per second of the whole key, or the share that this client keeps to while it sends alone."""
        if self._alone is not None:
            return self._alone.rate
        return 0.0 if self.grant is None else self.grant.rate

    @property
    def state(self) -> RateState | None:
        """What the board knows of the rate."""
        grant = self.grant
        return None if grant is None else RateState(grant.rate, grant.burst, grant.low, grant.high)

    @property
    def confidence(self) -> float:
        """How sure the board is of its rate."""
        return 0.0 if self.grant is None else self.grant.confidence

    def time_until(self, requests: float, now: float, reserve: float = 0.0, *, paced: bool = False) -> float:
        """Seconds until so many may be sent; infinite while only a visit can tell.

        The board keeps the interactive reserve and paces the first burst, so `reserve` and `paced` are ignored.
        """
        if requests <= self.held:
            return 0.0
        if self._alone is not None:
            return self._alone.time_until(requests - self.held, now)
        if self.is_visiting:
            return _NEVER
        again_in = 0.0 if self.again_at is None else self.again_at - now  # without a time a visit is due
        return max(again_in, self.SOON) + (requests - self.held - 1) / self._share()

    def certain_wait(self, now: float) -> float:
        """Seconds in which certainly no request can be sent. Where others are ahead they may leave, so it is 0."""
        if self.held or self.is_visiting:
            return 0.0
        if self._alone is not None:
            return self._alone.time_until(1, now)
        if self.again_at is None or self.grant is None or self.grant.ahead:
            return 0.0
        return max(0.0, self.again_at - now)

    def expected_wait(self, requests: float, now: float) -> float:
        """Seconds that `requests` would probably take. Finite, unlike `time_until`."""
        if requests <= self.held or self.grant is None:
            return 0.0
        if self._alone is not None:
            return min(self._alone.time_until(1, now) + (requests - 1) / self._alone.rate, 1e9)
        if self.again_at is not None:
            return max(self.again_at - now, 0.0) + (requests - self.held - 1) / self._share()
        grant = self.grant
        level = min(grant.burst, grant.level + max(0.0, now - self.granted_at) * grant.rate)
        return max(0.0, requests - level) / self._share()

    def _share(self) -> float:
        """Requests per second that this client can count on."""
        grant = self.grant
        if grant is None:
            return 1.0
        return max(grant.rate * max(grant.share or 0.0, 1 / max(1, grant.participants)), 1e-9)

    def take(self, now: float) -> None:
        """Records that a request is granted."""
        if self.held:
            self.held -= 1
        elif self._alone is not None:
            self._alone.take(1, now)
            self._sent_alone += 1

    def give_back(self, now: float, sent_at: float | None = None) -> None:
        """Records that a request was not sent after all."""
        if self._alone is not None and self._sent_alone:
            self._alone.give_back(1, now)
            self._sent_alone -= 1
        else:
            self.held += 1

    def answered(self, sent_at: float, now: float) -> None:
        """Records an accepted request, if the board wants to know. A client that sends alone is faster again."""
        if self.grant is None or self.grant.wants_answers:
            self._answered.append((sent_at, now))
        if self._alone is not None and self._alone.rate < self._alone_share:
            self._alone.retune(now, rate=min(self._alone_share, self._alone.rate * self.FASTER))

    def released(self, sent_at: float, now: float) -> None:
        """Learns nothing."""

    def rate_limited(self, sent_at: float, now: float, *, retry_after: float | None = None) -> None:
        """Records a 429, for a visit at once. A client that sends alone slows down."""
        self._rate_limited.append((sent_at, now, retry_after))
        if self._alone is None:
            return
        self._alone.drain(now)
        if sent_at >= self._slowed_at and not self._is_fixed:
            slowest = min(self._alone_share, 1 / self.MAX_GAP)
            self._alone.retune(now, rate=max(slowest, self._alone.rate * self.SLOWER))
            self._slowed_at = now

    def advise(self, now: float, said: AdvertisedReply) -> None:
        """Changes nothing: the board knows the rate."""

    def move_clock(self, now: float) -> None:
        """Continues with another clock."""
        self.granted_at = now

    # Visits

    @property
    def is_alone(self) -> bool:
        """Whether the board is out of reach, so that this client sends at its fair share."""
        return self._alone is not None

    @property
    def has_reports(self) -> bool:
        """Whether something has to be reported at once."""
        hurry = self.grant is not None and self.grant.answers_at_once and bool(self._answered)
        return self.is_redeclared or bool(self._rate_limited) or hurry

    def demand(self, waiting: Sequence[int], ages: Sequence[float], tokens: Sequence[float], now: float) -> Demand:
        """The report of a visit at `now`. Clears nothing: the visit may fail.

        Args:
            waiting: Requests that could be sent now, by lane.
            ages: Seconds that the oldest of them has waited, by lane.
            tokens: Mean tokens, by lane; empty without a limit of tokens.
            now: The current time.
        """
        return Demand(
            waiting=(waiting[0], waiting[1], waiting[2]),
            ages=(ages[0], ages[1], ages[2]),
            tokens=(tokens[0], tokens[1], tokens[2]) if tokens else (0.0, 0.0, 0.0),
            given_back=self.held,
            settled_tokens=self.tokens.owed,
            answered=[(now - sent, now - received) for sent, received in self._answered],
            rate_limited=[
                RateLimitReport(now - sent, now - received, retry_after)
                for sent, received, retry_after in self._rate_limited
            ],
            sent_alone=self._sent_alone,
            alone_for=now - self._alone_since if self._sent_alone else 0.0,
        )

    def started(self, demand: Demand) -> None:
        """A visit with `demand` is in flight. What it gives back cannot be used any more."""
        self.is_visiting, self.is_redeclared = True, False
        self.reported = demand.waiting
        self.held -= demand.given_back

    def returned(self, grant: Grant, demand: Demand, now: float) -> None:
        """A visit with `demand` has returned `grant`."""
        self.is_visiting, self.retry_at = False, -_NEVER
        self.grant, self.granted_at = grant, now
        self.held += grant.permits
        self.again_at = None if grant.again_in is None else now + grant.again_in
        self.tokens.owed += grant.charged_tokens - demand.settled_tokens
        for _ in demand.answered:
            if self._answered:
                self._answered.popleft()
        for _ in demand.rate_limited:
            if self._rate_limited:
                self._rate_limited.popleft()
        self._sent_alone -= demand.sent_alone
        self._alone_since = now
        self._alone = None

    def failed(self, demand: Demand, now: float, retry_at: float) -> None:
        """A visit with `demand` has failed; the next one is not before `retry_at`.

        The permits that it gave back are lost: the board may have them.
        """
        self.is_visiting, self.retry_at, self.again_at = False, retry_at, None

    def send_alone(self, participants: int, now: float, rate: float, burst: float, *, fixed: bool = False) -> None:
        """Sends at a fair share of the rate from now on, beginning with an empty bucket.

        Args:
            participants: How many share the rate.
            now: The current time.
            rate: Requests per second of the whole key.
            burst: Capacity of its bucket.
            fixed: Whether 429s only empty the bucket, because the user wants the declared rate kept.
        """
        share = max(1, participants)
        self._alone_share, self._is_fixed = rate / share, fixed
        self._alone = TokenBucket(rate / share, max(1.0, burst / share), level=0.0, updated_at=now)
        if not self._sent_alone:
            self._alone_since = now


class LeasedTokens:
    """Tokens per minute, which the board counts: a ledger in place of a bucket.

    The board charges estimates with the permits. What is used in fact, more or less, is settled in the next visit.

    Attributes:
        owed: Tokens charged and not used; negative if more were used than charged.
    """

    __slots__ = ("_lease", "owed")

    def __init__(self, lease: LeasedRate) -> None:
        self._lease = lease
        self.owed: float = 0.0

    @property
    def capacity(self) -> float:
        """No bound: the board has one."""
        return _NEVER

    def time_until(self, amount: float, now: float) -> float:
        """0: the board gives permits only when there are tokens for them."""
        return 0.0

    def level_at(self, now: float) -> float:
        """Tokens that could be used at once, as the board said last; what is not settled yet counts."""
        grant = self._lease.grant
        return 0.0 if grant is None or grant.tokens_level is None else grant.tokens_level + self.owed

    def take(self, amount: float, now: float) -> None:
        """Records tokens that are used."""
        self.owed -= amount

    def give_back(self, amount: float, now: float) -> None:
        """Records tokens that are not used after all; negative: more were used."""
        self.owed += amount

    def move_clock(self, now: float) -> None:
        """A ledger has no clock."""


assert len(LANE_NAMES) == 3  # noqa: S101  # a board has three columns for them
