"""One request on its way: what it is, where it waits, and what it has behind it."""

from attrs import evolve

from onellm_async.chat import ChatRequest, ChatResponse
from onellm_async.events import Answered
from onellm_async.limits.limiter import Group
from onellm_async.retry import History

__all__ = ["Call"]


class Call:
    """One request on its way through the client."""

    __slots__ = (
        "attempts",
        "body",
        "deadline",
        "group",
        "lane",
        "model",
        "number",
        "order",
        "possibly_billed",
        "refusals",
        "server_errors",
        "started",
        "tokens",
        "under_way",
    )

    def __init__(self, number: int, request: ChatRequest, body: bytes, lane: str, started: float, group: Group) -> None:
        self.number: int = number
        self.model: str = request.model
        self.body: bytes = body
        self.lane: str = lane
        self.started: float = started
        self.group: Group = group
        self.deadline: float | None = None
        self.tokens: float = 0.0
        self.order: int = -1
        self.attempts: int = 0
        self.refusals: int = 0
        self.server_errors: int = 0
        self.possibly_billed: int = 0
        self.under_way: bool = False

    def history(self) -> History:
        """What the verdict on a failure needs to know."""
        return History(self.attempts, self.server_errors, self.possibly_billed)

    def with_history(self, response: ChatResponse) -> ChatResponse:
        """`response`, told how many attempts and refusals it took."""
        return evolve(response, attempts=self.attempts, refusals=self.refusals, possibly_billed=self.possibly_billed)

    def answered_event(self, response: ChatResponse, now: float) -> Answered:
        """What hooks hear of the end."""
        usage = response.usage
        return Answered(
            self.number,
            self.model,
            now,
            self.attempts,
            now - self.started,
            usage.input_tokens if usage is not None else None,
            usage.output_tokens if usage is not None else None,
            response.cost,
        )
