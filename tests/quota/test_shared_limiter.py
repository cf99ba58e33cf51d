"""The limiter's side of a quota, in virtual time: permits, failures, and what a snapshot tells."""

import asyncio
import logging
from random import Random

import pytest

from onellm_async import AsyncOneLLM, ClientClosedError, ConfigurationError, DeadlineExceededError, Limits
from onellm_async.limits.shared_limiter import SharedLimiter
from onellm_async.quota import MemoryQuota
from onellm_async.server.service import Service
from onellm_async.server.settings import Faults, ServerSettings
from onellm_async.simulation.service_transport import ServiceTransport

pytestmark = pytest.mark.virtual_time

LIMITS = Limits(requests_per_minute=60, burst=4)


def limiter(quota, limits=LIMITS, name="board"):
    return SharedLimiter(limits, random=Random(0), quota=quota, name=name)


def now():
    return asyncio.get_running_loop().time()


async def times_of(shared, number, lane="default"):
    """When each of so many requests was sent, from their start; each is answered after a second."""

    async def one():
        permit = await shared.acquire(lane=lane)
        at = now()
        await asyncio.sleep(1)
        permit.answered()
        return at

    return await asyncio.gather(*(one() for _ in range(number)))


async def test_an_uncontended_request_is_admitted_without_a_turn_of_the_loop():
    shared = limiter(MemoryQuota())
    acquiring = shared.acquire()
    with pytest.raises(StopIteration) as stopped:
        acquiring.send(None)
    stopped.value.value.answered()
    await shared.aclose()


async def test_two_clients_share_the_rate_of_one():
    quota = MemoryQuota()
    first, second = limiter(quota), limiter(quota)
    times = await asyncio.gather(times_of(first, 20), times_of(second, 20))
    together = sorted(at for each in times for at in each)
    assert together[-1] == pytest.approx(36, abs=2)
    assert max(times[0]) == pytest.approx(max(times[1]), abs=4)
    assert (first.snapshot().quota, first.snapshot().participants) == ("memory", 2)
    assert first.snapshot().quota_share == pytest.approx(0.5, abs=0.1)
    assert first.snapshot().at_rest


async def test_a_permit_whose_request_was_cancelled_goes_back_at_once():
    quota = MemoryQuota()
    first, second = limiter(quota), limiter(quota)
    for _ in range(3):
        (await first.acquire()).release()
    waiting = asyncio.ensure_future(first.acquire())
    await asyncio.sleep(0)
    waiting.cancel()
    other = await second.acquire()
    assert now() <= 1.2
    other.give_back()
    other = await second.acquire()
    assert now() <= 1.2
    other.release()


async def test_a_permit_that_arrives_after_its_request_was_cancelled_goes_back():
    quota = MemoryQuota(latency=0.2)
    shared = limiter(quota)
    waiting = asyncio.ensure_future(shared.acquire())
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.sleep(1)
    assert shared.snapshot().at_rest
    (board,) = quota._boards.values()
    assert board.control.level_at(now()) == pytest.approx(board.control.level.capacity)


async def test_while_paused_nothing_is_asked_for_and_no_permit_is_kept():
    quota = MemoryQuota(latency=0.2)
    shared, other = limiter(quota), limiter(quota)
    waiting = asyncio.ensure_future(shared.acquire())
    await asyncio.sleep(0.01)
    shared.pause()
    await asyncio.sleep(5)
    assert not waiting.done()
    await times_of(other, 3)
    shared.resume()
    (await waiting).answered()


async def test_a_429_of_one_client_stops_all():
    quota = MemoryQuota()
    first, second = limiter(quota), limiter(quota)
    permit = await first.acquire()
    permit.rate_limited(5.0)
    begun = now()
    (await second.acquire()).answered()
    assert now() - begun == pytest.approx(5, abs=0.1)


async def test_the_bottleneck_is_the_quota_while_another_process_is_next():
    quota = MemoryQuota()
    first, second = limiter(quota), limiter(quota)
    busy = [asyncio.ensure_future(each.acquire()) for each in (first, second) for _ in range(10)]
    await asyncio.sleep(3.5)
    found = {each.snapshot().bottleneck for each in (first, second)}
    assert "quota" in found
    assert found <= {"quota", "rate"}
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)


async def test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_sent():
    quota = MemoryQuota()
    busy, web = limiter(quota), limiter(quota)
    tasks = [asyncio.ensure_future(busy.acquire()) for _ in range(40)]
    await asyncio.sleep(5)
    with pytest.raises(DeadlineExceededError, match="the queue takes about"):
        await web.acquire(deadline=now() + 0.3)
    permit = await web.acquire(deadline=now() + 3)
    permit.answered()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("latency", [0.0, 0.05])
