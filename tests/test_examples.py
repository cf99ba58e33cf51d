import asyncio
import importlib.util
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import aiohttp
import pytest
import uvicorn
from aiohttp.test_utils import TestServer

from onellm_async import AsyncOneLLM, ClientClosedError, ConfigurationError, Limits, OneLLMError
from onellm_async.limits.bucket import TokenBucket
from onellm_async.server import LocalServer, ServerSettings
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.testing import FakeTransport, answer, hang

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))  # where a program finds the modules beside it
ONE_A_MINUTE = Limits(requests_per_minute=1, burst=1)
NO_QUEUE = Limits(requests_per_minute=1, burst=1, max_pending=0)


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalServer]:
    async with LocalServer() as server:
        monkeypatch.setenv("ONELLM_API_KEY", "local")
        monkeypatch.setenv("ONELLM_BASE_URL", server.url)
        yield server


@asynccontextmanager
async def aiohttp_service(module: ModuleType) -> AsyncIterator[str]:
    web_server = TestServer(module.make_app())
    await web_server.start_server()  # cancels handlers, as the example does
    try:
        yield str(web_server.make_url("/chat"))
    finally:
        await web_server.close()


@asynccontextmanager
async def fastapi_service(module: ModuleType) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        web_server = uvicorn.Server(uvicorn.Config(module.app, lifespan="on", log_level="warning", ws="none"))
        serving = asyncio.create_task(web_server.serve(sockets=[listening]))
        await until(lambda: web_server.started or serving.done())
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/chat"
        finally:
            web_server.should_exit = True
            await serving


Service = Callable[[ModuleType], AbstractAsyncContextManager[str]]
services = pytest.mark.parametrize(
    ("name", "service"), [("aiohttp_service", aiohttp_service), ("fastapi_service", fastapi_service)]
)


async def ask(
    visitor: aiohttp.ClientSession, url: str, **question: object
) -> tuple[int, str | None, dict[str, object]]:
    async with visitor.post(url, json=question) as response:
        return response.status, response.headers.get("Retry-After"), await response.json()


@services
async def test_a_service_answers_with_the_cost(name: str, service: Service, server: LocalServer) -> None:
    async with service(loaded(name)) as url, aiohttp.ClientSession() as visitor:
        status, _, body = await ask(visitor, url, prompt="What is a lighthouse?")
    assert status == 200
    assert "What is a lighthouse?" in str(body["answer"])
    assert isinstance(body["cost"], float)
    assert server.ledger.received == 1


@services
@pytest.mark.parametrize("question", [{}, {"prompt": 5}, {"prompt": "Hello", "temperature": 3}])
async def test_a_service_refuses_unusable_input_unsent(
    name: str, service: Service, question: dict[str, object], server: LocalServer
) -> None:
    async with service(loaded(name)) as url, aiohttp.ClientSession() as visitor:
        status, _, _ = await ask(visitor, url, **question)
    assert status == 422
    assert server.ledger.received == 0


@services
async def test_a_full_service_says_when_to_come_back(name: str, service: Service, server: LocalServer) -> None:
    module = loaded(name)
    module.LIMITS = NO_QUEUE
    async with service(module) as url, aiohttp.ClientSession() as visitor:
        first, second = [await ask(visitor, url, prompt="Hello") for _ in range(2)]
    assert first[0] == 200
    assert second[0] == 503
    assert second[1] is not None
    assert 55 <= int(second[1]) <= 61


@services
async def test_a_service_refuses_what_cannot_be_answered_in_time(
    name: str, service: Service, server: LocalServer
) -> None:
    module = loaded(name)
    module.LIMITS = ONE_A_MINUTE
    async with service(module) as url, aiohttp.ClientSession() as visitor:
        statuses = [(await ask(visitor, url, prompt="Hello"))[0] for _ in range(2)]
    assert statuses == [200, 504]
    assert server.ledger.received == 1


def crowded() -> FakeTransport:
    """The published limit, and answers that take seven seconds."""
    bucket = TokenBucket(40 / 60, 40)
    return FakeTransport(
        lambda request: answer("hi", delay=7) if bucket.try_take(1, asyncio.get_running_loop().time()) else 429
    )


@pytest.mark.parametrize("name", ["aiohttp_service", "fastapi_service"])
def test_who_is_let_in_by_a_service_is_answered_before_the_deadline(name: str) -> None:
    module = loaded(name)

    async def crowd() -> list[str]:
        async with AsyncOneLLM(transport=crowded(), limits=module.LIMITS) as client:

            async def visitor(number: int) -> str:
                await asyncio.sleep(0 if number < 60 else (number - 60) / 3)
                try:
                    await client.chat("x", model=module.MODEL, lane="interactive", deadline=module.DEADLINE)
                except OneLLMError as error:
                    return f"{type(error).__name__} after {error.elapsed:g} s"
                return "answered"

            return await asyncio.gather(*(visitor(number) for number in range(400)))

    ends = run_in_virtual_time(crowd())
    assert set(ends) == {"answered", "QueueFullError after 0 s"}
    assert ends.count("answered") >= 38 + 110 * 40 / 60


