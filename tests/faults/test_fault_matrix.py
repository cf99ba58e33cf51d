# ruff: noqa: SIM117  # blocks that end one before the other
import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import attrs
import pytest
from fault_server import (
    BODY,
    FaultServer,
    Script,
    answers,
    drips,
    floods,
    head,
    resets_at_connection,
    resets_during_the_request,
    sends,
)

from onellm_async import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncOneLLM,
    AuthenticationError,
    BadRequestError,
    Billing,
    InsufficientBalanceError,
    InternalServerError,
    Limits,
    NotFoundError,
    ResponseDecodeError,
    RetryPolicy,
    Timeout,
    UnprocessableEntityError,
)

HTML = b"<html><head><title>502 Bad Gateway</title></head></html>"


@attrs.frozen
class Fault:
    script: Callable[[], Script]
    error: type[APIError]
    billing: Billing
    message: str
    retryable: bool = True
    posts: int | None = 1
    hangs: bool = False

    @property
    def total(self) -> float:
        """Seconds for an attempt: few where it hangs, and many where a slow machine must not look like a hang."""
        return 0.4 if self.hangs else 30.0


def ambiguous(script: Callable[[], Script], message: str, error: type[APIError] = APIConnectionError, **more) -> Fault:
    return Fault(script, error, Billing.POSSIBLY_BILLED, message, **more)


def undecodable(body: bytes, message: str, status: str = "200 OK", **headers: str) -> Fault:
    return ambiguous(lambda: answers(body, status, **headers), message, ResponseDecodeError)


def no_answer(body: bytes, message: str) -> Fault:
    """A complete JSON reply that is no chat reply: billed perhaps, and never asked again."""
    return ambiguous(lambda: answers(body), message, ResponseDecodeError, retryable=False)


def fatal(body: bytes, status: str, error: type[APIError], message: str, **headers: str) -> Fault:
    return Fault(lambda: answers(body, status, **headers), error, Billing.NOT_BILLED, message, retryable=False)


