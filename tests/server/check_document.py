"""Runs schemathesis against the local server: does it do what its OpenAPI document says?

Usage: python tests/server/check_document.py [options of `schemathesis run`]
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from onellm_async.server import LocalServer, ServerSettings

KEY = "checked"
ENVELOPED = "ignored_auth,missing_required_header"
"""The published backend answers 200 around an in-band 401, which these checks take for an acceptance."""
INTEGERS = "positive_data_acceptance"
"""It also refuses 10.0 where it wants an integer, and JSON Schema cannot tell 10.0 from 10."""


async def conforms(settings: ServerSettings, *options: str) -> bool:
    """Whether schemathesis finds nothing. It runs in an empty directory, so that its reports do not stay."""
    async with LocalServer(settings) as server:
        with tempfile.TemporaryDirectory() as directory:
            process = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("schemathesis"),
                *("run", f"{server.origin}/openapi.json", "--header", f"Authorization: Bearer {KEY}"),
                *("--checks", "all", "--continue-on-failure", "--workers", "1", *options),
                cwd=directory,
            )
            failed = await process.wait()
        answered = server.ledger.summary()["answered"]
        print(f"{settings.dialect}, any model {settings.any_model}: {answered} chats answered", flush=True)
        return not failed and answered > 0  # a check that never got through to a chat proves nothing


async def main(options: list[str]) -> int:
    """Checks both dialects, and a server for models beyond the catalogue."""
    limits = {"requests_per_minute": 1e9, "burst": 1e9, "keys": {KEY: 1e9}}
    results = [
        await conforms(ServerSettings(**limits), *options),
        await conforms(ServerSettings(**limits, any_model=True), *options),
        await conforms(
            ServerSettings(**limits, dialect="backend"), "--exclude-checks", f"{ENVELOPED},{INTEGERS}", *options
        ),
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
