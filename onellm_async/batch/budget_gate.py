"""The account of a run, for those who can wait: a charge that does not fit yet may fit when others are settled."""

import asyncio
from collections import deque
from collections.abc import Callable

from onellm_async.batch.budget import NOTHING, Account, Bound, Charge
from onellm_async.chat import Usage
from onellm_async.errors import BudgetExceededError
from onellm_async.formatting import format_usd

__all__ = ["BudgetGate"]


class BudgetGate:
    """Sets charges aside, in the order in which they are asked for.

    Args:
        account: What decides.
        say: Told once if replies bill more than their requests allow.
    """

    def __init__(self, account: Account, say: Callable[[str], None] = lambda text: None) -> None:
        self.account: Account = account
        self._say = say
        self._told = not account.budget.capped
        self._queue: deque[tuple[Bound, asyncio.Future[Charge]]] = deque()

    async def reserve(self, bound: Bound) -> Charge:
        """Returns when what an attempt may cost has been set aside, and how much that is.

        Safe to cancel: a cancelled wait sets nothing aside.

        Raises:
            BudgetExceededError: If it does not fit although nothing is in flight any more.
        """
        if not self._queue and (charge := self.account.reserve(bound)) is not None:
            return charge
        waker: asyncio.Future[Charge] = asyncio.get_running_loop().create_future()
        self._queue.append((bound, waker))
        self._serve()
        try:
            return await waker
        except asyncio.CancelledError:
            if waker.done() and not waker.cancelled() and waker.exception() is None:
                self.settle(waker.result(), NOTHING)
            else:
                self._serve()
            raise

    def settle(self, reserved: Charge, actual: Charge) -> None:
        """An attempt for which `reserved` was set aside is over and did cost `actual`."""
        self.account.settle(reserved, actual)
        self._serve()

    def lose(self, bound: Bound, reserved: Charge) -> None:
        """An attempt is over, may have been billed, and its bill stays unknown."""
        self.account.lose(bound, reserved)
        self._serve()

    def learn(self, bound: Bound, usage: Usage | None) -> None:
        """Takes note of what a reply did bill; `settle` follows."""
        self.account.learn(bound, usage)
        if not self._told and (overshoot := self.account.overshoot) is not None:
            self._told = True
            self._say(f"{overshoot[0].upper()}{overshoot[1:]}; reservations are scaled.")

    def _serve(self) -> None:
        while self._queue:
            bound, waker = self._queue[0]
            if not waker.done():
                if (charge := self.account.reserve(bound)) is not None:
                    waker.set_result(charge)
                elif self.account.under_way:
                    return
                else:
                    waker.set_exception(self._exceeded(self.account.expected(bound)))
            self._queue.popleft()

    def _exceeded(self, charge: Charge) -> BudgetExceededError:
        budget, spent = self.account.budget, self.account.spent
        if budget.max_cost is not None and spent.cost + charge.cost > budget.max_cost:
            cap = format_usd(budget.max_cost, exact=True)
            left = f"{format_usd(max(0.0, budget.max_cost - spent.cost))} of {cap} are left"
            needed = f"the next prompt could cost {format_usd(charge.cost)}"
        else:
            left = f"{max(0, (budget.max_tokens or 0) - spent.tokens):,} of {budget.max_tokens or 0:,} tokens are left"
            needed = f"the next prompt could use {charge.tokens:,}"
        overshoot = self.account.overshoot
        because = "" if overshoot is None else f", as {overshoot}"
        return BudgetExceededError(f"The budget is used up: {left}, and {needed}{because}.")
