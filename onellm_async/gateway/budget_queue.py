"""Requests that wait until the reservations of others are settled.

Nothing waits that can never fit: it is refused at once. Within a key the order is first in, first out, and keys take
turns.
"""

import asyncio
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable

from attrs import evolve, frozen

from onellm_async.errors import BudgetExceededError, QueueFullError
from onellm_async.gateway.budget import Account, build_cap_error
from onellm_async.limits.admission import FLOW_SHARE

_RETRY_AFTER = 1.0
"""Seconds after which reservations are worth another look; they end with the answers of others."""


@frozen(eq=False)
class _Waiter:
    units: int
    future: "asyncio.Future[None]"


class BudgetQueue:
    """The reservations of this process.

    Args:
        accounts: Account of a key, and of all together, as the ledger has them; what is reserved in it is ignored.
        max_waiting: Most requests that may wait here. One key alone fills 8/9 of it, so that there is room for others.
    """

    def __init__(self, accounts: Callable[[str], tuple[Account, Account]], *, max_waiting: int) -> None:
        self._accounts = accounts
        self._max_waiting = max_waiting
        self._reserved: defaultdict[str, int] = defaultdict(int)
        self._total = 0
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()  # the first key is next

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return sum(map(len, self._waiting.values()))

    async def reserve(self, name: str, units: int) -> None:
        """Returns when `units` are reserved for the key `name`; give them back with `release`.

        Raises:
            BudgetExceededError: If they can never fit.
            QueueFullError: If too many requests wait already.
        """
        if self._fits(name, units) and name not in self._waiting:
            self._take(name, units)
            return
        waiting, own = self.waiting, len(self._waiting.get(name, ()))
        if own >= FLOW_SHARE * (self._max_waiting - waiting):
            raise QueueFullError(
                f"Queue full: requests that wait for the cost cap: {waiting}, {own} of them of key {name}.",
                pending=waiting,
                retry_after=_RETRY_AFTER,
            )
        waiter = _Waiter(units, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(name, deque()).append(waiter)
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter in self._waiting.get(name, ()):
                self._remove(name, waiter)
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
        while (name := next((name for name in self._waiting if name not in blocked), None)) is not None:
            waiter = self._waiting[name][0]
            if waiter.future.done():  # cancelled in this turn of the loop
                self._remove(name, waiter)
                continue
            try:
                if not self._fits(name, waiter.units):
                    blocked.add(name)
                    continue
                self._take(name, waiter.units)
            except BudgetExceededError as error:
                waiter.future.set_exception(error)
            else:
                waiter.future.set_result(None)
                self._waiting.move_to_end(name)
            self._remove(name, waiter)

    def _remove(self, name: str, waiter: _Waiter) -> None:
        self._waiting[name].remove(waiter)
        if not self._waiting[name]:
            del self._waiting[name]

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