@services
async def test_a_service_stops_knocking_at_a_dead_api(
    name: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    monkeypatch.setenv("ONELLM_API_KEY", "local")
    monkeypatch.setenv("ONELLM_BASE_URL", f"http://127.0.0.1:{port}/api")
    module = loaded(name)
    module.LIMITS = Limits.unlimited()  # all five at once, instead of at the pace of a first burst
    async with service(module) as url, aiohttp.ClientSession() as visitor:
        failed = await asyncio.gather(*(ask(visitor, url, prompt=f"Hello {n}") for n in range(5)))
        status, retry_after, _ = await ask(visitor, url, prompt="Is anybody there?")
    assert {outcome[0] for outcome in failed} <= {502, 503}
    assert status == 503
    assert retry_after is not None
    assert 10 <= int(retry_after) <= 15


@services
async def test_a_service_that_stops_closes_its_client(name: str, service: Service, server: LocalServer) -> None:
    module = loaded(name)
    made: list[AsyncOneLLM] = []

    class Remembered(AsyncOneLLM):
        async def __aenter__(self) -> Self:
            made.append(self)
            return await super().__aenter__()

    module.AsyncOneLLM = Remembered
    async with service(module) as url, aiohttp.ClientSession() as visitor:
        await ask(visitor, url, prompt="Hello")
    (client,) = made
    with pytest.raises(ClientClosedError):
        await client.chat("Hello", model="GPT-5-Nano")


async def test_a_visitor_who_leaves_the_queue_is_not_paid_for(server: LocalServer) -> None:
    module = loaded("aiohttp_service")
    module.LIMITS, module.DEADLINE = ONE_A_MINUTE, 600.0
    app = module.make_app()
    web_server = TestServer(app)
    await web_server.start_server()  # cancels handlers, as the example does
    url = str(web_server.make_url("/chat"))
    admission = app[module.CLIENT]._sender._limiter
    async with aiohttp.ClientSession() as visitor:
        await ask(visitor, url, prompt="Hello")
        leaving = asyncio.create_task(ask(visitor, url, prompt="Never mind"))
        await until(lambda: admission.core.waiting == 1)
        leaving.cancel()
        await until(lambda: admission.core.waiting == 0)
    await web_server.close()
    assert server.ledger.received == 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # of others, who set no event
            await asyncio.sleep(0.005)


async def reply_of(chats: Any, chat: str, text: str, **message: object) -> str:
    pieces: list[str] = []

    async def send(piece: str) -> None:
        pieces.append(piece)

    await chats.answer(chat, text, send, **message)
    return "|".join(pieces)


async def test_a_bot_says_kindly_that_it_is_busy(server: LocalServer) -> None:
    async with AsyncOneLLM(limits=NO_QUEUE) as client:
        chats = loaded("chats").Chats(client)
        assert await reply_of(chats, "ada", "Hello") == "Hello"
        assert re.search(r"try again in (5\d|6[01]) s", await reply_of(chats, "bob", "Hello"))


async def test_a_bot_takes_a_few_questions_of_one_person_at_a_time(server: LocalServer) -> None:
    async with AsyncOneLLM() as client:
        chats = loaded("chats").Chats(client)
        replies = await asyncio.gather(*(reply_of(chats, "ada", f"Question {n}") for n in range(5)))
    assert ["One moment" in reply for reply in replies] == [False, False, False, True, True]


async def started(*arguments: str | Path, feed: bool = False) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE if feed else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "PYTHONUTF8": "1"},
    )


async def ended(process: asyncio.subprocess.Process, text: str | None = None) -> tuple[int | None, str, str]:
    async with asyncio.timeout(30):
        out, err = await process.communicate(None if text is None else text.encode())
    return process.returncode, out.decode(), err.decode()


async def test_a_bot_takes_back_repeats_and_cancels_turns(server: LocalServer) -> None:
    async with AsyncOneLLM() as client:
        chats = loaded("chats").Chats(client)
        assert await reply_of(chats, "ada", "/retry") == "There is no turn to retry."
        assert await reply_of(chats, "ada", "/undo") == "There is nothing to take back."
        first = await reply_of(chats, "ada", "Hello")
        assert await reply_of(chats, "ada", "/retry") == first
        assert await reply_of(chats, "ada", "/undo") == "Taken back: Hello"
        turn = asyncio.create_task(reply_of(chats, "ada", "Hello"))
        await asyncio.sleep(0)
        assert await reply_of(chats, "ada", "/stop") == "Stopped. /retry asks the last question again."
        assert not await turn
        assert await reply_of(chats, "ada", "/retry") == first


