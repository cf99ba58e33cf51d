"""How many requests a service accepts at once. Evidence, and its refutation. Pure.

A limit of concurrency gives itself away: what separates 429s from accepted requests is the number in flight, not the
time since the last request. A 429 at a record of requests in flight suggests a limit. An accepted request beyond it
refutes it, and so do 429s below it. One request beyond the limit is tried from time to time, when the last requests
were far apart, so that nothing else can be the cause of its 429.
"""

from bisect import bisect_left, insort

NEVER = float("inf")


class Slots:
    """Requests in flight, and the limit that they suggest.

    Args:
        unseen: Requests that are in flight already.

    Attributes:
        limit: Requests that the service accepts at once; infinite if nothing suggests a limit.
        in_flight: Requests in flight.
        latency: Usual seconds from sending a request to its answer; None if not known.
        unseen: Requests in flight of which is not known how many were in flight before them.
        support: Accepted requests at the limit, at most `MAX_SUPPORT`, less `REFUTATION` for each 429 below it.
    """

    FIRST_PATIENCE = 4
    """Answers before one request beyond a new limit is tried."""
    MAX_PATIENCE = 200
    """Answers between two such trials, at most; they double with each refused one."""
    MAX_SUPPORT = 8
    """Accepted requests at the limit that count."""
    REFUTATION = 3
    """What a 429 below the limit takes from its support."""
    SURE = 2
    """Support from which the first knock waits for an answer."""
    REST = 0.7
    """A trial waits for this share of the time that an answer takes for each slot."""
    SMOOTHING = 0.1
    """Weight of a new latency in the usual one."""
    REACHED = 0.3
    """Share of the limit that is in flight in the mean, from which the limit is told."""
    MAX_MOMENTS = 4096
    """Answers that are remembered for the requests that were in flight with them, at most."""

    __slots__ = ("_answers", "_before", "_earlier", "_forgotten", "_moments", "_patience", "_record",
                 "in_flight", "latency", "limit", "support", "unseen")  # fmt: skip

    def __init__(self, unseen: int = 0) -> None:
        self.limit: float = NEVER
        self.in_flight: int = unseen
        self.unseen: int = unseen
        self.latency: float | None = None
        self.support: int = 0
        self._before: dict[float, list[int]] = {}  # by time of sending: requests in flight before each
        # An answer frees its place for those that were sent after a moment. Sorted, these moments tell how many answers
        # did so for a request; how many were earlier when it was sent is taken off.
        self._moments: list[float] = []
        self._forgotten = 0  # of them, the oldest
        self._earlier: dict[float, int] = {}  # by time of sending: moments that were earlier then
        self._record = 0
        self._answers = 0
        self._patience = self.FIRST_PATIENCE

    @property
    def is_trial_due(self) -> bool:
        """Whether one request beyond the limit may be tried."""
        return self._answers >= self._patience and self.latency is not None

    @property
    def trial_gap(self) -> float:
        """Seconds after the last request in which a trial rests."""
        return self.REST * (self.latency or 0.0) / self.limit

    def describe(self, rate: float) -> str | None:
        """The limit in words; None if nothing is certain, or if it is never reached.

        Args:
            rate: Requests per second that other limits allow. Where they go one after the other, none was in flight
                with any of those that were accepted.
        """
        if self.support < self.SURE or self.latency is None or rate * self.latency < self.REACHED * self.limit:
            return None
        return f"{self.limit:.0f} request{'s' * (self.limit != 1)} at once"

    def sent(self, now: float) -> None:
        """Records that a request is sent."""
        in_flight = self.in_flight
        if now in self._before:
            self._before[now].append(in_flight)
        else:
            self._before[now] = [in_flight]
            self._earlier[now] = self._forgotten + bisect_left(self._moments, now)
        if in_flight >= self.limit:
            self._answers = 0
        self.in_flight = in_flight + 1

    def ended(self, sent_at: float) -> int | None:
        """Records that a request is over. Returns how many were in flight before it; None if it is not known."""
        group = self._before.get(sent_at)
        if group is None:
            if self.unseen:
                self.unseen -= 1
                self.in_flight -= 1
            return None
        before = group.pop()
        if not group:
            del self._before[sent_at], self._earlier[sent_at]
        self.in_flight -= 1
        return before

    def refused(self, sent_at: float) -> int | None:
        """Records that a request got a 429: it was not in flight for those that were sent after it."""
        before = self.ended(sent_at)
        if before is not None:
            for later, group in self._before.items():
                if later >= sent_at:
                    group[:] = [number - (later > sent_at or number > before) for number in group]
        return before

    def answered(self, sent_at: float, now: float, round_trip: float = 0.0) -> None:
        """Records an accepted request.

        Args:
            sent_at: When it was sent.
            now: The current time.
            round_trip: Seconds from sending a request to its 429. The service may have been done with a request before
                it got those that were sent at most so long before the answer: they prove one slot less.
        """
        moments, earlier = self._moments, self._earlier.get(sent_at)
        freed = 0 if earlier is None else self._forgotten + bisect_left(moments, sent_at) - earlier
        before = self.ended(sent_at)
        if self._before:
            insort(moments, max(sent_at, now - round_trip))
            if len(moments) > self.MAX_MOMENTS:
                self._forget_moments()
        latency = now - sent_at
        self.latency = latency if self.latency is None else self.latency + self.SMOOTHING * (latency - self.latency)
        if before is None:
            return
        before -= freed
        proven = before + 1
        if proven > self._record:  # noqa: PLR1730  # `max` takes as long as the rest, and this runs for each answer
            self._record = proven
        if proven > self.limit:
            self._drop()
        elif proven == self.limit:
            self.support = min(self.MAX_SUPPORT, self.support + 1)
        self._answers += 1

    def _forget_moments(self) -> None:
        """Drops the moments that were earlier for all that is in flight, or at least the oldest."""
        moments = self._moments
        cut = max(bisect_left(moments, next(iter(self._before), NEVER)), len(moments) // 4)
        del moments[:cut]
        self._forgotten += cut

    def _drop(self) -> None:
        self.limit, self.support, self._patience = NEVER, 0, self.FIRST_PATIENCE

    def rate_limited(self, before: int | None) -> bool:
        """Judges a 429.

        Args:
            before: Requests that were in flight before the request.

        Returns:
            Whether it was expected, so that it says nothing about any other limit.
        """
        if before is None or before < 1:
            return False
        if before >= self.limit or before + 1 > self._record:
            expected = before >= self.limit
            self._patience = min(self.MAX_PATIENCE, 2 * self._patience) if expected else self.FIRST_PATIENCE
            self.limit, self._answers = before, 0
            return expected
        self.refute()
        return False

    def refute(self) -> None:
        """Records a 429 below the limit."""
        if self.limit < NEVER:
            self.support -= self.REFUTATION
            if self.support < 0:
                self._drop()

    def move_clock(self) -> None:
        """Continues in another event loop: what is in flight there is not known."""
        self._before.clear()
        self._earlier.clear()
        self._moments.clear()
        self.in_flight = self.unseen = 0
