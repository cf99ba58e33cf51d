import asyncio
import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import AsyncOneLLM, Limits
from onellm_async.server import Faults, LocalServer, Outcome, ServerSettings, Service
from onellm_async.server.connection_pool import ConnectionPool
from onellm_async.simulation import Network, ServiceTransport

NO_CONNECTION = {"error": "pool timed out while waiting for an open connection"}
BODY = {
    "model": "GPT-5",
    "messages": [{"role": "user", "content": "Hello there"}],
    "endpoint": "https://api.openai.com/v1/chat/completions",
    "max_tokens": 9,
    "top_p": 1,
}


def settings(places=4, wait=1.0, latency=0.3, **options):
    faults = Faults(database_places=places, database_wait=wait, latency=latency)
    return ServerSettings(requests_per_minute=1e9, burst=1e6, **{"dialect": "backend"} | options, faults=faults)


@given(
    places=st.integers(1, 4),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60),
)
def test_places_go_to_those_who_waited_longest_and_never_to_more_than_there_are(places, steps):
    database, holding, waiting, given_later = ConnectionPool(places), [], [], []
    for number, (ends, which) in enumerate(steps):
        if ends and holding + waiting:
            request = (holding + waiting)[which % len(holding + waiting)]
            held = request in holding
            (holding if held else waiting).remove(request)
            expected = waiting[:1] if held else []
            given_later.clear()
            database.release(request)
            assert given_later == expected
            holding += expected
            del waiting[: len(expected)]
        elif database.acquire(number, lambda number=number: given_later.append(number)):
            holding.append(number)
        else:
            waiting.append(number)
        assert len(holding) <= places
        assert len(holding) == places or not waiting


def transport(service, random):
    return ServiceTransport(service, "k", random=random, network=Network(delay=0, jitter=0))


@pytest.mark.virtual_time
@pytest.mark.parametrize("dialect", ["backend", "documented"])
async def test_request_without_a_place_in_time_gets_the_401_of_a_database(dialect):
    service = Service(settings(dialect=dialect))
    carried = transport(service, Random(0))
    replies = await asyncio.gather(*(carried.post(json.dumps(BODY).encode()) for _ in range(40)))
    told = [json.loads(reply.body) for reply in replies]
    if dialect == "backend":
        codes = [value["code"] for value in told]
        assert {reply.status for reply in replies} == {200}
        assert all(value["output"] == NO_CONNECTION for value in told if value["code"] == 401)
    else:
        codes = [reply.status for reply in replies]
        assert all(value == NO_CONNECTION for value, code in zip(told, codes, strict=True) if code == 401)
    assert codes == [200] * 16 + [401] * 24  # four at a time, 0.3 s each, for a second
    assert asyncio.get_running_loop().time() == pytest.approx(1.2)
    assert service.ledger.outcomes == {Outcome.ANSWERED: 16, Outcome.FAILED: 24}
    assert service.ledger.billed == 16


@pytest.mark.virtual_time
async def test_place_is_free_again_whatever_became_of_the_request():
    service = Service(settings(places=1))
    carried = transport(service, Random(0))
    hung_up = [asyncio.create_task(carried.post(json.dumps(BODY).encode())) for _ in range(3)]
    await asyncio.sleep(0.1)
    hung_up[1].cancel()  # while it waits
    hung_up[0].cancel()  # while it is processed
    await asyncio.wait(hung_up)
    assert json.loads(hung_up[2].result().body)["code"] == 200
    assert json.loads((await carried.post(json.dumps(BODY).encode())).body)["code"] == 200
    assert service.ledger.in_flight == 0


@pytest.mark.virtual_time
async def test_place_that_comes_at_the_last_moment_is_used():
    service = Service(settings(places=1, wait=0.3, latency=0.3))
    carried = transport(service, Random(0))
    replies = await asyncio.gather(*(carried.post(json.dumps(BODY).encode()) for _ in range(2)))
    assert [json.loads(reply.body)["code"] for reply in replies] in ([200, 200], [200, 401])
    assert service.ledger.in_flight == 0
    assert json.loads((await carried.post(json.dumps(BODY).encode())).body)["code"] == 200


async def test_requests_wait_for_a_place_over_http(held, until, session):
    async with LocalServer(settings(places=1, wait=30, latency=0), backend=held) as server:
        head = {"Authorization": "Bearer k"}

        async def ask():
            async with session.post(server.url, json=BODY, headers=head) as reply:
                return (await reply.json())["code"]

        asking = [asyncio.create_task(ask()) for _ in range(3)]
        await held.asked.wait()
        await until(lambda: server.ledger.in_flight == 3)
        held.released.set()
        assert await asyncio.gather(*asking) == [200, 200, 200]


async def test_request_that_waits_in_vain_over_http_is_told_so(held, session):
    async with LocalServer(settings(places=1, wait=0.01, latency=0), backend=held) as server:
        head = {"Authorization": "Bearer k"}
        first = asyncio.create_task(session.post(server.url, json=BODY, headers=head))
        await held.asked.wait()
        async with session.post(server.url, json=BODY, headers=head) as reply:
            assert await reply.json() == {"code": 401, "output": NO_CONNECTION}
        held.released.set()
        async with await first as reply:
            assert (await reply.json())["code"] == 200
        assert server.ledger.outcomes == {Outcome.FAILED: 1, Outcome.ANSWERED: 1}


async def test_stopping_ends_those_who_wait_for_a_place(held, session):
    async with LocalServer(settings(places=1, latency=0), backend=held) as server:
        asking = [
            asyncio.create_task(session.post(server.url, json=BODY, headers={"Authorization": "Bearer k"}))
            for _ in range(2)
        ]
        await held.asked.wait()
    await asyncio.wait(asking)
    assert server.ledger.outcomes == {Outcome.DROPPED: 2}
    assert all(task.exception() for task in asking)


async def test_few_places_are_enough_for_as_many_requests_at_once():
    async with (
        LocalServer(settings(places=4, latency=0)) as server,
        AsyncOneLLM("k", base_url=server.url, dialect="backend", limits=Limits.unlimited(4)) as client,
    ):
        answers = await client.gather_chats(map(str, range(40)), model="GPT-5")
    assert [answer.content for answer in answers] == list(map(str, range(40)))
