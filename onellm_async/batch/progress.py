"""How far a run has come: counting, rates and the time left. Pure: every time is an argument."""

from collections import deque

from attrs import frozen

from onellm_async.chat import ChatOutcome
from onellm_async.events import Answered, Event, Failed, Refused, Retrying, Sent

__all__ = ["RunProgress", "Tally"]

_RECENT = 60
"""Seconds over which the rate is taken: long enough for the published 40 a minute, short enough to follow a change."""


@frozen
class RunProgress:
    """A run at one moment.

    Attributes:
        done: Prompts with an outcome, failures included.
        failed: Of these, failures.
        bad_lines: Lines of the input that held no usable prompt.
        total: Lines of the input that are not blank; None when nobody knows.
        in_flight: Requests sent and not answered yet.
        refusals: How often the rate limit refused a request (not billed).
        retries: How often a request was sent again after a failure.
        input_tokens: Tokens of the prompts answered, as far as replies told.
        output_tokens: Tokens generated, as far as replies told.
        cost: USD by list price, as far as prices and usage are known.
        unpriced: Answers whose cost is unknown.
        elapsed: Seconds since the start.
        rate: Outcomes per second over the last minute.
        eta: Seconds that are probably left; None when that cannot be told.
    """

    done: int
    failed: int
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

    @property
    def answered(self) -> int:
        """Prompts with an answer."""
        return self.done - self.failed


class Tally:
    """Counts what happens in a run.

    It is a hook: give it to the client (``hooks=(tally,)``) for refusals, retries and requests in flight; everything
    else comes from the outcomes.

    Args:
        started: When the run began, in seconds on the clock of all later times.
        ceiling: Requests per second that the rate limit allows in the long run; None when it is not known. The first
            burst is faster than what follows, so without it the time left is too short at first.
    """

    def __init__(self, started: float, *, ceiling: float | None = None) -> None:
        self.total: int | None = None
        """Lines of the input that are not blank, once somebody knows."""
        self._started = started
        self._ceiling = ceiling
        self._done = self._failed = self._bad_lines = 0
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

    def settled(self, outcome: ChatOutcome, at: float) -> None:
        """Counts an outcome that came `at` this time."""
        self._done += 1
        second = int(at - self._started)
        if self._recent and self._recent[-1][0] == second:
            self._recent[-1][1] += 1
        else:
            self._recent.append([second, 1])
            self._forget(second)
        if outcome.response is None:
            self._failed += 1
            return
        if outcome.response.usage is not None:
            self._input_tokens += outcome.response.usage.input_tokens or 0
            self._output_tokens += outcome.response.usage.output_tokens or 0
        if outcome.response.cost is None:
            self._unpriced += 1
        else:
            self._cost += outcome.response.cost

    def bad_line(self) -> None:
        """Counts a line that held no usable prompt."""
        self._bad_lines += 1

    def snapshot(self, now: float) -> RunProgress:
        """The run as it stands `now`."""
        elapsed = max(0.0, now - self._started)
        self._forget(int(elapsed))
        rate = sum(count for _, count in self._recent) / max(min(elapsed, _RECENT), 0.001)
        return RunProgress(
            done=self._done,
            failed=self._failed,
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
            eta=self._eta(rate),
        )

    def _forget(self, second: int) -> None:
        while self._recent and self._recent[0][0] <= second - _RECENT:
            self._recent.popleft()

    def _eta(self, rate: float) -> float | None:
        if self.total is None:
            return None
        left = max(0, self.total - self._done - self._bad_lines)
        if left == 0:
            return 0.0
        if self._ceiling is not None:
            rate = min(rate, self._ceiling)
        return left / rate if rate > 0 else None
