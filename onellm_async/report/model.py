"""What a report tells of a run, as values: numbers in seconds, USD and counts. Words are made elsewhere."""

from collections.abc import Mapping
from enum import StrEnum

from attrs import field, frozen

__all__ = [
    "BadLine",
    "FailedPrompt",
    "Figures",
    "Latency",
    "Report",
    "RunSession",
    "RunStatus",
    "Share",
    "SlowPrompt",
    "TimeSlice",
    "Verdict",
]


class RunStatus(StrEnum):
    """How a run stands."""

    COMPLETE = "complete"
    """Every prompt has an answer or an error."""
    RUNNING = "running"
    """A process works on it right now."""
    INTERRUPTED = "interrupted"
    """No process works on it, and something is left to do."""


@frozen(kw_only=True)
class RunSession:
    """One invocation that worked on the run.

    Attributes:
        started: When, in Unix seconds.
        ended: When, in Unix seconds. Of a session that was killed, its last sign of life.
        end_reason: How it ended in a few words; None where it did not say, because it was killed or goes on.
        goes_on: Whether its process still works.
        version: Version of the package that it ran.
        requests_per_minute: The declared limit, None where none was.
        burst: Requests that the limit allows at once; None if not given.
    """

    started: float
    ended: float
    end_reason: str | None = None
    goes_on: bool = False
    version: str | None = None
    requests_per_minute: float | None = None
    burst: int | None = None

    @property
    def duration(self) -> float:
        """Seconds."""
        return max(0.0, self.ended - self.started)


@frozen(kw_only=True)
class Figures:
    """The counts of a run.

    Attributes:
        total: Prompts of the input; None if they were not counted.
        answered: Prompts with an answer.
        failed: Prompts that ended with an error.
        deduplicated: Of the answered, prompts that share the answer to an identical one.
        bad_lines: Lines of the input without a usable prompt.
        unsettled: Prompts that were sent and have neither answer nor error: in flight, or possibly billed.
        possibly_billed: Attempts that got no reply and may have been billed all the same, those of settled prompts
            included; without those that are in flight.
        at_risk: USD that may have been billed for nothing, at worst.
        cost: USD by list price, as far as it is known.
        unpriced: Answers whose cost is unknown.
        budget: USD that may be spent; None without a budget.
        input_tokens: Tokens of the prompts.
        output_tokens: Tokens of the answers.
        rate_limited: How often a request was answered 429, which is not billed.
        retries: How often a request was sent again after a failure.
        possible: Prompts that the rate limit would have let through in the time of the sessions; None where the limit
            is not known.
    """

    total: int | None = None
    answered: int = 0
    failed: int = 0
    deduplicated: int = 0
    bad_lines: int = 0
    unsettled: int = 0
    possibly_billed: int = 0
    at_risk: float = 0.0
    cost: float = 0.0
    unpriced: int = 0
    budget: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    rate_limited: int = 0
    retries: int = 0
    possible: float | None = None

    @property
    def settled(self) -> int:
        """Prompts with an answer or an error."""
        return self.answered + self.failed

    @property
    def left(self) -> int:
        """Prompts without an answer or an error, as far as the number of all of them is known."""
        return 0 if self.total is None else max(0, self.total - self.settled - self.bad_lines)

    @property
    def goodput(self) -> float | None:
        """Share, 0 to 1, of what the limit allowed that became answers; None where the limit is not known."""
        return min(1.0, (self.answered - self.deduplicated) / self.possible) if self.possible else None


@frozen(kw_only=True)
class TimeSlice:
    """What happened in a part of the time in which a process worked on the run.

    Attributes:
        session: Number of its session, from 0.
        start: Its beginning in seconds of work, breaks between sessions not counted.
        clock: Its beginning in Unix seconds.
        width: Its length in seconds.
        answered: Prompts answered in it.
        failed: Prompts failed in it.
        limit: Requests per minute that the limit allowed, declared or learned; None where it is not known.
        queued: Prompts waiting for admission at its end, by lane; empty without a sample.
        in_flight: Requests in flight, on average; None without a sample.
        rate_limited: 429s in it.
        retries: Requests sent again in it.
        cost: USD spent from the start of the run to its end.
        input_tokens: Tokens of prompts from the start of the run to its end.
        output_tokens: Tokens of answers from the start of the run to its end.
    """

    session: int = 0
    start: float
    clock: float
    width: float
    answered: int = 0
    failed: int = 0
    limit: float | None = None
    queued: Mapping[str, float] = field(factory=dict[str, float])
    in_flight: float | None = None
    rate_limited: int = 0
    retries: int = 0
    cost: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


