# ruff: noqa: PT017  # an error is one of several right results
import json
import math
from email.utils import formatdate
from types import MappingProxyType

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onellm_async.chat import ChatResponse, Usage
from onellm_async.errors import (
    APIError,
    APIStatusError,
    Billing,
    InsufficientBalanceError,
    InternalServerError,
    RateLimitError,
    ResponseDecodeError,
)
from onellm_async.wire import decode_reply, dump_json, parse_json, parse_retry_after, response_to_body
from onellm_async.wire.failures import excerpt, failure

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats()
    | st.text(st.characters(codec=None, categories=None), max_size=20)
    | st.sampled_from(["insufficient balance", "content", "<html><title>x</title>", "429", 200, 429, 500]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "detail", "message", "msg", "output", "code", "content", "usage", "input_tokens", "role"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
STATUSES = st.sampled_from(
    [200, 201, 204, 301, 307, 400, 401, 403, 404, 405, 413, 422, 429, 500, 502, 503]
) | st.integers(0, 1000)
HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "retry-after", "Location", "X"]), st.text(max_size=30), max_size=3
)


def decode(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> ChatResponse:
    return decode_reply(status, headers or {}, body, model="GPT-5", now=1e9)


def outcome(status: int, headers: dict[str, str], body: bytes) -> ChatResponse | APIError:
    try:
        return decode(body, status, headers)
    except APIError as error:
        assert isinstance(error, APIStatusError | ResponseDecodeError)
        assert str(error)
        assert len(error.body) <= 500
        return error


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


@given(STATUSES, HEADERS, st.binary(max_size=200))
@example(200, {}, b"\xff\xfe{\x00}\x00")
@example(200, {}, b"\xef\xbb\xbf\xef\xbb\xbf{}")
@example(500, {}, b"[" * 100_000)
@example(500, {}, b'{"error":' * 100_000)
@example(500, {}, b'{"error":' * 1000 + b"1" + b"}" * 1000)
@example(200, {}, b'{"content":' + b"9" * 5000 + b"}")
@example(200, {}, b'{"code":' + b"9" * 4299 + b',"output":{}}')
@example(200, {}, b'{"code":1e999,"output":{}}')
@example(429, {"Retry-After": "9" * 5000}, b"")
@settings(max_examples=100)
def test_no_bytes_raise_anything_but_our_errors(status: int, headers: dict[str, str], body: bytes) -> None:
    outcome(status, headers, body)


@given(STATUSES, HEADERS, JSON_VALUES)
@settings(max_examples=100)
def test_no_json_raises_anything_but_our_errors(status: int, headers: dict[str, str], value: object) -> None:
    outcome(status, headers, as_json(value))


@given(STATUSES, HEADERS, JSON_VALUES, JSON_VALUES)
@example(200, {}, True, {"content": "x"})
@example(200, {}, "²", {"content": "x"})
@settings(max_examples=100)
def test_no_envelope_of_anything_raises_anything_but_our_errors(
    status: int, headers: dict[str, str], code: object, output: object
) -> None:
    outcome(status, headers, as_json({"code": code, "output": output}))


FIELDS = ["provider", "model", "role", "usage", "finish_reason", "id", "error", "created", "message"]
ODD_REPLIES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), JSON_VALUES, max_size=6)
ODD_USAGE = st.dictionaries(st.sampled_from(["input_tokens", "output_tokens", "total_tokens", "x"]), JSON_VALUES)


@given(st.text(st.characters(codec=None, categories=None)), ODD_REPLIES, JSON_VALUES | ODD_USAGE)
@example("x", {}, [])
@example("x", {}, "usage")
@example("x", {"error": "insufficient balance"}, {})
@settings(max_examples=100)
def test_no_answer_is_lost_because_another_field_is_odd(content: str, others: dict[str, object], usage: object) -> None:
    reply = {**others, "usage": usage, "content": content}
    reply.pop("output", None)
    for body in ({"code": 200, "output": reply}, {"code": "200", "output": reply}, {"output": reply}, reply):
        sent = as_json(body)
        response = decode(sent)
        received = parse_json(sent)
        received = received.get("output", received)
        assert response.content == content
        for name in reply.keys() - {"content", "provider", "model", "role", "usage", "finish_reason"}:
            assert as_json(response.extra[name]) == as_json(received[name])
        assert response.cost is None or (math.isfinite(response.cost) and response.cost >= 0)


