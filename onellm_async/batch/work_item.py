"""One prompt of a run: before each attempt is sent, its cost is reserved and its intent is durable."""

from collections.abc import Callable
from time import time

from attrs import evolve

from onellm_async.batch.budget import NO_COST, Bound, BudgetGate, Cost, billed_tokens
from onellm_async.batch.inputs.entry import Entry, ParsedEntry
from onellm_async.batch.journal.null_journal import RunJournal
from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.batch.outcomes import answer_json, failure_json
from onellm_async.call import Attempt
from onellm_async.chat import ChatResponse
from onellm_async.errors import OneLLMError


class WorkItem:
    """One prompt, with its reservation, its intent and its possibly billed attempts. It implements `AttemptHooks`.

    Args:
        entry: Where it stands in the input.
        item: The request.
        earlier: What the journal has of it from an earlier session; None where it is new.
        bound: The most that one attempt may bill; None if unknown.
        budget_gate: Where the money comes from.
        journal: Where intents go.
        clock: Seconds that only go forward.

    Attributes:
        entry: As given.
        item: As given.
        duplicates: Identical requests that wait for the answer to this one.
        copied_from: The outcome of an identical request, which is this one's, too; None where it has to be sent.
        cached_answer: The answer that an earlier run got to the same request; likewise.
        intended: Whether the journal has it as sent in this session.
        lost: Attempts of this session that may have been billed without an answer.
    """

    __slots__ = (
        "_attempts_before",
        "_bound",
        "_budget_gate",
        "_charge",
        "_clock",
        "_earlier",
        "_held",
        "_journal",
        "_left_at",
        "_lost_before",
        "_noted",
        "_sent_at",
        "_started",
        "cached_answer",
        "copied_from",
        "duplicates",
        "entry",
        "intended",
        "item",
        "lost",
    )

    def __init__(
        self,
        entry: Entry,
        item: ParsedEntry,
        *,
        earlier: JournalRecord | None,
        bound: Bound | None,
        budget_gate: BudgetGate,
        journal: RunJournal,
        clock: Callable[[], float],
    ) -> None:
        self.entry: Entry = entry
        self.item: ParsedEntry = item
        self.duplicates: list[WorkItem] = []
        self.copied_from: JournalRecord | None = None
        self.cached_answer: JournalRecord | None = None
        self.intended: bool = False
        self.lost: int = 0
        self._bound = bound
        self._charge = None if bound is None else budget_gate.expected(bound)
        self._budget_gate = budget_gate
        self._journal = journal
        self._clock = clock
        self._started = self._left_at = clock()
        self._sent_at: float | None = None
        self._noted: Cost | None = None
        self._earlier = earlier
        self._lost_before = self._attempts_before = 0
        self._held = False

    def start_over(self, attempts: int) -> None:
        """It will be sent once more, as if for the first time: `attempts` were made until now, without an outcome."""
        self.intended = False
        self._lost_before = self.lost
        self._attempts_before += attempts

    async def before_sending(self, attempt: Attempt) -> None:
        """Sets the money of an attempt aside, then makes its intent durable.

        Raises:
            BudgetExceededError: If there is not enough left.
            BatchError: If the journal cannot be written.
        """
        self._close(self._lost_before + attempt.possibly_billed, NO_COST)
        if self._bound is not None:
            self._charge = await self._budget_gate.reserve(self._bound)
            self._held = True
        if not self.intended or attempt.possibly_billed or self._charge != self._noted:
            await self.intend()
        self._left_at = self._clock()

    def after_failing(self, possibly_billed: int) -> None:
        """Gives back what was set aside for an attempt without an answer.

        A repeat may have to wait long for its turn, and those whose turn it is wait for the money.
        """
        self._close(self._lost_before + possibly_billed, NO_COST)

    async def intend(self) -> None:
        """Makes it durable that an attempt may leave.

        Raises:
            BatchError: If the journal cannot be written.
        """
        self._sent_at = time()
        await self._journal.record_intent(self._record(possibly_billed=self.lost + 1))
        self.intended, self._noted = True, self._charge

    def _close(self, lost: int, actual: Cost) -> None:
        """The attempt in flight is over; where it may have been billed unanswered, its money is gone for good."""
        if self._held and self._charge is not None and self._bound is not None:
            self._held = False
            if lost > self.lost:
                self._budget_gate.lose(self._bound, self._charge)
            else:
                self._budget_gate.settle(self._charge, actual)
        self.lost = lost

    def answered(self, response: ChatResponse) -> JournalRecord:
        """Settles the cost of an answer. Returns the record of it."""
        input_tokens, output_tokens = billed_tokens(response.usage)
        self.lost = self._lost_before + response.possibly_billed
        if self._held and self._charge is not None and self._bound is not None:
            unknown = input_tokens is None and output_tokens is None
            self._budget_gate.learn(self._bound, response.usage)
            cost = self._charge.cost if response.cost is None else response.cost
            tokens = self._charge.tokens if unknown else (input_tokens or 0) + (output_tokens or 0)
            self._close(self.lost, Cost(cost, tokens))
        return self._settled(
            RecordState.ANSWERED,
            answer_json(response, self.item),
            attempts=self._attempts_before + response.attempts,
            rate_limited=response.rate_limited,
            cost=response.cost,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )

    def failed(self, error: OneLLMError) -> JournalRecord:
        """Settles the cost of a failure. Returns the record of it."""
        self._close(self._lost_before + error.possibly_billed, NO_COST)
        return self._settled(RecordState.FAILED, failure_json(error), attempts=self._attempts_before + error.attempts)

    def _settled(
        self,
        state: RecordState,
        result: bytes,
        *,
        attempts: int,
        rate_limited: int = 0,
        cost: float | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> JournalRecord:
        now = self._clock()
        return self._record(
            possibly_billed=self.lost,
            state=state,
            completed_at=time(),
            attempts=attempts,
            rate_limited=rate_limited,
            cost=cost,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            elapsed=now - self._started,
            latency=now - self._left_at,
            result=result,
        )

    def _record(
        self,
        *,
        possibly_billed: int,
        state: RecordState = RecordState.IN_FLIGHT,
        completed_at: float | None = None,
        attempts: int = 0,
        rate_limited: int = 0,
        cost: float | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        elapsed: float | None = None,
        latency: float | None = None,
        copy_of: int | None = None,
        result: bytes = b"",
    ) -> JournalRecord:
        """What the journal has of the entry, with the possibly billed attempts of earlier sessions."""
        earlier, charge = self._earlier, self._charge if self._sent_at is not None else None
        reserved = None if charge is None else charge.cost
        reserved_tokens = None if charge is None else charge.tokens
        if earlier is not None:
            possibly_billed += earlier.possibly_billed
            reserved = earlier.reserved if reserved is None else reserved
            reserved_tokens = earlier.reserved_tokens if reserved_tokens is None else reserved_tokens
        return JournalRecord(
            index=self.entry.index,
            line=self.entry.line,
            line_digest=self.entry.digest,
            request_digest=self.item.request_digest,
            custom_id=self.item.custom_id,
            sample=self.item.sample,
            reserved=reserved,
            reserved_tokens=reserved_tokens,
            sent_at=self._sent_at,
            possibly_billed=possibly_billed,
            state=state,
            completed_at=completed_at,
            attempts=attempts,
            rate_limited=rate_limited,
            cost=cost,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            elapsed=elapsed,
            latency=latency,
            copy_of=copy_of,
            kept=self.item.kept,
            result=result,
        )

    def unstorable(self, record: JournalRecord, error: OneLLMError) -> JournalRecord:
        """What to write down instead where the journal cannot store `record`: a failure that says so."""
        return evolve(
            record,
            state=RecordState.FAILED,
            completed_at=time(),
            elapsed=0.0,
            latency=None,
            input_tokens=None,
            output_tokens=None,
            result=failure_json(error),
            copy_of=None,
            custom_id=None,
        )

    def copy_of(self, original: JournalRecord) -> JournalRecord:
        """What to write down where `original`, of an identical request, has the outcome. A copy costs nothing.

        An answer stays where it is, for good. A failure goes when its original is retried, so its text is copied.
        """
        if original.state is not RecordState.ANSWERED:
            return self._unsent(original.state, original.result)
        return self._unsent(
            original.state, original.result, original.index if original.copy_of is None else original.copy_of
        )

    def reused(self, answer: JournalRecord) -> JournalRecord:
        """What to write down where `answer`, of an earlier run, is the answer."""
        return self._unsent(RecordState.ANSWERED, answer.result)

    def _unsent(self, state: RecordState, result: bytes, copy_of: int | None = None) -> JournalRecord:
        return self._record(
            possibly_billed=self.lost,
            state=state,
            completed_at=time(),
            cost=0.0,
            input_tokens=0,
            output_tokens=0,
            elapsed=self._clock() - self._started,
            copy_of=copy_of,
            result=result,
        )
