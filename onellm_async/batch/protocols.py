"""What a run needs of those it works with; any object of this shape will do."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from onellm_async.batch.inputs.entry import Entry, LineError
from onellm_async.batch.journal.commands import Command
from onellm_async.batch.journal.record import JournalRecord, RunCounts
from onellm_async.call import AttemptHooks
from onellm_async.chat import JSON, ChatRequest, ChatResponse
from onellm_async.limits.permit import RequestGroup
from onellm_async.limits.policy import Lane, Limits
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import Snapshot

__all__ = ["AnswerLookup", "EntrySource", "RunClient", "RunJournal"]


class RunClient(Protocol):
    """What a run needs of `onellm_async.AsyncOneLLM`."""

    @property
    def limits(self) -> Limits:
        """The limits it keeps to now."""

    @property
    def rate_state(self) -> RateState | None:
        """What it has learned about the rate."""

    async def send(
        self,
        request: ChatRequest,
        *,
        lane: Lane = "default",
        deadline: float | None = None,
        group: RequestGroup | None = None,
        attempt_hooks: AttemptHooks | None = None,
    ) -> ChatResponse:
        """Sends a request; see `onellm_async.AsyncOneLLM.send`."""

    def snapshot(self) -> Snapshot:
        """What it is doing now."""

    def pause(self) -> None:
        """Lets nothing leave until `resume`."""

    def resume(self) -> None:
        """Goes on after `pause`."""

    def retune(self, limits: Limits) -> None:
        """Keeps to other limits from now on."""


class EntrySource(Protocol):
    """Entries in the order of the input."""

    def __aiter__(self) -> AsyncIterator[Entry]:
        """The entries, once."""

    def reserve_custom_id(self, custom_id: str) -> None:
        """Takes note of an id that was used in an entry that was not parsed."""


class AnswerLookup(Protocol):
    """Answers of earlier runs; `onellm_async.batch.AnswerCache` has those in their journals."""

    def answer_to(self, request_digest: bytes) -> JournalRecord | None:
        """The row of an answered request with that digest; None where there is none."""


class RunJournal(Protocol):
    """Where intents and results become durable; `onellm_async.batch.Journal` is the one that survives a crash."""

    @property
    def resumed(self) -> bool:
        """Whether an earlier session left anything in it."""

    async def record_intent(self, record: JournalRecord) -> None:
        """Returns when it is durable that a request is about to be sent."""

    async def record_outcome(self, record: JournalRecord) -> None:
        """Returns when an outcome is durable."""

    async def retract_intent(self, index: int) -> None:
        """Returns when it is durable that the last attempt of an entry was not sent."""

    def bad_line(self, error: LineError) -> None:
        """Keeps a bad line for the report."""

    def sample(self, at: float, sample: JSON) -> None:
        """Keeps a point of the time series."""

    def counts(self) -> RunCounts:
        """What there is so far."""

    def records(self, first: int, last: int) -> Sequence[JournalRecord]:
        """The records of the entries from index `first` to `last`, both included, in order."""

    def record(self, index: int) -> JournalRecord | None:
        """The record of one entry."""

    def commands(self) -> Sequence[Command]:
        """What other terminals asked for since the last time."""

    def refuse(self, command: Command, reason: str) -> None:
        """Tells the terminal that asked for it that nothing changes."""

    def failure_causes(self) -> Sequence[tuple[str, int]]:
        """What failures say and how many there are, all sessions together, the most frequent cause first."""
