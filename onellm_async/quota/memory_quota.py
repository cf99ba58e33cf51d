"""`MemoryQuota`: a board in memory, for the clients of one process, for simulations, and to build other holders on."""

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from attrs import evolve

from onellm_async.limits.quota import Declaration, Demand, Grant
from onellm_async.quota.board import Board
from onellm_async.quota.names import ParticipantName

__all__ = ["MemoryMember", "MemoryQuota"]


class MemoryQuota:
    """One quota for several clients of one event loop.

    Args:
        latency: Seconds on the way to the board and back, as a holder far away has; 0: visits return at once.
        outages: Times between which the board is out of reach, as (begin, end) on the clock of the event loop.

    Attributes:
        members: Those that have joined.

    Example:
        ::

            quota = MemoryQuota()
            first, second = AsyncOneLLM(quota=quota), AsyncOneLLM(quota=quota)
    """

    def __init__(self, *, latency: float = 0.0, outages: Sequence[tuple[float, float]] = ()) -> None:
        self._latency = latency
        self._outages = outages
        self._boards: dict[str, Board] = {}
        self.members: list[MemoryMember] = []

    @property
    def kind(self) -> str:
        """``"memory"``."""
        return "memory"

    @property
    def place(self) -> str:
        """``"memory"``."""
        return "memory"

    def check(self) -> None:
        """Memory is always there."""

    def join(self, name: str, declaration: Declaration, random: Random) -> "MemoryMember":
        """Access for one client."""
        member = MemoryMember(self, name, declaration, random)
        self.members.append(member)
        return member

    def board(self, name: str, declaration: Declaration, now: float, random: Random, age: float) -> Board:
        """The board `name`, made if necessary.

        Raises:
            ConnectionError: In an outage.
        """
        if any(begin <= now < end for begin, end in self._outages):
            raise ConnectionError("The board is out of reach.")
        if name not in self._boards:
            self._boards[name] = Board(declaration, now, random, age=age)
        return self._boards[name]

    @property
    def latency(self) -> float:
        """Seconds on the way there and back."""
        return self._latency


class MemoryMember:
    """One client's access to a board in memory.

    Args:
        quota: Holds the boards.
        name: Of the board.
        declaration: The limits of the client.
        random: Source of jitter.
    """

    def __init__(self, quota: MemoryQuota, name: str, declaration: Declaration, random: Random) -> None:
        self._quota = quota
        self._board_name = name
        self._random = random
        self._name = ParticipantName()
        self._declared_at: float | None = None
        self._declaration = declaration
        self._timer: asyncio.TimerHandle | None = None
        self._dead = False

    def die(self) -> None:
        """Falls silent, as a process that is killed: no visit returns, and the row stays until it expires."""
        self._dead = True
        self.abandon()

    def redeclare(self, declaration: Declaration) -> None:
        """Brings other limits to the board, with the next visit."""
        self._declaration, self._declared_at = declaration, asyncio.get_running_loop().time()

    def visit(self, demand: Demand, then: Callable[[Grant], None], failed: Callable[[Exception], None]) -> None:
        """Visits the board: at once, or with the latency of the quota."""
        if self._dead:
            return
        travel = self._quota.latency / 2
        if not travel:
            self._arrive(demand, then, failed, 0.0)
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(travel, self._arrive, demand.aged(travel), then, failed, travel)

    def _arrive(
        self,
        demand: Demand,
        then: Callable[[Grant], None],
        failed: Callable[[Exception], None],
        travel: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            grant = self.transact(demand, loop.time())
        except ConnectionError as error:
            failed(error)
            return
        if not travel:
            then(grant)
            return
        if grant.again_in is not None:
            grant = evolve(grant, again_in=max(0.0, grant.again_in - travel))
        self._timer = loop.call_later(travel, then, grant)

    def transact(self, demand: Demand, now: float) -> Grant:
        """One visit.

        Raises:
            ConnectionError: In an outage.
        """
        if self._declared_at is None:
            self._declared_at = now
        age = now - self._declared_at
        board = self._quota.board(self._board_name, self._declaration, now, self._random, age)
        return board.visit(self._name.current(), demand, now, self._declaration, age)

    def abandon(self) -> None:
        """Forgets a visit in flight. The row expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def aclose(self, demand: Demand) -> None:
        """Returns permits and removes the row."""
        self.abandon()
        if self._dead:
            return
        try:
            self.transact(evolve(demand, leaving=True), asyncio.get_running_loop().time())
        except ConnectionError:
            return
