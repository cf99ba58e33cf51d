import asyncio
import email.utils
import json
import socket
import time

import pytest
from aiohttp import web

from onellm_async.server import Outcome

TOO_LONG = {"error": {"message": "This model's maximum context length is 8192 tokens", "type": "invalid_request_error"}}


@pytest.mark.parametrize(
    ("status", "value", "ours", "words"),
    [
        (400, TOO_LONG, 400, "answered 400: This model's maximum context length is 8192 tokens"),
        (422, {"detail": [{"msg": "field required"}]}, 422, "answered 422: field required"),
        (402, {"error": "Insufficient Balance"}, 402, "answered 402: Insufficient Balance"),
        (408, b"", 408, "answered 408: Request Timeout"),
        (413, b"too long", 413, "answered 413: too long"),
        (418, b"teapot", 418, "answered 418: teapot"),
        (404, {"error": {"message": "The model `x` does not exist"}}, 422, "answered 404: The model `x` does not"),
        (404, {"error": 'model "GPT-5-Mini" not found, try pulling it first'}, 422, "try pulling it first"),
        (404, {"error": {"message": "No endpoints found for GPT-5-Mini."}}, 422, "No endpoints found for GPT-5-Mini."),
        (404, {"error": {"message": "The API deployment for this resource does not exist."}}, 422, "API deployment"),
        (404, {"detail": "Not Found"}, 502, "answered 404: Not Found"),
        (404, b"404 page not found", 502, "answered 404: page not found"),
        (404, {"error": {"message": "Invalid URL (POST /v1/models/chat/completions)"}}, 502, "Invalid URL"),
        (405, {"detail": "Method Not Allowed"}, 502, "answered 405"),
        (401, {"error": {"message": "Incorrect API key provided"}}, 502, "answered 401: Incorrect API key provided"),
        (403, {"error": {"message": "Country not supported"}}, 502, "answered 403: Country not supported"),
        (407, b"", 502, "answered 407"),
        (500, {"error": {"message": "Loading model"}}, 502, "answered 500: Loading model"),
        (503, b"<html><title>503 Unavailable</title></html>", 502, "answered 503: Unavailable"),
        (529, {"error": {"message": "Overloaded"}}, 500, "answered 529: Overloaded"),
        (529, b"", 500, "answered 529: overloaded."),
        (503, {"error": {"type": "overloaded_error", "message": "Later"}}, 500, "answered 503: overloaded. Later"),
        (401, {"error": "pool timed out while waiting for an open connection"}, 500, "answered 401: pool timed out"),
        (429, {"error": {"message": "Quota", "code": "insufficient_quota"}}, 429, "429: Quota. (insufficient quota)"),
        (400, {"oops": "my own words"}, 400, 'answered 400: {"oops": "my own words"}'),
        (504, b"<html>late</html>", 502, "answered 504: <html>late</html>"),
        (302, b"", 502, "answered 302: Redirected to"),
    ],
)
@pytest.mark.parametrize("dialect", ["documented", "backend"])
async def test_error_of_the_upstream_is_passed_on_with_its_text(front, upstream, dialect, status, value, ours, words):
    upstream.answers(status, value)
    asked = await front(dialect=dialect)
    http, headers, reply = await asked.post()
    if dialect == "backend":
        assert (http, reply["code"]) == (200, ours)
        reply = {"error": reply["output"]["output" if ours == 500 else "error"]}
    else:
        assert http == ours
    assert words in reply["error"]
    assert "Retry-After" not in headers
    assert len(upstream.requests) == 1
    assert asked.ledger.billed == 0


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Outcome.FAILED),
        (429, Outcome.RATE_LIMITED),
        (401, Outcome.FAILED),
        (500, Outcome.FAILED),
        (503, Outcome.POSSIBLY_BILLED),
        (408, Outcome.POSSIBLY_BILLED),
    ],
)
async def test_ledger_says_what_an_error_of_the_upstream_may_have_cost(front, upstream, status, outcome):
    upstream.answers(status, b"")
    asked = await front()
    await asked.post()
    assert asked.ledger.outcomes == {outcome: 1}
    assert asked.ledger.in_flight == 0


