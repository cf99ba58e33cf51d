"""One measurement in a process of its own: ``python -m benchmarks.worker JOB``, one JSON object out.

The job names a subject, whose `measure` is called, and a peer, whose `connect` it is given.
"""

import asyncio
import json
import sys
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.peers import Target


def run(subject: str, peer: str, options: dict[str, Any], target: dict[str, Any], plan: dict[str, Any]) -> Any:
    try:
        connect = import_module(f"benchmarks.peers.{peer}").connect
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("benchmarks"):
            raise
        return {"absent": error.name}
    measure = import_module(f"benchmarks.{subject}").measure
    return asyncio.run(measure(partial(connect, Target(**target), **options), **plan))


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))))
