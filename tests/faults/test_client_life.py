# ruff: noqa: ASYNC110, SIM117  # polling a condition on real sockets; blocks that end one before the other
import asyncio
import os
import socket
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import aiohttp
import pytest
import trustme
from fault_server import FaultServer, Script, answers, sends

from onellm_async import (
    APIConnectionError,
    AsyncOneLLM,
    Billing,
    ChatRequest,
    CircuitOpenError,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    Dialect,
    InvalidRequestError,
    Limits,
    QueueFullError,
    RetryPolicy,
    Timeout,
)
from onellm_async.events import Answered, Event, Failed, Granted, Queued, RateLimited, Retrying, Sent


def client_at(url: str, **options) -> AsyncOneLLM:
    options.setdefault("limits", Limits.unlimited(max_concurrency=4))
    options.setdefault("retry", RetryPolicy(backoff_base=0.0, breaker_failures=0))
    return AsyncOneLLM("key", base_url=url, **options)


def holds_until(release: asyncio.Event) -> Script:
    async def script(exchange) -> bool:
        await release.wait()
        return await answers()(exchange)

    return script


ENDINGS = [
    "async with client:\n        return (await client.chat('x', model='GPT-5')).content",
    "return (await client.chat('x', model='GPT-5')).content",
    "return (await client.gather_chats(['x'] * 9, model='GPT-5'))[8].content",
    """async for outcome in client.iter_chats(["x"] * 99, model="GPT-5"):
        return outcome.unwrap().content""",
]
"""With aclose, without it, in a fan-out without it, in a loop that is left early."""


def one_after_the_other(programs: list[str]) -> str:
    """A script that forks for each program after the imports, which take longer than all the rest."""
    return f"""
import asyncio, gc, os, time
from onellm_async import AsyncOneLLM, Limits, RetryPolicy

for program in {programs!r}:
    child = os.fork() if hasattr(os, "fork") else None
    if not child:
        exec(program)
    if child == 0:
        break
    assert child is None or os.waitpid(child, 0)[1] == 0, program
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_one_client_serves_two_runs_one_after_the_other_and_leaves_nothing_open(
    scheme: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with FaultServer(answers(), tls=tls if scheme == "https" else None) as server:
        programs = [
            f"""
client = AsyncOneLLM("key", base_url="{server.url}", limits=Limits.unlimited())

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # what -X dev says of a busy machine is beside the point
    {ending}

for _ in range(2):
    print(asyncio.run(main()))
    gc.collect()
