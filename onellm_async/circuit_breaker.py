"""The circuit breaker, and the clock of an outage. Pure."""


class CircuitBreaker:
    """Counts failures in a row and opens the circuit, so that a service that is down gets few requests.

    ::

        closed     all requests pass; `record_failure` counts
        open       nothing passes before `trial_at`
        half-open  from `trial_at` on one trial request at a time; its failure opens the circuit for twice as long

    It counts failures and computes when a trial request may be sent. The limiter's gate holds requests back.

    Args:
        threshold: Failures in a row that open it; 0 switches it off.
        wait: Seconds until the first trial request.

    Attributes:
        trial_at: When one request may try the service again; None while the circuit is closed.
    """

    __slots__ = ("_failed_requests", "_failures", "_openings", "_threshold", "_wait", "trial_at")

    _DISTINCT_REQUESTS = 3
    """So many requests must have failed: a single one says little about the service."""
    _MAX_WAIT = 300.0
    """Seconds; a longer wait would let a service that is back stand idle."""

    def __init__(self, threshold: int, wait: float) -> None:
        self._threshold = threshold
        self._wait = wait
        self._failures = 0
        self._failed_requests: set[int] = set()
        self._openings = 0
        self.trial_at: float | None = None

    @property
    def failures(self) -> int:
        """Failures in a row so far."""
        return self._failures

    def record_failure(self, request: int, now: float) -> float | None:
        """Counts a failure.

        Args:
            request: The number of its request.
            now: The current time in seconds.

        Returns:
            When a trial request may be sent if the circuit is (now) open, else None.
        """
        if self._threshold == 0:
            return None
        self._failures += 1
        if len(self._failed_requests) < self._DISTINCT_REQUESTS:
            self._failed_requests.add(request)
        if self.trial_at is not None and now < self.trial_at:
            return self.trial_at  # it was sent before the circuit opened and says nothing new
        enough = min(self._DISTINCT_REQUESTS, self._threshold)
        if self._failures < self._threshold or len(self._failed_requests) < enough:
            return None
        wait = min(self._MAX_WAIT, self._wait * 2.0 ** min(self._openings, 60))
        self._openings += 1
        self.trial_at = now + wait
        return self.trial_at

    def record_answer(self) -> bool:
        """Forgets all failures: the service is up.

        Returns:
            Whether that closes an open circuit.
        """
        if not self._failures:
            return False
        was_open = self.trial_at is not None
        self._failures = self._openings = 0
        self._failed_requests.clear()
        self.trial_at = None
        return was_open


class OutageClock:
    """For how long the service has accepted nothing, 429s included.

    The outage begins with the first failure after an accepted request. Time in which the caller paused the client, and
    time that the client's own declared limit takes between two requests, does not count.

    Args:
        max_outage: Seconds after which waiting is given up; None waits for ever.
    """

    __slots__ = ("_counted", "_counted_to", "_max_outage", "_own_interval", "_paused")

    _USUAL_INTERVAL = 60.0
    """Seconds between two requests; only a declared limit that is slower than this makes the clock stand still."""

    def __init__(self, max_outage: float | None) -> None:
        self._max_outage = max_outage
        self._counted = 0.0
        self._counted_to: float | None = None
        self._own_interval = 0.0
        self._paused = False

    @property
    def running(self) -> bool:
        """Whether nothing has been accepted since a failure."""
        return self._counted_to is not None

    def record_failure(self, now: float, interval: float = 0.0) -> None:
        """Counts the time since the last failure.

        Args:
            now: The current time in seconds.
            interval: Seconds that the client's own declared limit takes between two requests.
        """
        self._count(now)
        self._own_interval = interval if interval > self._USUAL_INTERVAL else 0.0

    def record_answer(self) -> None:
        """The service accepted a request: there is no outage."""
        self._counted, self._counted_to = 0.0, None

    def pause(self, now: float) -> None:
        """Nothing is sent from now on, because the caller wants it so."""
        if self.running:
            self._count(now)
        self._paused = True

    def resume(self, now: float) -> None:
        """Requests are sent again."""
        self._paused = False
        if self.running:
            self._counted_to = now

    def elapsed(self, now: float) -> float:
        """Seconds of the outage so far; 0 while there is none."""
        if self._counted_to is None or self._paused:
            return self._counted
        return self._counted + max(0.0, now - self._counted_to - self._own_interval)

    def remaining(self, now: float) -> float | None:
        """Seconds until waiting is given up if nothing is accepted; None if it never is."""
        if self._max_outage is None or self._counted_to is None or self._paused:
            return None
        return max(0.0, self._max_outage - self.elapsed(now))

    def _count(self, now: float) -> None:
        self._counted = self.elapsed(now)
        self._counted_to = now
