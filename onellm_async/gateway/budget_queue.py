"""Requests that wait until the reservations of others are settled.

Nothing waits that can never fit: it is refused at once. Within a key the order is first in, first out.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from attrs import evolve, frozen

from onellm_async.errors import BudgetExceededError, QueueFullError
from onellm_async.gateway.budget import Account, build_cap_error

_RETRY_AFTER = 1.0
"""Seconds after which reservations are worth another look; they end with the answers of others."""


@frozen(eq=False)
class _Waiter:
    name: str
    units: int
    future: "asyncio.Future[None]"


class BudgetQueue:
    """The reservations of this process.

    Args:
        accounts: Account of a key, and of all together, as the ledger has them; what is reserved in it is ignored.
        max_waiting: Most requests that may wait here.
    """

    def __init__(self, accounts: Callable[[str], tuple[Account, Account]], *, max_waiting: int) -> None:
        self._accounts = accounts
        self._max_waiting = max_waiting
        self._reserved: defaultdict[str, int] = defaultdict(int)
        self._total = 0
        self._waiting: list[_Waiter] = []

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    async def reserve(self, name: str, units: int) -> None:
        """Returns when `units` are reserved for the key `name`; give them back with `release`.

        Raises:
            BudgetExceededError: If they can never fit.
            QueueFullError: If too many requests wait already.
        """
        blocked = any(waiter.name == name for waiter in self._waiting)
        if self._fits(name, units) and not blocked:
            self._take(name, units)
            return
        if len(self._waiting) >= self._max_waiting:
            raise QueueFullError(
                f"Queue full: {len(self._waiting)} requests wait for the cost cap.",
                pending=len(self._waiting),
                retry_after=_RETRY_AFTER,
            )
        waiter = _Waiter(name, units, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self.release(name, units)  # reserved in the very moment of the cancellation
            self.admit()
            raise

    def release(self, name: str, units: int) -> None:
        """Gives back what was reserved, after its cost is in the ledger."""
        self._reserved[name] -= units
        if not self._reserved[name]:
            del self._reserved[name]
        self._total -= units
        self.admit()

    def admit(self) -> None:
        """Lets those proceed that fit now, and refuses those that never will."""
        blocked: set[str] = set()
        for waiter in list(self._waiting):
            if waiter.name in blocked:
                continue
            try:
                if not self._fits(waiter.name, waiter.units):
                    blocked.add(waiter.name)
                    continue
                self._take(waiter.name, waiter.units)
            except BudgetExceededError as error:
                waiter.future.set_exception(error)
            else:
                waiter.future.set_result(None)
            self._waiting.remove(waiter)

    def _take(self, name: str, units: int) -> None:
        self._reserved[name] += units
        self._total += units

    def _fits(self, name: str, units: int) -> bool:
        own, total = self._accounts(name)
        verdicts = []
        for scope, account, reserved in (
            (f"key {name}", own, self._reserved.get(name, 0)),
            ("all keys", total, self._total),
        ):
            verdict = evolve(account, reserved=reserved).verdict(units)
            if verdict == "spent":
                raise build_cap_error(scope, account, units)
            verdicts.append(verdict)
        return verdicts == ["allowed", "allowed"]