"""
            for ending in ENDINGS
        ]
        run = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-W", "error", "-c", one_after_the_other(programs)),
            env={**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(run.communicate(), 30)
    assert (run.returncode, err.decode()) == (0, "")
    assert out.split() == [b"Paris.", b"Paris."] * len(ENDINGS)


def test_a_program_that_forgets_everything_ends_without_a_warning() -> None:
    script = """
        import asyncio
        from onellm_async import AsyncOneLLM, Limits
        client = AsyncOneLLM("key", base_url="http://127.0.0.1:9/", limits=Limits.unlimited())
        async def main():
            asyncio.create_task(client.chat("x", model="GPT-5"))
            await asyncio.sleep(0)
        asyncio.run(main())
    """
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


async def test_a_client_made_elsewhere_is_refused_while_that_loop_runs() -> None:
    async with FaultServer(answers()) as server, client_at(server.url) as client:
        await client.chat("x", model="GPT-5")

        def in_another_loop() -> None:
            with pytest.raises(ConfigurationError, match="another running event loop"):
                asyncio.run(client.chat("x", model="GPT-5"))

        await asyncio.to_thread(in_another_loop)
        assert (await client.chat("x", model="GPT-5")).content == "Paris."


async def test_a_given_session_is_used_and_stays_open() -> None:
    async with FaultServer(answers()) as server, aiohttp.ClientSession(headers={"X-Mine": "1"}) as session:
        async with client_at(server.url, session=session) as client:
            await client.chat("x", model="GPT-5")
        await client.aclose()
        assert not session.closed
        assert server.requests[0][1]["x-mine"] == "1"


async def test_a_given_session_that_is_closed_is_named() -> None:
    session = aiohttp.ClientSession()
    await session.close()
    async with client_at("http://127.0.0.1:9/", session=session) as client:
        with pytest.raises(ClientClosedError, match="session given to the client is closed"):
            await client.chat("x", model="GPT-5")


async def test_key_and_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer(answers()) as server:
        monkeypatch.setenv("ONELLM_API_KEY", "from-environment")
        monkeypatch.setenv("ONELLM_BASE_URL", server.url)
        async with AsyncOneLLM() as client:
            await client.chat("x", model="GPT-5")
        assert server.requests[0][1]["authorization"] == "Bearer from-environment"


async def test_closing_twice_and_before_the_first_chat_is_harmless() -> None:
    client = client_at("http://127.0.0.1:9/")
    await client.aclose()
    await client.aclose()
    async with client:
        pass


async def test_closing_ends_those_who_wait_and_entering_again_opens_anew() -> None:
    release = asyncio.Event()
    async with FaultServer(holds_until(release), answers()) as server:
        client = client_at(server.url, limits=Limits.unlimited(max_concurrency=1))
        async with client:
            under_way = asyncio.create_task(client.chat("a", model="GPT-5"))
            await server.asked.wait()
            waiting = [asyncio.create_task(client.chat("b", model="GPT-5")) for _ in range(3)]
            await asyncio.sleep(0)
        for chat in waiting:
            with pytest.raises(ClientClosedError, match="closed while this chat waited") as caught:
                await chat
            assert caught.value.attempts == 0
            assert "never sent" in str(caught.value)
        with pytest.raises((APIConnectionError, ClientClosedError)):
            await under_way
        with pytest.raises(ClientClosedError, match="Enter it again"):
            await client.chat("c", model="GPT-5")
        assert server.posts == 1
        async with client:
            assert (await client.chat("d", model="GPT-5")).content == "Paris."


async def test_closing_ends_a_chat_that_waits_to_be_tried_again() -> None:
    async with FaultServer(answers(b"", "500 Oops")) as server:
        backs_off = asyncio.Event()
        retry = RetryPolicy(backoff_base=30, breaker_failures=0)
        client = client_at(
            server.url,
            retry=retry,
            random=Random(1),
            hooks=[lambda event: backs_off.set() if isinstance(event, Retrying) else None],
        )
        async with client:
            chat = asyncio.create_task(client.chat("x", model="GPT-5"))
            await backs_off.wait()
        with pytest.raises(ClientClosedError, match="closed while this request waited"):
            await chat
        assert server.posts == 1


async def test_a_deadline_that_passes_in_the_queue_leaves_the_chat_unsent() -> None:
    release = asyncio.Event()
    async with FaultServer(holds_until(release)) as server:
        async with client_at(server.url, limits=Limits.unlimited(max_concurrency=1)) as client:
            first = asyncio.create_task(client.chat("a", model="GPT-5"))
            await server.asked.wait()
            with pytest.raises(DeadlineExceededError) as caught:
                await client.chat("b", model="GPT-5", deadline=0.05)
            assert caught.value.billing is Billing.NOT_PROCESSED
            assert caught.value.attempts == 0
            assert "[request 2 (GPT-5), never sent," in str(caught.value)
            release.set()
            await first
            assert server.posts == 1


async def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    async with FaultServer(answers()) as server:
        limits = Limits(requests_per_minute=1, burst=1)
        async with client_at(server.url, limits=limits) as client:
            await client.chat("a", model="GPT-5")
            started = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineExceededError, match="the queue takes about") as caught:
                await client.chat("b", model="GPT-5", deadline=5)
            assert asyncio.get_running_loop().time() - started < 1
            assert (caught.value.billing, caught.value.attempts, server.posts) == (Billing.NOT_PROCESSED, 0, 1)


async def test_a_deadline_that_passes_under_way_may_have_been_billed() -> None:
    async with FaultServer(sends(b"", "stall"), answers()) as server, client_at(server.url) as client:
        with pytest.raises(DeadlineExceededError, match="may be billed") as caught:
            await client.chat("a", model="GPT-5", deadline=0.05)
        assert (caught.value.billing, caught.value.attempts) == (Billing.POSSIBLY_BILLED, 1)
        assert isinstance(caught.value, TimeoutError)
        await asyncio.wait_for(server.client_closed.wait(), 5)
        assert (await client.chat("b", model="GPT-5", deadline=5)).content == "Paris."


async def test_a_wait_that_would_pass_the_deadline_is_not_slept() -> None:
    async with FaultServer(answers(b"", "503 Busy", Retry_After="100")) as server, client_at(server.url) as client:
        started = asyncio.get_running_loop().time()
        with pytest.raises(Exception, match="the deadline would pass before the next attempt") as caught:
            await client.chat("a", model="GPT-5", deadline=30)
        assert asyncio.get_running_loop().time() - started < 1
        assert caught.value.attempts == server.posts == 1


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), True])
async def test_a_senseless_deadline_is_refused_by_value(deadline: float) -> None:
    async with client_at("http://127.0.0.1:9/") as client:
        with pytest.raises(InvalidRequestError, match="deadline is ") as caught:
            await client.chat("x", model="GPT-5", deadline=deadline)
        assert repr(deadline) in str(caught.value)


async def test_an_unknown_lane_is_refused_by_name() -> None:
    async with client_at("http://127.0.0.1:9/") as client:
        with pytest.raises(ConfigurationError, match="lane is 'fast'; it must be one of interactive, default, batch"):
            await client.chat("x", model="GPT-5", lane="fast")


async def test_a_full_queue_refuses_the_next_and_sends_nothing() -> None:
    release = asyncio.Event()
    async with FaultServer(holds_until(release), answers()) as server:
        limits = Limits(max_concurrency=1, max_pending=1, requests_per_minute=6000, burst=100)
        async with client_at(server.url, limits=limits) as client:
            chats = [asyncio.create_task(client.chat("x", model="GPT-5")) for _ in range(2)]
            await server.asked.wait()
            with pytest.raises(QueueFullError, match="Queue full: 1 request is queued") as caught:
                await client.chat("y", model="GPT-5")
            assert caught.value.pending == 1
            release.set()
            await asyncio.gather(*chats)
        assert server.posts == 2


async def test_the_circuit_opens_for_single_chats_and_closes_with_an_answer() -> None:
    async with FaultServer(*[answers(b"", "503 Down")] * 5, answers()) as server:
        retry = RetryPolicy(max_attempts=1, breaker_wait=0.2)
        async with client_at(server.url, retry=retry) as client:
            for _ in range(5):
                with pytest.raises(Exception, match="503"):
                    await client.chat("x", model="GPT-5")
            with pytest.raises(
                CircuitOpenError, match=r"Circuit open after 5 failures in a row\. Last error: 503"
            ) as caught:
                await client.chat("x", model="GPT-5")
            assert 0 < caught.value.retry_after <= 0.2
            assert server.posts == 5
            assert len(await client.gather_chats(["x"] * 3, model="GPT-5")) == 3
            assert (await client.chat("x", model="GPT-5")).content == "Paris."


async def test_refusals_by_rate_limit_are_no_attempts_and_end_in_an_answer() -> None:
    refusal = answers(b'{"code":429,"output":{"error":"Rate limit exceeded."}}', Retry_After="0")
    async with FaultServer(refusal, refusal, answers()) as server:
        async with client_at(server.url, random=Random(3)) as client:
            response = await client.chat("x", model="GPT-5")
        assert (response.attempts, response.rate_limited, response.possibly_billed) == (1, 2, 0)
        assert server.posts == 3


async def test_hooks_hear_the_whole_story_in_order() -> None:
    refusal = answers(b"", "429 Too Many", Retry_After="0")
    seen: list[Event] = []
    async with FaultServer(refusal, answers(b"", "500 Oops"), answers(), answers(b"", "403 No")) as server:
        async with client_at(server.url, hooks=[seen.append], random=Random(3)) as client:
            await client.chat("x", model="GPT-5")
            with pytest.raises(Exception, match="403"):
                await client.chat("y", model="GPT-5-Mini")
    story = [type(event) for event in seen]
    assert story == [
        *(Queued, Granted, Sent, RateLimited),
        *(Queued, Granted, Sent, Retrying),
        *(Queued, Granted, Sent, Answered),
        *(Queued, Granted, Sent, Failed),
    ]
    assert [event.request for event in seen] == [1] * 12 + [2] * 4
    assert [event.attempt for event in seen if isinstance(event, Sent)] == [1, 1, 2, 1]
    assert [event.at for event in seen] == sorted(event.at for event in seen)
    answered = seen[11]
    assert isinstance(answered, Answered)
    assert (answered.attempts, answered.input_tokens, answered.output_tokens) == (2, 10, 2)
    assert answered.cost == pytest.approx((10 * 1.28 + 2 * 10.40) / 1e6)


async def test_the_backend_dialect_is_sent_as_the_backend_demands() -> None:
    async with FaultServer(answers()) as server, client_at(server.url, dialect="backend") as client:
        await client.send(ChatRequest("GPT-5-Mini", "x"))
        assert b'"endpoint":"https://api.openai.com/v1/chat/completions"' in server.requests[0][2]
        assert b'"model":"GPT-5-mini"' in server.requests[0][2]


@pytest.mark.parametrize(
    "options",
    [{"dialect": "klingon"}, {"base_url": "ftp://x"}, {"base_url": "http://example.com"}, {"api_key": "a\nb"}],
    ids=str,
)
def test_an_unusable_setting_is_refused_when_the_client_is_made(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        AsyncOneLLM(**{"api_key": "key", **options})  # type: ignore[arg-type]


def test_the_dialects_are_accepted_as_words_and_as_members() -> None:
    for dialect in ("backend", "documented", *Dialect):
        AsyncOneLLM("key", base_url="http://127.0.0.1:9/", dialect=dialect, timeout=Timeout(connect=1, total=2))


async def test_cancellations_at_any_moment_leave_no_slot_taken() -> None:
    async with FaultServer(answers()) as server:
        async with client_at(server.url, limits=Limits.unlimited(max_concurrency=2)) as client:
            random = Random(7)
            for _ in range(60):
                chats = [asyncio.create_task(client.chat("x", model="GPT-5")) for _ in range(5)]
                for _ in range(random.randrange(12)):
                    await asyncio.sleep(0)
                for chat in random.sample(chats, 3):
                    chat.cancel()
                await asyncio.wait(chats)
                assert all(chat.cancelled() or chat.result().content == "Paris." for chat in chats)
            assert client._sender._limiter.core.in_flight == 0
            assert client._sender._limiter.core.waiting == 0
            assert (await client.chat("x", model="GPT-5")).content == "Paris."


async def test_draining_lets_what_is_under_way_finish_and_ends_what_waits() -> None:
    release = asyncio.Event()
    async with FaultServer(holds_until(release)) as server:
        async with client_at(server.url, limits=Limits.unlimited(max_concurrency=1)) as client:
            under_way = asyncio.create_task(client.chat("a", model="GPT-5"))
            await server.asked.wait()
            waiting = asyncio.create_task(client.chat("b", model="GPT-5"))
            await asyncio.sleep(0)
            draining = asyncio.create_task(client.drain())
            with pytest.raises(ClientClosedError):
                await waiting
            with pytest.raises(ClientClosedError):
                await client.chat("c", model="GPT-5")
            assert not draining.done()
            release.set()
            await draining
            assert (await under_way).content == "Paris."
        assert server.posts == 1


async def test_a_token_limit_is_kept_by_estimates_that_learn() -> None:
    async with FaultServer(answers()) as server:
        limits = Limits(requests_per_minute=60_000, burst=1000, tokens_per_minute=60_000)
        async with client_at(server.url, limits=limits) as client:
            responses = await client.gather_chats(["x"] * 20, model="GPT-5", max_tokens=10)
        assert len(responses) == server.posts == 20


async def slow_getaddrinfo(*_: object, **__: object) -> list[object]:
    await asyncio.sleep(60)
    return []


@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
@pytest.mark.parametrize("closed_by", ["client", "owner of the session"])
async def test_closing_while_a_host_name_is_looked_up_ends_each_chat_with_an_error_of_ours(
    closed_by: str, monkeypatch: pytest.MonkeyPatch, *, given: bool
) -> None:
    if not given and closed_by != "client":
        return
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slow_getaddrinfo)
    async with aiohttp.ClientSession() as session:
        client = client_at("http://localhost:9/api", session=session if given else None)
        chats = [asyncio.create_task(client.chat("x", model="GPT-5")) for _ in range(4)]
        await asyncio.sleep(0.05)
        await (client.aclose() if closed_by == "client" else session.close())
        outcomes = await asyncio.wait_for(asyncio.gather(*chats, return_exceptions=True), 5)
        await client.aclose()
    for error in outcomes:
        assert isinstance(error, ClientClosedError)
        assert (error.attempts, error.possibly_billed) == (0, 0)
        assert "closed" in error.message


@pytest.fixture
def deaf():
    """A server whose backlog is full, so that connecting takes for ever."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
