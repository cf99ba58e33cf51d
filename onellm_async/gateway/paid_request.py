"""The money of one request: reserved before each attempt, settled after it."""

from collections.abc import Callable

from onellm_async.call import Attempt
from onellm_async.chat import ChatRequest, ChatResponse
from onellm_async.errors import OneLLMError
from onellm_async.gateway.budget import WorstCase, attempt_units
from onellm_async.gateway.spending import Intent, Settlement, SpendingLedger

_MAX_TOKENS = 2**40
"""Most tokens of an answer that are added up."""


class PaidRequest:
    """One request of a key. It implements `AttemptHooks`.

    Args:
        ledger: Where it is recorded.
        name: The key.
        request: What is asked.
        worst: The most that one attempt can cost.
        cap: Cap of the key, in units; None for none.
        total_cap: Cap of all keys; likewise.
        clock: Seconds since 1970.
    """

    __slots__ = ("_cap", "_clock", "_intent", "_ledger", "_lost", "_name", "_request", "_total_cap", "_worst")

    def __init__(
        self,
        ledger: SpendingLedger,
        name: str,
        request: ChatRequest,
        worst: WorstCase,
        *,
        cap: int | None,
        total_cap: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._request = request
        self._worst = worst
        self._cap = cap
        self._total_cap = total_cap
        self._clock = clock
        self._intent: int | None = None
        self._lost = 0

    async def before_sending(self, attempt: Attempt, /) -> None:
        """Reserves the cost of an attempt, durably."""
        self._lost = attempt.possibly_billed
        self._intent = await self._ledger.record_intent(
            Intent(self._name, self._worst.units, self._cap, self._total_cap, self._clock())
        )

    def after_failing(self, possibly_billed: int, /) -> None:
        """Settles an attempt without an answer."""
        self._close(at_risk=possibly_billed > self._lost)
        self._lost = possibly_billed

    def answered(self, response: ChatResponse) -> None:
        """Settles the attempt that was answered to its cost."""
        if self._intent is None:
            return
        usage = response.usage
        read = 0 if usage is None else _count(usage.input_tokens)
        written = 0 if usage is None else _count(usage.output_tokens)
        asked = self._worst.output_tokens
        excess = written / asked if asked and written > asked else 1.0
        self._ledger.settle(
            Settlement(
                intent=self._intent,
                name=self._name,
                outcome="answered",
                units=self._worst.units if response.cost is None else attempt_units(response.cost),
                priced=response.cost is not None,
                input_tokens=read,
                output_tokens=written,
                model=self._request.model if excess > 1 else "",
                factor=excess,
            )
        )
        self._intent = None

    def failed(self, error: BaseException) -> None:
        """Settles what is open when the request ends without an answer: its deadline passed, or its client left."""
        lost = error.possibly_billed if isinstance(error, OneLLMError) else self._lost + 1
        self._close(at_risk=lost > self._lost)

    def _close(self, *, at_risk: bool) -> None:
        if self._intent is None:
            return
        outcome, units = ("at risk", self._worst.units) if at_risk else ("released", 0)
        self._ledger.settle(Settlement(intent=self._intent, name=self._name, outcome=outcome, units=units))
        self._intent = None


def _count(tokens: int | None) -> int:
    return min(_MAX_TOKENS, max(0, tokens or 0))