CHUNKED = head(Transfer_Encoding="chunked")
FAULTS: dict[str, Fault] = {
    # the connection
    "reset at connection": ambiguous(resets_at_connection, "The connection to 127.0.0.1 broke", posts=0),
    "reset during the request": ambiguous(resets_during_the_request, "The connection to 127.0.0.1 broke", posts=0),
    "reset after the request": ambiguous(lambda: sends(b"", "reset"), "Connection reset by peer"),
    "closed after the request": ambiguous(lambda: sends(b""), "Server disconnected"),
    "half-closed after the request": ambiguous(lambda: sends(b"", "half_close"), "Server disconnected"),
    "reset within the head": ambiguous(lambda: sends(b"HTTP/1.1 200 OK\r\nContent-T", "reset"), "broke"),
    "reset within the body": ambiguous(lambda: sends(head(length=len(BODY)) + BODY[:9], "reset"), "broke"),
    "body shorter than declared": ambiguous(lambda: sends(head(length=len(BODY)) + BODY[:9]), "broke"),
    "half-closed within the body": ambiguous(lambda: sends(head(length=500) + BODY, "half_close"), "broke"),
    "chunks cut off": ambiguous(lambda: sends(CHUNKED + b'5\r\n{"con\r\n'), "broke"),
    "chunks of a senseless size": ambiguous(lambda: sends(CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"), "broke"),
    "not HTTP at all": ambiguous(lambda: sends(b"SSH-2.0-OpenSSH_9.6\r\n"), "broke"),
    "a head of 100 kB": ambiguous(lambda: sends(head(length=2, X_Long="x" * 100_000) + b"{}"), "broke"),
    "a stall before the answer": ambiguous(
        lambda: sends(b"", "stall"), "No complete answer from 127.0.0.1 in time", APITimeoutError, hangs=True
    ),
    "a stall within the head": ambiguous(
        lambda: sends(b"HTTP/1.1 200 OK\r\n", "stall"), "in time (Timeout.total)", APITimeoutError, hangs=True
    ),
    "a stall within the body": ambiguous(
        lambda: sends(head(length=500) + BODY, "stall"), "in time (Timeout.total)", APITimeoutError, hangs=True
    ),
    "one byte at a time": ambiguous(
        lambda: drips(head(length=len(BODY)) + BODY, 0.02), "in time (Timeout.total)", APITimeoutError, hangs=True
    ),
    # the compression
    "broken gzip": ambiguous(lambda: answers(b"\x1f\x8bnonsense" * 9, Content_Encoding="gzip"), "broke"),
    "gzip that is none": ambiguous(lambda: answers(BODY, Content_Encoding="gzip"), "broke"),
    "truncated gzip": undecodable(gzip.compress(BODY * 9)[:-40], "the body is not JSON", Content_Encoding="gzip"),
    # the reply
    "no body": undecodable(b"", "the body is empty"),
    "204": undecodable(b"", "answered 204", "204 No Content"),
    "truncated JSON": undecodable(BODY[:-5], "the body is not JSON"),
    "deep nesting": undecodable(b'{"content":' + b"[" * 200_000, "the body is not JSON"),
    "null": no_answer(b"null", "holds no answer: null"),
    "output null": no_answer(b'{"code":200,"output":null}', "holds no answer: there is no content"),
    "output a list": no_answer(b'{"code":200,"output":[1]}', "a JSON list instead of an object"),
    "another object": no_answer(b'{"status":"ok","message":"Welcome"}', "It says: Welcome."),
    "an error in a success": no_answer(b'{"error":{"message":"crashed"}}', "its reply holds an error: crashed."),
    "UTF-16": undecodable(BODY.decode().encode("utf-16"), "the body is not JSON"),
    "a page of HTML": undecodable(b"<html><title>Welcome</title></html>", "is not JSON", Content_Type="text/html"),
    "502 in HTML": ambiguous(lambda: answers(HTML, "502 Bad Gateway"), "502 Bad Gateway.", InternalServerError),
    "503": ambiguous(lambda: answers(b"", "503 Service Unavailable"), "503 Service Unavailable.", InternalServerError),
    "504": ambiguous(lambda: answers(b"late", "504 Gateway Timeout"), "504 late.", InternalServerError),
    "408": ambiguous(lambda: answers(b"", "408 Request Timeout"), "408 Request Timeout.", APIStatusError),
    "425": ambiguous(lambda: answers(b"", "425 Too Early"), "425 Too Early.", APIStatusError),
    "500": Fault(lambda: answers(b'{"error":"x"}', "500 Oops"), InternalServerError, Billing.NOT_BILLED, "500 x."),
    "500 in the envelope": Fault(
        lambda: answers(b'{"code":500,"output":{"output":"missing field `id`"}}'),
        InternalServerError,
        Billing.NOT_BILLED,
        "500 missing field `id`.",
    ),
    "400": fatal(b"not JSON", "400 Bad Request", BadRequestError, "400 not JSON."),
    "401": fatal(b"", "401 Unauthorized", AuthenticationError, "401 Unauthorized."),
    "401 in the envelope": fatal(
        b'{"code":"401","output":{"error":"No such user"}}', "200 OK", AuthenticationError, "401 No such user."
    ),
    "404": fatal(b"", "404 Not Found", NotFoundError, "404 Not Found."),
    "422": fatal(b"missing field `endpoint`", "422 Unprocessable", UnprocessableEntityError, "missing field"),
    "insufficient balance": fatal(
        b'{"code":500,"output":{"output":"Insufficient balance, please"}}',
        "200 OK",
        InsufficientBalanceError,
        "balance",
    ),
    "quota used up": fatal(
        b'{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}',
        "429 Too Many Requests",
        InsufficientBalanceError,
        "429 You exceeded your current quota.",
    ),
    "400 in a success": fatal(
        b'{"error":{"message":"too long","code":400}}', "200 OK", BadRequestError, "400 too long."
    ),
    "overloaded": Fault(
        lambda: answers(b'{"error":"Overloaded"}', "529 Overloaded"),
        InternalServerError,
        Billing.NOT_BILLED,
        "529 Over",
    ),
    "no connection to the database": Fault(
        lambda: answers(b'{"code":401,"output":{"error":"pool timed out while waiting for an open connection"}}'),
        InternalServerError,
        Billing.NOT_BILLED,
        "401 pool timed out",
    ),
    "redirect": fatal(b"", "307 Temporary Redirect", APIStatusError, "Redirected to /x.", Location="/x"),
}

each_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())


def client_of(server: FaultServer, *, total: float = 30.0, **policy: object) -> AsyncOneLLM:
    retry = RetryPolicy(**{"backoff_base": 0.0, "breaker_failures": 0, **policy})  # type: ignore[arg-type]
    return AsyncOneLLM(
        "key",
        base_url=server.url,
        limits=Limits.unlimited(max_concurrency=1),
        retry=retry,
        timeout=Timeout(connect=5, total=total),
    )


async def timers_left() -> int:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)
    return sum(not handle.cancelled() for handle in loop._scheduled)  # type: ignore[attr-defined]