async def test_closing_while_connecting_ends_each_chat_at_once(deaf: str, *, given: bool) -> None:
    async with aiohttp.ClientSession() as session:
        client = client_at(deaf, session=session if given else None, timeout=Timeout(connect=60, total=60))
        chats = [asyncio.create_task(client.chat("x", model="GPT-5")) for _ in range(3)]
        await asyncio.sleep(0.05)
        await client.aclose()
        outcomes = await asyncio.wait_for(asyncio.gather(*chats, return_exceptions=True), 5)
    for error in outcomes:
        assert isinstance(error, ClientClosedError)
        assert (error.message, error.attempts) == ("The client was closed before this request was sent.", 0)


async def test_a_chat_in_flight_when_the_client_is_closed_may_be_billed() -> None:
    async with FaultServer(sends(b"", "stall")) as server:
        client = client_at(server.url)
        chat = asyncio.create_task(client.chat("x", model="GPT-5"))
        await server.asked.wait()
        await client.aclose()
        with pytest.raises(APIConnectionError, match="The client was closed before the answer was there") as caught:
            await chat
        assert (caught.value.attempts, caught.value.possibly_billed) == (1, 1)


async def test_a_cancellation_that_nobody_asked_for_is_an_error_of_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cancelled(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", cancelled)
    async with client_at("http://localhost:9/api") as client:
        with pytest.raises(APIConnectionError, match="No connection to localhost") as caught:
            await client.chat("x", model="GPT-5")
    assert (caught.value.attempts, caught.value.possibly_billed) == (4, 0)


async def test_cancelling_a_chat_while_its_client_is_closed_stays_a_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slow_getaddrinfo)
    client = client_at("http://localhost:9/api")
    chat = asyncio.create_task(client.chat("x", model="GPT-5"))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(client.aclose())
    chat.cancel()
    with pytest.raises(asyncio.CancelledError):
        await chat
    await closing


