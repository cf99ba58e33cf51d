"""How far a run has come: counting, rates and the time left. Pure: every time is an argument."""

import math
from collections import deque
from statistics import stdev

from attrs import frozen

from onellm_async.batch.journal.rows import Counts, Row, State
from onellm_async.events import Answered, Event, Failed, Refused, Retrying, Sent

__all__ = ["RunProgress", "Tally"]

_RECENT = 60
"""Seconds over which the rate is taken: long enough for the published 40 a minute, short enough to follow a change."""
_PORTION = 10
"""Seconds of one of the portions whose differences tell how sure the rate is."""


@frozen
class RunProgress:
    """A run at one moment.

    Attributes:
        done: Prompts with an outcome, failures and earlier sittings included.
        failed: Of these, failures.
        resumed: Of these, outcomes of earlier sittings.
        held: Of the failures, prompts that were sent in an earlier sitting, may be billed, and are not asked again.
        copied: Of these, prompts that share the answer to an identical one.
        bad_lines: Lines of the input that held no usable prompt.
        total: Lines of the input that are not blank; None when nobody knows.
        in_flight: Requests sent and not answered yet.
        refusals: How often the rate limit refused a request in this sitting (not billed).
        retries: How often a request was sent again after a failure in this sitting.
        input_tokens: Tokens of the prompts answered, as far as replies told.
        output_tokens: Tokens generated, as far as replies told.
        cost: USD by list price, as far as prices and usage are known.
        unpriced: Answers whose cost is unknown.
        elapsed: Seconds since this sitting began.
        rate: Outcomes per second of this sitting over the last minute.
        eta: Seconds that are probably left; None when that cannot be told.
        eta_least: The least it is likely to be (two standard errors of the rate away).
        eta_most: The most it is likely to be.
    """

    done: int
    failed: int
    resumed: int
    held: int
    copied: int
    bad_lines: int
    total: int | None
    in_flight: int
    refusals: int
    retries: int
    input_tokens: int
    output_tokens: int
    cost: float
    unpriced: int
    elapsed: float
    rate: float
    eta: float | None
    eta_least: float | None
    eta_most: float | None

    @property
    def answered(self) -> int:
        """Prompts with an answer."""
        return self.done - self.failed


class Tally:
    """Counts what happens in a run.

    It is a hook: give it to the client (``hooks=(tally,)``) for refusals, retries and requests in flight; everything
    else comes from the journal's rows.

    Args:
        started: When the sitting began, in seconds on the clock of all later times.
        ceiling: Requests per second that the rate limit allows in the long run; None when it is not known. The first
            burst is faster than what follows, so without it the time left is too short at first.
    """

    def __init__(self, started: float, *, ceiling: float | None = None) -> None:
        self.total: int | None = None
        """Lines of the input that are not blank, once somebody knows."""
        self.started: float = started
        self._ceiling = ceiling
        self._done = self._failed = self._resumed = self._held = self._copied = self._bad_lines = 0
        self._refusals = self._retries = 0
        self._input_tokens = self._output_tokens = 0
        self._cost = 0.0
        self._unpriced = 0
        self._in_flight: set[int] = set()
        self._recent: deque[list[int]] = deque()

    def __call__(self, event: Event, /) -> None:
        """Takes note of an event of the client."""
        if isinstance(event, Sent):
            self._in_flight.add(event.request)
        elif isinstance(event, Refused | Retrying | Answered | Failed):
            self._in_flight.discard(event.request)
            self._refusals += isinstance(event, Refused)
            self._retries += isinstance(event, Retrying)

    def settled(self, row: Row, at: float) -> None:
        """Counts an outcome that came `at` this time."""
        second = int(at - self.started)
        if self._recent and self._recent[-1][0] == second:
            self._recent[-1][1] += 1
        else:
            self._recent.append([second, 1])
            self._forget(second)
        self._count(row)

    def resumed(self, row: Row, *, held: bool = False) -> None:
        """Counts an outcome of an earlier sitting."""
        self._resumed += 1
        self._held += held
        self._count(row)

    def _count(self, row: Row) -> None:
        self._done += 1
        if row.state is not State.ANSWERED:
            self._failed += 1
            return
        if row.same_as is not None:
            self._copied += 1
            return
        self._input_tokens += row.input_tokens or 0
        self._output_tokens += row.output_tokens or 0
        if row.cost is None:
            self._unpriced += 1
        else:
            self._cost += row.cost

    def found(self, counts: Counts) -> None:
        """Counts a whole run of earlier sittings, to which this one had nothing to add."""
        self._done = self._resumed = counts.answered + counts.failed
        self._failed = counts.failed
        self._copied = counts.reused
        self._cost, self._unpriced = counts.cost, counts.unpriced
        self._input_tokens, self._output_tokens = counts.input_tokens, counts.output_tokens
        self._bad_lines = 0 if self.total is None else max(0, self.total - self._done - counts.sent)

    def bad_line(self) -> None:
        """Counts a line that held no usable prompt."""
        self._bad_lines += 1

    def snapshot(self, now: float) -> RunProgress:
        """The run as it stands `now`."""
        elapsed = max(0.0, now - self.started)
        self._forget(int(elapsed))
        span = min(elapsed, _RECENT - 1 + elapsed % 1)  # what `_forget` leaves: whole seconds, and the one that runs
        rate = sum(count for _, count in self._recent) / max(span, 0.001)
        eta, least, most = self._eta(rate, elapsed)
        return RunProgress(
            done=self._done,
            failed=self._failed,
            resumed=self._resumed,
            held=self._held,
            copied=self._copied,
            bad_lines=self._bad_lines,
            total=self.total,
            in_flight=len(self._in_flight),
            refusals=self._refusals,
            retries=self._retries,
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            cost=self._cost,
            unpriced=self._unpriced,
            elapsed=elapsed,
            rate=rate,
            eta=eta,
            eta_least=least,
            eta_most=most,
        )

    def _forget(self, second: int) -> None:
        while self._recent and self._recent[0][0] <= second - _RECENT:
            self._recent.popleft()

    def _eta(self, rate: float, elapsed: float) -> tuple[float | None, float | None, float | None]:
        if self.total is None:
            return None, None, None
        left = max(0, self.total - self._done - self._bad_lines)
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
