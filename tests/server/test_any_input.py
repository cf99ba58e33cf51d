import asyncio
import gzip
import json
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import catalog
from onellm_async.server import Faults, LocalServer, Outcome, ServerSettings, Service, echo
from onellm_async.server.jobs import Job
from onellm_async.server.request_validation import MAX_BODY_BYTES

FIELDS = [
    "model", "messages", "endpoint", "max_tokens", "top_p", "temperature", "stop_sequences", "system", "tools", "seed",
    "tool_choice", "response_format", "n", "user", "logprobs", "top_logprobs", "top_k", "stream", "extra", "metadata",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**32, 2**64, 10**400, 10**1300]),
    st.floats(),
    st.text(st.characters(), max_size=20),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=50)}),
    min_size=1,
    max_size=4,
)
SOUND = {"model": st.sampled_from(["GPT-5", "Opus-4"]), "messages": MESSAGES}
SOUND_BACKEND = SOUND | {"endpoint": st.text(), "max_tokens": st.integers(1, 2**32 - 1), "top_p": st.floats(0, 1)}
CHANGES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3)
OBJECTS = st.builds(
    lambda sound, changes: json.dumps(sound | changes).encode(),
    st.fixed_dictionaries(SOUND) | st.fixed_dictionaries(SOUND_BACKEND),
    CHANGES,
)
BODIES = st.one_of(OBJECTS, VALUES.map(lambda value: json.dumps(value).encode()), st.binary(max_size=200))
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Authorization": st.sampled_from(["Bearer k", "Bearer poor"]) | st.text(max_size=20).map("Bearer {}".format),
        "Content-Type": st.just("application/json") | st.text(max_size=20),
    },
)
JSON_TYPE = {"Content-Type": "application/json"}
RIGHT = {"Authorization": "Bearer k", "Content-Type": "application/json"}


@given(
    method=st.just("POST") | st.text(max_size=8),
    path=st.just("/api") | st.text(max_size=8),
    headers=st.just(RIGHT) | HEADERS,
    body=BODIES,
    dialect=st.sampled_from(["documented", "backend"]),
    any_model=st.booleans(),
    now=st.floats(0, 1e9),
)
def test_whatever_comes_gets_a_reply_and_one_line_in_the_ledger(method, path, headers, body, dialect, any_model, now):
    settings = ServerSettings(
        dialect=dialect, any_model=any_model, balance=1.0, blocked={"poor"}, faults=Faults(truncate_rate=0.5)
    )
    service = Service(settings)
    received = service.receive(method, path, headers, body, now)
    if isinstance(received, Job):
        delivery = service.complete(received, echo(received))
        assert delivery.reply.status == 200
        reply, after = delivery.reply, {Outcome.ANSWERED, Outcome.LOST}
    else:
        reply, after = received, {Outcome.REJECTED}
    if reply.headers.get("Content-Type") == "application/json":
        json.loads(reply.body)
    else:
        reply.body.decode()
    assert sum(service.ledger.outcomes[outcome] for outcome in after) == service.ledger.received == 1
    assert service.ledger.in_flight == 0
    json.dumps(service.ledger.summary(), allow_nan=False)


@given(body=OBJECTS, dialect=st.sampled_from(["documented", "backend"]))
def test_no_object_is_called_unreadable(body, dialect):
    received = Service(ServerSettings(dialect=dialect)).receive("POST", "/api", RIGHT, body, 0.0)
    assert isinstance(received, Job) or received.status != 400


@pytest.mark.parametrize("dialect", ["documented", "backend"])
@pytest.mark.parametrize("depth", [99, 200, 1000, 1100, 100_000])
def test_deep_nesting_is_accepted_or_refused_but_never_exhausts_the_stack(asking, dialect, depth):
    asker = asking(ServerSettings(dialect=dialect))
    body = json.dumps(asker.body).encode()[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"
    received = asker.raw(body)
    if depth == 99:
        assert isinstance(received, Job)
    else:
        # Beyond orjson's 1,024 levels it depends on the Python whether the rest is JSON at all.
        assert received.status in ({422} if depth <= 1000 else {400, 422})


@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80", b"caf\xe9"])
def test_text_that_is_not_utf8_is_refused_instead_of_repaired(asking, text):
    asker = asking(ServerSettings())
    reply = asker.raw(json.dumps(asker.body).encode().replace(b"Hello there", text))
    assert reply.status == 400
    assert "utf-8" in json.loads(reply.body)["error"]


def test_model_name_of_megabytes_is_refused_without_looking_for_names_like_it(asking, monkeypatch):
    asked = []
    monkeypatch.setattr(catalog, "closest_name", asked.append)
    asker = asking(ServerSettings())
    reply = asker.receive(model="GPT-5-" * 500_000)
    assert reply.status == 422
    assert len(reply.body) < 200
    assert asker.receive(model="GPT-55").status == 422
    assert asked == ["GPT-55"]


@pytest.mark.parametrize("field", ["model", "messages", "max_tokens", "stop_sequences", "x" * 1_000_000])
def test_refusal_quotes_no_more_than_a_line_of_what_was_sent(asking, field):
    for dialect in ("documented", "backend"):
        changes = {field: "y" * 1_000_000, "messages" if field != "messages" else "model": []}
        reply = asking(ServerSettings(dialect=dialect)).receive(**changes)
        assert reply.status == 422
        assert len(reply.body) < 1200


def test_balance_beyond_all_reason_is_a_balance(asking):
    asker = asking(ServerSettings(balance=1e308))
    assert asker.receive().max_tokens == 2**53
    assert asker.reply().status == 200


def test_more_rows_than_memory_can_be_asked_for(asking):
    asker = asking(ServerSettings(keep_rows=2**80))
    asker.reply()
    assert len(asker.ledger.rows) == 1


@pytest.fixture
async def connected():
    async with LocalServer(ServerSettings(keys={"k": 1.0})) as server:
        host, port = server.origin.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        yield server, reader, writer
        writer.close()


def request_of(body, *lines):
    head = ["POST /api HTTP/1.1", "Host: x", "Authorization: Bearer k", "Content-Type: application/json", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "sent",
    [
        request_of(b'{"model"', "Content-Length: 1000"),
        request_of(b"5\r\nhello\r\n", "Transfer-Encoding: chunked"),
        request_of(gzip.compress(b"{}")[:9], "Content-Length: 40", "Content-Encoding: gzip"),
    ],
    ids=["length", "chunked", "compressed"],
)
async def test_upload_that_breaks_off_asks_nothing_and_is_no_error_in_the_log(connected, until, caplog, sent):
    server, _, writer = connected
    writer.write(sent)
    await writer.drain()
    await until(lambda: server._connections)
    writer.transport.abort()
    await until(lambda: not server._connections)
    assert server.ledger.received == 0
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}]


