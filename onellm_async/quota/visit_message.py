"""What visitors of a board pass each other: a visit that one of them computes for another, and its grant. Pure.

Of many that visit a discovered board at the same moment, one *leads*: it computes the visits of all, in the order in
which they were posted, and writes the board once.
"""

from collections.abc import Sequence

from attrs import astuple, frozen

from onellm_async.chat import JSON
from onellm_async.limits.quota import Declaration, Demand, Grant, RateLimitReport
from onellm_async.limits.rate_state import RateState
from onellm_async.quota.board import Board, decode_limits, encode_limits
from onellm_async.wire import dump_json, parse_json

__all__ = ["PostedVisit", "dump_grant", "load_grant"]

FORMAT = 1
"""Of the messages. Those of another format are left to their own versions."""


@frozen
class PostedVisit:
    """A visit that another participant may compute.

    Attributes:
        name: The participant.
        demand: Its report.
        declaration: Its limits.
        declared_age: Seconds since it was given them.
    """

    name: str
    demand: Demand
    declaration: Declaration
    declared_age: float

    def dump(self) -> bytes:
        """The visit as JSON."""
        declaration = self.declaration
        state = None if declaration.state is None else declaration.state.to_dict()
        limits = [encode_limits(declaration.limits), declaration.explicit, state, self.declared_age]
        return dump_json([FORMAT, self.name, list(astuple(self.demand)), limits])

    @classmethod
    def load(cls, text: bytes) -> "PostedVisit | None":
        """The visit that `dump` wrote; None if another version did, with another format.

        Raises:
            ValueError: If it is no visit.
        """
        match parse_json(text):
            case [int(known), *_] if known != FORMAT:
                return None
            case [_, str(name), [*demand], [[*limits], bool(explicit), state, int() | float() as age]]:
                saved = None if state is None else RateState.from_dict(state)
                declaration = Declaration(decode_limits(limits), explicit, saved)
                return cls(name, _demand(demand), declaration, float(age))
            case _:
                raise ValueError("It is no visit.")

    def compute(self, board: Board, now: float, waited: float) -> Grant:
        """Visits `board`, so many seconds after the visit was posted."""
        demand = self.demand.aged(waited) if waited else self.demand
        return board.visit(self.name, demand, now, self.declaration, self.declared_age + waited)


def _demand(values: Sequence[JSON]) -> Demand:
    waiting, ages, tokens, given_back, settled, answered, rate_limited, *alone = values
    return Demand(
        tuple(waiting),
        tuple(ages),
        tuple(tokens),
        given_back,
        settled,
        [(sent, received) for sent, received in answered],
        [RateLimitReport(*report) for report in rate_limited],
        *alone,
    )


def dump_grant(grant: Grant) -> bytes:
    """A grant as JSON."""
    return dump_json(list(astuple(grant)))


def load_grant(text: bytes) -> Grant:
    """The grant that `dump_grant` wrote."""
    return Grant(*parse_json(text))