@pytest.mark.parametrize("name", ["provider", "model", "role", "finish_reason"])
@pytest.mark.parametrize("odd", [5, ["x"], {"a": 1}, True, 1.5])
def test_a_field_of_another_type_becomes_none_and_is_kept_raw(name: str, odd: object) -> None:
    response = decode(as_json({"content": "x", name: odd}))
    assert getattr(response, name) is None
    assert response.extra == {name: odd}


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"input_tokens": 5, "output_tokens": 7}, Usage(5, 7, None)),
        ({"input_tokens": "5", "output_tokens": 7}, Usage(None, 7, None)),
        ({"input_tokens": -5, "output_tokens": 7, "total_tokens": 2}, Usage(None, 7, 2)),
        ({"input_tokens": 5.0, "output_tokens": True, "total_tokens": 2}, Usage(None, None, 2)),
        ({"input_tokens": 2**60, "output_tokens": 1}, Usage(None, 1, None)),
        ({}, Usage()),
        ([], None),
        ("none", None),
        (5, None),
        (None, None),
    ],
)
def test_counts_that_are_none_are_never_invented(usage: object, counts: Usage | None) -> None:
    assert decode(as_json({"content": "x", "usage": usage})).usage == counts


@given(
    st.fixed_dictionaries(
        {
            **{name: st.text() for name in ("content", "provider", "model", "role", "finish_reason")},
            "usage": st.fixed_dictionaries(
                {
                    name: st.integers(-1, 2**53 + 1) | st.just(True)
                    for name in ("input_tokens", "output_tokens", "total_tokens")
                }
            ),
        }
    ),
    st.sampled_from(["GPT-5", "unknown"]),
)
def test_the_documented_reply_is_read_alike_with_and_without_a_further_field(
    reply: dict[str, object], model: str
) -> None:
    plain = decode_reply(200, {}, dump_json(reply), model=model, now=0.0)
    more = decode_reply(200, {}, dump_json({**reply, "further": 1}), model=model, now=0.0)
    assert more.extra["further"] == 1
    assert attrs.evolve(more, extra={name: value for name, value in more.extra.items() if name != "further"}) == plain


def test_lone_surrogates_survive_as_they_came() -> None:
    response = decode(b'{"content":"smile \\ud83d","usage":null}')
    assert response.content == "smile \ud83d"
    assert parse_json(dump_json(response_to_body(response)))["content"] == "smile \ud83d"


def test_an_integer_of_five_thousand_digits_costs_nothing_but_itself() -> None:
    response = decode(b'{"content":"x","score":NaN,"usage":{"input_tokens":' + b"9" * 5000 + b',"output_tokens":3}}')
    assert (response.content, response.usage, response.cost) == ("x", Usage(None, 3, None), None)


def test_the_price_is_that_of_the_model_asked_not_of_the_one_that_says_it_answered() -> None:
    body = as_json({"content": "x", "model": "gpt-x", "usage": {"input_tokens": 1_000_000, "output_tokens": 0}})
    assert decode(body).cost == pytest.approx(1.28)


def test_the_error_keeps_an_excerpt_of_five_hundred_characters() -> None:
    with pytest.raises(ResponseDecodeError) as caught:
        decode("ä".encode() * 10_000)
    assert caught.value.body == "ä" * 500
    assert excerpt(b"\xff" * 10_000) == "\ufffd" * 500


def test_a_long_error_text_is_cut_and_its_white_space_folded() -> None:
    with pytest.raises(InternalServerError) as caught:
        decode(b"a \r\n\t b " + b"x" * 10_000, 500)
    assert caught.value.message.startswith("500 a b xxx")
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    "body",
    [
        {"error": "found it"},
        {"error": {"message": "found it", "code": 7}},
        {"error": None, "message": "found it"},
        {"detail": "found it"},
        {"detail": [{"loc": ["a"], "msg": "found it"}]},
        {"errors": 1, "message": "found it"},
        {"output": "found it"},
        {"output": {"output": "found it"}},
        ["found it"],
        "found it",
    ],
)
def test_the_text_of_an_error_is_found_wherever_it_lies(body: object) -> None:
    with pytest.raises(InternalServerError, match=r"^500 found it\.") as caught:
        decode(as_json(body), 500)
    assert caught.value.billing is Billing.NOT_BILLED


@pytest.mark.parametrize("status", [200, 204, 307, 400, 401, 402, 429, 500, 503, 999])
@pytest.mark.parametrize(
    "body", [b"Insufficient Balance, please top up", b'{"error":{"message":"insufficient balance"}}']
)
def test_a_low_balance_is_told_under_any_status(status: int, body: bytes) -> None:
    with pytest.raises(InsufficientBalanceError, match="Top up") as caught:
        decode(body, status)
    assert (caught.value.retryable, caught.value.status_code) == (False, status)


