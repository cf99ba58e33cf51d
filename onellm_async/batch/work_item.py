"""One prompt of a run: before each attempt is sent, its cost is reserved and its intent is durable."""

from collections.abc import Callable
from time import time
from typing import TypeVar

from attrs import evolve, frozen

from onellm_async.batch.budget import NO_COST, Bound, BudgetGate, Cost, billed_tokens
from onellm_async.batch.inputs.entry import Entry, ParsedEntry
from onellm_async.batch.journal.null_journal import RunJournal
from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.batch.outcomes import answer_json, failure_json
from onellm_async.call import Attempt
from onellm_async.chat import ChatResponse, Usage
from onellm_async.errors import OneLLMError, StructureError

Number = TypeVar("Number", int, float)


@frozen
class _Bill:
    """What answers did cost, as far as they say; None where none says."""

    cost: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    def after(self, before: "_Bill") -> "_Bill":
        """The sum of both, of which `before` came first."""
        if before is _NOTHING:  # as for every prompt without corrections
            return self
        return _Bill(
            _sum(before.cost, self.cost),
            _sum(before.input_tokens, self.input_tokens),
            _sum(before.output_tokens, self.output_tokens),
        )

    def known(self, *, priced: bool, counted: bool) -> "_Bill":
        """The same without sums that lack the part of a turn."""
        if priced and counted:
            return self
        return _Bill(
            self.cost if priced else None,
            self.input_tokens if counted else None,
            self.output_tokens if counted else None,
        )

    @property
    def usage(self) -> Usage:
        """The tokens."""
        return Usage(self.input_tokens, self.output_tokens, (self.input_tokens or 0) + (self.output_tokens or 0))


_NOTHING = _Bill()


def _sum(one: Number | None, other: Number | None) -> Number | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


