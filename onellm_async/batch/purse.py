"""The account of a run, for those who can wait: a charge that does not fit yet may fit when others are settled."""

import asyncio
from collections import deque

from onellm_async.batch.budget import NOTHING, Account, Charge
from onellm_async.errors import BudgetExceededError
from onellm_async.formatting import format_usd

__all__ = ["Purse"]


class Purse:
    """Sets charges aside, in the order in which they are asked for.

    Args:
        account: What decides.
    """

    def __init__(self, account: Account) -> None:
        self.account: Account = account
        self._queue: deque[tuple[Charge, asyncio.Future[None]]] = deque()

    async def reserve(self, charge: Charge) -> None:
        """Returns when `charge` has been set aside.

        Safe to cancel: a cancelled wait sets nothing aside.

        Raises:
            BudgetExceededError: If it does not fit although nothing is under way any more.
        """
        if not self._queue and self.account.reserve(charge):
            return
        waker = asyncio.get_running_loop().create_future()
        self._queue.append((charge, waker))
        self._serve()
        try:
            await waker
        except asyncio.CancelledError:
            if waker.done() and not waker.cancelled() and waker.exception() is None:
                self.settle(charge, NOTHING)
            else:
                self._serve()
            raise

    def settle(self, reserved: Charge, actual: Charge) -> None:
        """An attempt for which `reserved` was set aside is over and did cost `actual`."""
        self.account.settle(reserved, actual)
        self._serve()

    def _serve(self) -> None:
        while self._queue:
            charge, waker = self._queue[0]
            if not waker.done():
                if self.account.reserve(charge):
                    waker.set_result(None)
                elif self.account.under_way:
                    return
                else:
                    waker.set_exception(self._exceeded(charge))
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
        return BudgetExceededError(f"The budget is used up: {left}, and {needed}.")
