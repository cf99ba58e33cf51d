"""What a run may spend, the account that keeps it to that (pure), and the gate at which attempts wait.

Before an attempt is sent, the most that it should cost is *reserved*; afterwards the reservation becomes what it did
cost. An attempt that may have been billed without an answer keeps its reservation for good: that money is *at risk*.

A prompt whose answer may be sent back for a correction reserves that many *turns* before the first of them, each as
costly as the last can be. Between two turns their money is *parked*. An attempt waits for money with a slot of the
client in its hand, and a correction waits for a slot, so parked money is given away where nothing else can go on.

So spent and reserved money together never pass the cap, as long as replies bill no more than their request allows.
Some do: models that think bill tokens beyond ``max_tokens``. Each such reply is *learned*, and later reservations would
have covered every reply so far. Until the first reply of a model has come, only so much is in flight that ten times the
reservations would fit.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil

from attrs import evolve, field, frozen

from onellm_async.catalog import LIST_PRICES, PriceList
from onellm_async.chat import JSON, ChatRequest, Usage
from onellm_async.errors import BudgetExceededError, ConfigurationError, InvalidRequestError
from onellm_async.formatting import format_usd, pluralize
from onellm_async.structured_output import MAX_CORRECTION
from onellm_async.validation import Checks, truncated_repr
from onellm_async.wire import dump_json

_check = Checks(ConfigurationError, "Budget.")

_TOKENS_AROUND_A_MESSAGE = 16
"""What a chat format adds to each message (role, separators), generously: OpenAI's adds 3 to 4."""
_TOKENS_AROUND_TOOLS = 1024
"""What a provider adds to a request with tools, generously: Anthropic's instruction has up to 530."""
_MOST_TOKENS = 2**53
"""Beyond it sums are not exact any more, and no model answers so much."""
_TOKENS_OF_A_CORRECTION = MAX_CORRECTION + 2 * _TOKENS_AROUND_A_MESSAGE
"""What a corrective turn adds to the input beside the answer that it corrects; a token is at least one byte."""
_UNKNOWN_FACTOR = 10
"""How many times its reservations what is in flight may bill before the first reply of a model has come."""

_LENGTHS = {
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "maxOutputTokens",
    "max_new_tokens",
    "num_predict",
}
"""Fields of ``extra`` that say how long an answer may be, in the words of the providers."""
_NUMBERS = {"n", "best_of", "candidate_count", "candidateCount", "num_return_sequences"}
"""Fields of ``extra`` that say how many answers are made, and billed."""
_CONFIGURATIONS = {"generation_config", "generationConfig"}
"""Fields of ``extra`` in which Gemini has both."""
_CONVERSATIONS = {"messages", "contents"}
"""Fields of ``extra`` that replace the messages: counted where they are text, whose bytes bound its tokens."""


@frozen
class Cost:
    """What something costs, or may cost.

    Attributes:
        cost: USD.
        tokens: Input and output tokens.
    """

    cost: float = 0.0
    tokens: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.cost + other.cost, self.tokens + other.tokens)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.cost - other.cost, self.tokens - other.tokens)

    def __mul__(self, factor: int) -> "Cost":
        return Cost(self.cost * factor, self.tokens * factor)


NO_COST = Cost()


@frozen
class Bound:
    """The most that one attempt of a request may bill, as far as the request says.

    Attributes:
        model: Whose price is taken.
        input_tokens: At most, of all answers together.
        output_tokens: Likewise.
        prices: Of the tokens.
    """

    model: str
    input_tokens: int
    output_tokens: int
    prices: PriceList = field(default=LIST_PRICES, repr=False)

    @property
    def charge(self) -> Cost:
        """The same as money; without a price it costs nothing."""
        cost = self.prices.cost(self.model, Usage(self.input_tokens, self.output_tokens))
        return Cost(cost or 0.0, self.input_tokens + self.output_tokens)


