"""What goes into a journal and what comes out of it: plain values."""

from enum import IntEnum
from typing import NamedTuple

from attrs import frozen

from onellm_async.chat import JSON

__all__ = ["Command", "Intent", "JournalRecord", "RecordState", "RunCounts", "Settled"]


class RecordState(IntEnum):
    """How an entry of the input stands. An entry without a row was never sent."""

    IN_FLIGHT = 1
    """It was to leave, and no outcome is known: after a crash it may have been billed."""
    ANSWERED = 2
    FAILED = 3


@frozen
class Intent:
    """A request is about to leave.

    Attributes:
        index: Its position among the entries of the input.
        line: Its line number, from 1.
        digest: 64 signed bits of the digest of the line.
        custom_id: The caller's own name of it.
        request_digest: Of what is sent, for deduplication.
        reserved: The most that one attempt can cost, in USD; None if unknown.
        at: When, in Unix seconds.
        reserved_tokens: The most tokens that one attempt can use; None if unknown.
        possibly_billed: Attempts of the same session before this one that may have been billed.
    """

    index: int
    line: int
    digest: int
    custom_id: str | None
    request_digest: bytes
    reserved: float | None
    at: float
    reserved_tokens: int | None = None
    possibly_billed: int = 0


@frozen
class Settled:
    """The outcome of a request.

    Attributes:
        index: Its position among the entries of the input.
        state: `RecordState.ANSWERED` or `RecordState.FAILED`.
        at: When, in Unix seconds.
        attempts: How often it was sent in this session.
        possibly_billed: How many of these may have been billed without an answer.
        rate_limited: How often the rate limit refused it (not billed).
        cost: USD by list price; None if unknown.
        input_tokens: Tokens of the prompt; None if unknown.
        output_tokens: Tokens generated; None if unknown.
        elapsed: Seconds from queueing to the end.
        latency: Seconds that the last attempt took; None where nothing was sent.
        result: The answer or the failure, as a JSON object; b"" where `copy_of` tells where it is.
        copy_of: Index of an identical request whose answer this is, too; a failure has its own text.
        line: Only without an intent, which neither a duplicate needs nor an entry whose answer came from a cache.
        digest: Only without an intent.
        custom_id: Only without an intent.
        request_digest: Only without an intent.
    """

    index: int
    state: RecordState
    at: float
    attempts: int
    possibly_billed: int
    rate_limited: int
    cost: float | None
    input_tokens: int | None
    output_tokens: int | None
    elapsed: float
    latency: float | None
    result: bytes
    copy_of: int | None = None
    line: int = 0
    digest: int = 0
    custom_id: str | None = None
    request_digest: bytes = b""


class JournalRecord(NamedTuple):
    """What the journal has of one entry. A named tuple: hundreds of thousands a second are read.

    Attributes are those of `Intent` and `Settled`, with these differences: ``sent_at`` and ``completed_at`` are their
    times, ``result`` holds the answer of the original where there is a ``copy_of``, and ``possibly_billed`` counts
    attempts of all sessions that have no outcome: of a sent entry also the last one.
    """

    index: int  # type: ignore[assignment]  # no caller asks a record for the place of a value
    line: int
    digest: int
    custom_id: str | None
    request_digest: bytes
    state: RecordState
    attempts: int
    possibly_billed: int
    rate_limited: int
    reserved: float | None
    reserved_tokens: int | None
    cost: float | None
    input_tokens: int | None
    output_tokens: int | None
    sent_at: float | None
    completed_at: float | None
    elapsed: float | None
    latency: float | None
    result: bytes
    copy_of: int | None


@frozen
class RunCounts:
    """What a journal has, all sessions together.

    Attributes:
        answered: Entries with an answer.
        failed: Entries that failed for good.
        in_flight: Entries in flight; after a crash, those that may have been billed.
        deduplicated: Entries with the outcome of an identical request.
        possibly_billed: Attempts that ended without an outcome and may have been billed, those in flight left out.
        rate_limited: How often the rate limit refused.
        cost: USD by list price, as far as known.
        unpriced: Answers whose cost is unknown.
        input_tokens: As far as known.
        output_tokens: As far as known.
        at_risk: USD that may be spent beyond `cost`: the reserved cost of every attempt without an outcome, those
            in flight included, and of every answer whose cost is unknown.
        at_risk_tokens: The same in tokens.
    """

    answered: int = 0
    failed: int = 0
    in_flight: int = 0
    deduplicated: int = 0
    possibly_billed: int = 0
    rate_limited: int = 0
    cost: float = 0.0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    at_risk: float = 0.0
    at_risk_tokens: int = 0


@frozen
class Command:
    """What another terminal asks of a run.

    Attributes:
        name: ``pause``, ``resume``, ``retune`` or ``stop``.
        argument: With what; for ``retune`` the settings to change.
        id: Its number in the journal; 0 before it is there.
        at: When it was asked, in Unix seconds; 0 before it was.
    """

    name: str
    argument: JSON = None
    id: int = 0
    at: float = 0.0
