"""A board in a real Redis, and what happens when Redis is gone, emptied, restarted, slow or not to be entered."""

import asyncio
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from random import Random

import pytest

from onellm_async import AsyncOneLLM, ConfigurationError, Limits
from onellm_async.limits.quota import Declaration, Demand, RateLimitReport
from onellm_async.limits.shared_limiter import SharedLimiter
from onellm_async.quota import RedisQuota, redis_quota
from onellm_async.quota.board import Board
from onellm_async.quota.redis_board import REPLACE, read_grant, visit_arguments, visit_script
from onellm_async.quota.redis_quota import RedisMember
from onellm_async.testing import FakeTransport
from tests.quota.redis_server import RedisServer
from tests.quota.visits import FixedRandom, random_visits

ROOT = Path(__file__).parents[2]
OUTAGES = int(os.environ.get("ONELLM_QUOTA_OUTAGES", "3"))
"""The gate has 3 outages of Redis in a row; ``ONELLM_QUOTA_OUTAGES=100`` is the long run."""

LIMITS = Limits(requests_per_minute=6000, burst=20)
DISCOVERED = Limits(requests_per_minute="auto")
WANTED = Demand(waiting=(0, 48, 0))


def limiter(server, limits=LIMITS, seed=0):
    return SharedLimiter(limits, random=Random(seed), quota=RedisQuota(server.url), name="board")


def member(server, limits=LIMITS, **how):
    return RedisQuota(server.url, **how).join("board", Declaration(limits, explicit=True), Random(0))


