"""The values of a report. Pure.

A report shows what the journal has: `RunCounts`, `RunSession`, `JournalRecord` and `LineError` are used as they are.
"""

from collections.abc import Mapping
from enum import StrEnum
from itertools import accumulate

from attrs import field, frozen

from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.reader import RunSession
from onellm_async.batch.journal.record import JournalRecord, RunCounts
from onellm_async.batch.shards import ShardStatus
from onellm_async.formatting import format_count
from onellm_async.limits.bottleneck_analysis import BottleneckAnalysis


class RunStatus(StrEnum):
    """The state of a run."""

    COMPLETE = "complete"
    """Every prompt has an answer or an error."""
    RUNNING = "running"
    """A process works on it right now."""
    INTERRUPTED = "interrupted"
    """No process works on it, and something is left to do."""


@frozen(kw_only=True)
class ProgressSample:
    """A point of a run's time series. What the sample lacks is None.

    Attributes:
        at: Unix seconds.
        queued: Prompts waiting for admission, by lane.
        in_flight: Requests in flight.
        limit: Requests per minute that the limiter keeps to, declared or discovered; None without a limit.
        declared: Requests per minute as declared.
        burst: Requests that the limit allows at once.
        limit_found: What 429s have shown of the limit, in words.
        rate_limited: 429s since the session began.
        retries: Retries since the session began.
        total: Prompts of the input.
        bad_lines: Lines without a usable prompt that the session has met.
        cost: USD spent on what the session knows, earlier sessions included.
        input_tokens: Tokens of prompts, likewise.
        output_tokens: Tokens of answers, likewise.
    """

    at: float
    queued: Mapping[str, float] = field(factory=dict[str, float])
    in_flight: float | None = None
    limit: float | None = None
    declared: float | None = None
    burst: float | None = None
    limit_found: str | None = None
    rate_limited: int = 0
    retries: int = 0
    total: int | None = None
    bad_lines: int = 0
    cost: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


@frozen(kw_only=True)
class SessionSpan:
    """The time of a session.

    Attributes:
        session: As the journal has it.
        ended: When, in Unix seconds. Of a session that was killed, its last activity.
        is_running: Whether its process still works.
        requests_per_minute: The declared limit; None without one.
        burst: Requests that the limit allows at once; None if unknown.
        limit_found: What 429s had shown of the limit at the end, in words; None if nothing was certain.
    """

    session: RunSession
    ended: float
    is_running: bool = False
    requests_per_minute: float | None = None
    burst: int | None = None
    limit_found: str | None = None

    @property
    def started(self) -> float:
        """Unix seconds."""
        return self.session.started_at

    @property
    def duration(self) -> float:
        """Seconds."""
        return max(0.0, self.ended - self.started)


@frozen(kw_only=True)
class RunTotals:
    """The totals of a run.

    Attributes:
        counts: Those of the journal. Of a run that is not running, what was in flight is among the possibly billed.
        total: Prompts of the input; None if they were not counted.
        bad_lines: Lines of the input without a usable prompt.
        budget: USD that may be spent; None without a budget.
        retries: How often a request was retried after a failure.
        allowed: Prompts that the rate limit would have let through in the time of the sessions; None if it is unknown.
    """

    counts: RunCounts = field(factory=RunCounts)
    total: int | None = None
    bad_lines: int = 0
    budget: float | None = None
    retries: int = 0
    allowed: float | None = None

    @property
    def remaining(self) -> int:
        """Prompts without an answer or an error, as far as the number of all of them is known."""
        return 0 if self.total is None else max(0, self.total - self.counts.completed - self.bad_lines)

    @property
    def goodput(self) -> float | None:
        """Share, 0 to 1, of what the limit allowed that became answers; None where the limit is not known."""
        if not self.allowed:
            return None
        return min(1.0, (self.counts.answered - self.counts.deduplicated) / self.allowed)


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
        limit: Requests per minute that the limit allowed, declared or discovered; None where it is not known.
        queued: Prompts waiting for admission at its end, by lane; empty without a sample.
        in_flight: Requests in flight, on average; None without a sample.
        rate_limited: 429s in it.
        retries: Retries in it.
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
class Report:
    """A run at one moment.

    Attributes:
        name: Name of the output, or of the journal.
        subtitle: The input and the model, in a few words.
        created_at: When the report was created, in Unix seconds.
        status: The state of the run.
        warning: What its totals lack; None where they are complete.
        parameters: What makes it this run and no other: pairs of a name and a value.
        sessions: The invocations of the run, in order.
        totals: Its totals.
        bottlenecks: Time by bottleneck; None where the journal holds no samples.
        slices: The time of the sessions, cut into slices of equal length.
        latency: How long answers took.
        slowest: The answers whose last attempts took longest, slowest first.
        failures: The first failed prompts in the order of the input.
        bad_lines: The first bad lines.
        causes: What failed prompts say and how many there are, the most frequent cause first.
        notable: What is unusual about answers, and how many there are: cut off, filtered or empty.
        waits_for: What a running run waits for, with the last error; None while all is well.
        shards: The shards in the order of the input; empty for a run of its own. Its sessions are then the times in
            which any of them was active.
    """

    name: str
    subtitle: str = ""
    created_at: float
    status: RunStatus
    warning: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    sessions: tuple[SessionSpan, ...] = ()
    totals: RunTotals
    bottlenecks: BottleneckAnalysis | None = None
    slices: tuple[TimeSlice, ...] = ()
    latency: Latency = Latency()
    slowest: tuple[JournalRecord, ...] = ()
    failures: tuple[JournalRecord, ...] = ()
    bad_lines: tuple[LineError, ...] = ()
    causes: tuple[tuple[str, int], ...] = ()
    notable: tuple[tuple[str, int], ...] = ()
    waits_for: str | None = None
    shards: tuple[ShardStatus, ...] = ()

    def place_of(self, record: JournalRecord) -> str:
        """Where a record's prompt is: its line, and its shard if there are any."""
        if not self.shards:
            return format_count(record.line)
        ends = accumulate(shard.entries for shard in self.shards)
        places = (shard for shard, end in zip(self.shards, ends, strict=True) if record.index < end)
        shard = next(places, self.shards[-1])
        return f"{shard.name}:{record.line}"

    @property
    def duration(self) -> float:
        """Seconds of work: the sessions without the breaks between them."""
        return sum(session.duration for session in self.sessions)

    @property
    def resumed(self) -> int:
        """How often the run was resumed."""
        return max(0, len(self.sessions) - 1)