@frozen(kw_only=True)
class Budget:
    """What a run may spend altogether, over all its sessions.

    Attributes:
        max_cost: USD by list price; None for no cap.
        max_tokens: Input and output tokens; None for no cap.
        prices: Those of the client.

    Raises:
        ConfigurationError: If a value is not above 0.

    Example:
        >>> Budget(max_cost=5.0).capped
        True
    """

    max_cost: float | None = field(default=None, validator=_check.number(0, above=True, optional=True))
    max_tokens: int | None = field(default=None, validator=_check.integer(1, optional=True))
    prices: PriceList = field(default=LIST_PRICES, repr=False)

    @property
    def capped(self) -> bool:
        """Whether there is any cap."""
        return self.max_cost is not None or self.max_tokens is not None

    def allows(self, charge: Cost) -> bool:
        """Whether `charge` altogether stays within the caps."""
        return (self.max_cost is None or charge.cost <= self.max_cost) and (
            self.max_tokens is None or charge.tokens <= self.max_tokens
        )

    def bound(self, request: ChatRequest, corrections: int = 0) -> Bound | None:
        """The most that one attempt of `request` may bill; None where nothing bounds it, and no cap needs it to.

        Args:
            request: The request.
            corrections: Corrective turns that may follow: each has all answers before it in its input.

        Raises:
            InvalidRequestError: If there is a cap, and the request does not say what it may bill at most.
        """
        try:
            bound = evolve(_bound(request, corrections), prices=self.prices)
            priced = self.prices.price(request.model) is not None
            if self.max_cost is not None:
                _demand_price(request, priced=priced)
        except InvalidRequestError:
            if self.capped:
                raise
            return None
        return bound if priced or self.capped else None

    def worst_case(self, request: ChatRequest) -> Cost | None:
        """The same as money.

        Raises:
            InvalidRequestError: Likewise.

        Example:
            >>> Budget(max_tokens=1000).worst_case(ChatRequest("GPT-5", "Hi", max_tokens=50, n=2)).tokens
            168
        """
        bound = self.bound(request)
        return None if bound is None else bound.charge


def _demand_price(request: ChatRequest, *, priced: bool) -> None:
    if request.extra and request.extra.get("model", request.model) != request.model:
        raise _unbounded("model", request.extra["model"], "give the model with the request itself")
    if not priced:
        raise InvalidRequestError(
            f"The price of {request.model!r} is not known, so a budget in USD cannot hold.",
            advice="Give its price (--prices), or cap the tokens instead (--max-tokens-total).",
        )


def _bound(request: ChatRequest, corrections: int) -> Bound:
    extra = request.extra or {}
    most = extra.get("max_tokens", request.max_tokens)
    if most is None:
        raise InvalidRequestError(
            "Without max_tokens an answer has no highest price, so no budget can hold.",
            advice="Set max_tokens (--max-tokens), or leave the budget out.",
        )
    output, number = most, request.n or 1
    if extra:
        places = [extra, *(extra[name] for name in _CONFIGURATIONS if isinstance(extra.get(name), Mapping))]
        output = max(0 if "max_tokens" in extra else most, *_counts(places, _LENGTHS, least=0))
        number = max(1 if "n" in extra else number, *_counts(places, _NUMBERS, least=1))
        for name in _CONVERSATIONS & extra.keys():
            if not _is_text(extra[name]):
                raise _unbounded(name, extra[name], "give messages of text only")
    read = most_input_tokens(request) + corrections * (output + _TOKENS_OF_A_CORRECTION)
    bound = Bound(request.model, number * read, number * output)
    if bound.input_tokens + bound.output_tokens > _MOST_TOKENS:
        raise InvalidRequestError(
            f"Its answers may have {truncated_repr(bound.output_tokens)} tokens, so no budget can hold.",
            advice="Set a smaller max_tokens or n, or leave the budget out.",
        )
    return bound


