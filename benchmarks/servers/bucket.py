"""A service with a rate limit that it does not tell: refuses at once what its token bucket does not cover.

``/stats`` tells how many requests were processed and refused since ``/reset``, which also fills the bucket.
"""

import argparse
import asyncio
import json
import time

from benchmarks.servers.http import Connection, encode, serve
from benchmarks.servers.replies import PATHS, REFUSAL

_RESPONSES = {path: encode(200, body) for path, body in PATHS.items()}
_REFUSED = encode(429, REFUSAL)
_NOT_FOUND = encode(404, b"{}")


class Bucket:
    """Tokens, refilled at `rate` per second up to `burst`, and what became of the requests."""

    def __init__(self, rate: float, burst: float, latency: float) -> None:
        self.rate = rate
        self.burst = burst
        self.latency = latency
        self.reset()

    def reset(self) -> None:
        """Starts anew with a full bucket."""
        self.level = self.burst
        self.updated_at = time.monotonic()
        self.processed = 0
        self.refused = 0

    def admits(self) -> bool:
        """Takes a token if there is one; a refusal costs none."""
        now = time.monotonic()
        self.level = min(self.burst, self.level + (now - self.updated_at) * self.rate)
        self.updated_at = now
        if self.level < 1:
            self.refused += 1
            return False
        self.level -= 1
        self.processed += 1
        return True

    def stats(self) -> bytes:
        """The counters."""
        return json.dumps({"processed": self.processed, "refused": self.refused}).encode()


class LimitedConnection(Connection):
    """One client's connection to the bucket that all share."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.bucket = bucket

    def respond(self, path: str) -> None:
        """An answer after the latency, a refusal at once, or the counters."""
        if path in _RESPONSES:
            if self.bucket.admits():
                asyncio.get_running_loop().call_later(self.bucket.latency, self.send, _RESPONSES[path])
            else:
                self.send(_REFUSED)
        elif path == "/stats":
            self.send(encode(200, self.bucket.stats()))
        elif path == "/reset":
            self.bucket.reset()
            self.send(encode(200, b"{}"))
        else:
            self.send(_NOT_FOUND)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--burst", type=float, required=True, help="requests")
    parser.add_argument("--latency", type=float, required=True, help="seconds")
    bucket = Bucket(**vars(parser.parse_args()))
    serve(lambda: LimitedConnection(bucket))
