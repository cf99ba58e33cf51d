"""The package's own local server in a process of its own; every key has its own bucket, full at first.

``/ledger`` tells how many requests ended in which way.
"""

import argparse
import asyncio
import json

from onellm_async.server import Faults, LocalServer, ServerSettings
from onellm_async.server.app import serve


def _announce(server: LocalServer) -> None:
    print(json.dumps({"port": int(server.url.split(":")[2].partition("/")[0])}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--burst", type=int, required=True, help="requests")
    parser.add_argument("--latency", type=float, required=True, help="seconds")
    parser.add_argument("--dialect", default="documented")
    parser.add_argument("--retry-after", type=int, help="seconds that refusals announce; default: they announce none")
    given = parser.parse_args()
    settings = ServerSettings(
        dialect=given.dialect,
        requests_per_minute=given.rate * 60,
        burst=given.burst,
        faults=Faults(latency=given.latency, retry_after=given.retry_after),
        keep_rows=0,
    )
    asyncio.run(serve(settings, port=0, on_ready=_announce))