def _counts(places: Sequence[Mapping[str, JSON]], names: set[str], *, least: int) -> Iterator[int]:
    """What the fields with these names say; those that are not set say nothing."""
    yield least
    for place in places:
        for name in names & place.keys():
            value = place[name]
            if value is not None:
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise _unbounded(name, value, "give an integer of at least 1")
                yield value


def _unbounded(name: str, value: JSON, instead: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"extra sets {name} to {truncated_repr(value)}, so no budget can hold.",
        advice=f"Leave {name} out of extra and {instead}, or leave the budget out.",
    )


def _is_text(turns: JSON) -> bool:
    """Whether a conversation, in OpenAI's or in Gemini's shape, holds nothing but text."""
    if not isinstance(turns, list | tuple):
        return False
    return all(
        isinstance(turn, Mapping) and all(_is_text_part(turn[name]) for name in turn.keys() & {"content", "parts"})
        for turn in turns
    )


def _is_text_part(part: JSON) -> bool:
    if isinstance(part, list | tuple):
        return all(map(_is_text_part, part))
    if isinstance(part, Mapping):
        return part.keys() <= {"type", "text"} and isinstance(part.get("text"), str)
    return part is None or isinstance(part, str)


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
    extra = request.extra or {}
    turns = len(texts) + sum(len(extra[name]) for name in _CONVERSATIONS if isinstance(extra.get(name), list | tuple))
    for part in (request.tools, request.response_format, extra):
        if part:
            size += len(dump_json(part))  # schemas are input, too
    if request.tools or extra.get("tools"):
        size += _TOKENS_AROUND_TOOLS
    return size + _TOKENS_AROUND_A_MESSAGE * (turns + 1)


def billed_tokens(usage: Usage | None) -> tuple[int | None, int | None]:
    """Input and output tokens by a reply. What its total has beyond them is thought, which is billed as output."""
    if usage is None:
        return None, None
    output = usage.output_tokens
    if usage.total_tokens is not None:
        output = max(output or 0, usage.total_tokens - (usage.input_tokens or 0))
    return usage.input_tokens, output