async def work(shared, number, *, done=None):
    """Acquires so many permits, at most eight at a time, each answered after 10 ms."""

    async def one():
        for _ in range(number // 8):
            permit = await shared.acquire()
            await asyncio.sleep(0.01)
            permit.answered()
            if done is not None:
                done.append(time.monotonic())

    await asyncio.gather(*(one() for _ in range(8)))


async def test_clients_share_the_rate_through_redis(redis_server):
    clients = [limiter(redis_server, seed=seed) for seed in range(3)]
    begun = time.monotonic()
    await asyncio.gather(*(work(client, 80) for client in clients))
    assert time.monotonic() - begun > 0.9 * (240 - 20) / 100
    assert {(client.snapshot().quota, client.snapshot().participants) for client in clients} == {("redis", 3)}
    for client in clients:
        await client.aclose()


async def test_real_redis_computes_what_python_computes(redis_server):
    quota = RedisQuota(redis_server.url)
    client, random, board, grants = quota._client(), FixedRandom(), None, []
    for visit in random_visits(11, 300, grants=grants):
        random.value = visit.draw
        if board is None:
            board = Board(visit.declaration, visit.at, random, age=visit.declared_age)
        grants.append(board.visit(visit.name, visit.demand, visit.at, visit.declaration, visit.declared_age))
        arguments = visit_arguments(
            visit.name,
            visit.demand,
            visit.declaration,
            declared_age=visit.declared_age,
            seen=False,
            draw=visit.draw,
            now=visit.at,
        )
        reply = await client.eval(visit_script(), 1, quota.key("board"), *arguments)
        assert read_grant(reply) == grants[-1]
    await client.aclose()
    found = dict(await quota.read("board"))
    del found["now"]
    assert found == board.dump()


async def test_a_discovered_rate_is_learned_by_compare_and_set(redis_server):
    first, second = member(redis_server, DISCOVERED), member(redis_server, DISCOVERED)
    await asyncio.gather(*(each.transact(WANTED) for each in (first, second)))
    grant = await first.transact(Demand(answered=[(0.1, 0.0)]))
    assert grant.participants == 2
    assert (await second.transact(Demand())).rate == grant.rate > 8
    for each in (first, second):
        await each.aclose(Demand())


def left_of_visits(server, each) -> list[bytes]:
    """The keys beside the board: lock, posted visits and replies."""
    keys = server.command("KEYS", "onellm:*").split(b"\r\n")
    return [key for key in keys if key.startswith(b"onellm:") and key != each._key.encode()]


async def test_visits_at_one_moment_count_once_each_and_leave_nothing(redis_server):
    members = [member(redis_server, DISCOVERED) for _ in range(16)]
    grants = []
    for _ in range(10):
        grants += await asyncio.gather(*(each.transact(WANTED) for each in members))
        await asyncio.sleep(0.02)
    board = await RedisQuota(redis_server.url).read("board")
    assert sum(grant.permits for grant in grants) == board["granted"] > 1
    assert {grant.participants for grant in grants[-16:]} == {16}
    assert left_of_visits(redis_server, members[0]) == []
    for each in members:
        await each.aclose(Demand())


async def test_of_those_that_visit_at_one_moment_one_computes_for_all(redis_server, monkeypatch):
    members, leaders = [member(redis_server, DISCOVERED) for _ in range(16)], []
    lead = RedisMember._lead

    async def seen(self, *arguments):
        leaders.append(self)
        return await lead(self, *arguments)

    monkeypatch.setattr(RedisMember, "_lead", seen)
    await asyncio.gather(*(each.transact(WANTED) for each in members))
    assert len(leaders) <= 3, "the first, and one for all that were posted meanwhile"
    for each in members:
        await each.aclose(Demand())


async def test_a_leader_that_outlives_its_lock_takes_no_visit_twice(redis_server, monkeypatch):
    slow, *others = members = [member(redis_server, DISCOVERED) for _ in range(5)]
    run = slow._run

    async def late(script, arguments, keys=()):
        if script is REPLACE and not slow._seen:
            await asyncio.sleep(0.25)  # two locks and a half
        return await run(script, arguments, keys)

    monkeypatch.setattr(slow, "_run", late)
    first = asyncio.create_task(slow.transact(WANTED))
    await asyncio.sleep(0.02)
    grants = [*await asyncio.gather(*(each.transact(WANTED) for each in others)), await first]
    board = await RedisQuota(redis_server.url).read("board")
    assert sum(grant.permits for grant in grants) == board["granted"]
    assert len(board["rows"]) == 5
    assert left_of_visits(redis_server, slow) == []
    for each in members:
        await each.aclose(Demand())


async def test_a_visitor_that_goes_while_it_waits_stops_nobody(redis_server):
    gone, *others = members = [member(redis_server, DISCOVERED) for _ in range(4)]
    redis_server.command("SET", f"{gone._key}:lock", "dead", "PX", "100")
    waiting = asyncio.create_task(gone.transact(WANTED))
    await asyncio.sleep(0.03)
    waiting.cancel()
    await asyncio.gather(*(each.transact(WANTED) for each in others))
    board = await RedisQuota(redis_server.url).read("board")
    assert len(board["rows"]) == 4, "it was posted, so it counts"
    for each in members:
        await each.aclose(Demand())


@pytest.mark.parametrize(
    "message", ["", "{}", "[1]", '[1,"name",[0],[["discover",0,40,0,300],true,null,0.0]]',
                '[1,"name",[[0,0,0],[0,0,0],[0,0,0],0,0,[],[],0,0,false],[["discover",0,40,0,300],true,{"rate":-1},0.0]]',
                '[1,"name",[[0,0,0],[0,0,0],[0,0,0],0,0,[],[],0,0,false],[["?"],true,null,0.0]]']
)  # fmt: skip
async def test_a_posted_visit_that_cannot_be_read_spoils_none_of_the_others(redis_server, message):
    each = member(redis_server, DISCOVERED)
    redis_server.command("HSET", f"{each._key}:posted", "broken", f"{time.time():.6f} {message}")
    assert (await each.transact(WANTED)).permits > 0
    redis_server.command("DEL", f"{each._key}:lock", f"{each._key}:posted")
    await each.aclose(Demand())


async def test_what_nobody_takes_is_forgotten(redis_server, monkeypatch):
    monkeypatch.setattr(redis_quota, "LOCK_PATIENCE", 0.05)
    each = member(redis_server, DISCOVERED)
    posted = f"{each._key}:posted"
    redis_server.command("HSET", posted, "gone", f"{time.time() - 1:.6f} [1]", "future", f"{time.time() + 9:.6f} [9]")
    assert (await each.transact(WANTED)).permits > 0
    left = redis_server.command("HKEYS", posted)
    assert b"gone" not in left, "its visitor has given up"
    assert b"future" in left, "it is left to its own version of the package"
    redis_server.command("DEL", posted)
    redis_server.command("DEL", f"{each._key}:lock")
    await each.aclose(Demand())


@pytest.mark.parametrize("limits", [LIMITS, DISCOVERED], ids=["declared", "discovered"])
async def test_a_user_of_redis_needs_only_what_the_guide_names(redis_server, limits):
    guide = (ROOT / "docs" / "how-to" / "quota.md").read_text(encoding="utf-8")
    listed = re.search(r"needs the commands (.*?)\s+on\s+`onellm:\*`", guide, re.DOTALL)
    commands = [f"+{name.lower()}" for name in re.findall("`([A-Z]+)`", listed[1])]
    redis_server.command("ACL", "SETUSER", "narrow", "on", ">secret", "~onellm:*", *commands)
    url = f"unix://narrow:secret@{redis_server.socket}"
    members = [RedisQuota(url).join("board", Declaration(limits, explicit=True), Random(0)) for _ in range(4)]
    for _ in range(2):
        await asyncio.gather(*(each.transact(WANTED) for each in members))
    for each in members:
        await each.aclose(Demand())


async def test_a_visitor_that_died_keeps_the_board_locked_for_a_tenth_of_a_second(redis_server):
    each = member(redis_server, DISCOVERED)
    begun = time.monotonic()
    redis_server.command("SET", f"{each._key}:lock", "dead", "PX", "100")
    assert (await each.transact(WANTED)).permits > 0
    assert time.monotonic() - begun > 0.09, "not before the lock had expired"
    await each.aclose(Demand())


@pytest.fixture
def ages_of_429s(monkeypatch):
    """Seconds between the sending of each request that got a 429 and the moment at which the board hears of it."""
    found, visit = [], Board.visit

    def heard(self, name, demand, *others):
        found.extend(report.sent for report in demand.rate_limited)
        return visit(self, name, demand, *others)

    monkeypatch.setattr(Board, "visit", heard)
    return found


REFUSED = Demand(waiting=(0, 1, 0), rate_limited=[RateLimitReport(0.3, 0.2)])


async def test_what_a_visitor_that_leads_has_waited_counts(redis_server, ages_of_429s):
    each = member(redis_server, DISCOVERED)
    redis_server.command("SET", f"{each._key}:lock", "dead", "PX", "100")
    begun = time.monotonic()
    await each.transact(REFUSED)
    assert 0.39 < ages_of_429s[0] < 0.3 + time.monotonic() - begun
    await each.aclose(Demand())


async def test_what_a_visitor_has_waited_counts_when_the_lead_is_passed_on_to_it(
    redis_server, ages_of_429s, monkeypatch
):
    first, second = member(redis_server, DISCOVERED), member(redis_server, DISCOVERED)
    run, post, is_read, is_posted = first._run, second._run, asyncio.Event(), asyncio.Event()

    async def late(script, arguments, keys=()):
        if script is REPLACE:
            is_read.set()
            await is_posted.wait()
            await asyncio.sleep(0.05)  # less than a lock
        return await run(script, arguments, keys)

    async def posting(*arguments):
        reply = await post(*arguments)
        is_posted.set()
        return reply

    monkeypatch.setattr(first, "_run", late)
    monkeypatch.setattr(second, "_run", posting)
    leading = asyncio.create_task(first.transact(WANTED))
    await is_read.wait()
    begun = time.monotonic()
    await second.transact(REFUSED)
    assert 0.34 < ages_of_429s[0] < 0.3 + time.monotonic() - begun
    await leading
    for each in (first, second):
        await each.aclose(Demand())


async def test_a_board_that_stays_locked_fails_the_visit_in_words(redis_server, monkeypatch):
    monkeypatch.setattr(redis_quota, "LOCK_PATIENCE", 0.05)
    each = member(redis_server, DISCOVERED)
    redis_server.command("SET", f"{each._key}:lock", "stranger")
    with pytest.raises(ConnectionError, match=r"Other participants kept it locked for 0\.05 s\."):
        await each.transact(WANTED)
    redis_server.command("DEL", f"{each._key}:lock")
    await each.aclose(Demand())


async def test_a_board_passes_from_lua_to_python_and_back(redis_server):
    declared, discovering = member(redis_server), member(redis_server, DISCOVERED)
    assert (await declared.transact(WANTED)).permits > 10
    await asyncio.sleep(0.06)
    discovering.redeclare(Declaration.of(DISCOVERED))
    grant = await discovering.transact(Demand())
    assert grant.participants == 2
    assert (await declared.transact(Demand())).rate == grant.rate != 100
    declared.redeclare(Declaration.of(LIMITS, retuned=True))
    await asyncio.sleep(0.06)
    declared.redeclare(Declaration.of(Limits(requests_per_minute=1200), retuned=True))
    assert (await declared.transact(Demand())).rate == pytest.approx(20)
    assert (await declared.transact(Demand())).participants == 2
    assert (await discovering.transact(Demand())).rate == pytest.approx(20)
    for each in (declared, discovering):
        await each.aclose(Demand())


async def test_a_client_that_closes_leaves_no_row_and_no_connection(redis_server):
    shared = limiter(redis_server)
    await work(shared, 8)
    await shared.aclose()
    assert (await RedisQuota(redis_server.url).read("board"))["rows"] == []
    assert b"connected_clients:1\r" in redis_server.command("INFO", "clients")


async def test_the_board_expires_when_nobody_uses_it(redis_server):
    each = member(redis_server)
    await each.transact(WANTED)
    await each.aclose(Demand())
    assert redis_server.command("TTL", "onellm:{board}:board") == b":3600\r\n"


# Out of reach


async def test_redis_that_is_killed_is_done_without_at_the_fair_share_and_taken_up_again(redis_server, caplog):
    caplog.set_level(logging.INFO, "onellm_async")
    clients = [limiter(redis_server, seed=seed) for seed in range(2)]
    done = []
    working = [asyncio.ensure_future(work(client, 240, done=done)) for client in clients]
    await asyncio.sleep(0.5)
    redis_server.kill()
    await until(lambda: all(client.snapshot().quota == "alone" for client in clients))
    assert sum(client.snapshot().rate for client in clients) == pytest.approx(6000)
    before = len(done)
    await until(lambda: len(done) > before + 20)
    redis_server.start()
    await until(lambda: all(client.snapshot().quota == "redis" for client in clients))
    await asyncio.gather(*working)
    told = [record.message for record in caplog.records if "out of reach" in record.message]
    assert len(told) == 2
    assert "Requests are sent at 1/2 of the rate" in told[0]
    for client in clients:
        await client.aclose()


@pytest.mark.timeout(60 + 5 * OUTAGES)
async def test_one_outage_after_the_other_stops_nothing_and_lets_through_no_more_than_the_rate(redis_server):
    clients = [limiter(redis_server, seed=seed) for seed in range(3)]
    done, begun = [], time.monotonic()
    working = [asyncio.ensure_future(work(client, 10**6, done=done)) for client in clients]
    await until(lambda: len(done) > 60)
    for number in range(OUTAGES):
        if number % 3 == 0:
            redis_server.kill()
        elif number % 3 == 1:
            redis_server.signal(signal.SIGSTOP)
        else:
            redis_server.command("FLUSHALL")
        if number % 3 < 2:
            await until(lambda: all(client.snapshot().quota == "alone" for client in clients))
            if number % 3 == 0:
                await asyncio.to_thread(redis_server.start)
            else:
                redis_server.signal(signal.SIGCONT)
        await until(lambda: all(client.snapshot().quota == "redis" for client in clients))
        before = len(done)
        await until(lambda before=before: len(done) > before + 40)
    elapsed = time.monotonic() - begun
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    for client in clients:
        await client.aclose()
    assert len(done) <= 100 * elapsed + 20 * (1 + OUTAGES)


async def until(true):
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  # of another program
            await asyncio.sleep(0.01)


async def test_an_emptied_redis_begins_with_an_empty_bucket(redis_server):
    each = member(redis_server)
    assert (await each.transact(WANTED)).permits > 10
    redis_server.command("FLUSHALL")
    assert (await each.transact(WANTED)).permits <= 1
    await each.aclose(Demand())


async def test_a_discovered_rate_survives_an_emptied_redis(redis_server):
    each = member(redis_server, DISCOVERED)
    await each.transact(WANTED)
    rate = (await each.transact(Demand(answered=[(0.1, 0.0)] * 9))).rate
    redis_server.command("FLUSHALL")
    assert (await each.transact(Demand())).rate == rate > 8
    await each.aclose(Demand())


async def test_scripts_that_redis_has_forgotten_are_sent_again(redis_server):
    for limits in (LIMITS, DISCOVERED):
        each = member(redis_server, limits)
        await each.transact(Demand())
        redis_server.command("SCRIPT", "FLUSH")
        await each.transact(Demand())
        await each.aclose(Demand())


async def test_redis_that_does_not_answer_is_given_up_in_time_and_the_visit_is_not_repeated(redis_server):
    shared = limiter(redis_server)
    await work(shared, 8)
    redis_server.signal(signal.SIGSTOP)
    begun = time.monotonic()
    await work(shared, 40)
    assert time.monotonic() - begun < 20
    assert shared.snapshot().quota == "alone"
    redis_server.signal(signal.SIGCONT)
    while shared.snapshot().quota == "alone":
        await work(shared, 8)
    await shared.aclose()


async def test_redis_that_was_never_reached_sends_nothing(redis_server, monkeypatch):
    redis_server.kill()
    monkeypatch.setattr(SharedLimiter, "START_PATIENCE", 0.3)
    shared = limiter(redis_server)
    with pytest.raises(ConfigurationError, match=r"could not be reached") as raised:
        await shared.acquire()
    assert "unix://" in str(raised.value)
    await shared.aclose()


async def test_a_wrong_password_is_told_at_once_and_never_shown(redis_program, tmp_path):
    server = RedisServer(redis_program, tmp_path, "--requirepass", "right")
    server.start()
    try:
        quota = RedisQuota(f"unix://:canary-password@{server.socket}")
        shared = SharedLimiter(LIMITS, random=Random(0), quota=quota, name="board")
        with pytest.raises(ConfigurationError, match="refuses the quota") as raised:
            await shared.acquire()
        assert "canary" not in str(raised.value) + repr(quota) + quota.place + repr(shared.snapshot())
        await shared.aclose()
    finally:
        server.kill()


async def test_a_lost_compare_and_set_is_computed_again(redis_server):
    members = [member(redis_server, DISCOVERED) for _ in range(6)]
    await asyncio.gather(*(each.transact(Demand(waiting=(0, 1, 0))) for each in members))
    board = await RedisQuota(redis_server.url).read("board")
    assert len(board["rows"]) == 6
    for each in members:
        await each.aclose(Demand())


# Clients


def test_a_client_that_is_never_closed_can_be_used_in_one_event_loop_after_the_other(redis_server):
    async def ask():
        return (await client.chat("hi", model="GPT-5-Nano")).content

    client = AsyncOneLLM(transport=FakeTransport(), limits=LIMITS, quota=redis_server.url)
    assert [asyncio.run(ask()) for _ in range(3)] == ["hi"] * 3
    assert b"connected_clients:1\r" in redis_server.command("INFO", "clients")


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    for name in ("redis", "redis.asyncio"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match="needs the extra 'redis'") as raised:
        RedisQuota("redis://127.0.0.1").check()
    assert "pip install 'onellm-async[redis]'" in str(raised.value)


@pytest.mark.parametrize("url", ["redis://", "http://host", "redis://host:port", "host", "redis://[::1"])
def test_what_is_no_url_of_redis_is_refused(url):
    with pytest.raises(ConfigurationError, match="not a URL of Redis"):
        RedisQuota(url)


def test_a_password_is_never_shown():
    quota = RedisQuota("rediss://user:canary@host:6380/2?ssl_ca_certs=/secret")
    assert repr(quota) == "RedisQuota('rediss://host:6380/2', prefix='onellm')"
    assert str(quota) == repr(quota)
