"""What happens to a request, as frozen values, and who may watch.

A hook watches; it changes nothing. Hooks run in the event loop, so they must return at once; one that raises is
logged and otherwise ignored. Without hooks no event object is made.
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
        model: The model asked.
        at: Seconds on the event loop's clock.
    """

    request: int
    model: str
    at: float


@frozen
class Queued(Event):
    """A request asks for admission in `lane`, for its first or another attempt."""

    lane: str


@frozen
class Granted(Event):
    """The limiter let it go after `waited` seconds."""

    waited: float


@frozen
class Sent(Event):
    """Attempt number `attempt` (from 1; 429s do not count) leaves now."""

    attempt: int


@frozen
class RateLimited(Event):
    """The service refused it by rate limit; it goes back to the head of its lane. `retry_after` as the service said."""

    retry_after: float | None


@frozen
class Retrying(Event):
    """Attempt number `attempt` failed with `error`; the next follows after `wait` seconds."""

    attempt: int
    wait: float
    error: OneLLMError


@frozen
class Answered(Event):
    """The answer is there, `elapsed` seconds after the call; `cost` in USD, None when unknown."""

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
        """Takes note of `event`. Must not block."""


def notify(hooks: Iterable[Hook], event: Event) -> None:
    """Shows `event` to each hook; a hook that raises is logged, never allowed to harm a paid request."""
    for hook in hooks:
        try:
            hook(event)
        except Exception:
            _log.exception("A hook raised on %s; the request goes on.", type(event).__name__)
