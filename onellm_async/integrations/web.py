"""What every web framework needs: the HTTP status of an error, and whether a client can serve.

`onellm_async.integrations.starlette`, `.fastapi` and `.aiohttp_web` use it; it depends on none of them.
"""

import asyncio
import logging
import math
from collections.abc import Mapping

from attrs import frozen

from onellm_async import (
    AsyncOneLLM,
    BudgetExceededError,
    CircuitOpenError,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    OneLLMError,
    QueueFullError,
    RequestCancelledError,
    StructureError,
)

__all__ = ["HttpError", "drain", "readiness", "to_http"]

_log = logging.getLogger("onellm_async.integrations")

_STATUS: tuple[tuple[type[OneLLMError], int, str | None], ...] = (
    (InvalidRequestError, 422, None),
    (QueueFullError, 503, "Too many requests are waiting. Please retry later."),
    (CircuitOpenError, 503, "The language model does not answer at the moment. Please retry later."),
    (ClientClosedError, 503, "The service is shutting down. Please retry."),
    (RequestCancelledError, 503, "The request was stopped before it was sent. Please retry."),
    (BudgetExceededError, 503, "The budget is used up."),
    (ConfigurationError, 500, "The service is set up wrongly."),
    (StructureError, 502, "The language model gave an answer of another form than was asked for."),
    (DeadlineExceededError, 504, "There was no answer in time."),
    (OneLLMError, 502, "The language model did not answer."),
)
"""Error, status and what the user is told; None is the message of the error. The first that fits counts.

What the service says of its own failures, of the key or of the balance is for the log, never for the user.
"""


@frozen
class HttpError:
    """The answer to a request whose chat failed.

    Attributes:
        status: The HTTP status: 422, 500, 502, 503 or 504.
        detail: One sentence for the user.
        retry_after: Whole seconds until a retry can succeed, rounded up; None if that is not known.
    """

    status: int
    detail: str
    retry_after: int | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """``Retry-After``, if the time is known."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def to_http(error: OneLLMError) -> HttpError:
    """Translates the error of a chat into an HTTP answer. What is no fault of the user (500, 502) is logged.

    Args:
        error: What `AsyncOneLLM.chat` raised.

    Example:
        >>> to_http(InvalidRequestError("temperature is 3.0; it must be at most 2."))
        HttpError(status=422, detail='temperature is 3.0; it must be at most 2.', retry_after=None)
    """
    status, told = next((status, told) for kind, status, told in _STATUS if isinstance(error, kind))
    if status in {500, 502}:
        _log.error("A chat failed: %s", error, exc_info=error if status == 500 else None)
    wait = getattr(error, "retry_after", None) if status == 503 else None
    seconds = max(1, math.ceil(wait)) if isinstance(wait, int | float) and math.isfinite(wait) else None
    return HttpError(status, error.message if told is None else told, seconds)


def readiness(client: AsyncOneLLM) -> tuple[bool, str]:
    """Returns whether the client can serve a request now, and if not, why.

    Not ready: the circuit is open, the client is paused, or its queue is full. A load balancer then uses others.

    Args:
        client: The client of this process.
    """
    state = client.snapshot()
    if state.trial_in is not None:
        return False, f"circuit open: {state.last_error or 'the service failed again and again'}"
    if state.paused:
        return False, "paused"
    limit = client.limits.max_pending
    if limit is not None and state.pending and state.pending >= limit:
        return False, f"queue full: {state.pending} queued"
    return True, "ready"


async def drain(client: AsyncOneLLM, seconds: float) -> None:
    """Lets requests in flight finish, as their answers are paid for; queued ones end unsent.

    Args:
        client: The client that is about to be closed.
        seconds: At most so long; what is in flight then may be billed without an answer.
    """
    try:
        async with asyncio.timeout(seconds):
            await client.drain()
    except TimeoutError:
        in_flight = client.snapshot().in_flight
        _log.warning("After %g s of draining, requests in flight: %d. They may be billed.", seconds, in_flight)
