"""`OneLLM` from threads, other loops, after a fork and under Ctrl-C."""

import asyncio
import contextvars
import gc
import inspect
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from onellm_async import AsyncOneLLM, ChatRequest, Limits, OneLLM, RetryPolicy
from onellm_async.client import ClientOptions
from onellm_async.errors import ClientClosedError, ConfigurationError, InvalidRequestError
from onellm_async.testing import FakeTransport, answer, hang

REQUEST = ChatRequest("GPT-5", "Hi")


def client_on(transport: FakeTransport, **settings: object) -> OneLLM:
    return OneLLM(transport=transport, **({"limits": Limits.unlimited()} | settings))  # type: ignore[arg-type]


def wait_until(condition) -> None:
    """Waits for another thread."""
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.001)
    pytest.fail("it never came to it")


def in_thread(function) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_chats_work_without_an_event_loop() -> None:
    with client_on(FakeTransport()) as client:
        assert client.chat("Hello?", model="GPT-5").content == "Hello?"
        assert client.send(REQUEST).content == "Hi"
        assert [reply.content for reply in client.gather_chats(["a", "b"], model="GPT-5")] == ["a", "b"]
        outcomes = list(client.iter_chats((str(number) for number in range(5)), model="GPT-5"))
        assert sorted(outcome.unwrap().content for outcome in outcomes) == ["0", "1", "2", "3", "4"]


def test_errors_arrive_as_they_are() -> None:
    with client_on(FakeTransport([500])) as client:
        with pytest.raises(InvalidRequestError):
            client.chat("x", model="GPT-5", temperature=3)
        failed = client.gather_chats(["a"], model="GPT-5", return_exceptions=True)
    assert [type(error).__name__ for error in failed] == ["InternalServerError"]