async def test_an_edit_replaces_the_latest_question_of_a_bot_whether_it_waits_or_is_answered() -> None:
    transport = FakeTransport(lambda request: answer(request.prompt, delay=0 if request.prompt == "b" else 60))
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited()) as client:
        chats = loaded("chats").Chats(client)
        first = asyncio.create_task(reply_of(chats, "ada", "a", message=1))
        waiting = asyncio.create_task(reply_of(chats, "ada", "typo", message=2))
        await until(lambda: len(transport.requests) == 1)
        assert not await reply_of(chats, "ada", "an old one", message=1, edited=True)
        changed = asyncio.create_task(reply_of(chats, "ada", "b", message=2, edited=True))
        assert not await waiting
        assert await reply_of(chats, "ada", "/stop") == "Stopped. /retry asks the last question again."
        assert [await first, await changed] == ["", ""]
        assert await reply_of(chats, "ada", "b", message=3) == "b"
        assert await reply_of(chats, "ada", "b", message=3, edited=True) == "b"
    assert [request.prompt for request in transport.requests] == ["a", "b", "b"]
    assert len(transport.requests[-1].messages) == 1


async def test_a_bot_that_is_killed_while_it_closes_has_saved_its_chats(tmp_path: Path) -> None:
    path = tmp_path / "chats.json"
    async with AsyncOneLLM(transport=FakeTransport(["One.", hang()]), limits=Limits.unlimited()) as client:
        chats = loaded("chats").Chats(client, path)
        assert await reply_of(chats, "ada", "1?") == "One."
        hanging = asyncio.create_task(reply_of(chats, "ada", "2?"))
        await asyncio.sleep(0)
        closing = asyncio.create_task(chats.close())
        await until(path.exists)
        closing.cancel()
        hanging.cancel()
    (saved,) = json.loads(path.read_text()).values()
    assert (saved["messages"][1]["content"], saved["unanswered"]) == ("One.", ["2?"])


async def test_a_bot_never_overwrites_a_file_of_chats_that_it_cannot_read(server: LocalServer, tmp_path: Path) -> None:
    path = tmp_path / "chats.json"
    path.write_text('{"ada": {"messages": 5}}')
    async with AsyncOneLLM() as client:
        with pytest.raises(ConfigurationError, match=r"chats\.json cannot be read: .*Move it away"):
            loaded("chats").Chats(client, path)
    assert path.read_text() == '{"ada": {"messages": 5}}'


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        (" \n", []),
        ("12345", ["12345"]),
        ("ab\n\ncd", ["ab", "cd"]),
        ("ab cd\nef", ["ab cd", "ef"]),
        ("ab cd ef", ["ab cd", "ef"]),
        ("1234567", ["12345", "67"]),
        ("🙂🙂🙂", ["🙂🙂", "🙂"]),
        ("a\ud800b", ["a?b"]),
    ],
)
def test_a_text_is_split_where_a_reader_pauses(text: str, pieces: list[str]) -> None:
    assert loaded("chats").split_text(text, 5) == pieces


async def test_the_bot_answers_everybody_and_ends_with_its_input(server: LocalServer) -> None:
    bot = await started(EXAMPLES / "bot.py", feed=True)
    assert bot.stdin is not None
    assert bot.stdout is not None
    bot.stdin.write("ada: Was ist eine Primzahl? 🙂\nbob: Hello\n".encode())
    # Read before /new is sent, which takes back what is still in flight.
    answers = [(await bot.stdout.readline()).decode() for _ in range(2)]
    code, out, err = await ended(bot, "ada: /new\nwhat\n")
    assert (code, err) == (0, "")
    assert any(line.startswith("bot to ada: ") and "Primzahl? 🙂" in line for line in answers)
    assert any(line.startswith("bot to bob: ") and "Hello" in line for line in answers)
    assert sorted(out.splitlines()) == [
        "Please write a line as  name: text",
        "bot to ada: Forgotten. What shall we talk about?",
    ]


async def test_ctrl_c_ends_the_bot_while_it_waits_for_a_line(server: LocalServer) -> None:
    bot = await started(EXAMPLES / "bot.py", feed=True)
    assert bot.stdin is not None
    assert bot.stdout is not None
    bot.stdin.write(b"ada: Hello\n")
    assert (await bot.stdout.readline()).startswith(b"bot to ada: ")
    bot.send_signal(signal.SIGINT)
    async with asyncio.timeout(10):
        code = await bot.wait()
    rest = await ended(bot)
    assert (code, rest[2]) == (130, "")


