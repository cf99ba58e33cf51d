"""Whether a run gets anywhere: many failures that are alike, and silence. Pure: times and counts are arguments.

**Theory of operation.** Many prompts that fail alike are an outage, or they are bad prompts. Only other prompts can
tell: so the run pauses and sends one at a time, from places far apart. An answer proves that the service is up.

After a pause the service is known to be up. Until the last 50 are in good health again the run is wary: it stops if
half or more of those tried since fail alike, and pauses again only if nearly all of the last 50 do, as in an outage.

Answers that do not conform to a schema are no failures of the service, and waiting mends nothing. They are paid for,
so the run stops if nearly all of the last 50 are such, or half of 100 or more.

| from | event | to |
| --- | --- | --- |
| running | more than `max_failure_share` of the last 50 failed alike, untried prompts are left | paused |
| running | the same; none is left, and others were answered | running: the failures stand |
| running | the same after a resume, and half or more of those tried since failed alike | stopped |
| paused | a trial fails | paused, the next trial later |
| paused | a trial is answered | running, wary; what failed meanwhile is retried once, the counts begin anew |
| paused | no answer for `stall_after` | stopped |
| running | everything was tried, and half or more of it failed alike | stopped |
| running | too many answers do not conform, untried prompts are left | stopped |
"""

from collections import Counter, deque
from enum import Enum

from attrs import field, frozen

from onellm_async.batch.causes import shortened
from onellm_async.errors import ConfigurationError, OneLLMError, StructureError
from onellm_async.validation import Checks

__all__ = ["AlikeFailures", "HealthMonitor", "HealthPolicy", "Verdict"]

_check = Checks(ConfigurationError, "HealthPolicy.")
OF_THE_LAST = 50
"""Outcomes among which failures that are alike are counted."""
_NEARLY_ALL = 0.9
"""Share of the last 50 that makes a wary run pause again, or one stop whose answers do not conform to its schema."""
_ENOUGH_ANSWERS = 100
"""Prompts after which half of their answers may not be unfit: where 40 % are, fewer would often stop the run by
chance."""
READ_AHEAD = 1000
"""Prompts from among which trials are taken."""
FIRST_TRIAL = 1.0
"""Seconds from the pause to the first trial: the time to read ahead."""
_TRIAL_WAIT = 15.0
_MAX_TRIAL_WAIT = 300.0
"""Seconds after the first trial that failed; twice as long after each further one, up to the second figure. They are
those of the circuit breaker."""
_MAX_TRIAL_WAIT_FOR_FEW = 60.0
"""Seconds; the same where so few prompts are left that all can be tried. If they are bad, the run gets to its end."""
_MAX_TICK = 2.0
"""Seconds that one tick of a second may count. A process that was stopped, or a laptop that slept, waited for
nothing."""


@frozen(kw_only=True)
class HealthPolicy:
    """When a run that gets nowhere pauses, and when it ends.

    Attributes:
        max_failure_share: Share of the last 50 prompts that may fail with the same error before the run pauses; 1 for
            any number, also of answers that do not conform to a schema.
        notify_after: Seconds without any outcome after which it is said what the run waits for.
        stall_after: Seconds without any outcome, or of a pause without an answer, after which the run ends. Only time
            counts in which something was in flight or waited for the service. The slowest prompt may take four attempts
            of ten minutes each with the default policies, and still be an outcome.

    Raises:
        ConfigurationError: If a value is out of range.
    """

    max_failure_share: float = field(default=0.2, validator=_check.number(0, 1))
    notify_after: float = field(default=900.0, validator=_check.number(0, above=True))
    stall_after: float = field(default=3600.0, validator=_check.number(0, above=True))


@frozen
class AlikeFailures:
    """Failures of the same kind.

    Attributes:
        count: How many.
        among: Of which prompts, in words.
        text: What the latest one said.
        verb: What they have in common.
    """

    count: int
    among: str
    text: str
    verb: str = "failed alike"

    def __str__(self) -> str:
        return f"{self.count:,} of {self.among} {self.verb}: {self.text}"