@pytest.mark.parametrize("dialect", ["documented", "backend"])
async def test_broken_compression_is_refused_as_each_dialect_does_and_entered(session, dialect):
    headers = RIGHT | {"Content-Encoding": "gzip"}
    async with LocalServer(ServerSettings(dialect=dialect)) as server:
        async with session.post(server.url, data=b"no gzip at all", headers=headers) as reply:
            assert reply.status == 400
            assert reply.content_type == ("application/json" if dialect == "documented" else "text/plain")
            assert "Content-Encoding" in await reply.text()
        assert server.ledger.outcomes == {Outcome.REJECTED: 1}


def bomb(encoding, size=MAX_BODY_BYTES + 1):
    packing = zlib.compressobj(wbits={"gzip": 31, "deflate": 15, "raw": -15}[encoding])
    return b"".join(packing.compress(b" " * 2**20) for _ in range(size // 2**20 + 1)) + packing.flush()


NESTED_BOMB = gzip.compress(bomb("gzip"))


@pytest.mark.parametrize(("header", "encoding"), [("gzip", "gzip"), ("X-GZIP", "gzip"), ("deflate", "deflate")])
def test_compressed_body_is_read_and_one_beyond_the_bound_is_refused_in_bounded_memory(asking, header, encoding):
    asker = asking(ServerSettings())
    body = json.dumps(asker.body).encode()
    packing = zlib.compressobj(wbits={"gzip": 31, "deflate": 15}[encoding])
    assert isinstance(
        asker.raw(packing.compress(body) + packing.flush(), headers=JSON_TYPE | {"Content-Encoding": header}), Job
    )
    body = bomb(encoding, 200 * 2**20)
    assert len(body) < 300_000
    tracemalloc.start()
    try:
        reply = asker.raw(body, headers=JSON_TYPE | {"Content-Encoding": header})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reply.status == 413
    assert peak < 2.5 * MAX_BODY_BYTES


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("deflate", zlib.compress(b"{}")[2:-4], 422),  # without zlib's header, as many send it
        ("identity", b"{}", 422),
        ("deflate, gzip", gzip.compress(zlib.compress(b"{}")), 422),
        ("gzip, deflate", gzip.compress(zlib.compress(b"{}")), 400),
        ("gzip", gzip.compress(b"{}")[:-3], 400),
        ("gzip", gzip.compress(b"{}") * 1000, 400),
        ("gzip", NESTED_BOMB, 400),
        ("gzip, gzip", NESTED_BOMB, 413),
        ("gzip", b"", 400),
        ("br", b"{}", 415),
        ("zstd", b"{}", 415),
    ],
    ids=["raw", "identity", "both", "wrong order", "cut", "many", "inner", "nested bomb", "empty", "br", "zstd"],
)
@pytest.mark.parametrize("dialect", ["documented", "backend"])
def test_every_content_encoding_is_read_or_refused_in_words(asking, dialect, encoding, body, status):
    asker = asking(ServerSettings(dialect=dialect))
    reply = asker.raw(body, headers=JSON_TYPE | {"Content-Encoding": encoding})
    assert reply.status == status
    assert reply.body
    assert asker.ledger.outcomes == {Outcome.REJECTED: 1}


async def test_bytes_beyond_ascii_in_a_key_are_an_unknown_key(connected):
    server, reader, writer = connected
    body = b'{"model": "GPT-5", "messages": [{"role": "user", "content": "x"}]}'
    head = request_of(b"", f"Content-Length: {len(body)}", "Connection: close").replace(b"Bearer k", b"Bearer \xff\xfe")
    writer.write(head + body)
    assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    await reader.read()
    assert server.ledger.outcomes == {Outcome.REJECTED: 1}
