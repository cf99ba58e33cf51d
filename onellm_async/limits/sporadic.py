"""429s that come at random, whatever the rate. Evidence, and its refutation. Pure.

Some services answer a share of all requests with 429 that no rate avoids: one of several machines behind one address is
busy, or a moment is. Such 429s look like other clients of the key: they contradict every bound of the rate, at each
lower rate again. What tells them apart is a trial (`doubt`): after a 429, requests are sent three times as fast as
before. A limit, shared or not, answers most of them with 429.
"""

from math import exp


class Sporadic:
    """The share of requests that get a 429 at random, once a trial has shown that there are such 429s.

    Attributes:
        share: Share of the last requests that got a 429; 0 if no trial has shown that they come at random.
    """

    MEMORY = 400.0
    """Requests after which one counts for the share by a factor of e less."""
    TRIAL_SHARE = 0.1
    """Share up to which there are trials. Where more is refused, others use the key, and trials cost them, too."""
    MAX_SHARE = 0.25
    """Share from which 429s are no accident: a limit is looked for again."""
    MIN_SHARE = 0.002
    """Share up to which each 429 counts as the sign of a limit again."""
    FIRST_PATIENCE = 3
    """429s in contention before the first trial."""
    MAX_PATIENCE = 32
    """429s between two trials in contention, at most; they double with each trial that fails."""

    FIRST_SUPPORT = 3
    """What the first trial that shows it counts for: the limit itself refutes the next one, if it was not found yet."""
    MAX_SUPPORT = 6
    """Trials that showed it, less those that did not, at most."""

    __slots__ = (
        "_is_shown",
        "_known",
        "_last_requests",
        "_patience",
        "_rate_limited",
        "_requests",
        "_support",
        "_untried",
    )

    def __init__(self) -> None:
        self._is_shown = False
        self._known = 0
        self._last_requests = 0
        self._requests = 0.0
        self._rate_limited = 0.0
        self._support = 0
        self._untried = 0
        self._patience = self.FIRST_PATIENCE

    @property
    def share(self) -> float:
        """Share of the last requests that got a 429; 0 if no trial has shown that they come at random."""
        return self._rate_limited / self._requests if self._is_shown else 0.0

    def _is_below(self, share: float) -> bool:
        return self._rate_limited < share * self._requests

    def rate_limited(self, accepted: int) -> None:
        """Records a 429.

        Args:
            accepted: Requests that were accepted so far.
        """
        requests = max(0, accepted - self._known) + 1
        self._known = accepted
        self._last_requests = requests
        kept = exp(-requests / self.MEMORY)
        self._requests = kept * self._requests + requests
        self._rate_limited = kept * self._rate_limited + 1
        if self._is_shown and not self.MIN_SHARE < self.share < self.MAX_SHARE:
            self._is_shown = False

    def is_trial_due(self) -> bool:
        """Whether a 429 in contention, which it records, is a reason for a trial.

        One before which nothing was accepted is none: what comes at random does not come in a row.
        """
        self._untried += self._last_requests > 1
        return self._untried >= self._patience and self._is_below(self.TRIAL_SHARE)

    def shown(self) -> None:
        """Records a trial in which 429s turned out to come at random."""
        self._support = min(self.MAX_SUPPORT, self._support + 1) if self._is_shown else self.FIRST_SUPPORT
        self._is_shown = self._is_below(self.MAX_SHARE)
        self._untried, self._patience = 0, self.FIRST_PATIENCE

    def refuted(self) -> None:
        """Records a trial in which they did not."""
        if self._is_shown:
            self._support -= 1
            self._is_shown = self._support > 0
        else:
            self._untried, self._patience = 0, min(self.MAX_PATIENCE, 2 * self._patience)
