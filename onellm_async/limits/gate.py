"""What holds all requests back, whatever rate and concurrency allow. Pure.

The gate closes for three reasons: the service sent Retry-After; the circuit is open, and one *trial request* at a time
finds out whether the service answers again; or the user pauses the client. Queued requests stay queued, and requests in
flight finish.
"""

from onellm_async.limits.queue import Ticket

_NEVER = float("inf")
_MAX_WAIT = 300.0
"""Seconds for which a gate that another event loop closed stays closed, at most. The clocks may differ."""


class Gate:
    """Decides from when on requests may be sent.

    Attributes:
        opens_at: From when on requests may be sent; infinite while only an event can open the gate.
        paused: Whether the user has paused the client.
        retry_at: End of the last Retry-After.
        half_open: Whether the circuit is open, so that only trial requests may be sent.
        trial_at: When the next trial request may be sent.
        trial: The trial request in flight.
    """

    __slots__ = ("half_open", "opens_at", "paused", "retry_at", "trial", "trial_at")

    def __init__(self) -> None:
        self.opens_at: float = -_NEVER
        self.paused: bool = False
        self.retry_at: float = -_NEVER
        self.half_open: bool = False
        self.trial_at: float = -_NEVER
        self.trial: Ticket | None = None

    @property
    def expected_at(self) -> float:
        """From when on requests may be sent if no event comes first: without the pause and the trial request."""
        return max(self.retry_at, self.trial_at)

    def pause(self) -> None:
        """Closes the gate until `resume`."""
        self.paused = True
        self._update()

    def resume(self) -> None:
        """Ends a pause."""
        self.paused = False
        self._update()

    def honor_retry_after(self, until: float) -> None:
        """Closes the gate until `until`. An earlier time than before changes nothing."""
        self.retry_at = max(self.retry_at, until)
        self._update()

    def open_circuit(self, trial_at: float) -> None:
        """Closes the gate until `trial_at`, and then sends one trial request at a time until `close_circuit`."""
        self.half_open, self.trial_at = True, trial_at
        self._update()

    def close_circuit(self) -> None:
        """Ends `open_circuit`: the service answers again."""
        self.half_open, self.trial_at, self.trial = False, -_NEVER, None
        self._update()

    def start_trial(self, ticket: Ticket) -> None:
        """Records that `ticket` is the trial request in flight."""
        self.trial = ticket
        self._update()

    def end_trial(self) -> None:
        """Records the end of the trial request. Its sender calls `open_circuit` or `close_circuit` if it decides."""
        self.trial = None
        self._update()

    def restore_from(self, earlier: "Gate", now: float) -> None:
        """Takes the state of `earlier`, which belongs to another event loop and perhaps to another clock."""
        self.paused, self.half_open = earlier.paused, earlier.half_open
        if not self.half_open:
            self.trial = None
        self.retry_at = min(earlier.retry_at, now + _MAX_WAIT)
        self.trial_at = min(earlier.trial_at, now + _MAX_WAIT)
        self._update()

    def _update(self) -> None:
        self.opens_at = _NEVER if self.paused or self.trial is not None else self.expected_at
