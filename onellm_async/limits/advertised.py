"""What a service says of its limit in the headers of its replies, and what follows from many of them. Pure.

A reply says: so many requests are allowed (the limit), so many of them are left, and so many seconds until all of them
are left again (the reset). What the limit is follows from how the three change together:

- *Token bucket.* What is missing is refilled until the reset, so each reply bounds the refill rate: missing / reset.
- *Sliding window.* A request leaves the window after its length, so the reset is that length with each answer.
- *Fixed window.* The reset comes nearer as time passes, and jumps by one length when the window ends.

Each reading is given up when replies contradict it. Numbers are rounded, so each stands for an interval.
"""

from attrs import frozen

_NEVER = float("inf")


@frozen(kw_only=True)
class AdvertisedReply:
    """What one reply advertised. Each part may be missing, and any may be wrong.

    Attributes:
        sent_at: When its request was sent.
        is_accepted: Whether the service accepted that request; False for a 429.
        limit: Requests in a window, or that a bucket holds.
        remaining: Of these, the number that may be sent now.
        reset: Seconds until the window ends or the bucket is full.
        window: Seconds of the window.
        is_moment: Whether the reset was a moment: it is exact when the reply arrives. A number of seconds is taken as
            counted when the service received the request.
    """

    sent_at: float
    is_accepted: bool = True
    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None
    window: float | None = None
    is_moment: bool = False

    @property
    def reset_if_empty(self) -> float | None:
        """The seconds until the reset if nothing is left; else None."""
        return self.reset if self.remaining == 0 else None


@frozen
class AdvertisedBucket:
    """A token bucket that the replies agree on.

    Attributes:
        capacity: Tokens that it holds.
        low: Tokens per second that are refilled, at least.
        high: Tokens per second that are refilled, at most.
    """

    capacity: float
    low: float
    high: float


@frozen
class AdvertisedWindow:
    """A window that the replies agree on.

    Attributes:
        count: Requests in a window.
        seconds: Its length.
    """

    count: int
    seconds: float


class _BucketReading:
    """The refill rate, if the limit is a token bucket."""

    MAX_RATIO = 1.25
    """Upper bound divided by lower bound, at most, to say what the rate is."""

    __slots__ = ("_high", "_low", "_missing", "_replies", "_resets", "_unit", "_vain")

    def __init__(self) -> None:
        self._vain = 0
        self._restart()

    def _restart(self) -> None:
        self._low, self._high = 0.0, _NEVER
        self._missing, self._resets = _Spread(), _Spread()
        self._replies, self._unit = 0, 0.0

    def read(self, missing: float, least: float, reset: float, unit: float) -> None:
        """Records a reply.

        Args:
            missing: Tokens that are missing, rounded up.
            least: Tokens that are missing at least.
            reset: Seconds until none is.
            unit: Seconds to which that is rounded.
        """
        low, high = least / (reset + unit), missing / (reset - unit) if reset > unit else _NEVER
        if max(low, self._low) > 1.001 * min(high, self._high):
            self._vain = self._vain + 1 if self._replies < Advertised.MANY_REPLIES else 0
            self._restart()
        self._low, self._high = max(low, self._low), min(high, self._high)
        self._missing.add(missing)
        self._resets.add(reset)
        self._replies += 1
        self._unit = max(self._unit, unit)

    def bucket(self, limit: float) -> AdvertisedBucket | None:
        """The bucket; None if it is none, or not certain."""
        if self._vain > Advertised.MAX_VAIN or self._replies < Advertised.MIN_REPLIES:
            return None
        if self._missing.size < min(Advertised.MIN_SPREAD, limit - 1) or self._high > self.MAX_RATIO * self._low:
            return None
        if limit > 1 and self._resets.size <= 2 * self._unit + _SlidingReading.SAME * self._resets.most:
            return None  # as in a sliding window
        return AdvertisedBucket(limit, self._low, self._high)


class _SlidingReading:
    """The length of the window, if it slides."""

    SAME = 0.01
    """Share of a length by which two readings of it may differ beside their rounding. The first and the last request
    must be further apart: a fixed window would be nearer its end."""

    __slots__ = ("_first", "_last", "_missing", "_replies", "_resets", "_unit", "_vain")

    def __init__(self) -> None:
        self._vain = 0
        self._restart()

    def _restart(self) -> None:
        self._first, self._last = _NEVER, -_NEVER
        self._missing, self._resets = _Spread(), _Spread()
        self._replies, self._unit = 0, 0.0

    def read(self, missing: float, sent_at: float, reset: float, unit: float) -> None:
        """Records an answer."""
        resets = self._resets
        if self._replies and max(resets.most, reset) - min(resets.least, reset) > unit + self.SAME * reset:
            self._vain = self._vain + 1 if self._replies < Advertised.MANY_REPLIES else 0
            self._restart()
        self._missing.add(missing)
        self._resets.add(reset)
        self._first, self._last = min(self._first, sent_at), max(self._last, sent_at)
        self._replies += 1
        self._unit = max(self._unit, unit)

    @property
    def seconds(self) -> float | None:
        """The length; None if the window does not slide, or that is not certain."""
        if self._vain > Advertised.MAX_VAIN or self._replies < Advertised.MIN_REPLIES:
            return None
        longest = self._resets.most
        least = 3 * self._unit + 2 * self.SAME * longest
        # A shorter length is rounded so much that what is missing of a bucket does not show.
        is_certain = self._last - self._first > least and longest > least
        missing = self._missing
        is_varied = missing.size >= Advertised.MIN_SPREAD and missing.most >= 2 * missing.least
        return longest if is_certain and is_varied else None