async def test_the_batch_writes_a_line_for_each_prompt(server: LocalServer, tmp_path: Path) -> None:
    prompts = [line for line in (EXAMPLES / "prompts.txt").read_text("utf-8").splitlines() if line][:12]
    source, target = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    source.write_text("\n\n".join(prompts), "utf-8")
    code, _, err = await ended(await started(EXAMPLES / "batch.py", source, target))
    assert code == 0, err
    assert "12 done, 0 failed" in err
    records = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert {record["index"]: record["prompt"] for record in records} == dict(enumerate(prompts))
    assert all(record["prompt"] in record["content"] for record in records)


async def test_the_batch_never_overwrites_answers(server: LocalServer, tmp_path: Path) -> None:
    source, target = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    source.write_text("Hello\n")
    target.write_text("paid for\n")
    code, _, err = await ended(await started(EXAMPLES / "batch.py", source, target))
    assert code == 1
    assert "File exists" in err
    assert target.read_text() == "paid for\n"
    assert server.ledger.received == 0


async def test_the_batch_ends_with_a_message_when_the_key_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("Hello\n")
    monkeypatch.setenv("ONELLM_API_KEY", "wrong")
    async with LocalServer(ServerSettings(keys={"right": 1.0})) as server:
        monkeypatch.setenv("ONELLM_BASE_URL", server.url)
        code, _, err = await ended(await started(EXAMPLES / "batch.py", source, tmp_path / "answers.jsonl"))
    assert code == 1
    assert "ONELLM_API_KEY" in err
    assert "Traceback" not in err


async def test_ctrl_c_ends_the_batch_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    source.write_text("Hello\n" * 100)
    monkeypatch.setenv("ONELLM_API_KEY", "local")
    async with LocalServer() as server:
        monkeypatch.setenv("ONELLM_BASE_URL", server.url)
        batch = await started(EXAMPLES / "batch.py", source, target)
        await until(lambda: server.ledger.billed >= 2)
        batch.send_signal(signal.SIGINT)
        code, _, err = await ended(batch)
    assert code == 130
    assert "Traceback" not in err
    assert len(target.read_text().splitlines()) >= 1


async def test_the_command_given_for_the_fastapi_service_serves_and_stops_cleanly(server: LocalServer) -> None:
    process = await started("-m", "uvicorn", "--app-dir", "examples", "fastapi_service:app", "--port", "0")
    assert process.stderr is not None
    log = ""
    async with asyncio.timeout(30):
        while (address := re.search(r"running on (http://\S+)", log)) is None:
            line = await process.stderr.readline()
            assert line, log
            log += line.decode()
    async with aiohttp.ClientSession() as visitor:
        status, _, _ = await ask(visitor, f"{address.group(1)}/chat", prompt="Hello")
    process.send_signal(signal.SIGTERM)
    _, _, rest = await ended(process)
    assert status == 200
    assert "Application shutdown complete" in rest
    assert "Unclosed" not in rest


async def test_the_chain_with_a_real_model_reports_each_part(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = loaded("real_model_chain")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "One?"}\n{"question": "Two?"}\n')

    @asynccontextmanager
    async def program(log: Path, *command: str) -> AsyncIterator[str]:
        if "real_model_chain:make_service" in command:
            async with fastapi_service(loaded("fastapi_service")) as url:
                yield url.removesuffix("/chat")
        else:
            yield str(server.origin)

    monkeypatch.setattr(module, "program", program)
    monkeypatch.setattr(module, "MODEL", "GPT-5-Nano")
    monkeypatch.setattr(module, "USERS", 3)
    await module.main("model.gguf", prompts)
    out = capsys.readouterr().out
    assert "run: exit code 0, 2 of 2 answered" in out
    assert "bot: 5 of 5 turns answered" in out
    assert "service: 3 users at once: 3 × 200" in out
    assert "ledger of serve: 10 answered" in out


def test_the_problems_for_a_real_model_are_sixty(tmp_path: Path) -> None:
    solutions = loaded("real_model_chain").make_prompts(tmp_path / "prompts.jsonl")
    assert len(solutions) == 60
    assert len((tmp_path / "prompts.jsonl").read_text("utf-8").splitlines()) == 60


def test_the_prompts_are_many_and_all_different() -> None:
    lines = (EXAMPLES / "prompts.txt").read_text("utf-8").splitlines()
    assert len(lines) == len(set(lines)) >= 200
    items = [json.loads(line) for line in (EXAMPLES / "prompts.jsonl").read_text("utf-8").splitlines()]
    assert len({item["custom_id"] for item in items}) == len(items) >= 20
    assert {frozenset(item) - {"custom_id"} for item in items} == {frozenset({"prompt"}), frozenset({"messages"})}
