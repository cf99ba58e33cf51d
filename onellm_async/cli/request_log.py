"""The hook of ``--verbose``: each request in the log. Retries and 429s are logged by the library itself."""

import logging

from onellm_async.events import Answered, Cancelled, Event, Failed, Sent
from onellm_async.formatting import format_usd

_log = logging.getLogger("onellm_async")


def log_request(event: Event, /) -> None:
    """Logs what is sent and how it ends."""
    if not _log.isEnabledFor(logging.DEBUG):
        return
    name = f"Request {event.request} ({event.model})"
    if isinstance(event, Sent):
        _log.debug("%s: attempt %d sent", name, event.attempt)
    elif isinstance(event, Answered):
        cost = "unknown cost" if event.cost is None else format_usd(event.cost)
        tokens = f"{event.input_tokens or 0:,} + {event.output_tokens or 0:,} tokens"
        _log.debug("%s: answered after %.1f s, %s, %s", name, event.elapsed, tokens, cost)
    elif isinstance(event, Failed):
        _log.debug("%s: failed after %.1f s: %s", name, event.elapsed, event.error)
    elif isinstance(event, Cancelled):
        _log.debug("%s: cancelled after %.1f s", name, event.elapsed)