def test_an_answer_about_insufficient_balance_is_an_answer() -> None:
    assert decode(as_json({"content": "insufficient balance", "message": "insufficient balance"})).content


@pytest.mark.parametrize("status", range(500, 600))
def test_only_a_500_proves_that_nothing_was_billed(status: int) -> None:
    error = failure(status, {}, None, b"", model="GPT-5", now=0)
    assert isinstance(error, InternalServerError)
    unbilled = status in {500, 501, 505, 506, 508, 510, 511, 529}
    assert error.billing is (Billing.NOT_BILLED if unbilled else Billing.POSSIBLY_BILLED)
    assert error.retryable is (status in {500, 529} or not unbilled)


@pytest.mark.parametrize("status", sorted({*range(300, 500)} - {408, 425, 429}))
def test_no_refused_request_is_repeated(status: int) -> None:
    error = failure(status, {}, None, b"", model="GPT-5", now=0)
    assert isinstance(error, APIStatusError)
    assert not error.retryable


NOW = 1_000_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("007", 7.0),
        ("300", 300.0),
        ("301", 300.0),
        ("1000000000", 300.0),
        ("9" * 5000, 300.0),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e9", None),
        ("120junk", None),
        ("²", None),
        ("٣", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("7, 8", None),
        (formatdate(NOW + 60, usegmt=True), 60.0),
        (formatdate(NOW - 60, usegmt=True), 0.0),
        (formatdate(NOW + 1e6, usegmt=True), 300.0),
        ("Sun, 09 Sep 2001 01:47:40", 60.0),
        ("Sun, 09 Sep 2001 03:47:40 +0200", 60.0),
        ("Sunday, 09-Sep-01 01:47:40 GMT", 60.0),
        ("Sun, 99 Foo 2001 01:47:40 GMT", None),
        ("Sun, 09 Sep 99999 01:47:40 GMT", None),
        ("Sun, 09 Sep 2001 99:99:99 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 300.0),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
        ("Sun, 09 Sep 2001 01:47:40 +999999999999", None),
        (",", None),
        ("GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nothing_else(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, NOW) == seconds


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ (GMT|[+-]\d+)", fullmatch=True))
def test_whatever_retry_after_says_the_wait_is_from_0_to_300(text: str) -> None:
    seconds = parse_retry_after(text, NOW)
    assert seconds is None or 0 <= seconds <= 300


@pytest.mark.parametrize("name", ["Retry-After", "retry-after", "RETRY-AFTER"])
@pytest.mark.parametrize(("status", "kind"), [(429, RateLimitError), (503, InternalServerError)])
def test_retry_after_is_found_in_any_spelling(name: str, status: int, kind: type[RateLimitError]) -> None:
    with pytest.raises(kind) as caught:
        decode(b"", status, {name: "9"})
    assert caught.value.retry_after == 9


@given(JSON_VALUES)
@settings(max_examples=100)
def test_json_goes_out_and_comes_back(value: object) -> None:
    text = dump_json(value)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    once = parse_json(text)  # integers beyond 64 bits are floats now, and NaN is null
    assert parse_json(dump_json(once)) == once


@pytest.mark.parametrize("beside", ["x", "\ud800"])  # a lone surrogate takes the slower way
def test_what_json_has_no_word_for_becomes_null(beside: str) -> None:
    value = {"s": beside, "a": math.nan, "b": [math.inf, (1.5, -math.inf)], "c": MappingProxyType({"d": math.nan})}
    assert parse_json(dump_json(value)) == {"s": beside, "a": None, "b": [None, [1.5, None]], "c": {"d": None}}


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", {"a": {"b": object()}}])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        dump_json(value)


@pytest.mark.parametrize("text", [b"", b" ", b"{", b"[" * 100_000, b"'x'", b"{'a':1}", b"\xff", b"1 2", b"tru"])
def test_what_is_not_json_raises_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the message is the parser's
        parse_json(text)


def test_a_response_goes_into_json_with_what_the_client_added() -> None:
    response = ChatResponse("x", usage=Usage(1, 2, 3), attempts=2, extra={"id": 1})
    assert response_to_body(response) == {
        "content": "x",
        "model": None,
        "provider": None,
        "role": None,
        "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        "finish_reason": None,
        "cost": None,
        "extra": {"id": 1},
        "attempts": 2,
        "refusals": 0,
        "possibly_billed": 0,
    }
    assert "extra" not in response_to_body(ChatResponse("x"))