class _FixedReading:
    """The length of the window, if its phase is fixed."""

    TOLERANCE = 0.1
    """Seconds by which two readings of an end may differ beside their rounding."""
    MIN_REPLIES = 3
    """Replies that must agree on an end."""
    NEAR = 0.8
    """Share of the length that the first reply of a window must name, at least."""

    __slots__ = ("_end", "_missing", "_replies", "_resets", "length")

    def __init__(self) -> None:
        self.length: float | None = None
        self._end = -_NEVER
        self._missing, self._resets = _Spread(), _Spread()
        self._replies = 0

    def read(self, missing: float, sent_at: float, reset: float, unit: float) -> None:
        """Records an answer."""
        end, tolerance = sent_at + reset, unit + self.TOLERANCE
        if abs(end - self._end) > tolerance:
            if end < self._end:
                return  # of the window before
            jump = end - self._end
            was_fixed = self._replies >= self.MIN_REPLIES and self._missing.size >= Advertised.MIN_SPREAD
            has_fallen = self._resets.size > 2 * unit
            is_length = jump >= 3 * tolerance and reset >= self.NEAR * jump
            self.length = jump if was_fixed and has_fallen and is_length else None
            self._end, self._replies = end, 0
            self._missing, self._resets = _Spread(), _Spread()
        self._missing.add(missing)
        self._resets.add(reset)
        self._replies += 1


class _Spread:
    """The least and the most of some numbers."""

    __slots__ = ("least", "most")

    def __init__(self) -> None:
        self.least, self.most = _NEVER, -_NEVER

    def add(self, number: float) -> None:
        self.least, self.most = min(self.least, number), max(self.most, number)

    @property
    def size(self) -> float:
        return self.most - self.least


class Advertised:
    """What the replies of a service say of its limit, as far as they agree.

    Attributes:
        reset_at: When the service accepts again, as a reply that said that nothing is left; in the past if none did.
        newest: What the reply to the latest request said that told what is left; None if none did.
    """

    MIN_REPLIES = 6
    """Replies that must agree."""
    MIN_SPREAD = 3
    """Difference between the least and the most that was missing, at least: resets that do not follow it mean something
    else."""
    MANY_REPLIES = 50
    """After so many replies that agreed, one that does not means that the limit is another one."""
    MAX_VAIN = 3
    """Times that a reading may be contradicted sooner before it is given up."""

    __slots__ = ("_bucket", "_fixed", "_limit", "_replies", "_sliding", "_unit", "_window", "newest", "reset_at")

    def __init__(self) -> None:
        self.reset_at: float = -_NEVER
        self.newest: AdvertisedReply | None = None
        self._restart(None)

    def _restart(self, limit: float | None) -> None:
        self._limit = limit
        self._window: float | None = None
        self._unit = 1.0
        self._replies = 0
        self._bucket, self._sliding, self._fixed = _BucketReading(), _SlidingReading(), _FixedReading()

    def note_left(self, said: AdvertisedReply, now: float) -> None:
        """Notes what is left, and until when nothing is.

        Args:
            said: What a reply advertised.
            now: The current time.
        """
        if said.remaining is not None and (self.newest is None or said.sent_at >= self.newest.sent_at):
            # A reply to an earlier request knows of fewer requests.
            self.newest = said
            self.reset_at = -_NEVER if said.reset_if_empty is None else now + said.reset_if_empty

    def record(self, said: AdvertisedReply, now: float) -> bool:
        """Reads a reply beside those before it.

        Args:
            said: What it advertised.
            now: The current time.

        Returns:
            Whether it names another limit than the replies before it.
        """
        self.note_left(said, now)
        limit, remaining, reset = said.limit, said.remaining, said.reset
        if limit is None or limit < 1:
            return False
        is_new = limit != self._limit
        if is_new:
            before = self.claim
            self._restart(limit)
            if isinstance(before, AdvertisedWindow):  # its length is probably the same
                self._window = before.seconds
        self._replies += 1
        self._window = said.window or self._window
        if remaining is None or reset is None or not 0 <= remaining <= limit:
            return is_new
        unit = self._unit = min(self._unit, _unit_of(reset))
        if said.is_moment:
            unit, reset = 1.0, reset + now - said.sent_at
        missing = limit - remaining
        self._bucket.read(missing, max(float(said.is_accepted), missing - 1), reset, unit)
        if said.is_accepted:  # a 429 shows the end of both kinds of windows
            self._fixed.read(missing, said.sent_at, reset, unit)
            self._sliding.read(missing, said.sent_at, reset, unit)
        return is_new

    @property
    def claim(self) -> AdvertisedBucket | AdvertisedWindow | None:
        """The limit that the replies agree on; None if there is none."""
        limit = self._limit
        if limit is None or self._replies < self.MIN_REPLIES:
            return None
        bucket = self._bucket.bucket(limit)
        if bucket is not None:
            return bucket
        seconds = self._sliding.seconds or self._fixed.length or self._window
        return None if seconds is None else AdvertisedWindow(int(limit), seconds)

    def move_clock(self) -> None:
        """Continues with a clock that may have been set back: times are dropped."""
        self.reset_at, self.newest = -_NEVER, None
        self._restart(None)


def _unit_of(seconds: float) -> float:
    """The unit to which a number of seconds is rounded, as far as it shows."""
    return next((unit for unit in (1.0, 0.1, 0.01) if abs(seconds / unit - round(seconds / unit)) < 1e-6), 0.001)
