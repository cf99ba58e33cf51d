"""What was asked, processed and billed: the oracle that tests and curious people read. Pure."""

import sys
from collections import Counter, deque
from enum import Enum

from attrs import frozen

MAX_PROMPT_CHARACTERS = 200
"""So much of each prompt is kept in its row: enough to recognise it, and a bound on the memory."""


class Outcome(Enum):
    """How a request ended on the server."""

    ANSWERED = "answered"
    """Processed, billed, and the whole reply was handed to the connection."""
    LOST = "lost"
    """Processed and billed, but the reply was reset, cut off, or its reader had gone."""
    FAILED = "failed"
    """An error of the service or its upstream; not billed."""
    POSSIBLY_BILLED = "possibly_billed"
    """The upstream was asked, and no answer came of it that could be passed on: it may have billed. The account is not
    charged."""
    DROPPED = "dropped"
    """Not processed: the connection was reset before, or the server was stopped; not billed."""
    RATE_LIMITED = "rate_limited"
    """By rate limit, or because requests in flight have reserved the balance; not billed."""
    REJECTED = "rejected"
    """Malformed, misdirected, or without a valid key or balance; not billed."""


@frozen
class LedgerRow:
    """One request.

    Attributes:
        number: In order of arrival, from 1.
        account: Label of the key, never the key; "" when it was not looked at.
        received_at: Seconds on the server's clock.
        model: The model asked, "" when that could not be read.
        prompt: The last user message, its first 200 characters; "" when that could not be read.
        outcome: How it ended.
        cost: USD billed.
        input_tokens: Tokens billed as read.
        output_tokens: Tokens billed as written.
    """

    number: int
    account: str
    received_at: float
    model: str
    prompt: str
    outcome: Outcome
    cost: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


class Ledger:
    """Counters over everything, and the latest rows, in the order in which requests ended.

    Args:
        keep_rows: Most rows kept; the oldest go first. A row with its texts takes about half a kilobyte.

    Attributes:
        rows: The latest rows.
        outcomes: How many requests ended in each way.
        billed_usd: Billed altogether.
        input_tokens: Tokens billed as read.
        output_tokens: Tokens billed as written.
        in_flight: Accepted requests that have not ended yet.
        max_in_flight: The most there have been at once.
    """

    def __init__(self, keep_rows: int) -> None:
        self.rows: deque[LedgerRow] = deque(maxlen=min(keep_rows, sys.maxsize))
        self.outcomes: Counter[Outcome] = Counter()
        self.billed_usd: float = 0.0
        self.input_tokens: int = 0
        self.output_tokens: int = 0
        self.in_flight: int = 0
        self.max_in_flight: int = 0

    @property
    def received(self) -> int:
        """Requests that have ended, in whatever way."""
        return self.outcomes.total()

    @property
    def billed(self) -> int:
        """Requests that were processed and billed, whether or not the reply arrived."""
        return self.outcomes[Outcome.ANSWERED] + self.outcomes[Outcome.LOST]

    def accept(self) -> None:
        """Counts a request as in flight."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def settle(self, row: LedgerRow) -> None:
        """Writes down how a request in flight has ended."""
        self.in_flight -= 1
        self.enter(row)

    def enter(self, row: LedgerRow) -> None:
        """Writes down a request that ended as soon as it came."""
        self.rows.append(row)
        self.outcomes[row.outcome] += 1
        self.billed_usd += row.cost
        self.input_tokens += row.input_tokens
        self.output_tokens += row.output_tokens

    def summary(self) -> dict[str, float]:
        """The counters, ready for JSON."""
        counts: dict[str, float] = {outcome.value: self.outcomes[outcome] for outcome in Outcome}
        return counts | {
            "received": self.received,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "billed": self.billed,
            "billed_usd": self.billed_usd,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }
