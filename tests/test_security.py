import asyncio
import copy
import html
import io
import json
import logging
import os
import pickle
import subprocess
import traceback
from pathlib import Path
from urllib.parse import quote

import aiohttp
import attrs
import pytest
import pytest_asyncio

from onellm_async import (
    APIError,
    ApiKey,
    AsyncOneLLM,
    ChatOutcome,
    ConfigurationError,
    Conversation,
    Event,
    Limits,
    OneLLMError,
    RetryPolicy,
    Timeout,
)
from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.record import JournalRecord
from tests.forks import start_command

CANARY = "sk-canary-0d9f5e"
PASSWORD = "hunter2-5b1c"
OK = b'{"content":"Paris."}'
REPLIES = {
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + OK,
    "401": b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno",
    "500": b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno",
    "429 and a reset": b"HTTP/1.1 429 No\r\nRetry-After: 0\r\nContent-Length: 2\r\n\r\nno",
    "redirect": b"HTTP/1.1 307 No\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
    "garbage": b"SSH-2.0-OpenSSH\r\n",
    "a head too long": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "truncated": b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{",
    "broken gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "disconnect": b"",
}


def everything_about(error: BaseException) -> str:
    """All that logging, a crash reporter or a curious user would show of an error."""
    told = io.StringIO()
    seen: set[int] = set()

    def tell(found: BaseException | None) -> None:
        if found is None or id(found) in seen:
            return
        seen.add(id(found))
        print(f"{found} {found!r} {found.args!r} {vars(found)!r}", file=told)
        tell(found.__cause__)
        tell(found.__context__)

    tell(error)
    told.write("".join(traceback.format_exception(error)))
    if isinstance(error, OneLLMError):
        told.write(pickle.dumps(error).decode("latin-1"))
        told.write(f"{ChatOutcome(0, 'x', error=error)!r}")
    return told.getvalue()


@pytest_asyncio.fixture(params=REPLIES)
async def url(request: pytest.FixtureRequest):
    handlers = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(REPLIES[request.param])
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api"
    server.close()
    await asyncio.gather(*handlers)
    await server.wait_closed()


async def test_the_key_shows_nowhere_whatever_happens(url: str, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.get_running_loop().set_debug(True)
    caplog.set_level(logging.DEBUG)
    events: list[Event] = []

    def clumsy_hook(event: Event) -> None:
        events.append(event)
        raise LookupError("a hook with a bug")

    client = AsyncOneLLM(
        CANARY,
        base_url=url,
        hooks=[clumsy_hook],
        limits=Limits.unlimited(),
        retry=RetryPolicy(max_attempts=2, backoff_base=0.0, breaker_failures=0),
        timeout=Timeout(connect=5, total=5),
    )
    shown = [repr(client), str(client), repr(vars(client)), repr(Conversation(client, model="GPT-5"))]
    async with client:
        try:
            async with asyncio.timeout(1):
                shown.append(repr(await client.chat("x", model="GPT-5")))
        except (OneLLMError, TimeoutError) as error:
            shown.append(everything_about(error))
        if isinstance(failure := getattr(events[-1], "error", None), APIError):
            shown.append(everything_about(failure))
    assert events
    shown += [repr(event) for event in events]
    shown += [repr(attrs.asdict(event, recurse=False)) for event in events]
    shown += [record.getMessage() + repr(vars(record)) for record in caplog.records]
    shown.append(caplog.text)
    assert caplog.records
    for text in shown:
        assert CANARY not in text


def test_no_public_value_of_a_client_prints_the_key() -> None:
    client = AsyncOneLLM(CANARY, base_url="https://host.example/")
    for holder in (client, client._sender, client._sender._transport, client.limits):
        assert CANARY not in f"{holder!r} {holder!s}"


def test_no_list_or_mapping_within_the_client_prints_the_key() -> None:
    client = AsyncOneLLM(CANARY, base_url="https://host.example/")
    for name, value in vars(client._sender._transport).items():
        assert CANARY not in repr(value), name


def test_neither_client_nor_key_can_be_pickled() -> None:
    for secretive in (ApiKey(CANARY), AsyncOneLLM(CANARY, base_url="https://host.example/")):
        for again in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="not pickled") as caught:
                again(secretive)
            assert CANARY not in str(caught.value)


@pytest.mark.parametrize("control", ["\r\n", "\n", "\x00", "\x1b", " ", "\x7f", "\x85"])
def test_a_key_with_control_characters_is_refused_unseen(control: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AsyncOneLLM(f"{CANARY}{control}x")
    assert CANARY not in everything_about(caught.value).replace("tests/test_security.py", "")
    monkeypatch.setenv("ONELLM_API_KEY", f"{CANARY}{control}" if control != "\x00" else f"{CANARY}\n")
    with pytest.raises(ConfigurationError) as caught:
        AsyncOneLLM()
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("host", ["example.com", "10.0.0.1", "192.168.1.2:8080", "[2001:db8::1]", "0.0.0.0"])
def test_plain_http_over_a_network_needs_to_be_allowed(host: str) -> None:
    with pytest.raises(ConfigurationError, match="unencrypted") as caught:
        AsyncOneLLM(CANARY, base_url=f"http://{host}/api")
    assert "allow_insecure=True" in caught.value.advice
    AsyncOneLLM(CANARY, base_url=f"http://{host}/api", allow_insecure=True)


@pytest.mark.parametrize(
    "url", [f"https://joe:{PASSWORD}@host.example/", f"http://{PASSWORD}@127.0.0.1/", f"https://a:{PASSWORD}@b:c/"]
)
def test_user_info_in_the_address_is_refused_and_not_echoed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for attempt in (lambda: AsyncOneLLM(CANARY, base_url=url), lambda: AsyncOneLLM(CANARY)):
        monkeypatch.setenv("ONELLM_BASE_URL", url)
        with pytest.raises(ConfigurationError) as caught:
            attempt()
        assert PASSWORD not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"


def contents_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_the_key_gets_into_no_file_of_a_journal(tmp_path: Path) -> None:
    client = AsyncOneLLM(CANARY, base_url="https://host.example/")
    identity = RunIdentity(input="in.jsonl", base_url="https://host.example/", dialect=str(client))
    settings = {"limits": repr(client.limits), "client": repr(client)}
    async with Journal.open(tmp_path / "out.journal", identity, settings=settings) as journal:
        await journal.record_intent(JournalRecord(0, 1, 7, b"digest", "id", possibly_billed=1))
        journal.sample(1000.0, {"client": repr(client.snapshot())})
        for secretive in (ApiKey(CANARY), client):
            with pytest.raises(TypeError) as caught:
                journal.sample(1001.0, {"key": secretive})
            assert CANARY not in everything_about(caught.value).replace("tests/test_security.py", "")
        await journal.record_intent(JournalRecord(1, 2, 7, b"digest", "id", possibly_billed=1))
        contents = contents_of(tmp_path)
    assert contents.keys() > {"out.journal", "out.journal-wal", "out.journal.lock"}
    for name, content in contents.items():
        assert CANARY.encode() not in content, name


def test_no_committed_sample_holds_a_key() -> None:
    for path in (Path(__file__).parent / "samples").rglob("*"):
        if path.is_file():
            assert b"Bearer sk-" not in path.read_bytes()


AWKWARD = 'sk-"canary"/<1>&\\2+%x'
ECHOES = {
    "401 in JSON": lambda key: (b"HTTP/1.1 401 No", json.dumps({"error": f"no such key {key}"})),
    "400 with escaped slashes": lambda key: (
        b"HTTP/1.1 400 No",
        json.dumps({"error": f"bad request for Bearer {key}"}).replace("/", "\\/"),
    ),
    "422 escaped for HTML": lambda key: (
        b"HTTP/1.1 422 No",
        json.dumps({"detail": key}).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
    ),
    "500 in HTML": lambda key: (b"HTTP/1.1 500 No", f"<html><title>{html.escape(key)}</title></html>"),
    "an answer": lambda key: (b"HTTP/1.1 200 OK", json.dumps({"content": f"You sent {key}.", "echo": [key]})),
    "no JSON": lambda key: (b"HTTP/1.1 200 OK", f"your key is {key}"),
    "a redirect": lambda key: (
        f"HTTP/1.1 307 No\r\nLocation: http://a:9/?k={quote(key, safe='')}".encode(),
        "",
    ),
    "a redirect to it": lambda key: (f"HTTP/1.1 307 No\r\nLocation: http://127.0.0.1:9/{key}".encode(), ""),
    "a header": lambda key: (f"HTTP/1.1 200 OK\r\nX-Debug: Bearer {key}".encode(), "no JSON"),
    "a truncated reply": lambda key: (f"HTTP/1.1 200 OK\r\nX-Debug: Bearer {key}\r\nX: 1".encode(), f'{{"a":"{key}'),
    "a bad head": lambda key: (f"HTTP/1.1 200 OK\r\nAuthorization Bearer {key}".encode(), ""),
    "a bad status line": lambda key: (f"{key} 200 OK".encode(), ""),
    "a bad length": lambda key: (f"HTTP/1.1 200 OK\r\nContent-Length: {key}".encode(), ""),
    "a bad chunk": lambda key: (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", f"{key}\r\n"),
    "a reply that is too long": lambda key: (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999", key + "x" * 40_000_000),
}


def all_of_a_traceback(error: BaseException) -> str:
    """What a reporter of crashes sends: each frame with its local variables, of all errors that belong to this one."""
    told: list[str] = []
    todo, seen = [traceback.TracebackException.from_exception(error, capture_locals=True)], set()
    while todo:
        found = todo.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        told += found.format_exception_only()
        told += [repr(frame.locals) for frame in found.stack if frame.filename != __file__]
        todo += [found.__cause__, found.__context__, *(found.exceptions or ())]
    return "".join(told)


@pytest_asyncio.fixture
async def echo(request: pytest.FixtureRequest):
    """Answers with the reply of ECHOES that the test names."""
    handlers = set()
    script = {"start": b"", "body": ""}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                body = script["body"].encode()
                length = (
                    b""
                    if b"Length" in script["start"]
                    else b"\r\nContent-Length: %d" % (len(body) + 9 * (b"X: 1" in script["start"]))
                )
                chunked = b"chunked" in script["start"]
                writer.write(script["start"] + (b"" if chunked else length) + b"\r\n\r\n" + body)
                await writer.drain()
                if chunked or b"X: 1" in script["start"]:
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield script, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api"
    server.close()
    await asyncio.gather(*handlers, return_exceptions=True)
    await server.wait_closed()


@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
@pytest.mark.parametrize("key", [CANARY, AWKWARD], ids=["plain", "awkward"])
@pytest.mark.parametrize("name", ECHOES)
async def test_a_key_that_the_service_echoes_is_shown_and_kept_nowhere(
    name: str, key: str, echo, caplog: pytest.LogCaptureFixture, *, given: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    script, url = echo
    start, script["body"] = ECHOES[name](key)
    script["start"] = start
    events: list[Event] = []
    async with aiohttp.ClientSession() as session:
        client = AsyncOneLLM(
            key,
            base_url=url,
            session=session if given else None,
            hooks=[events.append],
            limits=Limits.unlimited(),
            retry=RetryPolicy(max_attempts=2, backoff_base=0.0, breaker_failures=0),
        )
        async with client:
            try:
                response = await client.chat("x", model="GPT-5")
                shown = [repr(response), repr(response.extra)]
            except OneLLMError as error:
                shown = [everything_about(error), all_of_a_traceback(error)]
    shown += [repr(event) for event in events]
    shown += [everything_about(error) for event in events if (error := getattr(event, "error", None)) is not None]
    shown += [record.getMessage() + repr(vars(record)) for record in caplog.records]
    for text in shown:
        for spelling in (key, repr(key)[1:-1], json.dumps(key)[1:-1], html.escape(key), quote(key, safe="")):
            assert spelling not in text.replace("tests/test_security.py", "")


async def test_a_key_too_short_to_be_one_spoils_no_answer(echo) -> None:
    script, url = echo
    script["start"], script["body"] = b"HTTP/1.1 200 OK", '{"content": "The key of local tests, Bearer key."}'
    async with AsyncOneLLM("key", base_url=url) as client:
        response = await client.chat("x", model="GPT-5")
    assert response.content == "The key of local tests, ***."


async def test_values_in_the_query_of_the_address_are_shown_and_kept_nowhere(echo) -> None:
    script, url = echo
    address = f"{url}?key={PASSWORD}&other=%2F{PASSWORD}"
    for start, body in (
        (b"HTTP/1.1 404 No", f"nothing at /api?key={PASSWORD}&other=/{PASSWORD}"),
        (f"HTTP/1.1 307 No\r\nLocation: /other?key={PASSWORD}".encode(), ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x", ""),
    ):
        script["start"], script["body"] = start, body
        client = AsyncOneLLM(CANARY, base_url=address, retry=RetryPolicy(max_attempts=1))
        async with client:
            with pytest.raises(APIError) as caught:
                await client.chat("x", model="GPT-5")
        assert PASSWORD not in everything_about(caught.value) + all_of_a_traceback(caught.value)
    for unusable in (f"http://example.com/?key={PASSWORD}", f"http:// x/?key={PASSWORD}", f"https://[::1/?{PASSWORD}"):
        with pytest.raises(ConfigurationError) as caught:
            AsyncOneLLM(CANARY, base_url=unusable)
        assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
@pytest.mark.parametrize("name", [*REPLIES, "refused", "cancelled", "timed out", "deadline", "closed"])
async def test_no_local_variable_of_a_traceback_shows_the_key(name: str, *, given: bool, echo) -> None:
    script, url = echo
    waits = name in {"cancelled", "timed out", "deadline", "closed"}
    script["start"] = b"HTTP/1.1 200 OK\r\nContent-Length: 99" if waits else REPLIES.get(name, b"")
    if name == "refused":
        url = "http://127.0.0.1:1/"
    async with aiohttp.ClientSession(auth=None, headers={"X-Mine": "1"}) as session:
        client = AsyncOneLLM(
            CANARY,
            base_url=url,
            session=session if given else None,
            limits=Limits.unlimited(),
            retry=RetryPolicy(max_attempts=2, backoff_base=0.0, breaker_failures=0),
            timeout=Timeout(connect=5, total=0.2 if name == "timed out" else 5),
        )
        chat = asyncio.create_task(client.chat("x", model="GPT-5", deadline=0.2 if name == "deadline" else None))
        await asyncio.sleep(0.05)
        if name == "cancelled":
            chat.cancel()
        elif name == "closed":
            await client.aclose()
        told = ""
        try:
            async with asyncio.timeout(1):
                await chat
        except (OneLLMError, TimeoutError, asyncio.CancelledError) as error:
            told = all_of_a_traceback(error)
        await client.aclose()
    assert told or name == "an answer"
    assert CANARY not in told


async def test_a_traceback_of_ones_own_stays_as_it_is() -> None:
    async with AsyncOneLLM(CANARY, base_url="http://127.0.0.1:1/", retry=RetryPolicy(max_attempts=1)) as client:
        outer = None
        try:
            [].pop()
        except IndexError as error:
            outer = error
            with pytest.raises(APIError):
                await client.chat("x", model="GPT-5")
    assert outer is not None
    assert outer.__traceback__ is not None


async def test_a_key_that_the_service_echoes_gets_into_no_file_of_a_run(echo, tmp_path: Path) -> None:
    script, url = echo
    script["start"], script["body"] = ECHOES["400 with escaped slashes"](CANARY)
    (tmp_path / "p.txt").write_text("p 1\n", encoding="utf-8")
    for command in (
        ["run", "p.txt", "-o", "a.jsonl", "--base-url", f"{url}?key={PASSWORD}", "--rpm", "60000"],
        ["status", "a.jsonl"],
        ["report", "a.jsonl"],
    ):
        process = await start_command(
            *command,
            env=os.environ | {"ONELLM_API_KEY": CANARY},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        for secret in (CANARY, PASSWORD):
            assert secret.encode() not in out
            for name, content in contents_of(tmp_path).items():
                assert secret.encode() not in content, name
    contents = contents_of(tmp_path)
    assert b"bad request for Bearer ***" in contents["a.jsonl"]
    assert {name.rpartition(".")[2] for name in contents} >= {"jsonl", "journal", "html"}
