"""What a run may spend, and the account that keeps it to that. Pure.

Before an attempt leaves, the most that it can cost is *reserved*; afterwards the reservation becomes what it did cost.
So spent and reserved money together never pass the cap, whatever the replies say. An attempt that may have been billed
without an answer keeps its reservation for good: that money is *at risk*.
"""

from attrs import field, frozen

from onellm_async import catalog
from onellm_async.chat import ChatRequest, Usage
from onellm_async.errors import ConfigurationError, InvalidRequestError
from onellm_async.validation import Checks
from onellm_async.wire import dump_json

__all__ = ["Account", "Budget", "Charge", "most_input_tokens"]

_check = Checks(ConfigurationError, "Budget.")

_TOKENS_AROUND_A_MESSAGE = 16
"""What a chat format adds to each message (role, separators), generously: OpenAI's adds 3 to 4."""


@frozen
class Charge:
    """What something costs, or may cost.

    Attributes:
        cost: USD.
        tokens: Input and output tokens.
    """

    cost: float = 0.0
    tokens: int = 0

    def __add__(self, other: "Charge") -> "Charge":
        return Charge(self.cost + other.cost, self.tokens + other.tokens)

    def __sub__(self, other: "Charge") -> "Charge":
        return Charge(self.cost - other.cost, self.tokens - other.tokens)


NOTHING = Charge()


@frozen(kw_only=True)
class Budget:
    """What a run may spend altogether, over all its sittings.

    Attributes:
        max_cost: USD by list price; None for no cap.
        max_tokens: Input and output tokens; None for no cap.

    Raises:
        ConfigurationError: If a value is not above 0.

    Example:
        >>> Budget(max_cost=5.0).capped
        True
    """

    max_cost: float | None = field(default=None, validator=_check.number(0, above=True, optional=True))
    max_tokens: int | None = field(default=None, validator=_check.integer(1, optional=True))

    @property
    def capped(self) -> bool:
        """Whether there is any cap."""
        return self.max_cost is not None or self.max_tokens is not None

    def allows(self, charge: Charge) -> bool:
        """Whether `charge` altogether stays within the caps."""
        return (self.max_cost is None or charge.cost <= self.max_cost) and (
            self.max_tokens is None or charge.tokens <= self.max_tokens
        )

    def worst_case(self, request: ChatRequest) -> Charge | None:
        """The most that one attempt of `request` can cost; None where nothing bounds it, and no cap needs it to.

        Raises:
            InvalidRequestError: If there is a cap, and no ``max_tokens`` or no known price bounds the request.
        """
        if request.max_tokens is None:
            if not self.capped:
                return None
            raise InvalidRequestError(
                "Without max_tokens an answer has no highest price, so no budget can hold.",
                advice="Set max_tokens (--max-tokens), or leave the budget out.",
            )
        usage = Usage(most_input_tokens(request), request.max_tokens)
        cost = catalog.cost(request.model, usage)
        if cost is None and not self.capped:
            return None
        if cost is None and self.max_cost is not None:
            raise InvalidRequestError(
                f"The price of {request.model!r} is not known, so a budget in USD cannot hold.",
                advice="Cap the tokens instead (--max-tokens-total).",
            )
        return Charge(cost or 0.0, (usage.input_tokens or 0) + request.max_tokens)


def most_input_tokens(request: ChatRequest) -> int:
    """More input tokens than `request` can have: a token is at least one byte of the text.

    Example:
        >>> most_input_tokens(ChatRequest("GPT-5", "Hello"))
        37
    """
    texts = [message.content for message in request.messages]
    if request.system is not None:
        texts.append(request.system)
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if request.extra:
        size += len(dump_json(dict(request.extra)))  # it may hold tools or schemas, which are input, too
    return size + _TOKENS_AROUND_A_MESSAGE * (len(texts) + 1)


class Account:
    """Keeps a run to its budget.

    Args:
        budget: The caps.
        spent: What earlier sittings spent, what they put at risk included.

    Attributes:
        spent: What is gone, or may be: settled charges and those at risk.
        reserved: The most that the attempts under way can cost.
        under_way: How many these are.
    """

    def __init__(self, budget: Budget, spent: Charge = NOTHING) -> None:
        self.budget: Budget = budget
        self.spent: Charge = spent
        self.reserved: Charge = NOTHING
        self.under_way: int = 0

    def reserve(self, charge: Charge) -> bool:
        """Sets `charge` aside if that passes no cap, and tells whether it did."""
        if not self.budget.allows(self.spent + self.reserved + charge):
            return False
        self.reserved += charge
        self.under_way += 1
        return True

    def settle(self, reserved: Charge, actual: Charge) -> None:
        """An attempt for which `reserved` was set aside is over and did cost `actual`."""
        self.under_way -= 1
        self.reserved = self.reserved - reserved if self.under_way else NOTHING
        self.spent += actual