@pytest.mark.parametrize("dialect", ["documented", "backend"])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "2"}, "2"),
        ({"Retry_After": "1.5"}, "1.5"),
        ({"Retry_After": " 0 "}, "0"),
        ({"Retry_After": "3600"}, "300"),
        ({"retry_after_ms": "1500"}, "1.5"),
        ({"retry_after_ms": "50", "Retry_After": "1"}, "0.05"),
        ({"retry_after_ms": "soon", "Retry_After": "3"}, "3"),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "0"),
        ({"Retry_After": "-1"}, None),
        ({"Retry_After": "nan"}, None),
        ({"Retry_After": "inf"}, None),
        ({"Retry_After": "1e3"}, None),
        ({"Retry_After": "120junk"}, None),
        ({"Retry_After": "Someday, GMT"}, None),
        ({"Retry_After": ""}, None),
        ({}, None),
    ],
)
async def test_time_after_which_to_retry_is_passed_on(front, upstream, dialect, headers, seconds):
    upstream.answers(429, {"error": {"message": "Slow down"}}, **headers)
    status, got, reply = await (await front(dialect=dialect)).post()
    assert (status, reply["output"]["error"] if dialect == "backend" else reply["error"]) == (
        200 if dialect == "backend" else 429,
        "The upstream answered 429: Slow down.",
    )
    assert got.get("Retry-After") == seconds
    assert got.get("retry-after-ms") == (None if seconds is None else str(round(float(seconds) * 1000)))


async def test_date_after_which_to_retry_becomes_seconds(front, upstream):
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    upstream.answers(503, b"", Retry_After=later)
    _, headers, _ = await (await front()).post()
    assert 90 < float(headers["Retry-After"]) <= 101


async def test_refusal_by_the_upstream_costs_no_token(front, upstream):
    upstream.answers(429, b"")
    asked = await front(burst=1, requests_per_minute=0)
    assert [(await asked.post())[0] for _ in range(2)] == [429, 429]
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("key", ["k", "secret", "upstream-secret", "sk/with/slashes", 'sk"quoted\\'])
@pytest.mark.parametrize("padding", ["", "x" * 490, "x" * 498])
@pytest.mark.parametrize("status", [400, 401, 200, 302])
async def test_key_that_the_upstream_repeats_in_an_error_does_not_reach_the_client(
    front, upstream, key, padding, status
):
    asked = await front(key=key)
    for value in (
        {"error": {"message": f"{padding}{key}"}},
        f"{padding}Incorrect key: {key}".encode(),
        json.dumps(f"{padding}{key}").replace("/", "\\/").encode(),
    ):
        upstream.answers(status, value, Location=f"http://x/{key}")
        _, _, reply = await asked.post()
        told = reply["error"].partition(": ")[2]
        assert key[: max(1, len(key) // 2)] not in told.replace("x", "").replace("Incorrect", "")
    assert upstream.requests[0][1]["Authorization"] == f"Bearer {key}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>",
        "[]",
        "null",
        "{}",
        '{"choices": []}',
        '{"choices": [{}]}',
        '{"choices": [{"message": "x"}]}',
        '{"choices": 5}',
        '{"choices": [5]}',
        '{"output": "x"}',
    ],
)
async def test_2xx_without_a_chat_reply_is_a_502_that_may_be_billed(front, upstream, text):
    upstream.answer = lambda: web.Response(text=text)
    asked = await front()
    status, _, reply = await asked.post()
    assert status == 502
    assert reply["error"].startswith("The upstream answered 200, but its reply holds no answer: ")
    assert asked.ledger.outcomes == {Outcome.POSSIBLY_BILLED: 1}
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("error", "ours", "outcome"),
    [
        ({"message": "too long", "code": 400}, 400, Outcome.FAILED),
        ({"message": "slow down", "code": 429}, 429, Outcome.RATE_LIMITED),
        ({"message": "no key", "code": 401}, 502, Outcome.FAILED),
        ({"message": "boom", "code": "server_error"}, 502, Outcome.POSSIBLY_BILLED),
        ({"message": "boom", "code": True}, 502, Outcome.POSSIBLY_BILLED),
        ({"message": "boom", "code": 200}, 502, Outcome.POSSIBLY_BILLED),
        ("boom", 502, Outcome.POSSIBLY_BILLED),
        ({"oops": 1}, 502, Outcome.POSSIBLY_BILLED),
    ],
)
async def test_2xx_around_an_error_is_that_error(front, upstream, error, ours, outcome):
    upstream.answers(200, {"error": error}, Retry_After="4")
    asked = await front()
    status, headers, reply = await asked.post()
    assert status == ours
    assert (error.get("message", "without a text") if isinstance(error, dict) else error) in reply["error"]
    assert headers.get("Retry-After") == ("4" if outcome is not Outcome.POSSIBLY_BILLED else None)
    assert asked.ledger.outcomes == {outcome: 1}


