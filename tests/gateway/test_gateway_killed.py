"""A gateway that is killed, and the money of its users."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from visitors import QUESTION

from onellm_async.gateway.keys import InboundKey, hash_key, render_key
from onellm_async.gateway.spending import read_spending
from onellm_async.server import Faults, LocalServer, ServerSettings
from tests.forks import start_command

ROOT = Path(__file__).parents[2]
CAPPED = {**QUESTION, "max_tokens": 10}


@asynccontextmanager
async def gateway(server, *flags, cwd):
    """A gateway in a process of its own, and its URL."""
    process = await start_command(
        *("gateway", "--port", "0", "--rpm", "60000", "--burst", "1000", *map(str, flags)),
        cwd=cwd,
        env={**os.environ, "ONELLM_API_KEY": "any", "ONELLM_BASE_URL": server.url},
    )
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("OpenAI-compatible API at http://"), (line, await process.stderr.read())
        yield process, line.split()[3]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(render_key(InboundKey(name="alice", sha256=hash_key("key"), max_cost=1.0)))
    path.chmod(0o600)
    return path


async def ask(session, url):
    async with session.post(f"{url}/chat/completions", json=CAPPED, headers={"Authorization": "Bearer key"}) as reply:
        return reply.status, await reply.json()


async def test_whatever_was_billed_before_a_kill_is_counted(keys, tmp_path):
    settings = ServerSettings(requests_per_minute=None, faults=Faults(latency=0.01, latency_sigma=1.0))
    async with LocalServer(settings) as server, aiohttp.ClientSession() as session:
        for kills in range(1, 3):
            async with gateway(server, "--keys", keys, cwd=tmp_path) as (process, url):

                async def flood(url=url):
                    while True:
                        await ask(session, url)

                flooding = [asyncio.create_task(flood()) for _ in range(16)]
                before = server.ledger.billed
                async with asyncio.timeout(60):
                    while server.ledger.billed < before + 40 * kills:  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                process.kill()
                await asyncio.wait(flooding)
                assert all(isinstance(each.exception(), aiohttp.ClientError) for each in flooding)
        async with gateway(server, "--keys", keys, cwd=tmp_path) as (process, url):
            assert (await ask(session, url))[0] == 200
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        row = read_spending(tmp_path / "keys.spent.sqlite3")["alice"]
        billed = server.ledger.billed
    assert row.reserved == 0
    assert row.answered <= billed <= row.answered + row.possibly_billed
    assert row.possibly_billed <= 2 * 16
    assert row.requests == row.answered + row.possibly_billed


async def test_two_gateways_share_a_cap(keys, tmp_path):
    keys.write_text(render_key(InboundKey(name="alice", sha256=hash_key("key"), max_cost=0.0002)))
    settings = ServerSettings(requests_per_minute=None)
    async with (
        LocalServer(settings) as server,
        aiohttp.ClientSession() as session,
        gateway(server, "--keys", keys, cwd=tmp_path) as (_, first),
        gateway(server, "--keys", keys, cwd=tmp_path) as (_, second),
    ):

        async def spend(url):
            statuses = []
            while (status := (await ask(session, url))[0]) != 402:
                statuses.append(status)
                assert len(statuses) < 1000
            return statuses

        found = await asyncio.gather(*(spend(url) for url in (first, second) for _ in range(3)))
    row = read_spending(tmp_path / "keys.spent.sqlite3")["alice"]
    assert {status for statuses in found for status in statuses} <= {200, 503}
    assert 0.00019 < row.billed / 1e10 <= 0.0002
    assert row.answered == server.ledger.billed


class SilentBackend:
    """Never answers."""

    def __init__(self):
        self.asked = asyncio.Event()

    async def complete(self, job):
        self.asked.set()
        await asyncio.get_running_loop().create_future()

    async def aclose(self):
        pass


async def test_a_second_signal_ends_it_at_once_and_what_was_in_flight_is_at_risk(keys, tmp_path):
    backend = SilentBackend()
    async with (
        LocalServer(ServerSettings(requests_per_minute=None), backend=backend) as server,
        aiohttp.ClientSession() as session,
        gateway(server, "--keys", keys, cwd=tmp_path) as (process, url),
    ):
        asking = asyncio.create_task(ask(session, url))
        await asyncio.wait_for(backend.asked.wait(), 60)
        process.send_signal(signal.SIGTERM)
        assert (await process.stderr.readline()).startswith(b"Stopping")
        await asyncio.sleep(0.3)  # sooner, it would be the same
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 143
        assert await process.stderr.read() == b"onellm-async: ended at once; requests in flight may be billed.\n"
        with pytest.raises(aiohttp.ClientError):
            await asking
    row = read_spending(tmp_path / "keys.spent.sqlite3")["alice"]
    assert (row.possibly_billed, row.answered, row.reserved) == (1, 0, 0)