def test_the_options_are_those_of_the_asynchronous_client() -> None:
    names = set(inspect.signature(AsyncOneLLM).parameters) - {"api_key", "session"}
    assert set(ClientOptions.__annotations__) == names
    with pytest.raises(ConfigurationError, match="session belongs to an event loop"):
        OneLLM("key", session=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="nonsense"):
        OneLLM("key", nonsense=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", ["chat", "send", "gather_chats", "iter_chats", "run"])
def test_every_method_takes_what_the_asynchronous_one_takes(method: str) -> None:
    own, other = (set(inspect.signature(getattr(cls, method)).parameters) for cls in (OneLLM, AsyncOneLLM))
    assert other - own <= {"stop", "attempt_hooks"}
    assert own <= other


def test_thirty_threads_share_ten_slots() -> None:
    transport = FakeTransport(delay=0.01)
    limits = Limits(max_concurrency=10, requests_per_minute=None)
    with client_on(transport, limits=limits) as client, ThreadPoolExecutor(30) as pool:
        contents = pool.map(lambda number: client.chat(str(number), model="GPT-5").content, range(60))
        assert list(contents) == [str(number) for number in range(60)]
    assert transport.max_in_flight == 10


def test_the_context_of_the_caller_is_there_in_hooks() -> None:
    request_id, seen = contextvars.ContextVar("request_id", default="none"), []
    with client_on(FakeTransport(), hooks=[lambda event: seen.append(request_id.get())]) as client:
        request_id.set("4711")
        client.chat("x", model="GPT-5")
    assert set(seen) == {"4711"}


def test_a_loop_that_is_left_early_cancels_its_requests() -> None:
    transport = FakeTransport(lambda request: "first" if request.number == 1 else hang())
    with client_on(transport) as client:
        for outcome in client.iter_chats(["a"] * 20, model="GPT-5"):
            assert outcome.unwrap().content == "first"
            break
        gc.collect()
        wait_until(lambda: transport.in_flight == 0)
        assert client.snapshot().at_rest


def test_closing_finishes_what_is_in_flight_and_ends_what_is_queued() -> None:
    transport = FakeTransport(lambda request: answer("done", delay=0.1))
    client = client_on(transport, limits=Limits(max_concurrency=1, requests_per_minute=None))
    ended: dict[str, object] = {}

    def ask(name: str) -> None:
        try:
            ended[name] = client.chat(name, model="GPT-5").content
        except ClientClosedError as error:
            ended[name] = error.attempts

    first = in_thread(lambda: ask("first"))
    wait_until(lambda: transport.in_flight == 1)
    second = in_thread(lambda: ask("second"))
    wait_until(lambda: sum(client.snapshot().queued.values()) == 1)
    client.close()
    client.close()
    first.join()
    second.join()
    assert ended == {"first": "done", "second": 0}
    assert transport.closed
    with pytest.raises(ClientClosedError, match="Enter it again with `with`"):
        client.chat("x", model="GPT-5")
    with client as again:
        assert again.chat("x", model="GPT-5").content == "done"


def test_a_call_in_the_thread_of_the_client_is_refused_instead_of_waiting_for_itself() -> None:
    raised = []

    def hook(event: object) -> None:
        for call in (lambda: client.chat("y", model="GPT-5"), client.close, client.snapshot):
            try:
                call()
            except ConfigurationError as error:
                raised.append(error.message)

    with client_on(FakeTransport()) as client:
        client._client.add_hook(hook)
        assert client.chat("x", model="GPT-5").content == "x"
    assert len(raised) >= 3
    assert set(raised) == {"A synchronous call was made in the event loop of the client itself, which it would block."}


async def test_other_loops_send_through_the_same_client_and_may_cancel() -> None:
    transport = FakeTransport(lambda request: hang() if request.prompt == "Hang" else request.prompt)
    with client_on(transport) as client:
        assert (await client.asend(REQUEST)).content == "Hi"
        task = asyncio.create_task(client.asend(ChatRequest("GPT-5", "Hang")))
        await asyncio.to_thread(wait_until, lambda: transport.in_flight == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert transport.in_flight == 0
        assert client.chat("in a notebook", model="GPT-5").content == "in a notebook"
    with pytest.raises(ClientClosedError):
        await client.asend(REQUEST)


def interrupt_main() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to threads are of POSIX")
def test_ctrl_c_cancels_the_request_in_flight() -> None:
    transport = FakeTransport(hang())
    with client_on(transport) as client:

        def interrupt() -> None:
            wait_until(lambda: transport.in_flight == 1)
            interrupt_main()

        thread = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.chat("x", model="GPT-5")
        thread.join()
        assert transport.in_flight == 0
        assert client.snapshot().at_rest


@pytest.mark.parametrize("is_there", [False, True])
def test_ctrl_c_while_a_call_is_handed_over_leaves_nothing_in_flight(monkeypatch, is_there: bool) -> None:
    transport = FakeTransport([answer("first"), hang()])
    with client_on(transport) as client:
        client.chat("x", model="GPT-5")
        loop = client._portal._loop
        assert loop is not None
        hand_over = loop.call_soon_threadsafe

        def interrupted(*arguments: object) -> None:
            monkeypatch.undo()
            if is_there:
                hand_over(*arguments)
                wait_until(lambda: transport.in_flight == 1)
            raise KeyboardInterrupt

        monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.chat("x", model="GPT-5")
        assert transport.in_flight == 0
        assert len(transport.requests) == 1 + is_there
        assert client.snapshot().at_rest


async def test_ctrl_c_while_an_awaited_call_is_handed_over_cancels_it(monkeypatch) -> None:
    transport = FakeTransport([answer("first"), hang()])
    with client_on(transport) as client:
        await client.asend(REQUEST)
        loop = client._portal._loop
        assert loop is not None
        hand_over = loop.call_soon_threadsafe

        def interrupted(*arguments: object) -> None:
            monkeypatch.undo()
            hand_over(*arguments)
            wait_until(lambda: transport.in_flight == 1)
            raise KeyboardInterrupt

        monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            await client.asend(REQUEST)
        wait_until(lambda: transport.in_flight == 0)
        wait_until(lambda: client.snapshot().at_rest)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to threads are of POSIX")
def test_ctrl_c_in_a_run_keeps_the_answers_in_flight(tmp_path) -> None:
    released = threading.Event()

    async def reply(request: object) -> str:
        await asyncio.to_thread(released.wait)
        return "kept"

    transport = FakeTransport(reply)
    output = tmp_path / "answers.jsonl"
    limits = Limits(max_concurrency=2, requests_per_minute=None)
    with client_on(transport, limits=limits) as client:

        def interrupt() -> None:
            wait_until(lambda: transport.in_flight == 2)
            interrupt_main()
            time.sleep(0.05)
            released.set()

        thread = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.run(["a", "b", "c", "d"], output, model="GPT-5")
        thread.join()
        sent = len(transport.requests)
        assert sent < 4
        report = client.run(["a", "b", "c", "d"], output, model="GPT-5")
    assert report.complete
    assert report.counts.answered == 4
    assert report.counts.possibly_billed == 0
    assert len(transport.requests) == 4


def test_rates_can_be_watched_and_changed_from_any_thread() -> None:
    with client_on(FakeTransport(), limits=Limits(requests_per_minute=60)) as client:
        client.pause()
        assert client.snapshot().paused
        client.resume()
        client.chat("x", model="GPT-5")
        client.retune(Limits(requests_per_minute=120))
        assert client.limits.requests_per_minute == 120
        assert client.snapshot().declared_rate == 120
        assert client.rate_state is not None
        assert client.rate_state.rate == 2.0
    assert client.snapshot().in_flight == 0


def test_a_client_is_neither_pickled_nor_shown_with_its_key() -> None:
    client = OneLLM("sk-canary-4711", base_url="http://127.0.0.1:9")
    assert "4711" not in repr(client)
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(client)


def test_a_client_that_nothing_refers_to_ends_its_thread() -> None:
    client = client_on(FakeTransport())
    client.chat("x", model="GPT-5")
    thread = client._portal._thread
    assert thread is not None
    del client
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


FORKED = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from onellm_async import OneLLM
from onellm_async.errors import ConfigurationError
from onellm_async.testing import FakeTransport
used, unused = OneLLM(transport=FakeTransport()), OneLLM(transport=FakeTransport())
used.chat("x", model="GPT-5")
child = os.fork()
if child:
    print("parent", used.chat("y", model="GPT-5").content, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    try:
        used.chat("z", model="GPT-5")
    except ConfigurationError as error:
        print("child", error, flush=True)
    print("child", unused.chat("unused", model="GPT-5").content, flush=True)
"""


def run_script(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_after_a_fork_a_used_client_is_refused_with_the_cure_and_an_unused_one_works() -> None:
    ended = run_script(FORKED)
    assert ended.stderr == ""
    first, second, third = ended.stdout.splitlines()
    assert first.startswith("child This client was used before the process was forked")
    assert "gunicorn" in first
    assert second == "child unused"
    assert third == "parent y 0"


def test_a_script_that_never_closes_its_client_ends_without_a_warning(threaded_server_url: str) -> None:
    source = f"""
from onellm_async import OneLLM
client = OneLLM("key", base_url={threaded_server_url!r})
print(client.chat("Hello?", model="GPT-5-Nano").content)
"""
    ended = run_script(source)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("Hello?\n", "", 0)


@pytest.fixture
def threaded_server_url(onellm_server) -> str:
    return onellm_server.url


def test_rate_limits_and_retries_are_those_of_the_client() -> None:
    with client_on(FakeTransport([429, 503, "x"]), retry=RetryPolicy(backoff_base=0.001)) as client:
        reply = client.chat("x", model="GPT-5")
    assert (reply.attempts, reply.rate_limited) == (2, 1)


def test_arguments_that_a_call_does_not_know_are_raised_and_hang_nothing(tmp_path) -> None:
    with client_on(FakeTransport()) as client, pytest.raises(TypeError, match="stop"):
        client.run(["a"], tmp_path / "out.jsonl", stop=asyncio.Event())
