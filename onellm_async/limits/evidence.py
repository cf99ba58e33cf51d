"""All that is known of a limit that is not declared: a line, windows and slots, held at once. Pure."""

from onellm_async.limits.rate_samples import RateEvidence, RateLimitSample
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.send_log import SendLog
from onellm_async.limits.slots import Slots
from onellm_async.limits.sporadic import Sporadic
from onellm_async.limits.windows import Windows

_NEVER = float("inf")


class Evidence:
    """What requests and 429s have told.

    Args:
        now: The current time in seconds.
        probe_every: Maximum number of requests in a cruise, 1 or more.
        state: A prior, or None.
        size: Maximum number of accepted requests that are remembered.

    Attributes:
        log: The accepted requests.
        line: What a token bucket would be.
        windows: Windows that were found.
        slots: A limit of concurrency.
        sporadic: 429s that come at random.
        burst_at: When the burst began that goes on, or went on before the silence.
        origin: End of the longest silence so far, or the start: windows of fixed phase may begin then.
        peak: Highest pace that was reached at startup, in requests per second.
        known_at: When the newest 429 arrived. What was sent before it was sent without that knowledge.
        rate_limited: Number of 429s.
        reset_at: When the service accepts again, as the headers of a reply said; in the past if they did not.
    """

    START_ACK = 0.2
    """Seconds after which a request counts as accepted, as long as no 429 has shown how long one takes."""
    ACK_FACTOR = 1.5
    """A 429 that is to come has come after so many round trips."""

    def __init__(self, now: float, probe_every: int, state: RateState | None = None, size: int = 4096) -> None:
        self.log: SendLog = SendLog(size)
        self.line: RateEvidence = RateEvidence(now, self.log, probe_every, state)
        self.windows: Windows = Windows(self.log)
        self.slots: Slots = Slots()
        self.sporadic: Sporadic = Sporadic()
        self.burst_at: float = now
        self.origin: float = now
        self.longest_silence: float = 0.0
        self.peak: float = 10.0
        self.known_at: float = -_NEVER
        self.rate_limited: int = 0
        self.reset_at: float = -_NEVER
        self._suggesting: RateLimitSample | None = None

    @property
    def ack(self) -> float:
        """Seconds after which a request without a 429 counts as accepted."""
        round_trip = self.line.round_trip
        if round_trip:
            return self.ACK_FACTOR * round_trip
        latency = self.slots.latency
        return self.START_ACK if latency is None or latency > self.START_ACK else latency

    def add_sample(self, sent_at: float, before: int | None) -> None:
        """Records a 429 as a sample of the line.

        The one that suggested a limit of concurrency is in doubt, once that limit has held.

        Args:
            sent_at: When its request was sent.
            before: Requests that were in flight before it; None if not known.
        """
        line, slots = self.line, self.slots
        line.add_sample(sent_at)
        if slots.limit == before:
            self._suggesting = line.samples[-1]
        elif self._suggesting is not None and slots.support >= slots.SURE:
            line.doubted, self._suggesting = self._suggesting, None

    def forget(self, until: float) -> None:
        """Drops what requests until then have told: the limit is another one."""
        self.log.forget(until)
        self.line.restart()
        self.windows.all.clear()

    def move_clock(self, now: float) -> None:
        """Continues with a clock that may have been set back: times are dropped."""
        self.line.move_clock(now)
        self.log.move_clock()
        self.windows.move_clock()
        self.slots.move_clock()
        self.burst_at = self.origin = now
        self.known_at = self.reset_at = -_NEVER
