"""A service with limits of any kind that it does not tell, in both wire formats.

``/stats`` counts the requests since ``/reset``, which also starts the limits anew.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from math import ceil

from benchmarks.servers.http import Connection, encode, serve
from benchmarks.servers.replies import PATHS, REFUSAL
from onellm_async.server.service_limits import (
    AccountLimits,
    BucketLimit,
    ConcurrencyLimit,
    Rejection,
    ServiceLimit,
    WindowLimit,
)

_RESPONSES = {path: encode(200, body) for path, body in PATHS.items()}
_NOT_FOUND = encode(404, b"{}")
_FIRST_SECONDS = 10.0
"""Seconds from the first request in which a client may still search."""


class LimitedService:
    """The limits, and what became of the requests.

    Args:
        limits: The limits.
        latency: Seconds until an accepted request is answered; a 429 comes at once.
        tells_wait: Whether a 429 has a ``Retry-After`` of whole seconds.
    """

    def __init__(self, limits: Sequence[ServiceLimit], latency: float, *, tells_wait: bool) -> None:
        self._limits = limits
        self.latency = latency
        self._tells_wait = tells_wait
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        self._account: AccountLimits | None = None
        self._started_at = 0.0
        self._accepted: list[float] = []
        self._rate_limited: list[float] = []

    def admit(self) -> Rejection | None:
        """Admits a request, or returns the rejection. Windows begin with the first request."""
        now = time.monotonic()
        if self._account is None:
            self._account, self._started_at = AccountLimits(self._limits, now), now
        rejection = self._account.admit(now)
        (self._accepted if rejection is None else self._rate_limited).append(now - self._started_at)
        return rejection

    def end(self) -> None:
        """Ends an admitted request."""
        if self._account is not None and self._account.in_flight:
            self._account.end()

    def rejection_reply(self, rejection: Rejection) -> bytes:
        """The 429."""
        if not self._tells_wait or rejection.wait is None:
            return encode(429, REFUSAL)
        return encode(429, REFUSAL, {"Retry-After": str(max(1, ceil(rejection.wait)))})

    def stats(self) -> bytes:
        """Requests accepted and rate-limited, and the most 429s in a second without an accepted request."""
        light = {int(at) for at in self._accepted}
        dark = Counter(int(at) for at in self._rate_limited if at >= _FIRST_SECONDS and int(at) not in light)
        counts = {"processed": len(self._accepted), "refused": len(self._rate_limited)}
        return json.dumps({**counts, "dark": max(dark.values(), default=0)}).encode()


class LimitedConnection(Connection):
    """One client's connection to the service that all share."""

    def __init__(self, service: LimitedService) -> None:
        super().__init__()
        self._service = service

    def respond(self, path: str) -> None:
        """An answer after the latency, a 429 at once, or the counters."""
        if path in _RESPONSES:
            rejection = self._service.admit()
            if rejection is None:
                asyncio.get_running_loop().call_later(self._service.latency, self._answer, _RESPONSES[path])
            else:
                self.send(self._service.rejection_reply(rejection))
        elif path == "/stats":
            self.send(encode(200, self._service.stats()))
        elif path == "/reset":
            self._service.reset()
            self.send(encode(200, b"{}"))
        else:
            self.send(_NOT_FOUND)

    def _answer(self, response: bytes) -> None:
        self._service.end()
        self.send(response)


def _limits(given: argparse.Namespace) -> list[ServiceLimit]:
    limits: list[ServiceLimit] = [WindowLimit.parse(text) for text in given.window]
    if given.rate is not None:
        limits.append(BucketLimit(given.rate * 60, given.burst))
    if given.max_concurrent is not None:
        limits.append(ConcurrencyLimit(given.max_concurrent))
    return limits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--window", action="append", default=[], help="COUNT/DURATION, or sliding:COUNT/DURATION")
    parser.add_argument("--rate", type=float, help="refill of the bucket per second")
    parser.add_argument("--burst", type=float, default=40, help="capacity of the bucket")
    parser.add_argument("--max-concurrent", type=int, help="requests in flight")
    parser.add_argument("--latency", type=float, required=True, help="seconds")
    parser.add_argument("--retry-after", action="store_true", help="429s have a Retry-After of whole seconds")
    arguments = parser.parse_args()
    service = LimitedService(_limits(arguments), arguments.latency, tells_wait=arguments.retry_after)
    serve(lambda: LimitedConnection(service))