@each_fault
async def test_a_single_attempt_tells_what_happened_and_what_it_may_have_cost(fault: Fault) -> None:
    async with FaultServer(fault.script()) as server, client_of(server, total=fault.total, max_attempts=1) as client:
        with pytest.raises(APIError) as caught:
            await client.chat("Capital of France?", model="GPT-5-Mini")
        error = caught.value
        assert type(error) is fault.error
        assert (error.billing, error.retryable) == (fault.billing, fault.retryable)
        assert error.attempts == 1
        assert error.possibly_billed == (fault.billing is Billing.POSSIBLY_BILLED)
        assert fault.message in error.message
        assert "[request 1 (GPT-5-Mini), 1 attempt, " in str(error)
        assert ("Gave up after 1 attempt" in str(error)) is fault.retryable
        assert server.posts == fault.posts
        assert server.connections == 1


@each_fault
async def test_what_can_pass_is_tried_again_and_what_cannot_is_not(fault: Fault) -> None:
    async with FaultServer(fault.script(), answers()) as server, client_of(server, total=fault.total) as client:
        if fault.retryable:
            response = await client.chat("Capital of France?", model="GPT-5-Mini")
            assert response.content == "Paris."
            assert response.attempts == 2
            assert response.possibly_billed == (fault.billing is Billing.POSSIBLY_BILLED)
            assert server.posts == fault.posts + 1
        else:
            with pytest.raises(fault.error):
                await client.chat("Capital of France?", model="GPT-5-Mini")
            assert server.posts == fault.posts


@each_fault
async def test_with_ambiguous_never_nothing_is_sent_twice_that_may_have_been_billed(fault: Fault) -> None:
    async with (
        FaultServer(fault.script(), answers()) as server,
        client_of(server, total=fault.total, ambiguous="never") as client,
    ):
        if fault.retryable and fault.billing is not Billing.POSSIBLY_BILLED:
            assert (await client.chat("x", model="GPT-5")).attempts == 2
            return
        with pytest.raises(fault.error) as caught:
            await client.chat("x", model="GPT-5")
        assert server.posts == fault.posts
        assert caught.value.attempts == 1
        assert not fault.retryable or "the policy does not retry such requests" in str(caught.value)


@each_fault
async def test_with_ambiguous_once_a_second_such_failure_is_the_last(fault: Fault) -> None:
    scripts = (fault.script(), fault.script(), answers())
    async with FaultServer(*scripts) as server, client_of(server, total=fault.total, ambiguous="once") as client:
        if fault.retryable and fault.billing is not Billing.POSSIBLY_BILLED:
            assert (await client.chat("x", model="GPT-5")).attempts == 3
            return
        with pytest.raises(fault.error) as caught:
            await client.chat("x", model="GPT-5")
        assert caught.value.attempts == 1 + fault.retryable
        assert caught.value.possibly_billed == (
            caught.value.attempts if fault.billing is Billing.POSSIBLY_BILLED else 0
        )


@pytest.mark.parametrize("fault", [fault for fault in FAULTS.values() if fault.hangs])
async def test_cancelling_during_a_hang_closes_the_connection_and_frees_the_slot(fault: Fault) -> None:
    async with FaultServer(fault.script(), answers()) as server, client_of(server, total=60) as client:
        chat = asyncio.create_task(client.chat("x", model="GPT-5"))
        waiting = asyncio.create_task(client.chat("y", model="GPT-5"))
        await server.asked.wait()
        chat.cancel()
        with pytest.raises(asyncio.CancelledError):
            await chat
        await asyncio.wait_for(server.client_closed.wait(), 5)
        assert (await waiting).content == "Paris."
        assert server.connections == 2
    assert await timers_left() == 0


@pytest.mark.parametrize("fault", [fault for fault in FAULTS.values() if not fault.hangs], ids=lambda f: f.message)
async def test_after_any_fault_the_only_slot_is_free_and_no_timer_is_left(fault: Fault) -> None:
    async with FaultServer(fault.script(), answers()) as server:
        async with client_of(server, max_attempts=1) as client:
            with pytest.raises(APIError):
                await client.chat("x", model="GPT-5")
            assert (await client.chat("y", model="GPT-5")).content == "Paris."
    assert await timers_left() == 0


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + BODY,
        BODY[:-1] + b',"score":NaN}',
        BODY[:-1] + b',"x":"\\ud800"}',
        BODY[:-1] + b',"content":"Paris."}',
        BODY[:-1] + b',"n":' + b"9" * 5000 + b"}",
        b'{"code":"200","output":' + BODY + b"}",
        b'{"output":' + BODY + b"}",
    ],
    ids=["BOM", "NaN", "lone surrogate", "duplicate key", "huge integer", "code as text", "no code"],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/html; charset=utf-16", "x"])
async def test_an_odd_answer_is_still_an_answer(body: bytes, content_type: str) -> None:
    async with FaultServer(answers(body, Content_Type=content_type)) as server, client_of(server) as client:
        response = await client.chat("Capital of France?", model="GPT-5-Mini")
        assert (response.content, response.attempts, server.posts) == ("Paris.", 1, 1)


@pytest.mark.parametrize("compressed", [gzip.compress(BODY), zlib.compress(BODY)], ids=["gzip", "deflate"])
async def test_a_compressed_answer_is_read(compressed: bytes) -> None:
    encoding = "gzip" if compressed.startswith(b"\x1f\x8b") else "deflate"
    async with FaultServer(answers(compressed, Content_Encoding=encoding)) as server, client_of(server) as client:
        assert (await client.chat("x", model="GPT-5")).content == "Paris."


async def test_an_answer_longer_than_32_mib_is_cut_off_early() -> None:
    async with FaultServer(floods(10**9)) as server, client_of(server, total=30, max_attempts=1) as client:
        with pytest.raises(ResponseDecodeError, match="longer than 32 MiB") as caught:
            await client.chat("x", model="GPT-5")
        assert caught.value.billing is Billing.POSSIBLY_BILLED
        assert len(caught.value.body) <= 500
        await asyncio.wait_for(server.client_closed.wait(), 5)
        assert server.bytes_sent < 64 * 1024 * 1024


async def test_a_gzip_bomb_is_defused_in_bounded_memory() -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    megabyte = b"0" * 1024 * 1024
    bomb = b"".join(compressor.compress(megabyte) for _ in range(400)) + compressor.flush()
    assert len(bomb) < 1024 * 1024
    async with (
        FaultServer(answers(bomb, Content_Encoding="gzip")) as server,
        client_of(server, total=30, max_attempts=1) as client,
    ):
        tracemalloc.start()
        try:
            with pytest.raises(ResponseDecodeError, match="longer than 32 MiB"):
                await client.chat("x", model="GPT-5")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 150 * 1024 * 1024