async def test_an_unknown_wait_sheds_nothing(latency):
    shared = limiter(MemoryQuota(latency=latency))
    permit = await shared.acquire(deadline=now() + 0.5)
    permit.answered()


async def test_two_lanes_and_one_slot_do_not_spin():
    shared = limiter(MemoryQuota(), Limits(max_concurrency=1, requests_per_minute=60, burst=1))
    assert len(await asyncio.gather(times_of(shared, 2, "batch"), times_of(shared, 2, "interactive"))) == 2


async def test_new_limits_of_one_client_count_for_all():
    quota = MemoryQuota()
    first, second = limiter(quota), limiter(quota)
    await times_of(second, 1)
    await times_of(first, 1)
    first.retune(Limits(requests_per_minute=1200, burst=40))
    begun = now()
    await times_of(second, 60)
    assert now() - begun < 10
    assert second.snapshot().rate == pytest.approx(1200)


async def test_limits_without_a_rate_cannot_be_shared():
    shared = limiter(MemoryQuota())
    with pytest.raises(ConfigurationError, match="shares a rate limit"):
        shared.retune(Limits.unlimited())


async def test_a_client_that_closes_leaves_no_row():
    quota = MemoryQuota()
    first, second = limiter(quota), limiter(quota)
    await times_of(first, 1)
    await times_of(second, 1)
    waiting = [asyncio.ensure_future(first.acquire()) for _ in range(9)]
    await asyncio.sleep(0)
    first.close()
    await first.aclose()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert any(isinstance(result, ClientClosedError) for result in results)
    (board,) = quota._boards.values()
    assert len(board.rows) == 1
    await times_of(first, 1)
    assert len(board.rows) == 2


# Out of reach


async def test_in_an_outage_each_client_sends_at_its_share_and_returns_after_it():
    quota = MemoryQuota(outages=[(20, 50)])
    limits = Limits(requests_per_minute=600, burst=10)
    clients = [limiter(quota, limits) for _ in range(4)]
    working = [asyncio.ensure_future(times_of(client, 250)) for client in clients]
    await asyncio.sleep(40)
    assert {client.snapshot().quota for client in clients} == {"alone"}
    assert sum(client.snapshot().rate for client in clients) == pytest.approx(600)
    times = sorted(at for each in await asyncio.gather(*working) for at in each)
    for begin, end, least in ((22, 50, 0.98), (52, 90, 0.9)):
        sent = sum(begin <= at < end for at in times)
        assert least * 10 * (end - begin) <= sent <= 10 * (end - begin) + 10
    assert {client.snapshot().quota for client in clients} == {"memory"}


async def sent_while_refused(quota, limits, until):
    """When a client sent whose service refuses everything from 5 s on, without a pause."""
    shared, times = limiter(quota, limits), []
    while now() < until:
        permit = await shared.acquire()
        times.append(now())
        await asyncio.sleep(0.02)
        permit.rate_limited(0.0) if now() > 5 else permit.answered()
    await shared.aclose()
    return [at for at in times if at > 5]


@pytest.mark.parametrize("rate", [600, "auto"])
async def test_a_client_that_is_refused_while_the_board_is_out_of_reach_slows_down(rate):
    times = await sent_while_refused(MemoryQuota(outages=[(4, 300)]), Limits(requests_per_minute=rate, burst=10), 300)
    assert len(times) <= 25
    assert times[-1] > 200


async def test_a_declared_rate_that_may_not_change_is_kept_while_the_board_is_out_of_reach():
    limits = Limits(requests_per_minute=600, burst=10, adaptive="off")
    times = await sent_while_refused(MemoryQuota(outages=[(4, 60)]), limits, 55)
    assert len(times) >= 300


async def test_a_client_that_was_refused_in_an_outage_of_the_board_gets_its_share_back_with_its_answers():
    shared = limiter(MemoryQuota(outages=[(4, 300)]), Limits(requests_per_minute=600, burst=10))
    while now() < 100:
        permit = await shared.acquire()
        await asyncio.sleep(0.02)
        permit.rate_limited(0.0) if 10 < now() < 11 else permit.answered()
        if now() > 90:
            assert shared.snapshot().rate == pytest.approx(600)


