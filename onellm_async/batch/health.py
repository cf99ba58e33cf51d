"""Whether a run gets anywhere: failures that are all alike, and silence. Pure."""

from collections import Counter, deque

from attrs import field, frozen

from onellm_async.errors import ConfigurationError, OneLLMError
from onellm_async.validation import Checks

__all__ = ["Health", "HealthPolicy"]

_check = Checks(ConfigurationError, "HealthPolicy.")
_OF_THE_LAST = 50


@frozen(kw_only=True)
class HealthPolicy:
    """When a run that gets nowhere ends early.

    Attributes:
        most_alike: Share of the last 50 prompts that may fail in the same way before the run ends; 1 for any number.
        quiet_after: Seconds without any outcome after which it is said what the run waits for.
        stalled_after: Seconds without any outcome after which the run ends. The slowest prompt may take four attempts
            of ten minutes each with the default policies, and still be an outcome.

    Raises:
        ConfigurationError: If a value is out of range.
    """

    most_alike: float = field(default=0.2, validator=_check.number(0, 1))
    quiet_after: float = field(default=900.0, validator=_check.number(0, above=True))
    stalled_after: float = field(default=3600.0, validator=_check.number(0, above=True))


class Health:
    """Watches the outcomes of a run.

    Args:
        policy: When it ends early.
        started: When the run began, in seconds on the clock of all later times.
    """

    def __init__(self, policy: HealthPolicy, started: float) -> None:
        self._policy = policy
        self._latest: deque[str | None] = deque(maxlen=_OF_THE_LAST)
        self._alike: Counter[str] = Counter()
        self._progress_at = started
        self._said_at = started

    def answered(self, at: float) -> None:
        """A prompt was answered."""
        self._note(None, at)

    def failed(self, error: OneLLMError, at: float) -> None:
        """A prompt failed for good."""
        status = getattr(error, "status_code", None)
        self._note(type(error).__name__ if status is None else f"{type(error).__name__} ({status})", at)

    def _note(self, failure: str | None, at: float) -> None:
        self._progress_at = self._said_at = at
        if len(self._latest) == _OF_THE_LAST and (oldest := self._latest[0]) is not None:
            self._alike[oldest] -= 1
        self._latest.append(failure)
        if failure is not None:
            self._alike[failure] += 1

    def systemic_failure(self) -> str | None:
        """What too many of the latest prompts failed of; None while there is no such thing."""
        if self._latest and self._latest[-1] is not None:
            failure = self._latest[-1]
            if self._alike[failure] > self._policy.most_alike * _OF_THE_LAST:
                return f"{self._alike[failure]} of the last {len(self._latest)} prompts failed with {failure}"
        return None

    def waits(self, now: float) -> None:
        """The run waits because somebody wants it to: that is no stall."""
        self._progress_at = self._said_at = now

    def quiet_for(self, now: float) -> float | None:
        """Seconds without an outcome, whenever it is time to say so (again); else None."""
        if now - self._said_at < self._policy.quiet_after:
            return None
        self._said_at = now
        return now - self._progress_at

    def stalled(self, now: float) -> bool:
        """Whether there has been no outcome for too long."""
        return now - self._progress_at >= self._policy.stalled_after
