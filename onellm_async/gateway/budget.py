"""What the keys of a gateway may spend, as arithmetic. Pure.

Amounts are integers of 1e-10 USD, the unit in which list prices add up exactly, so that no sum drifts.

An attempt *reserves* the most that it can cost before it is sent, and is *settled* to its cost. What may have been
billed without an answer stays counted as spent: a cap holds although answers get lost.
"""

from typing import Literal

from attrs import frozen

from onellm_async.batch import Budget
from onellm_async.catalog import LIST_PRICES, PriceList
from onellm_async.chat import ChatRequest, Usage
from onellm_async.errors import BudgetExceededError, InvalidRequestError
from onellm_async.formatting import format_usd

UNITS_PER_USD = 10_000_000_000
"""Prices are USD per million tokens with at most four decimals."""

_MOST_USD = 1e12
"""A cap beyond it is none, and a float of any size is a number of units."""
MAX_UNITS = 1000 * UNITS_PER_USD
"""The most that one attempt is counted with, so that no request makes a sum overflow in the ledger."""

Verdict = Literal["allowed", "reserved", "spent"]
"""``"reserved"``: it would fit, if requests in flight did not hold the rest. ``"spent"``: it never fits."""


def to_units(usd: float) -> int:
    """USD as units."""
    return round(min(usd, _MOST_USD) * UNITS_PER_USD)


def attempt_units(usd: float) -> int:
    """The cost of one attempt as units that the ledger can add up: at least 0, at most 1,000 USD."""
    return min(MAX_UNITS, max(0, to_units(usd)))


def to_usd(units: int) -> float:
    """Units as USD."""
    return units / UNITS_PER_USD


@frozen
class Account:
    """What one key, or all of them together, may spend and has spent.

    Attributes:
        cap: Most that may be spent; None for no cap.
        spent: Billed, or possibly billed without an answer.
        reserved: For attempts whose outcome is not known yet.
    """

    cap: int | None
    spent: int = 0
    reserved: int = 0

    def verdict(self, units: int) -> Verdict:
        """Whether `units` more may be reserved.

        Args:
            units: The most that an attempt can cost.

        Example:
            >>> account = Account(cap=100, spent=60, reserved=30)
            >>> [account.verdict(units) for units in (10, 11, 40, 41)]
            ['allowed', 'reserved', 'reserved', 'spent']
        """
        if self.cap is None or self.spent + self.reserved + units <= self.cap:
            return "allowed"
        return "reserved" if self.spent + units <= self.cap else "spent"


@frozen
class WorstCase:
    """The most that one attempt of a request can cost.

    Attributes:
        units: Its list price; 0 if there is none and no cap needs it.
        output_tokens: The output tokens in it; None if they have no bound.
    """

    units: int = 0
    output_tokens: int | None = None


def bound_cost(
    request: ChatRequest, *, capped: bool, factor: float = 1.0, prices: PriceList = LIST_PRICES
) -> WorstCase:
    """The most that one attempt of `request` can cost.

    Args:
        request: What is asked.
        capped: Whether a cap applies, so that a bound is needed.
        factor: How many times its ``max_tokens`` a reply of this model has billed so far; models that think bill more.
        prices: Those of the client.

    Raises:
        InvalidRequestError: If a cap applies, and the request has no bound or its model no list price.
    """
    try:
        bound = Budget(max_cost=1.0, prices=prices).bound(request)
    except InvalidRequestError as error:
        if not capped:
            return WorstCase()
        raise InvalidRequestError(_cap_needs(request, error, prices)) from None
    if bound is None:
        return WorstCase()
    output = bound.output_tokens * max(1.0, factor)
    cost = prices.cost(bound.model, Usage(bound.input_tokens, round(output)))
    if capped and to_units(cost or 0.0) > MAX_UNITS:
        raise InvalidRequestError(f"max_tokens is {request.max_tokens}; the answer could cost more than 1,000 USD.")
    return WorstCase(attempt_units(cost or 0.0), bound.output_tokens)


def _cap_needs(request: ChatRequest, error: InvalidRequestError, prices: PriceList) -> str:
    if prices.price(request.model) is None:
        return f"model {request.model!r} has no price, so a key with a cost cap cannot use it."
    if request.max_tokens is None:
        return "max_tokens is missing; a key with a cost cap needs it, because only it bounds the cost of an answer."
    return f"max_tokens is {request.max_tokens}; {error.message}"


def build_cap_error(scope: str, account: Account, units: int) -> BudgetExceededError:
    """The error for an attempt that does not fit.

    Args:
        scope: Whose cap it is, for example ``"key alice"``.
        account: What is spent.
        units: What the attempt can cost.
    """
    cap, left = to_usd(account.cap or 0), to_usd(max(0, (account.cap or 0) - account.spent))
    return BudgetExceededError(
        f"Cost cap of {scope} reached: {format_usd(left)} of {format_usd(cap, exact=True)} left; "
        f"this request could cost {format_usd(to_usd(units))}.",
        advice="Lower max_tokens, or ask the operator of the gateway for a higher max-cost.",
    )