async def test_any_2xx_with_a_chat_reply_is_an_answer(front, upstream):
    upstream.answers(201, upstream.completion)
    status, _, reply = await (await front()).post()
    assert (status, reply["content"]) == (200, "Paris.")


async def test_upstream_that_is_not_there_is_a_502_and_costs_nothing(front):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    asked = await front(url=url)
    status, _, reply = await asked.post()
    assert (status, reply["error"].partition(":")[0]) == (502, "The upstream cannot be reached")
    assert asked.ledger.outcomes == {Outcome.FAILED: 1}


class HangsUp(web.Response):
    async def prepare(self, request):
        request.transport.abort()


def cut(status):
    class Cut(web.StreamResponse):
        async def prepare(self, request):
            self.content_length = 100
            await super().prepare(request)
            await self.write(b'{"choices": [')
            request.transport.close()

    return lambda: Cut(status=status, headers={"Retry-After": "3"})


async def test_upstream_that_hangs_up_is_a_502_that_may_be_billed_and_is_asked_once(front, upstream):
    upstream.answer = HangsUp
    asked = await front()
    status, _, reply = await asked.post()
    assert (status, reply["error"].partition(":")[0]) == (502, "The connection to the upstream broke")
    assert asked.ledger.outcomes == {Outcome.POSSIBLY_BILLED: 1}
    assert len(upstream.requests) == 1


async def test_answer_that_breaks_off_is_a_502_that_may_be_billed(front, upstream):
    upstream.answer = cut(200)
    asked = await front()
    status, _, reply = await asked.post()
    assert (status, reply["error"].partition(":")[0]) == (502, "The connection to the upstream broke")
    assert asked.ledger.outcomes == {Outcome.POSSIBLY_BILLED: 1}
    assert len(upstream.requests) == 1


async def test_error_whose_text_breaks_off_is_that_error_all_the_same(front, upstream):
    upstream.answer = cut(429)
    status, headers, reply = await (await front()).post()
    assert (status, headers["Retry-After"]) == (429, "3")
    assert reply["error"] == "The upstream answered 429: Too Many Requests."


async def test_upstream_that_is_too_slow_is_a_504_that_may_be_billed(front, upstream):
    answered = asyncio.Event()
    upstream.answer = answered.wait
    asked = await front(timeout=0.05)
    status, _, reply = await asked.post()
    assert (status, reply["error"]) == (504, "The upstream did not answer within 0.05 s.")
    assert asked.ledger.outcomes == {Outcome.POSSIBLY_BILLED: 1}
    answered.set()


async def test_reply_without_end_is_cut_off_at_a_bound(front, upstream, monkeypatch):
    monkeypatch.setattr("onellm_async.server.upstream._MAX_REPLY_BYTES", 2**20)
    upstream.answer = lambda: web.Response(body=b" " * (2**20 + 1))
    status, _, reply = await (await front()).post()
    assert (status, reply["error"]) == (502, "The connection to the upstream broke: its reply is longer than 1 MiB")


async def test_redirect_of_the_upstream_is_not_followed(front, upstream):
    upstream.answers(307, b"", Location="/v1/elsewhere")
    status, _, reply = await (await front(key="upstream-secret")).post()
    assert (status, "Redirected to /v1/elsewhere" in reply["error"]) == (502, True)
    assert len(upstream.requests) == 1


async def test_cookie_that_the_upstream_sets_for_one_client_is_not_sent_for_another(front, upstream):
    upstream.answers(200, upstream.completion, Set_Cookie="session=one; Path=/")
    asked = await front()
    await asked.post()
    await asked.post()
    assert "Cookie" not in upstream.requests[1][1]