@frozen(kw_only=True)
class Latency:
    """How long answers took: the last attempt of each, from sending to the reply.

    Attributes:
        edges: Bounds of the bins in seconds, ascending, one more than there are bins.
        counts: Answers in each bin.
        p50: Seconds within which half of them came; p90 and p99 likewise.
        p90: See p50.
        p99: See p50.
    """

    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


@frozen(kw_only=True)
class SlowPrompt:
    """An answer that took long.

    Attributes:
        index: Position among the prompts, from 0.
        line: Line or row of the input, from 1.
        custom_id: The caller's name of it.
        elapsed: Seconds from queueing to its end.
        latency: Seconds of its last attempt.
        attempts: Times it was sent.
    """

    index: int
    line: int
    custom_id: str | None = None
    elapsed: float
    latency: float | None = None
    attempts: int = 1


@frozen(kw_only=True)
class FailedPrompt:
    """A prompt that failed.

    Attributes:
        index: Position among the prompts, from 0.
        line: Line or row of the input, from 1.
        custom_id: The caller's name of it.
        kind: The error's class.
        message: What it said.
        status_code: The HTTP status, None where there was no reply.
        attempts: Times it was sent.
        possibly_billed: Attempts that may have been billed.
    """

    index: int
    line: int
    custom_id: str | None = None
    kind: str
    message: str
    status_code: int | None = None
    attempts: int = 1
    possibly_billed: int = 0


@frozen
class BadLine:
    """A line of the input without a usable prompt: its number from 1, and what is wrong with it."""

    line: int
    message: str


@frozen
class Share:
    """A part of the time: what for, and how much of it, 0 to 1."""

    name: str
    share: float


@frozen
class Verdict:
    """Where the time went, in a sentence and in shares that add up to 1."""

    sentence: str
    shares: tuple[Share, ...]


@frozen(kw_only=True)
class Report:
    """A run as it stands.

    Attributes:
        name: Name of the output, or of the journal.
        subtitle: What was asked of whom, in a few words.
        made_at: When the report was made, in Unix seconds.
        standing: How the run stands.
        warning: What its figures lack; None where they are complete.
        identity: What makes it this run and no other: pairs of a name and a value.
        sessions: The invocations that worked on it, in order.
        figures: Its counts.
        verdict: Where the time went; None where the journal holds no samples.
        slices: The time of the sessions, cut into slices of equal length.
        latency: How long answers took.
        slowest: The answers whose last attempts took longest, slowest first.
        failures: The first failed prompts in the order of the input; `figures` has their number.
        bad_lines: The first bad lines; `figures` has their number.
        causes: What failed prompts say and how many there are, the most frequent cause first.
        notable: What is unusual about answers, and how many there are: cut off, filtered or empty.
        waits_for: What a running run waits for, with the last error; None while all is well.
    """

    name: str
    subtitle: str = ""
    made_at: float
    standing: RunStatus
    warning: str | None = None
    identity: tuple[tuple[str, str], ...] = ()
    sessions: tuple[RunSession, ...] = ()
    figures: Figures
    verdict: Verdict | None = None
    slices: tuple[TimeSlice, ...] = ()
    latency: Latency = Latency()
    slowest: tuple[SlowPrompt, ...] = ()
    failures: tuple[FailedPrompt, ...] = ()
    bad_lines: tuple[BadLine, ...] = ()
    causes: tuple[tuple[str, int], ...] = ()
    notable: tuple[tuple[str, int], ...] = ()
    waits_for: str | None = None

    @property
    def duration(self) -> float:
        """Seconds of work: the sessions without the breaks between them."""
        return sum(session.duration for session in self.sessions)

    @property
    def resumed(self) -> int:
        """How often the run was resumed."""
        return max(0, len(self.sessions) - 1)