async def test_a_client_whose_slots_are_always_full_returns_after_an_outage_too():
    quota = MemoryQuota(outages=[(2, 6)])
    shared = limiter(quota, Limits(max_concurrency=2, requests_per_minute=6000, burst=40))

    async def work():
        while now() < 20:
            permit = await shared.acquire()
            await asyncio.sleep(0.7)
            permit.answered()

    working = [asyncio.ensure_future(work()) for _ in range(5)]
    await asyncio.sleep(5)
    assert shared.snapshot().quota == "alone"
    await asyncio.sleep(3)
    assert shared.snapshot().quota == "memory"
    await asyncio.gather(*working)


async def test_an_outage_is_told_once_with_its_cause(caplog):
    caplog.set_level(logging.INFO, "onellm_async")
    shared = limiter(MemoryQuota(outages=[(5, 20)]))
    await times_of(shared, 40)
    told = [record.message for record in caplog.records]
    assert len(told) == 2
    assert "out of reach: The board is out of reach. Requests are sent at 1/1 of the rate" in told[0]
    assert "within reach again" in told[1]


async def test_a_board_that_was_never_reached_fails_the_requests_after_ten_seconds_and_sends_nothing():
    shared = limiter(MemoryQuota(outages=[(0, 100)]))
    with pytest.raises(ConfigurationError, match="could not be reached: The board is out of reach") as raised:
        await shared.acquire()
    assert now() == pytest.approx(10, abs=0.6)
    assert "quota='off'" in raised.value.advice
    with pytest.raises(ConfigurationError):
        await shared.acquire()
    assert now() == pytest.approx(10, abs=1.2)
    await asyncio.sleep(100)
    (await shared.acquire()).answered()
    assert shared.snapshot().quota == "memory"


async def test_a_board_that_is_late_is_waited_for():
    shared = limiter(MemoryQuota(outages=[(0, 7)]))
    (await shared.acquire()).answered()
    assert 7 <= now() <= 7.6


async def test_a_board_that_will_never_be_within_reach_is_told_at_once():
    async def acquire():
        await limiter(quota).acquire()

    quota = MemoryQuota()
    quota.join = lambda *_: Refusing()
    with pytest.raises(ConfigurationError, match="wrong password"):
        await acquire()
    assert now() == 0


class Refusing:
    def visit(self, demand, then, failed):
        failed(ConfigurationError("wrong password"))

    async def aclose(self, demand):
        pass


# A client as a whole


def service(**how):
    return Service(ServerSettings(keys={"key": 1e9}, faults=Faults(latency=0.5), **how))


async def test_tokens_per_minute_are_shared_by_two_clients():
    limits = Limits(requests_per_minute=6000, burst=600, tokens_per_minute=6000)
    quota, served = MemoryQuota(), service(requests_per_minute=60000, burst=6000)
    clients = [
        AsyncOneLLM(transport=ServiceTransport(served, "key", random=Random(0)), limits=limits, quota=quota)
        for _ in range(2)
    ]
    for client in clients:
        await client.gather_chats(["word " * 200] * 60, model="GPT-5-Nano", max_tokens=300)
    used = sum(row.input_tokens + row.output_tokens for row in served.ledger.rows)
    assert used <= 6000 + now() * 100
    assert used >= 0.8 * (now() - 10) * 100
    for client in clients:
        assert client.snapshot().tokens_level is not None
        await client.aclose()


async def test_answers_are_told_at_once_while_nothing_is_known_of_the_rate():
    quota = MemoryQuota()
    shared = [limiter(quota, Limits(requests_per_minute="auto")) for _ in range(8)]
    permits = await asyncio.gather(*(each.acquire() for each in shared))
    await asyncio.sleep(1)
    (board,) = quota._boards.values()
    rates = [board.control.rate]
    for permit in permits:
        permit.answered()
        rates.append(board.control.rate)
    assert rates == sorted(set(rates))


async def test_a_discovered_rate_is_learned_once_for_all():
    quota, served = MemoryQuota(), service(requests_per_minute=600, burst=20)
    limits = Limits(requests_per_minute="auto")
    clients = [
        AsyncOneLLM(transport=ServiceTransport(served, "key", random=Random(seed)), limits=limits, quota=quota)
        for seed in range(3)
    ]
    replies = await asyncio.gather(
        *(client.gather_chats([f"{n}" for n in range(100)], model="GPT-5-Nano") for client in clients)
    )
    assert sum(map(len, replies)) == 300
    assert now() <= 1.1 * 28
    assert sum(client.snapshot().rate_limited for client in clients) <= 6
    rates = {round(client.snapshot().rate) for client in clients}
    assert all(rate == pytest.approx(600, rel=0.25) for rate in rates)
    assert clients[0].rate_state.rate == pytest.approx(10, rel=0.25)
    for client in clients:
        await client.aclose()
