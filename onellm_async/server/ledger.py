"""What was requested, processed and billed. Pure. Tests compare the client's counts with it."""

import sys
from collections import Counter, deque
from enum import Enum

from attrs import frozen

MAX_PROMPT_CHARACTERS = 200
"""Characters of a prompt kept in its row: enough to recognize it, and a bound on the memory."""


class Outcome(Enum):
    """How a request ended on the server."""

    ANSWERED = "answered"
    """Processed and billed. The complete reply was handed to the connection."""
    LOST = "lost"
    """Processed and billed. The reply was reset or truncated, or the client had disconnected."""
    FAILED = "failed"
    """Error of the service or its upstream; not billed."""
    POSSIBLY_BILLED = "possibly_billed"
    """Sent to the upstream, which returned no usable answer and may have billed it. The account is not charged."""
    DROPPED = "dropped"
    """Not processed: the connection was reset before, or the server was stopped; not billed."""
    RATE_LIMITED = "rate_limited"
    """Answered 429: by the rate limit, or because requests in flight have reserved the balance; not billed."""
    REJECTED = "rejected"
    """Invalid, sent to a wrong URL, or without a valid key or balance; not billed."""


@frozen
class LedgerRow:
    """One request that has ended.

    Attributes:
        number: Order of arrival, from 1.
        account: Label of the key, never the key; "" if the key was not read.
        received_at: Seconds on the server's clock.
        model: Requested model; "" if it could not be read.
        prompt: First 200 characters of the last user message; "" if it could not be read.
        outcome: How the request ended.
        cost: USD billed.
        input_tokens: Input tokens billed.
        output_tokens: Output tokens billed.
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
    """Counters over all requests, and the latest rows in the order in which requests ended.

    Args:
        keep_rows: Maximum number of rows kept; the oldest are dropped first. A row takes about half a kilobyte.

    Attributes:
        rows: The latest rows.
        outcomes: Number of requests by outcome.
        billed_usd: Total billed, in USD.
        input_tokens: Input tokens billed.
        output_tokens: Output tokens billed.
        in_flight: Accepted requests that have not ended yet.
        max_in_flight: Highest value of `in_flight` so far.
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
        """Number of requests that have ended, with any outcome."""
        return self.outcomes.total()

    @property
    def billed(self) -> int:
        """Number of requests processed and billed, whether or not the reply arrived."""
        return self.outcomes[Outcome.ANSWERED] + self.outcomes[Outcome.LOST]

    def start(self) -> None:
        """Counts an accepted request as in flight."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def complete(self, row: LedgerRow) -> None:
        """Records the end of a request in flight."""
        self.in_flight -= 1
        self.record(row)

    def record(self, row: LedgerRow) -> None:
        """Records a request that ended when it arrived."""
        self.rows.append(row)
        self.outcomes[row.outcome] += 1
        self.billed_usd += row.cost
        self.input_tokens += row.input_tokens
        self.output_tokens += row.output_tokens

    def summary(self) -> dict[str, float]:
        """Returns the counters, ready for JSON."""
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