class WorkItem:
    """One prompt, with its reservation, its intent and its possibly billed attempts. It implements `AttemptHooks`.

    A prompt with a schema may take several *turns*, each of which is answered and paid for. All are reserved before the
    first, and each is settled by `turn_answered`. Its record has the tokens and the cost of all of them.

    Args:
        entry: Where it stands in the input.
        item: The request.
        earlier: What the journal has of it from an earlier session; None where it is new.
        bound: The most that one turn may bill; None if unknown.
        corrections: Corrective turns that may follow the first; None where the answer has no schema.
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
        lost: Attempts of this session that may have been billed without an answer, or were with an unknown bill.
        has_paid: Whether a turn was answered, in this session or before, and there is no outcome yet.
    """

    __slots__ = (
        "_attempts_before",
        "_bound",
        "_budget_gate",
        "_charge",
        "_clock",
        "_corrections",
        "_earlier",
        "_held",
        "_journal",
        "_left_at",
        "_lost_before",
        "_noted",
        "_paid",
        "_sent_at",
        "_stale",
        "_started",
        "_structured",
        "_turn",
        "_turns",
        "_unbilled",
        "_uncounted",
        "_unpriced",
        "cached_answer",
        "copied_from",
        "duplicates",
        "entry",
        "has_paid",
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
        corrections: int | None = None,
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
        self._structured = corrections is not None
        self._turns = 1 + (corrections or 0)
        self._turn = 0  # answered since it was sent for the first time, or started over
        self._held = 0  # turns whose money is set aside for the attempt in flight and those that may follow
        self._stale = False  # a turn was answered that the journal does not have
        self._unbilled = 0
        self._unpriced = self._uncounted = False
        self._paid = _NOTHING
        self._corrections = 0
        self.has_paid: bool = False
        if earlier is not None and earlier.is_paid:
            self._paid = _Bill(earlier.cost, earlier.input_tokens, earlier.output_tokens)
            self._corrections = earlier.corrections
            self.has_paid = True

    def start_over(self, attempts: int) -> None:
        """It will be sent once more, as if for the first time: `attempts` were made until now, without an outcome."""
        self.intended = False
        self._turn = 0
        self._lost_before = self.lost
        self._attempts_before += attempts

    async def before_sending(self, attempt: Attempt) -> None:
        """Sets the money of an attempt aside, then makes its intent durable.

        Raises:
            BudgetExceededError: If there is not enough left.
            BatchError: If the journal cannot be written.
        """
        self._close(self._lost_before + attempt.possibly_billed)
        if self._bound is not None:
            await self._reserve(self._bound)
        if not self.intended or self._stale or attempt.possibly_billed or self._charge != self._noted:
            await self.intend()
        self._left_at = self._clock()

    async def _reserve(self, bound: Bound) -> None:
        """Sets the money of all turns that may follow aside, unless it is parked."""
        turns = self._turns - self._turn
        if not (self._turn and self._budget_gate.unpark(self)):
            self._charge = await self._budget_gate.reserve(bound, turns)
        self._held = turns

    def after_failing(self, possibly_billed: int) -> None:
        """Gives back what was set aside for an attempt without an answer, unless it is a corrective turn.

        A repeat may have to wait long for its turn, and those whose turn it is wait for the money.
        """
        self._close(self._lost_before + possibly_billed)

    async def intend(self) -> None:
        """Makes it durable that an attempt may leave.

        Raises:
            BatchError: If the journal cannot be written.
        """
        self._sent_at = time()
        await self._journal.record_intent(self._record(possibly_billed=self.lost + 1))
        self.intended, self._noted, self._stale = True, self._charge, False

    def unfinished(self) -> JournalRecord:
        """What the journal has of it where it was answered and is to be corrected later: no attempt is in flight."""
        return self._record(possibly_billed=self.lost)

    def _close(self, lost: int) -> None:
        """The attempt in flight brought no answer; where it may have been billed, its money is gone for good."""
        if self._held and self._charge is not None and self._bound is not None:
            if lost > self.lost:
                self._budget_gate.lose(self._bound, self._charge, self._held)
            elif self._turn:
                reserved = self._charge * self._held
                self._budget_gate.park(self, reserved, NO_COST, left=reserved)
            else:
                self._budget_gate.settle(self._charge * self._held, NO_COST)
            self._held = 0
        self.lost = lost

    def turn_answered(self, reply: ChatResponse) -> None:
        """Settles the cost of a turn, whether its answer fits or not."""
        input_tokens, output_tokens = billed_tokens(reply.usage)
        unpriced, uncounted = reply.cost is None, input_tokens is None and output_tokens is None
        if self._charge is not None and self._bound is not None:
            self._unbilled += uncounted or (unpriced and self._charge.cost > 0)
            if self._held:
                self._budget_gate.learn(self._bound, reply.usage)
                cost = self._charge.cost if reply.cost is None else reply.cost
                tokens = self._charge.tokens if uncounted else (input_tokens or 0) + (output_tokens or 0)
                actual, left = Cost(cost, tokens), self._held - 1
                if left:
                    self._budget_gate.park(self, self._charge * self._held, actual, left=self._charge * left)
                else:
                    self._budget_gate.settle(self._charge, actual)
                self._held = 0
        self.lost = self._lost_before = self._lost_before + reply.possibly_billed
        self._attempts_before += reply.attempts
        self._unpriced |= unpriced
        self._uncounted |= uncounted
        self._paid = _Bill(reply.cost, input_tokens, output_tokens).after(self._paid)
        self._corrections += self._turn > 0
        self._turn += 1
        self.has_paid = self._stale = True

    def answered(self, response: ChatResponse[object]) -> JournalRecord:
        """Returns the record of an answer, all turns of which are settled."""
        if self._turns > 1:
            self._budget_gate.give_up(self)
        cost = None if self._unpriced else self._paid.cost
        if cost != response.cost:  # other turns were answered before it started over, or in an earlier session
            response = evolve(response, cost=cost, usage=self._paid.usage)
        return self._settled(
            RecordState.ANSWERED,
            answer_json(response, self.item, structured=self._structured),
            attempts=self._attempts_before,
            rate_limited=response.rate_limited,
        )

    def failed(self, error: OneLLMError) -> JournalRecord:
        """Settles the cost of a failure. Returns the record of it."""
        attempts, rate_limited = self._attempts_before, 0
        last: OneLLMError | None = error
        if isinstance(error, StructureError):
            rate_limited, last = error.rate_limited, error.correction_error
        if last is not None:
            attempts += last.attempts
            self._close(self._lost_before + last.possibly_billed)
        if self._turns > 1:
            self._budget_gate.give_up(self)
        result = failure_json(error, self._paid.cost)
        return self._settled(RecordState.FAILED, result, attempts=attempts, rate_limited=rate_limited)

    def _settled(self, state: RecordState, result: bytes, *, attempts: int, rate_limited: int) -> JournalRecord:
        now = self._clock()
        return self._record(
            possibly_billed=self.lost,
            state=state,
            completed_at=time(),
            attempts=attempts,
            rate_limited=rate_limited,
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
        elapsed: float | None = None,
        latency: float | None = None,
        copy_of: int | None = None,
        result: bytes = b"",
    ) -> JournalRecord:
        """What the journal has of the entry, with the possibly billed attempts and the bills of earlier sessions."""
        paid = self._paid
        if state is RecordState.ANSWERED:
            paid = paid.known(priced=not self._unpriced, counted=not self._uncounted)
        else:
            possibly_billed += self._unbilled
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
            corrections=self._corrections,
            cost=paid.cost,
            input_tokens=paid.input_tokens,
            output_tokens=paid.output_tokens,
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
        self._paid = _Bill(0.0, 0, 0).after(self._paid)
        return self._record(
            possibly_billed=self.lost,
            state=state,
            completed_at=time(),
            elapsed=self._clock() - self._started,
            copy_of=copy_of,
            result=result,
        )