def stale_script(url: str, pause: str, count: int) -> str:
    return f"""
client = AsyncOneLLM("key", base_url="{url}", limits=Limits.unlimited(4), retry=RetryPolicy(ambiguous="never"))

async def chats():
    asking = [client.chat("x", model="GPT-5") for _ in range({count})]
    replies = [await asking[0]] if {count} == 1 else await asyncio.gather(*asking)
    return [(reply.attempts, reply.possibly_billed) for reply in replies]

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60
    print(await chats())
    {pause}

with asyncio.Runner() as runner:
    runner.run(main())
    time.sleep(0.4)
    print(runner.run(chats()))
    runner.run(client.aclose())
"""


PAUSES = {"": 2, "time.sleep(0.4); print(await chats())": 3}
"""Between two runs, and also within one; how often it chats."""


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("count", [1, 4])
async def test_a_connection_that_the_server_closed_while_the_loop_did_not_run_is_not_used(
    scheme: str, count: int, tmp_path: Path
) -> None:
    async def once(exchange) -> bool:
        await answers()(exchange)
        await asyncio.sleep(0.1)  # as long as the server keeps an idle connection
        return False

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with FaultServer(once, tls=tls if scheme == "https" else None) as server:
        script = one_after_the_other([stale_script(server.url, pause, count) for pause in PAUSES])
        run = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-W", "error", "-c", script),
            env={**os.environ, "ONELLM_CA_FILE": str(tmp_path / "ca.pem")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(run.communicate(), 30)
    assert (run.returncode, err.decode()) == (0, "")
    assert out.decode().split("\n")[:-1] == [str([(1, 0)] * count)] * sum(PAUSES.values())


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager task factories came with Python 3.12")
@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
async def test_tasks_that_start_eagerly_are_served_and_closed_like_others(*, given: bool) -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    async with FaultServer(*[answers()] * 40, sends(b"", "stall")) as server, aiohttp.ClientSession() as session:
        client = client_at(server.url, session=session if given else None)
        replies = await client.gather_chats(["x"] * 40, model="GPT-5")
        assert [(reply.attempts, reply.possibly_billed) for reply in replies] == [(1, 0)] * 40
        chats = [asyncio.create_task(client.chat("x", model="GPT-5")) for _ in range(4)]
        while server.posts < 44:
            await asyncio.sleep(0.001)
        chats[0].cancel()
        await client.aclose()
        outcomes = await asyncio.gather(*chats, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert all(isinstance(error, APIConnectionError) and error.possibly_billed == 1 for error in outcomes[1:])
