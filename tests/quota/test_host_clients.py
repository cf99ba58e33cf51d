"""Clients with ``quota="host"``: in one process and in several, and when the file is locked for long."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from random import Random

import pytest

from onellm_async import AsyncOneLLM, ConfigurationError, Limits
from onellm_async.limits.shared_limiter import SharedLimiter
from onellm_async.quota import HostQuota, board_name, host_quota
from onellm_async.quota.host_file import HostFile
from onellm_async.server import LocalServer, ServerSettings
from onellm_async.testing import FakeTransport
from tests.quota.test_redis import until

LIMITS = Limits(requests_per_minute=6000, burst=40)
CANARY = "canary-key-0123456789"


def client(**how):
    return AsyncOneLLM(**{"transport": FakeTransport(), "limits": LIMITS, "quota": "host", **how})


async def test_two_clients_of_a_process_are_two_participants(quota_directory):
    async with client() as first, client() as second:
        await asyncio.gather(
            *(each.gather_chats([f"{n}" for n in range(60)], model="GPT-5-Nano") for each in (first, second))
        )
        assert {each.snapshot().participants for each in (first, second)} == {2}
        assert first.snapshot().quota == "host"
    (board,) = quota_directory.iterdir()
    assert board.name == f"{board_name('transport', '')}.board"
    assert HostQuota().read(board.stem)["rows"] == {}


async def test_the_variable_switches_it_on_and_off(monkeypatch):
    monkeypatch.setenv("ONELLM_QUOTA", "host")
    assert client(quota=None).snapshot().quota == "host"
    assert client(quota="off").snapshot().quota == "off"
    monkeypatch.setenv("ONELLM_QUOTA", "")
    assert client(quota=None).snapshot().quota == "off"


@pytest.mark.parametrize("quota", ["hots", "http://host", "redis", 3, object(), "user:pass@host", ["host"]])
def test_what_is_no_quota_is_refused(quota):
    with pytest.raises(ConfigurationError, match="quota is") as raised:
        client(quota=quota)
    assert "pass@" not in str(raised.value)


def test_limits_without_a_rate_cannot_be_shared_and_ignore_the_variable(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"Limits\.unlimited\(\) has none"):
        client(limits=Limits.unlimited())
    monkeypatch.setenv("ONELLM_QUOTA", "host")
    assert client(limits=Limits.unlimited(), quota=None).snapshot().quota == "off"


def test_without_a_quota_nothing_of_it_is_imported():
    script = """
import asyncio, sys
from onellm_async import AsyncOneLLM
from onellm_async.testing import FakeTransport
asyncio.run(AsyncOneLLM(transport=FakeTransport()).chat("hi", model="GPT-5-Nano"))
print([name for name in sys.modules if "quota" in name or "shared_limiter" in name or "redis" in name])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "[]\n"


def test_a_client_that_is_never_closed_can_be_used_in_one_event_loop_after_the_other():
    async def ask():
        return (await shared.chat("hi", model="GPT-5-Nano")).content

    shared = client()
    assert [asyncio.run(ask()) for _ in range(3)] == ["hi"] * 3


async def test_a_closed_client_that_is_used_again_joins_again():
    shared = client()
    for _ in range(2):
        async with shared:
            await shared.chat("hi", model="GPT-5-Nano")
            assert shared.snapshot().participants == 1


async def test_new_limits_that_cannot_be_shared_change_nothing():
    async with client() as shared:
        with pytest.raises(ConfigurationError, match="shares a rate limit"):
            shared.retune(Limits.unlimited())
        assert shared.limits == LIMITS


async def test_a_lock_that_is_held_for_long_is_done_without_at_the_fair_share(quota_directory, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "onellm_async")
    monkeypatch.setattr(host_quota, "PATIENCE", 0.05)
    shared = SharedLimiter(LIMITS, random=Random(0), quota=HostQuota(), name="board")
    (await shared.acquire()).answered()
    holder = HostFile(HostQuota().path("board"))
    holder.lock()
    permits = await asyncio.gather(*(shared.acquire() for _ in range(30)))
    assert len(permits) == 30
    assert shared.snapshot().quota == "alone"
    assert "was locked by another process" in caplog.text
    holder.unlock()
    holder.close()
    for permit in permits:
        permit.answered()
    for _ in range(200):
        (await shared.acquire()).answered()
        await asyncio.sleep(0.01)
        if shared.snapshot().quota == "host":
            break
    assert shared.snapshot().quota == "host"
    await shared.aclose()


async def test_a_file_that_can_never_be_locked_fails_the_requests_and_names_it(monkeypatch):
    monkeypatch.setattr(host_quota, "PATIENCE", 0.01)
    monkeypatch.setattr(SharedLimiter, "START_PATIENCE", 0.2)
    holder = HostFile(HostQuota().path("board"))
    holder.lock()
    shared = SharedLimiter(LIMITS, random=Random(0), quota=HostQuota(), name="board")
    with pytest.raises(ConfigurationError, match="could not be reached") as raised:
        await shared.acquire()
    assert HostQuota().place in str(raised.value)
    holder.unlock()
    holder.close()
    await shared.aclose()


WORKER = """
import asyncio, json, sys
from onellm_async import AsyncOneLLM, Limits
url, number, limits = json.loads(sys.argv[1])
async def main():
    async with AsyncOneLLM(base_url=url, limits=Limits(**limits)) as client:
        replies = await client.gather_chats([f"{n}" for n in range(number)], model="GPT-5-Nano")
        print(json.dumps({"answered": len(replies), "rate_limited": client.snapshot().rate_limited}))
asyncio.run(main())
"""


async def start(server, number, **limits):
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WORKER,
        json.dumps([server.url, number, limits]),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "ONELLM_API_KEY": CANARY, "ONELLM_QUOTA": "host"},
    )


async def test_processes_with_one_key_share_its_limit_over_real_sockets(quota_directory):
    settings = ServerSettings(requests_per_minute=3000, burst=40, keys={CANARY: 1e9})
    async with LocalServer(settings) as server:
        workers = [await start(server, 40, requests_per_minute=3000, burst=40) for _ in range(4)]
        found = [json.loads((await worker.communicate())[0]) for worker in workers]
    assert [each["answered"] for each in found] == [40] * 4
    (board,) = quota_directory.iterdir()
    assert CANARY.encode() not in board.read_bytes()
    assert CANARY not in board.name


async def test_a_process_that_is_killed_leaves_the_rate_to_the_others():
    settings = ServerSettings(requests_per_minute=3000, burst=10, keys={CANARY: 1e9})
    async with LocalServer(settings) as server:
        workers = [await start(server, 10_000 if n else 150, requests_per_minute=3000, burst=10) for n in range(3)]
        board = HostQuota()
        name = board_name(server.url, f"Bearer {CANARY}")
        await until(lambda: len((board.read(name) or {"rows": ()})["rows"]) == 3)
        for worker in workers[1:]:
            worker.send_signal(signal.SIGKILL)
            await worker.communicate()
        begun = time.monotonic()
        found = json.loads((await workers[0].communicate())[0])
    assert found["answered"] == 150
    assert time.monotonic() - begun < 60
