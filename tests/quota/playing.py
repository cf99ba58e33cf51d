"""Participants that visit a board exactly when they promised, in pure time."""

from heapq import heappop, heappush
from random import Random

from attrs import define, field

from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand, Grant, RateLimitReport
from onellm_async.quota.board import Board


@define
class Player:
    """A participant with a queue.

    Attributes:
        name: On the board.
        waiting: Its queue, by lane.
        slots: Most that it reports at once.
        granted_at: Time of each of its permits.
        stops_at: When it stops to visit without a word.
    """

    name: str
    waiting: list[int]
    slots: int = 48
    granted_at: list[float] = field(factory=list)
    stops_at: float = float("inf")
    declaration: Declaration = field(factory=lambda: Declaration(Limits(), explicit=False))

    def demand(self, **report: object) -> Demand:
        free, shown = self.slots, []
        for number in self.waiting:
            shown.append(min(free, number))
            free -= shown[-1]
        return Demand(waiting=(shown[0], shown[1], shown[2]), **report)

    def take(self, permits: int, now: float) -> None:
        for lane in range(3):
            used = min(permits, self.waiting[lane])
            self.waiting[lane] -= used
            permits -= used
            self.granted_at += [now] * used


def new_board(limits: Limits, now: float = 0.0, *, seed: int = 0) -> Board:
    return Board(Declaration(limits, explicit=True), now, Random(seed))


def visit(board: Board, player: Player, now: float, **report: object) -> Grant:
    grant = board.visit(player.name, player.demand(**report), now, player.declaration, now)
    player.take(grant.permits, now)
    return grant


def play(board: Board, players: list[Player], until: float, *, now: float = 0.0, lateness: float = 0.0) -> int:
    """Plays until that time, and returns the number of visits.

    Args:
        board: The board.
        players: All begin at `now`.
        until: The end.
        now: The beginning.
        lateness: Seconds by which each visit comes later than promised.
    """
    agenda = [(now, number) for number in range(len(players))]
    visits = 0
    while agenda:
        at, number = heappop(agenda)
        if at > until:
            break
        player = players[number]
        if at >= player.stops_at:
            continue
        grant = visit(board, player, at)
        visits += 1
        if any(player.waiting):
            again_in = 0.0 if grant.again_in is None else grant.again_in
            heappush(agenda, (at + max(again_in, 1e-6) + lateness, number))
    return visits


def jain(figures: list[int]) -> float:
    return sum(figures) ** 2 / (len(figures) * sum(figure * figure for figure in figures))


def limited(sent: float = 0.0, retry_after: float | None = None) -> RateLimitReport:
    return RateLimitReport(sent, 0.0, retry_after)