class Verdict(Enum):
    """What follows from a failure."""

    GO_ON = "go on"
    PAUSE = "pause"
    STOP = "stop"


class HealthMonitor:
    """Watches the outcomes of a run.

    Args:
        policy: When it pauses or ends.
        started: When the run began, in seconds on the clock of all later times.

    Attributes:
        outcomes: Prompts with an outcome so far, retries left out.
        paused: Whether trials are all that is sent.
    """

    def __init__(self, policy: HealthPolicy, started: float) -> None:
        self.outcomes: int = 0
        self.paused: bool = False
        self._policy = policy
        self._latest: deque[str | None] = deque(maxlen=OF_THE_LAST)
        self._alike: Counter[str] = Counter()
        self._texts: dict[str, str] = {}
        self._failed: Counter[str] = Counter()
        self._latest_unfit: deque[bool] = deque(maxlen=OF_THE_LAST)
        self._unfit = 0
        self._resumed_at: tuple[int, Counter[str]] | None = None
        self._wary = False
        self._trials = 0
        self._ticked_at = started
        self._silence = self._said = self._paused_for = 0.0

    # Outcomes.

    def answered(self) -> None:
        """A prompt was answered."""
        self._note(None)

    def failed(self, error: OneLLMError) -> None:
        """A prompt failed for good."""
        failure = _kind(error)
        self._texts[failure] = shortened(error.message)
        self._failed[failure] += 1
        self._note(failure)

    def retried(self, error: OneLLMError, *, answered: bool) -> None:
        """A prompt that had failed with `error` was retried once. It counts as one prompt."""
        self._silence = self._said = 0.0
        if answered:
            self._failed[_kind(error)] -= 1
            if self._resumed_at is not None:
                self._resumed_at[1][_kind(error)] -= 1

    def failed_unsent(self) -> None:
        """A prompt failed that could not be sent, which says nothing about the service."""
        self._silence = self._said = 0.0

    def unfit(self, error: StructureError) -> None:
        """A prompt was answered, and its answer does not conform to the schema."""
        self._unfit += 1
        self._texts[_kind(error)] = shortened(error.message)
        self._note(None, unfit=True)

    def _note(self, failure: str | None, *, unfit: bool = False) -> None:
        self.outcomes += 1
        self._latest_unfit.append(unfit)
        self._silence = self._said = 0.0
        if len(self._latest) == OF_THE_LAST and (oldest := self._latest[0]) is not None:
            self._alike[oldest] -= 1
        self._latest.append(failure)
        if failure is not None:
            self._alike[failure] += 1
        if self._wary and len(self._latest) == OF_THE_LAST:
            self._wary = max(self._alike.values(), default=0) > self._policy.max_failure_share * OF_THE_LAST

    # Failures that are alike.

    @property
    def watches(self) -> bool:
        """Whether failures that are alike can pause the run."""
        return self._policy.max_failure_share < 1

    def alike(self, undecided: int = 0) -> AlikeFailures | None:
        """The latest failure, if too many of the latest prompts failed like it.

        Args:
            undecided: Prompts that were sent for the first time and have no outcome yet. A failure may come sooner than
                an answer, so that the first outcomes after a pause tell too little without them.
        """
        failure = self._latest[-1] if self._latest else None
        if failure is None or not self.watches:
            return None
        count, latest = self._alike[failure], len(self._latest)
        if count <= self._policy.max_failure_share * OF_THE_LAST:
            return None
        if self._wary and count < _NEARLY_ALL * OF_THE_LAST and self.alike_since_resume(undecided) is None:
            return None
        return AlikeFailures(count, f"the last {latest} prompts", self._texts[failure])

    def verdict(self, *, undecided: int, untried: bool, others_answered: bool) -> Verdict:
        """What follows from the latest failure.

        Args:
            undecided: As for `alike`.
            untried: Whether prompts are left that were not tried.
            others_answered: Whether any prompt of the run was ever answered.
        """
        if self.alike(undecided) is None or (others_answered and not untried):
            return Verdict.GO_ON
        return Verdict.PAUSE if self.alike_since_resume(undecided) is None else Verdict.STOP

    def alike_since_resume(self, undecided: int = 0) -> AlikeFailures | None:
        """The latest failure, if half or more of the prompts tried since the last resume failed like it.

        Args:
            undecided: As for `alike`.
        """
        failure = self._latest[-1] if self._latest else None
        if failure is None or self._resumed_at is None:
            return None
        outcomes, failed = self._resumed_at
        tried, count = self.outcomes - outcomes + undecided, self._failed[failure] - failed[failure]
        if 2 * count < tried:
            return None
        return AlikeFailures(count, f"the {tried:,} prompts tried after the pause", self._texts[failure])

    def alike_in_all(self, answered: int) -> AlikeFailures | None:
        """The most frequent failure, if half or more of all prompts failed like it.

        Args:
            answered: Prompts of the run that were answered, earlier sessions included.
        """
        if not (self.watches and self._failed):
            return None
        (failure, count), *_ = self._failed.most_common(1)
        tried = answered + self._failed.total()
        if count <= self._policy.max_failure_share * OF_THE_LAST or 2 * count < tried:
            return None
        return AlikeFailures(count, f"{tried:,} prompts", self._texts[failure])

    def too_many_unfit(self, undecided: int) -> AlikeFailures | None:
        """The latest answer that does not conform to the schema, if there are too many of them.

        Args:
            undecided: As for `alike`. A short answer that does not conform comes sooner than a long one that does.
        """
        latest, count = len(self._latest_unfit), sum(self._latest_unfit)
        if not self.watches or count <= self._policy.max_failure_share * OF_THE_LAST:
            return None
        if count >= _NEARLY_ALL * latest and 2 * self._unfit >= latest + undecided:
            among = f"the last {latest} answers"
        elif self.outcomes >= _ENOUGH_ANSWERS and 2 * self._unfit >= self.outcomes + undecided:
            count, among = self._unfit, f"{self.outcomes:,} answers"
        else:
            return None
        return AlikeFailures(count, among, self._texts[StructureError.__name__], "do not conform to the schema")

    # The pause.

    def pause(self) -> None:
        """From now on only trials are sent."""
        self.paused, self._paused_for, self._trials = True, 0.0, 0

    def trial_failed(self, *, left: int | None) -> float:
        """Seconds until the next trial.

        Args:
            left: Prompts that are left to try; None while the input has more.
        """
        self._trials += 1
        few = left is not None and left * _MAX_TRIAL_WAIT_FOR_FEW < self._policy.stall_after
        return min(_MAX_TRIAL_WAIT_FOR_FEW if few else _MAX_TRIAL_WAIT, _TRIAL_WAIT * 2.0 ** min(self._trials - 1, 60))

    def resume(self, *, answered: bool) -> None:
        """The pause is over: a trial was `answered`, or nothing is left to try."""
        self.paused, self._paused_for = False, 0.0
        self._latest.clear()
        self._alike.clear()
        if answered:
            self._resumed_at, self._wary = (self.outcomes, self._failed.copy()), True

    # Silence.

    def tick(self, now: float, *, waits: bool) -> None:
        """A second has passed.

        Args:
            now: The current time.
            waits: Whether something was in flight in it, or waited for the service.
        """
        passed = min(max(0.0, now - self._ticked_at), _MAX_TICK)
        self._ticked_at = now
        if waits:
            self._silence += passed
            if self.paused:
                self._paused_for += passed

    def quiet_for(self) -> float | None:
        """Seconds without an outcome, whenever it is time to say so (again); else None."""
        if self._silence - self._said < self._policy.notify_after:
            return None
        self._said = self._silence
        return self._silence

    @property
    def stalled_for(self) -> float | None:
        """Seconds without an outcome, or of a pause, if they are too many; else None."""
        waited = max(self._silence, self._paused_for)
        return waited if waited >= self._policy.stall_after else None


def _kind(error: OneLLMError) -> str:
    status = getattr(error, "status_code", None)
    return type(error).__name__ if status is None else f"{type(error).__name__} ({status})"
