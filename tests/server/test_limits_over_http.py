"""Windows, concurrency and their headers over real sockets."""

import asyncio
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import pytest

from onellm_async import AsyncOneLLM, Limits
from onellm_async.server import (
    BucketLimit,
    ConcurrencyLimit,
    EchoBackend,
    Faults,
    LocalServer,
    Outcome,
    ServerSettings,
    WindowLimit,
)

BODY = {"model": "GPT-5-Mini", "messages": [{"role": "user", "content": "Hello there"}]}
KEY = {"Authorization": "Bearer good"}


async def post(session, server, **body):
    async with session.post(server.url, json=BODY | body, headers=KEY) as reply:
        await reply.read()
        return reply


async def statuses(session, server, number):
    replies = await asyncio.gather(*(post(session, server) for _ in range(number)))
    return sorted(reply.status for reply in replies)


class HeldBackend(EchoBackend):
    """Answers when it is released."""

    def __init__(self):
        self.released = asyncio.Event()

    async def complete(self, job):
        await self.released.wait()
        return await super().complete(job)


@pytest.fixture
def held():
    return HeldBackend()


async def statuses_while_held(session, server, held, number, ended):
    """Statuses of requests sent at once, of which `ended` end before the backend is released."""
    tasks = [asyncio.create_task(post(session, server)) for _ in range(number)]
    at_once = []
    for reply in asyncio.as_completed(tasks):
        at_once.append((await reply).status)
        if len(at_once) == ended:
            held.released.set()
    return at_once[:ended], at_once[ended:]


@pytest.mark.parametrize("sliding", [False, True])
async def test_a_window_admits_its_count_and_says_when_it_has_passed(session, sliding):
    limits = [WindowLimit(4, 60.0, sliding=sliding)]
    async with LocalServer(ServerSettings(limits=limits, faults=Faults(retry_after="fraction"))) as server:
        assert await statuses(session, server, 6) == [200] * 4 + [429] * 2
        assert 0 < float((await post(session, server)).headers["Retry-After"]) <= 60


async def test_a_limit_of_concurrency_counts_what_is_in_flight(session, held):
    async with LocalServer(ServerSettings(limits=[ConcurrencyLimit(3)]), backend=held) as server:
        assert await statuses_while_held(session, server, held, 5, 2) == ([429] * 2, [200] * 3)
        assert await statuses(session, server, 3) == [200] * 3


async def test_a_client_of_the_package_answers_everything_in_spite_of_a_window():
    settings = ServerSettings(limits=[WindowLimit(20, 0.3), ConcurrencyLimit(6)], faults=Faults(latency=0.01))
    async with (
        LocalServer(settings) as server,
        AsyncOneLLM("any", base_url=server.url, limits=Limits(requests_per_minute=4000, burst=20)) as client,
    ):
        replies = await client.gather_chats(["Hello?"] * 50, model="GPT-5-Nano")
    assert [reply.content for reply in replies] == ["Hello?"] * 50
    assert server.ledger.outcomes[Outcome.ANSWERED] == 50


def settings_with(retry_after=None, rate_headers=None, limits=None):
    limits = [WindowLimit(1, 90.0)] if limits is None else limits
    return ServerSettings(limits=limits, rate_headers=rate_headers, faults=Faults(retry_after=retry_after))


async def rejected(session, settings):
    async with LocalServer(settings) as server:
        accepted, rejection = await post(session, server), await post(session, server)
        assert (accepted.status, rejection.status) == (200, 429)
        return accepted.headers, rejection.headers


async def test_the_wait_is_said_in_whole_seconds_with_a_fraction_in_milliseconds_or_as_a_date(session):
    _, headers = await rejected(session, settings_with("seconds"))
    assert headers["Retry-After"] == "90"
    _, headers = await rejected(session, settings_with("fraction"))
    assert 85 < float(headers["Retry-After"]) <= 90
    _, headers = await rejected(session, settings_with("milliseconds"))
    assert 85_000 < int(headers["retry-after-ms"]) <= 90_000
    assert "Retry-After" not in headers
    _, headers = await rejected(session, settings_with("date"))
    wait = parsedate_to_datetime(headers["Retry-After"]) - datetime.now(UTC)
    assert 84 < wait.total_seconds() <= 91


async def test_nothing_is_said_of_a_wait_that_is_not_known(session, held):
    settings = ServerSettings(limits=[ConcurrencyLimit(1)], faults=Faults(retry_after="seconds"))
    async with LocalServer(settings, backend=held) as server:
        replies = [asyncio.create_task(post(session, server)) for _ in range(2)]
        rejection = await next(asyncio.as_completed(replies))
        held.released.set()
        await asyncio.gather(*replies)
    assert rejection.status == 429
    assert "Retry-After" not in rejection.headers


async def test_replies_say_what_is_left_in_the_form_of_openai(session):
    limits = [WindowLimit(100, 1.0), WindowLimit(3, 4000.0), BucketLimit(1000, 6000, unit="tokens")]
    async with LocalServer(settings_with(rate_headers="openai", limits=limits)) as server:
        headers = (await post(session, server, max_tokens=994)).headers
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-remaining-requests"] == "2"
    assert headers["x-ratelimit-reset-requests"].startswith("1h6m")
    assert headers["x-ratelimit-limit-tokens"] == "6000"
    assert headers["x-ratelimit-remaining-tokens"].startswith("500")
    assert headers["x-ratelimit-reset-tokens"].startswith(("59.", "1m0"))


async def test_replies_say_what_is_left_in_seconds_or_as_a_time(session):
    accepted, rejection = await rejected(session, settings_with(rate_headers="seconds"))
    assert [accepted[f"x-ratelimit-{name}"] for name in ("limit", "remaining")] == ["1", "0"]
    assert 85 < int(rejection["x-ratelimit-reset"]) <= 90
    accepted, _ = await rejected(session, settings_with(rate_headers="epoch"))
    assert 80 < int(accepted["x-ratelimit-reset"]) - time.time() <= 95
    accepted, rejection = await rejected(session, settings_with())
    assert not any(name.casefold().startswith("x-ratelimit") for name in [*accepted, *rejection])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0061, "7ms"), (1.5, "1.5s"), (86.4, "1m26.4s"), (60, "1m0s"), (3661, "1h1m1s"), (86400, "24h0m0s")],
)
def test_a_duration_is_written_as_go_does(seconds, text):
    from onellm_async.server.replies import rate_headers
    from onellm_async.server.service_limits import Quota

    headers = rate_headers("openai", [Quota(9, 0, seconds, "requests")], 0.0)
    assert headers["x-ratelimit-reset-requests"] == text
    assert "x-ratelimit-reset-requests" not in rate_headers("openai", [Quota(9, 0, float("inf"), "requests")], 0.0)


@pytest.mark.parametrize("status", [401, 503, 529])
async def test_an_overload_is_answered_with_the_status_that_was_chosen(session, held, status):
    faults = Faults(database_places=1, database_wait=0.01, overload_status=status)
    async with LocalServer(ServerSettings(faults=faults), backend=held) as server:
        assert await statuses_while_held(session, server, held, 2, 1) == ([status], [200])


async def test_limits_change_while_the_server_runs(session):
    async with LocalServer(ServerSettings(limits=[WindowLimit(2, 60.0)])) as server:
        assert await statuses(session, server, 3) == [200, 200, 429]
        server.change_limits([WindowLimit(4, 60.0)])
        assert await statuses(session, server, 3) == [200, 200, 429]
        server.change_limits([])
        assert await statuses(session, server, 30) == [200] * 30
