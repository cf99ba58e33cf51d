import asyncio
import copy
import io
import logging
import pickle
import traceback
from pathlib import Path

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
from onellm_async.batch.journal.journal import Intent, Journal

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
        timeout=Timeout(5, 5),
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


def test_no_list_or_mapping_within_the_client_prints_the_key_but_the_headers_that_are_sent() -> None:
    client = AsyncOneLLM(CANARY, base_url="https://host.example/")
    for name, value in vars(client._sender._transport).items():
        if name != "_headers":
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
        await journal.intend(Intent(0, 1, 7, "id", b"digest", 0.1, 1000.0))
        journal.sample(1000.0, {"client": repr(client.snapshot())})
        for secretive in (ApiKey(CANARY), client):
            with pytest.raises(TypeError) as caught:
                journal.sample(1001.0, {"key": secretive})
            assert CANARY not in everything_about(caught.value).replace("tests/test_security.py", "")
        await journal.intend(Intent(1, 2, 7, "id", b"digest", 0.1, 1000.0))
        contents = contents_of(tmp_path)
    assert contents.keys() > {"out.journal", "out.journal-wal", "out.journal.lock"}
    for name, content in contents.items():
        assert CANARY.encode() not in content, name


def test_no_committed_sample_holds_a_key() -> None:
    for path in (Path(__file__).parent / "samples").rglob("*"):
        if path.is_file():
            assert b"Bearer sk-" not in path.read_bytes()
