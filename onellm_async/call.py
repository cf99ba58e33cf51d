"""The state of one request with all its attempts."""

from typing import Protocol

from attrs import evolve, frozen

from onellm_async.chat import ChatRequest, ChatResponse
from onellm_async.errors import APIError
from onellm_async.events import Answered, Cancelled
from onellm_async.limits.permit import RequestGroup
from onellm_async.retry import AttemptCounts


@frozen
class Attempt:
    """An attempt that is about to be sent.

    Attributes:
        number: 1 for the first of its request.
        possibly_billed: Earlier attempts of the request that may have been billed without an answer.
    """

    number: int
    possibly_billed: int


class AttemptHooks(Protocol):
    """Takes part in each attempt of a request, where a `Hook` only observes. Pass it to `AsyncOneLLM.send`."""

    async def before_sending(self, attempt: Attempt, /) -> None:
        """Runs when an attempt is admitted and before it is sent: the place to record it durably, or to forbid it.

        It holds a slot and a request of the rate meanwhile, so it should be quick. An exception ends the request, and
        the attempt counts as never made.
        """

    def after_failing(self, possibly_billed: int, /) -> None:
        """Runs after each attempt without an answer, 429s included, before a retry waits.

        It does not run for an attempt that is cancelled in flight.

        Args:
            possibly_billed: Attempts of the request so far that may have been billed.
        """


class Call:
    """One request with all its attempts.

    Attributes:
        attempts: POSTs so far, 429s not counted.
        uncounted: Of these, the ones that use up no attempt of the policy.
        failure: How its last attempt ended; None before the first failure.
        key_generation: Which key its last attempt was sent with, where a function supplies it.
        key_renewed: Whether a 401 has asked for another key.
        order: Its place in the queue, kept through 429s and retries; -1 before its first admission.
    """

    __slots__ = (
        "attempts",
        "body",
        "deadline",
        "failure",
        "group",
        "hooks",
        "in_flight",
        "key_generation",
        "key_renewed",
        "lane",
        "model",
        "number",
        "order",
        "possibly_billed",
        "rate_limited",
        "server_errors",
        "started",
        "tokens",
        "uncounted",
    )

    def __init__(
        self, number: int, request: ChatRequest, body: bytes, lane: str, started: float, group: RequestGroup
    ) -> None:
        self.number: int = number
        self.model: str = request.model
        self.body: bytes = body
        self.lane: str = lane
        self.started: float = started
        self.group: RequestGroup = group
        self.deadline: float | None = None
        self.tokens: float = 0.0
        self.order: int = -1
        self.attempts: int = 0
        self.rate_limited: int = 0
        self.server_errors: int = 0
        self.possibly_billed: int = 0
        self.uncounted: int = 0
        self.failure: APIError | None = None
        self.in_flight: bool = False
        self.key_generation: int = 0
        self.key_renewed: bool = False
        self.hooks: AttemptHooks | None = None

    def counts(self) -> AttemptCounts:
        """Counts of attempts so far, for the retry decision."""
        return AttemptCounts(self.attempts - self.uncounted, self.server_errors, self.possibly_billed)

    def with_counts(self, response: ChatResponse) -> ChatResponse:
        """`response` with the attempts and 429s that it took."""
        return evolve(
            response, attempts=self.attempts, rate_limited=self.rate_limited, possibly_billed=self.possibly_billed
        )

    def answered_event(self, response: ChatResponse, now: float) -> Answered:
        """Returns the event for hooks."""
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
            self.lane,
            self.rate_limited,
            self.possibly_billed,
            response.model,
            response.provider,
            response.finish_kind,
        )

    def cancelled_event(self, now: float) -> Cancelled:
        """Returns the event for hooks. A request in flight may be billed."""
        billed = self.possibly_billed + self.in_flight
        return Cancelled(self.number, self.model, now, self.attempts, now - self.started, billed, self.lane)
