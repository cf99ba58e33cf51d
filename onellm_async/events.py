"""Events of a request as frozen values, and the interface of hooks.

A hook changes nothing. Hooks run in the event loop, so they must return at once. An exception of a hook is logged and
otherwise ignored. Without hooks no event object is made.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

from attrs import frozen

from onellm_async.errors import OneLLMError

__all__ = [
    "Answered",
    "Cancelled",
    "Event",
    "Failed",
    "Granted",
    "Hook",
    "Queued",
    "RateLimited",
    "Retrying",
    "Sent",
    "Telemetry",
    "notify",
]

_log = logging.getLogger("onellm_async")


@frozen
class Event:
    """Base of all events.

    Attributes:
        request: Number of the request within its client, from 1.
        model: The requested model.
        at: Seconds on the event loop's clock.
    """

    request: int
    model: str
    at: float


@frozen
class Queued(Event):
    """A request was queued in `lane`, for its first attempt or a retry."""

    lane: str


@frozen
class Granted(Event):
    """The limiter granted a permit after `waited` seconds."""

    waited: float


@frozen
class Sent(Event):
    """Attempt number `attempt` (from 1; 429s do not count) is sent."""

    attempt: int


@frozen
class RateLimited(Event):
    """The service answered 429; the request is requeued at the head of its lane. `retry_after` in seconds."""

    retry_after: float | None


@frozen
class Retrying(Event):
    """Attempt number `attempt` failed with `error`; the retry follows after `wait` seconds."""

    attempt: int
    wait: float
    error: OneLLMError


@frozen
class Answered(Event):
    """The request was answered.

    Attributes:
        attempts: How many times it was sent, 429s not counted.
        elapsed: Seconds from the call until the answer.
        input_tokens: As counted by the provider; None if the reply did not hold it.
        output_tokens: Likewise.
        cost: USD; None if unknown.
        lane: Where it was queued.
        rate_limited: How many times it was answered 429.
        possibly_billed: How many earlier attempts may have been billed without an answer.
        response_model: The provider's own name of the model that answered.
        provider: The provider that answered.
        finish_kind: Why the model stopped, in OpenAI's words.
    """

    attempts: int
    elapsed: float
    input_tokens: int | None
    output_tokens: int | None
    cost: float | None
    lane: str = "default"
    rate_limited: int = 0
    possibly_billed: int = 0
    response_model: str | None = None
    provider: str | None = None
    finish_kind: str = "stop"


@frozen
class Failed(Event):
    """The request ended in `error`, `elapsed` seconds after the call. The error counts 429s and possible bills."""

    attempts: int
    elapsed: float
    error: OneLLMError
    lane: str = "default"


@frozen
class Cancelled(Event):
    """The request was cancelled `elapsed` seconds after the call: queued, in backoff or in flight.

    `attempts` were sent, and `possibly_billed` of them may have been billed, the one in flight included. So a hook that
    counts what begins and ends sees an end of every request: `Answered`, `Failed` or `Cancelled`.
    """

    attempts: int
    elapsed: float
    possibly_billed: int
    lane: str = "default"


class Hook(Protocol):
    """Anything callable with one event."""

    def __call__(self, event: Event, /) -> None:
        """Handles `event`. Must not block."""


class Telemetry(Protocol):
    """A hook that also links what the service does to the request, by headers of each attempt."""

    def __call__(self, event: Event, /) -> None:
        """Handles `event`. Must not block."""

    def headers(self, request: int, /) -> Mapping[str, str]:
        """Returns the headers of the attempt that is about to be sent, such as ``traceparent``.

        Args:
            request: Number of the request within its client, as in its events.
        """


def trace_headers(telemetry: Telemetry, request: int) -> Mapping[str, str]:
    """Returns the headers that `telemetry` adds to an attempt. An exception is logged, and then there are none."""
    try:
        return telemetry.headers(request)
    except Exception:
        _log.exception("Telemetry raised on the headers of request %d; it is sent without.", request)
        return {}


def notify(hooks: Iterable[Hook], event: Event) -> None:
    """Passes `event` to each hook. An exception of a hook is logged and does not affect the request."""
    for hook in hooks:
        try:
            hook(event)
        except Exception:
            _log.exception("A hook raised on %s; the request goes on.", type(event).__name__)
