"""How far a run has come: counting, rates and the time left. Pure: every time is an argument."""

import math
from collections import Counter, deque
from collections.abc import Mapping
from statistics import stdev

from attrs import evolve, field, frozen

from onellm_async import serialization
from onellm_async.batch.causes import CauseCounts, flaw_of
from onellm_async.batch.journal.record import JournalRecord, RecordState, RunCounts, RunningCounts
from onellm_async.chat import JSON
from onellm_async.events import Answered, Event, Failed, RateLimited, Retrying, Sent

__all__ = ["ProgressTracker", "RunProgress"]

_RECENT = 60
"""Seconds over which the rate is taken: long enough for the published 40 a minute, short enough to follow a change."""
_MAX_CAUSES_TOLD = 10
"""Causes of failures that are told when one first occurs: who reads on a terminal wants to see the progress, too."""
_PORTION = 10
"""Seconds of one of the portions whose differences tell how sure the rate is."""


@frozen
class RunProgress:
    """A run at one moment.

    Attributes:
        completed: Prompts with an outcome, failures and earlier sessions included.
        failed: Of these, failures.
        completed_before: Of these, outcomes of earlier sessions.
        held: Of the failures, prompts that were sent in an earlier session, may be billed, and are not sent again.
        bad_lines: Lines of the input that held no usable prompt.
        total: Prompts of the input, each counted as often as it is asked; None if unknown.
        in_flight: Requests sent and not answered yet.
        rate_limited: How often a request was answered 429 in this session (not billed).
        retries: How often a request was sent again after a failure in this session.
        counts: The totals of the outcomes, earlier sessions included: cost, tokens and all others.
        elapsed: Seconds since this session began.
        rate: Outcomes per second of this session over the last minute.
        eta: Seconds that are probably left; None when that is unknown.
        eta_low: The least it is likely to be (two standard errors of the rate away).
        eta_high: The most it is likely to be.
        notable: Answers that want a look, by what is unusual about them: they were cut off, filtered or are empty.
        trouble: Why the run is paused, because many prompts failed alike; None while it is not.
        trial_in: Seconds until the next single prompt is tried in such a pause, 0 while one is; None without a pause.
    """

    completed: int
    failed: int
    completed_before: int
    held: int
    bad_lines: int
    total: int | None
    in_flight: int
    rate_limited: int
    retries: int
    counts: RunCounts
    elapsed: float
    rate: float
    eta: float | None
    eta_low: float | None
    eta_high: float | None
    notable: Mapping[str, int] = field(factory=dict[str, int], hash=False)
    trouble: str | None = None
    trial_in: float | None = None

    @property
    def answered(self) -> int:
        """Prompts with an answer."""
        return self.completed - self.failed

    @property
    def deduplicated(self) -> int:
        """Prompts that share the answer to an identical one."""
        return self.counts.deduplicated

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompts answered, as far as replies report them."""
        return self.counts.input_tokens

    @property
    def output_tokens(self) -> int:
        """Tokens generated, as far as replies report them."""
        return self.counts.output_tokens

    @property
    def cost(self) -> float:
        """USD by list price, as far as prices and usage are known."""
        return self.counts.cost

    @property
    def unpriced(self) -> int:
        """Answers whose cost is unknown."""
        return self.counts.unpriced

    def to_dict(self) -> dict[str, JSON]:
        """Returns the progress as a dict that JSON can hold, without what is not set."""
        return serialization.to_dict(self) | {"counts": self.counts.to_dict()}


class ProgressTracker:
    """Counts what happens in a run.

    It is a hook: give it to the client (``hooks=(tracker,)``) for refusals, retries and requests in flight; everything
    else comes from the journal's rows.

    Args:
        started: When the session began, in seconds on the clock of all later times.
        ceiling: Requests per second that the rate limit allows in the long run; None when it is not known. The first
            burst is faster than what follows, so without it the time left is too short at first.
    """

    def __init__(self, started: float, *, ceiling: float | None = None) -> None:
        self.total: int | None = None
        """Prompts of the input, each counted as often as it is asked, once known."""
        self.started: float = started
        self.failing: int = 0
        """Prompts whose failure is not settled yet, as they may be retried. They count as failed for now."""
        self.trial_at: float | None = None
        """When the next single prompt is tried in a pause; None while one is."""
        self._samples = 1
        self._ceiling = ceiling
        self._totals = RunningCounts()
        self._completed_before = self._held = self._bad_lines = 0
        self._rate_limited = self._retries = 0
        self._in_flight: set[int] = set()
        self._recent: deque[list[int]] = deque()
        self._notable: Counter[str] = Counter()
        self._trouble: str | None = None
        self._models: dict[str, tuple[Counter[bool], CauseCounts]] = {}
        self._causes = CauseCounts()

    def __call__(self, event: Event, /) -> None:
        """Takes note of an event of the client."""
        if isinstance(event, Sent):
            self._in_flight.add(event.request)
        elif isinstance(event, RateLimited | Retrying | Answered | Failed):
            self._in_flight.discard(event.request)
            self._rate_limited += isinstance(event, RateLimited)
            self._retries += isinstance(event, Retrying)

    def expect(self, lines: int | None, samples: int) -> None:
        """The input has so many lines, and each is asked as often as it is sampled."""
        self._samples = samples
        self.total = None if lines is None else lines * samples

    def asked(self, model: str, failure: str | None) -> bool:
        """Takes note of how a prompt of this session ended.

        Args:
            model: The model of the prompt.
            failure: What the failure said; None for an answer.

        Returns:
            Whether it is a failure of a new cause, which is worth telling.
        """
        outcomes, causes = self._models.setdefault(model, (Counter(), CauseCounts()))
        outcomes[failure is None] += 1
        if failure is None:
            return False
        causes.add(failure)
        return self._causes.add(failure) and len(self._causes) <= _MAX_CAUSES_TOLD

    def failed_models(self) -> dict[str, tuple[int, str]]:
        """Models of which all prompts of this session failed alike: how many, and what they said.

        It is empty where all prompts have one model.
        """
        return {
            model: (outcomes[False], causes.ranked()[0][0])
            for model, (outcomes, causes) in self._models.items()
            if len(self._models) > 1 and not outcomes[True] and outcomes[False] > 1 and len(causes) == 1
        }

    def pause(self, why: str, trial_at: float) -> None:
        """The run is paused because many prompts failed alike; the next single prompt is tried at `trial_at`."""
        self._trouble, self.trial_at = why, trial_at

    def resume(self) -> None:
        """The run goes on."""
        self._trouble = None

    def settled(self, row: JournalRecord, at: float) -> None:
        """Counts an outcome that came `at` this time."""
        second = int(at - self.started)
        if self._recent and self._recent[-1][0] == second:
            self._recent[-1][1] += 1
        else:
            self._recent.append([second, 1])
            self._forget(second)
        self._count(row)

    def reopened(self, number: int) -> None:
        """So many failures of this session are outcomes no more."""
        self._totals = RunningCounts(evolve(self._counts, failed=self._counts.failed - number))

    def resumed(self, row: JournalRecord, *, held: bool = False) -> None:
        """Counts an outcome of an earlier session."""
        self._completed_before += 1
        self._held += held
        self._count(row)

    def _count(self, row: JournalRecord) -> None:
        self._totals.replace(None, row)
        if row.state is RecordState.ANSWERED and row.copy_of is None and (flaw := flaw_of(row.result)) is not None:
            self._notable[flaw] += 1

    @property
    def _counts(self) -> RunCounts:
        return self._totals.counts

    @property
    def _failed(self) -> int:
        """Failures. A prompt that is held back without an outcome is one, too."""
        return self._counts.failed + self._counts.in_flight

    @property
    def _completed(self) -> int:
        return self._counts.answered + self._failed

    def found(self, counts: RunCounts, notable: Mapping[str, int] = {}) -> None:
        """Counts a whole run of earlier sessions, to which this one had nothing to add.

        Args:
            counts: What its journal has.
            notable: As `RunProgress.notable`.
        """
        self._notable = Counter(notable)
        self._totals = RunningCounts(evolve(counts, in_flight=0))
        self._completed_before = self._completed
        if self.total is not None:
            for _ in range(max(0, self.total - self._completed - counts.in_flight) // self._samples):
                self.bad_line()

    def bad_line(self) -> None:
        """Counts a line that held no usable prompt."""
        self._bad_lines += 1
        if self.total is not None:
            self.total -= self._samples - 1  # a bad line is one, however often it would be asked

    def snapshot(self, now: float) -> RunProgress:
        """The run as it stands `now`."""
        elapsed = max(0.0, now - self.started)
        self._forget(int(elapsed))
        span = min(elapsed, _RECENT - 1 + elapsed % 1)  # what `_forget` leaves: whole seconds, and the one that runs
        rate = sum(count for _, count in self._recent) / max(span, 0.001)
        eta, least, most = self._eta(rate, elapsed)
        return RunProgress(
            completed=self._completed + self.failing,
            failed=self._failed + self.failing,
            completed_before=self._completed_before,
            held=self._held,
            bad_lines=self._bad_lines,
            total=self.total,
            in_flight=len(self._in_flight),
            rate_limited=self._rate_limited,
            retries=self._retries,
            counts=self._counts,
            elapsed=elapsed,
            rate=rate,
            eta=eta,
            eta_low=least,
            eta_high=most,
            notable=dict(self._notable),
            trouble=self._trouble,
            trial_in=None if self._trouble is None else max(0.0, (self.trial_at or now) - now),
        )

    def _forget(self, second: int) -> None:
        while self._recent and self._recent[0][0] <= second - _RECENT:
            self._recent.popleft()

    def _eta(self, rate: float, elapsed: float) -> tuple[float | None, float | None, float | None]:
        if self.total is None:
            return None, None, None
        left = max(0, self.total - self._completed - self.failing - self._bad_lines)
        if left == 0:
            return 0.0, 0.0, 0.0
        if self._ceiling is not None:
            rate = min(rate, self._ceiling)
        if rate <= 0:
            return None, None, None
        error = self._standard_error(elapsed)
        if error is None:
            return left / rate, None, None
        fastest = rate + 2 * error if self._ceiling is None else max(rate, min(rate + 2 * error, self._ceiling))
        return left / rate, left / fastest, left / max(rate - 2 * error, rate / 4)

    def _standard_error(self, elapsed: float) -> float | None:
        """Of the recent rate, by the differences between its portions; None with fewer than three of them."""
        newest = int(elapsed) // _PORTION
        portions = dict.fromkeys(range(max(0, newest - _RECENT // _PORTION), newest), 0)
        if len(portions) < 3:
            return None
        for second, count in self._recent:
            if second // _PORTION in portions:
                portions[second // _PORTION] += count
        return stdev(portions.values()) / _PORTION / math.sqrt(len(portions))