class _Overshoot:
    """By how much replies have billed more than was expected, in tokens of one kind.

    Attributes:
        factor: The largest share of what was expected; at least 1.
        excess: The largest number of tokens beyond it.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self.excess = 0

    def learn(self, expected: int, billed: int | None) -> bool:
        """Whether a reply was beyond all before it."""
        if billed is None or billed <= expected:
            return False
        before = self.factor, self.excess
        self.factor = max(self.factor, billed / max(1, expected))
        self.excess = max(self.excess, billed - expected)
        return before != (self.factor, self.excess)

    def applied(self, expected: int) -> int:
        """The smaller of two numbers of tokens, each of which would have covered every reply so far."""
        return min(ceil(max(1, expected) * self.factor), expected + self.excess)


class _Experience:
    """What replies have taught: those of one model, or of all."""

    def __init__(self) -> None:
        self.input = _Overshoot()
        self.output = _Overshoot()

    def learn(self, bound: Bound, usage: Usage | None) -> bool:
        billed_input, billed_output = billed_tokens(usage)
        grown = self.input.learn(bound.input_tokens, billed_input)
        return self.output.learn(bound.output_tokens, billed_output) or grown

    def applied(self, bound: Bound) -> Bound:
        return evolve(
            bound,
            input_tokens=self.input.applied(bound.input_tokens),
            output_tokens=self.output.applied(bound.output_tokens),
        )


class Account:
    """Keeps a run to its budget.

    Args:
        budget: The caps.
        spent: What earlier sessions spent, what they put at risk included.

    Attributes:
        spent: What is gone, or may be: settled charges and those at risk.
        reserved: The most that the attempts in flight can cost, with the turns that may follow.
        parked: The same of prompts between two turns.
        under_way: Attempts in flight.
    """

    def __init__(self, budget: Budget, spent: Cost = NO_COST) -> None:
        self.budget: Budget = budget
        self.spent: Cost = spent
        self.reserved: Cost = NO_COST
        self.parked: Cost = NO_COST
        self.under_way: int = 0
        self._of_all = _Experience()
        self._of_model: dict[str, _Experience] = {}
        self._lost: list[tuple[Bound, Cost]] = []

    def expected(self, bound: Bound) -> Cost:
        """What is to be reserved for an attempt: by the replies of its model so far, or of all before its first."""
        return self._of_model.get(bound.model, self._of_all).applied(bound).charge

    def reserve(self, bound: Bound, turns: int = 1) -> Cost | None:
        """Reserves what so many turns may cost. Returns that of one; None where all pass a cap, or could by far."""
        charge = self.expected(bound)
        reserved = self.reserved + charge * turns
        together = reserved + self.parked
        if not self.budget.allows(self.spent + together):
            return None
        unknown = self.under_way and bound.model not in self._of_model
        if unknown and not self.budget.allows(self.spent + together * _UNKNOWN_FACTOR):
            return None
        self.reserved = reserved
        self.under_way += 1
        return charge

    def settle(self, reserved: Cost, actual: Cost) -> None:
        """An attempt for which `reserved` was set aside is over and did cost `actual`."""
        self.under_way -= 1
        self.reserved = self.reserved - reserved if self.under_way else NO_COST
        self.spent += actual

    def lose(self, bound: Bound, charge: Cost, turns: int = 1) -> None:
        """An attempt is over, may have been billed, and its bill stays unknown. `turns` were reserved."""
        self.settle(charge * turns, charge)
        self._lost.append((bound, charge))

    def learn(self, bound: Bound, usage: Usage | None) -> None:
        """Takes note of what a reply did bill. Lost attempts may have billed as much."""
        own = self._of_model.setdefault(bound.model, _Experience())
        grown = self._of_all.learn(bound, usage)
        if own.learn(bound, usage) or grown:
            lost = [(bound, self.expected(bound)) for bound, _ in self._lost]
            for (_, before), (_, now) in zip(self._lost, lost, strict=True):
                self.spent += now - before
            self._lost = lost

    @property
    def overshoot(self) -> str | None:
        """In words, by how much replies have billed more than was expected; None where none did."""
        incoming, outgoing = self._of_all.input.factor, self._of_all.output.factor
        if max(incoming, outgoing) == 1:
            return None
        if outgoing >= incoming:
            return f"replies bill up to {ceil(outgoing * 10) / 10:,.1f} × max_tokens"
        return f"replies bill up to {ceil(incoming * 10) / 10:,.1f} × the input that their text can have"


class BudgetGate:
    """Reserves the cost of attempts in the order in which they ask: a cost that does not fit yet waits.

    It may fit when others are settled.

    Args:
        budget: The caps.
        spent: What earlier sessions spent, what they put at risk included.
        say: Called once if replies bill more than their requests allow.
    """

    def __init__(self, budget: Budget, spent: Cost = NO_COST, say: Callable[[str], None] = lambda text: None) -> None:
        self._account = Account(budget, spent)
        self._say = say
        self._told = not budget.capped
        self._parked: dict[object, Cost] = {}
        self._queue: deque[tuple[Bound, int, asyncio.Future[Cost]]] = deque()

    @property
    def spent(self) -> Cost:
        """What is gone, or may be: settled costs and those at risk."""
        return self._account.spent

    @property
    def reserved(self) -> Cost:
        """The most that the attempts in flight can cost."""
        return self._account.reserved

    def expected(self, bound: Bound) -> Cost:
        """What is reserved for an attempt, by the replies so far."""
        return self._account.expected(bound)

    async def reserve(self, bound: Bound, turns: int = 1) -> Cost:
        """Returns when what so many turns may cost has been set aside, and how much one of them may.

        Safe to cancel: a cancelled wait sets nothing aside.

        Args:
            bound: The most that one turn may bill.
            turns: How many there may be.

        Raises:
            BudgetExceededError: If it does not fit although nothing is in flight any more.
        """
        if not self._queue and (charge := self._account.reserve(bound, turns)) is not None:
            return charge
        waker: asyncio.Future[Cost] = asyncio.get_running_loop().create_future()
        self._queue.append((bound, turns, waker))
        self._serve()
        try:
            return await waker
        except asyncio.CancelledError:
            if waker.done() and not waker.cancelled() and waker.exception() is None:
                self.settle(waker.result() * turns, NO_COST)
            else:
                self._serve()
            raise

    def settle(self, reserved: Cost, actual: Cost) -> None:
        """An attempt for which `reserved` was set aside is over and did cost `actual`."""
        self._account.settle(reserved, actual)
        self._serve()

    def park(self, holder: object, reserved: Cost, actual: Cost, left: Cost) -> None:
        """An attempt is over, and a turn may follow.

        Args:
            holder: Whose turn it is.
            reserved: What was set aside for the attempt and all turns after it.
            actual: What it did cost.
            left: What to keep for the turns after it.
        """
        self._account.settle(reserved, actual)
        self._parked[holder] = left
        self._account.parked += left
        self._serve()

    def unpark(self, holder: object) -> bool:
        """Takes what `holder` has parked for its next turn. Returns whether it is still there."""
        if (parked := self._take_parked(holder)) is None:
            return False
        self._account.reserved += parked
        self._account.under_way += 1
        return True

    def give_up(self, holder: object) -> None:
        """No turn of `holder` follows."""
        if self._take_parked(holder) is not None:
            self._serve()

    def _take_parked(self, holder: object) -> Cost | None:
        parked = self._parked.pop(holder, None)
        if parked is not None:
            self._account.parked = self._account.parked - parked if self._parked else NO_COST
        return parked

    def lose(self, bound: Bound, charge: Cost, turns: int = 1) -> None:
        """An attempt is over, may have been billed, and its bill stays unknown. `turns` were reserved."""
        self._account.lose(bound, charge, turns)
        self._serve()

    def learn(self, bound: Bound, usage: Usage | None) -> None:
        """Takes note of what a reply did bill; `settle` follows."""
        self._account.learn(bound, usage)
        if not self._told and (overshoot := self._account.overshoot) is not None:
            self._told = True
            self._say(f"{overshoot[0].upper()}{overshoot[1:]}; reservations are scaled.")

    def _serve(self) -> None:
        while self._queue:
            bound, turns, waker = self._queue[0]
            if not waker.done():
                if (charge := self._account.reserve(bound, turns)) is not None:
                    waker.set_result(charge)
                elif self._account.under_way:
                    return
                elif self._parked:
                    self._take_parked(next(iter(self._parked)))
                    continue
                else:
                    waker.set_exception(self._exceeded(self._account.expected(bound) * turns))
            self._queue.popleft()

    def _exceeded(self, charge: Cost) -> BudgetExceededError:
        budget, spent = self._account.budget, self._account.spent
        if budget.max_cost is not None and spent.cost + charge.cost > budget.max_cost:
            cap = format_usd(budget.max_cost, exact=True)
            left = f"{format_usd(max(0.0, budget.max_cost - spent.cost))} of {cap} are left"
            needed = f"the next prompt could cost {format_usd(charge.cost)}"
        else:
            cap = pluralize(budget.max_tokens or 0, "token")
            left = f"{max(0, (budget.max_tokens or 0) - spent.tokens):,} of {cap} are left"
            needed = f"the next prompt could use {charge.tokens:,}"
        overshoot = self._account.overshoot
        because = "" if overshoot is None else f", as {overshoot}"
        return BudgetExceededError(f"The budget is used up: {left}, and {needed}{because}.")
