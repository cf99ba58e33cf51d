"""What was asked, processed and billed: the oracle that tests and curious people read. Pure."""

from collections import Counter, deque
from enum import Enum

from attrs import frozen

__all__ = ["Ledger", "LedgerRow", "Outcome"]


class Outcome(Enum):
    """How a request ended on the server."""

    ANSWERED = "answered"
    """Processed, billed, and the whole reply was written."""
    LOST = "lost"
    """Processed and billed, but the reply was reset or cut off on its way."""
    FAILED = "failed"
    """An error of the service or its upstream; not billed."""
    DROPPED = "dropped"
    """The connection was reset before processing; not billed."""
    REFUSED = "refused"
    """By rate limit; not billed."""
    REJECTED = "rejected"
    """Malformed, or without a valid key or balance; not billed."""


@frozen
class LedgerRow:
    """One request.

    Attributes:
        number: In order of arrival, from 1.
        account: Label of the key, never the key; "" when there was none.
        received_at: Seconds on the server's clock.
        model: The model asked, "" when that could not be read.
        prompt: The last user message, "" when that could not be read.
        outcome: How it ended.
        cost: USD billed.
    """

    number: int
    account: str
    received_at: float
    model: str
    prompt: str
    outcome: Outcome
    cost: float = 0.0


class Ledger:
    """Counters over everything, and the latest rows.

    Args:
        keep_rows: Most rows kept.
    """

    def __init__(self, keep_rows: int) -> None:
        self.rows: deque[LedgerRow] = deque(maxlen=keep_rows)
        self.outcomes: Counter[Outcome] = Counter()
        self.billed_usd = 0.0
        self.input_tokens = 0
        self.output_tokens = 0

    @property
    def received(self) -> int:
        """Requests that have ended, in whatever way."""
        return self.outcomes.total()

    @property
    def billed(self) -> int:
        """Requests that were processed and billed, whether or not the reply arrived."""
        return self.outcomes[Outcome.ANSWERED] + self.outcomes[Outcome.LOST]

    def enter(self, row: LedgerRow, *, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Writes `row` down."""
        self.rows.append(row)
        self.outcomes[row.outcome] += 1
        self.billed_usd += row.cost
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    def summary(self) -> dict[str, float]:
        """The counters, ready for JSON."""
        counts: dict[str, float] = {outcome.value: self.outcomes[outcome] for outcome in Outcome}
        return counts | {
            "received": self.received,
            "billed": self.billed,
            "billed_usd": self.billed_usd,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }
