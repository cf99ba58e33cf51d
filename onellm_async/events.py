"""Events of a request as frozen values, and the interface of hooks.

A hook changes nothing. Hooks run in the event loop, so they must return at once. An exception of a hook is logged and
otherwise ignored. Without hooks no event object is made.
"""

import logging
from collections.abc import Iterable
from typing import Protocol

from attrs import frozen

from onellm_async.errors import OneLLMError

__all__ = [
    "Answered",
    "Event",
    "Failed",
    "Granted",
    "Hook",
    "Queued",
    "RateLimited",
    "Retrying",
    "Sent",
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
    """The request was answered `elapsed` seconds after the call; `cost` in USD, None if unknown."""

    attempts: int
    elapsed: float
    input_tokens: int | None
    output_tokens: int | None
    cost: float | None


@frozen
class Failed(Event):
    """The request ended in `error`, `elapsed` seconds after the call."""

    attempts: int
    elapsed: float
    error: OneLLMError


class Hook(Protocol):
    """Anything callable with one event."""

    def __call__(self, event: Event, /) -> None:
        """Handles `event`. Must not block."""


def notify(hooks: Iterable[Hook], event: Event) -> None:
    """Passes `event` to each hook. An exception of a hook is logged and does not affect the request."""
    for hook in hooks:
        try:
            hook(event)
        except Exception:
            _log.exception("A hook raised on %s; the request goes on.", type(event).__name__)
