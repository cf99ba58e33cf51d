"""What holds everybody back, whatever rate and slots allow. Pure.

The gate is shut for three reasons: the service said Retry-After; it is down, and a *probe*, one request at a time, is
to find out whether it is back; or the user wants a pause. Whoever waits keeps waiting, and what is under way goes on.
"""

from onellm_async.limits.queue import Ticket

__all__ = ["Gate"]

_NEVER = float("inf")
_LONGEST_WAIT = 300.0
"""Seconds; neither a Retry-After nor the wait for a probe is ever longer."""


class Gate:
    """Says from when on requests may pass.

    Attributes:
        opens_at: From when on requests may pass; infinite while only an event can open the gate.
        paused: Whether the user wants nothing to leave.
        retry_at: Until when the service asked everybody to wait.
        probing: Whether the service is down, so that one request at a time may pass.
        probe_at: When the first of these may; the next follow as each has ended.
        probe: The one that is under way.
    """

    __slots__ = ("opens_at", "paused", "probe", "probe_at", "probing", "retry_at")

    def __init__(self) -> None:
        self.opens_at: float = -_NEVER
        self.paused: bool = False
        self.retry_at: float = -_NEVER
        self.probing: bool = False
        self.probe_at: float = -_NEVER
        self.probe: Ticket | None = None

    @property
    def expected_at(self) -> float:
        """From when on requests may pass if no event comes between: no pause, no probe under way."""
        return max(self.retry_at, self.probe_at)

    def pause(self) -> None:
        """The user wants nothing to leave until `resume`."""
        self.paused = True
        self._set()

    def resume(self) -> None:
        """The user wants requests to leave again."""
        self.paused = False
        self._set()

    def wait_until(self, until: float) -> None:
        """The service asked everybody to wait. An earlier time than it said before changes nothing."""
        self.retry_at = max(self.retry_at, until)
        self._set()

    def hold(self, until: float) -> None:
        """The service is down: nothing passes before `until`, and then one probe at a time until `release`."""
        self.probing, self.probe_at = True, until
        self._set()

    def release(self) -> None:
        """The service is back."""
        self.probing, self.probe_at, self.probe = False, -_NEVER, None
        self._set()

    def probed_by(self, ticket: Ticket) -> None:
        """`ticket` passes as the probe."""
        self.probe = ticket
        self._set()

    def probe_ended(self) -> None:
        """The probe has ended, and whoever sent it tells by `hold` or `release` what came of it, if anything did."""
        self.probe = None
        self._set()

    def take_over(self, earlier: "Gate", now: float) -> None:
        """Is as `earlier` was, which was of another event loop and perhaps of another clock."""
        self.paused, self.probing = earlier.paused, earlier.probing
        if not self.probing:
            self.probe = None
        self.retry_at = min(earlier.retry_at, now + _LONGEST_WAIT)
        self.probe_at = min(earlier.probe_at, now + _LONGEST_WAIT)
        self._set()

    def _set(self) -> None:
        self.opens_at = _NEVER if self.paused or self.probe is not None else self.expected_at
