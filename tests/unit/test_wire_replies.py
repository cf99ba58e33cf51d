# ruff: noqa: PT017  # an error is one of several right results
import contextlib
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
    BadRequestError,
    Billing,
    FailureKind,
    InsufficientBalanceError,
    InternalServerError,
    RateLimitError,
    ResponseDecodeError,
)
from onellm_async.failure_kinds import kind_of_status
from onellm_async.wire import decode_reply, dump_json, parse_json, parse_retry_after
from onellm_async.wire.error_replies import error_for, excerpt
from onellm_async.wire.replies import OPENAI_SHAPE

REPLY_NAMES = ["error", "errors", "detail", "message", "msg", "output", "code", "content", "usage", "input_tokens"]
REPLY_NAMES += ["role", "choices", "tool_calls", "type", "text", "status", "loc", "prompt_tokens", "index"]
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
            st.sampled_from(REPLY_NAMES) | st.text(max_size=5),
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


@given(STATUSES, JSON_VALUES, JSON_VALUES, JSON_VALUES, st.binary(max_size=20))
@settings(max_examples=100)
def test_no_choices_of_anything_raise_anything_but_our_errors(
    status: int, message: object, choice: object, outer: object, asked: bytes
) -> None:
    choices = [{"message": message, **(choice if isinstance(choice, dict) else {"index": choice})}]
    body = as_json({**(outer if isinstance(outer, dict) else {"id": outer}), "choices": choices})
    with contextlib.suppress(APIError):
        decode_reply(status, {}, body, model="GPT-5", now=0.0, asked=asked, warn=lambda text: None)


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


@given(st.text(st.characters(codec=None, categories=None), min_size=1), ODD_REPLIES, JSON_VALUES | ODD_USAGE)
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


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("content", "text", "extra"),
    [
        (None, "", {}),
        ("", "", {}),
        ([], "", {}),
        ([{"type": "text", "text": "Par"}, {"type": "text", "text": "is."}], "Paris.", {}),
        (["Par", {"text": "is."}, {"type": "output_text", "text": ""}], "Paris.", {}),
        ({"type": "text", "text": "Paris."}, "Paris.", {}),
        *(
            (content, text, {"content": content})
            for content, text in [
                ([{"type": "text", "text": "Paris.", "annotations": [1]}], "Paris."),
                ([{"type": "tool_use", "name": "f", "input": {}}], ""),
                ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}, "b"], "ab"),
                ([{"type": "text", "text": None}], ""),
                ([{"type": "refusal", "refusal": "no"}], ""),
                ([None, 5, ["x"]], ""),
                ({"parts": [{"text": "x"}]}, ""),
                (5, ""),
                (False, ""),
            ]
        ),
    ],
)
@pytest.mark.parametrize("shape", ["flat", "envelope", "OpenAI"])
def test_content_of_any_kind_is_an_answer_of_which_nothing_is_lost(
    content: object, text: str, extra: dict[str, object], shape: str
) -> None:
    body: dict[str, object] = {"content": content, "role": "assistant", "tool_calls": [CALL]}
    if shape == "envelope":
        body = {"code": 200, "output": body}
    elif shape == "OpenAI":
        body = {"choices": [{"index": 0, "message": body}]}
    response = decode(as_json(body))
    assert (response.content, response.role) == (text, "assistant")
    assert response.extra == {"tool_calls": [CALL], **extra}


@pytest.mark.parametrize("name", ["content", "tool_calls", "refusal"])
@pytest.mark.parametrize("value", [None, "", [], {}])
def test_one_field_of_an_answer_makes_a_reply_one(name: str, value: object) -> None:
    usage = {"input_tokens": 3, "output_tokens": 4}
    for body in (
        {name: value, "usage": usage},
        {"output": {name: value, "usage": usage}},
        {"choices": [{"message": {name: value}}], "usage": usage},
    ):
        response = decode(as_json(body))
        assert response.content == ""
        assert (response.usage, response.cost is None) == (Usage(3, 4, None), False)


OPENAI = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000},
}


def test_the_shape_of_openai_is_read_and_told() -> None:
    told: list[str] = []
    response = decode_reply(200, {}, as_json(OPENAI), model="GPT-5", now=0.0, warn=told.append)
    assert response.content == "Paris."
    assert (response.role, response.model, response.finish_reason) == ("assistant", "m", "stop")
    assert response.usage == Usage(1_000_000, 0, 1_000_000)
    assert response.cost == pytest.approx(1.28)
    assert response.extra == {"id": "chatcmpl-1", "object": "chat.completion", "created": 1}
    assert told == [OPENAI_SHAPE]
    decode_reply(200, {}, as_json({"content": "x", "id": 1}), model="GPT-5", now=0.0, warn=told.append)
    assert len(told) == 1


@pytest.mark.parametrize(
    "choices",
    [
        [{"index": 0, "message": {"content": "Paris.", "model": "other"}}],  # a field of two levels
        [{"index": 0, "message": {"content": "Paris.", "logprobs": 1}, "logprobs": 2}],
        [{"index": 3, "message": {"content": "Paris."}}],
        [{"index": 0, "message": {"content": "Paris."}}, {"index": 1, "message": {"content": "Lyon."}}],
    ],
)
def test_choices_are_kept_where_one_answer_cannot_hold_them(choices: list[object]) -> None:
    response = decode(as_json({**OPENAI, "choices": choices}))
    assert (response.content, response.model) == ("Paris.", "m")
    assert response.extra["choices"] == choices


@pytest.mark.parametrize(
    "body",
    [
        {"choices": []},
        {"choices": None},
        {"choices": [{}]},
        {"choices": [{"message": "x"}]},
        {"choices": {"0": {"message": {"content": "x"}}}},
        {"choices": [{"text": "Paris."}]},
        {},
        {"status": "ok"},
        {"output": {}},
        {"output": [{"content": "x"}]},
        [],
        [{"content": "x"}],
        "Paris.",
        42,
        True,
        None,
    ],
)
def test_a_complete_reply_that_is_no_answer_is_told_and_not_worth_another_attempt(body: object) -> None:
    with pytest.raises(ResponseDecodeError, match="holds no answer") as caught:
        decode(as_json(body))
    assert caught.value.kind is FailureKind.NOT_A_CHAT_REPLY
    assert not caught.value.retryable


TOO_LONG = "This model's maximum context length is 8192 tokens"


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": TOO_LONG, "code": 400}},
        {"error": {"message": TOO_LONG, "code": "400"}},
        {"error": {"message": TOO_LONG, "status": 400}},
        {"error": {"message": TOO_LONG, "type": "invalid_request_error", "code": None}},
        {"error": {"message": TOO_LONG, "code": "context_length_exceeded"}},
        {"error": TOO_LONG, "code": 400},
        {"error": TOO_LONG, "status": "400"},
        {"error": True, "message": TOO_LONG, "status_code": 400},
        {"code": 400, "message": TOO_LONG},
        {"code": 200, "output": {"error": {"message": TOO_LONG, "code": 400}}},
        {"code": 200, "output": {"error": TOO_LONG, "code": 400}},
        {"code": 200, "output": None, "error": {"message": TOO_LONG, "code": 400}},
        {"code": 200, "output": {"usage": None}, "error": {"message": TOO_LONG, "code": 400}},
        {"output": {"error": {"message": TOO_LONG, "code": 400}}},
        {"content": None, "error": {"message": TOO_LONG, "code": 400}},
        {"content": "", "error": {"message": TOO_LONG, "code": 400}},
        {"choices": [{"message": {"content": ""}, "error": {"message": TOO_LONG, "code": 400}}]},
        {"choices": [], "error": {"message": TOO_LONG, "code": 400}},
    ],
)
def test_a_success_around_an_error_is_that_error(body: object) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode(as_json(body))
    assert caught.value.message == f"400 {TOO_LONG}."
    assert (caught.value.status_code, caught.value.billing) == (400, Billing.NOT_BILLED)


@pytest.mark.parametrize("code", [None, 7, 200, 399, 600, -32000, 400.5, True, "4000", "E400", "server_error", [400]])
def test_an_error_without_a_status_keeps_its_text_and_is_not_sent_again(code: object) -> None:
    for error in ({"message": "The model crashed", "code": code}, {"error": {"message": "The model crashed"}}):
        with pytest.raises(ResponseDecodeError) as caught:
            decode(as_json({"error": error}))
        assert caught.value.message == "The service answered 200, but its reply holds an error: The model crashed."
        assert (caught.value.kind, caught.value.retryable) == (FailureKind.NOT_A_CHAT_REPLY, False)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429}, FailureKind.RATE_LIMITED),
        ({"type": "rate_limit_error"}, FailureKind.RATE_LIMITED),
        ({"code": 401}, FailureKind.UNKNOWN_KEY),
        ({"code": 500}, FailureKind.SERVER_ERROR),
        ({"code": "502"}, FailureKind.GATEWAY_ERROR),
        ({"code": 529}, FailureKind.OVERLOADED),
        ({"type": "overloaded_error"}, FailureKind.OVERLOADED),
        ({"code": "insufficient_quota"}, FailureKind.BALANCE_TOO_LOW),
        ({"message": "Insufficient balance"}, FailureKind.BALANCE_TOO_LOW),
    ],
)
def test_the_error_in_a_success_is_of_the_kind_that_it_would_be_under_its_own_status(
    error: dict[str, object], kind: FailureKind
) -> None:
    with pytest.raises(APIError) as caught:
        decode(as_json({"error": error}), headers={"Retry-After": "2"})
    assert caught.value.kind is kind
    assert getattr(caught.value, "retry_after", None) == 2


@pytest.mark.parametrize("error", [None, {}, "", [], False, 0, 1])
@pytest.mark.parametrize("reply", [{"content": "x"}, {"content": ""}, {"content": None}, {"tool_calls": []}])
def test_an_empty_error_is_none(reply: dict[str, object], error: object) -> None:
    assert decode(as_json({**reply, "error": error})).extra["error"] == error


@pytest.mark.parametrize("reply", [{"content": "x"}, {"tool_calls": [CALL]}, {"refusal": "no"}])
def test_an_error_beside_an_answer_is_kept_in_extra(reply: dict[str, object]) -> None:
    assert decode(as_json({**reply, "error": "cut"})).extra["error"] == "cut"


def kind_of(status: int, error: object, asked: bytes = b"", **headers: str) -> FailureKind:
    return error_for(status, headers, {"error": error}, b"", model="GPT-5", now=0.0, asked=asked).kind


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, {"message": "You exceeded your current quota, please check your plan and billing details."}),
        (429, {"message": "x", "code": "insufficient_quota"}),
        (429, {"message": "Slow down, 20 requests per minute", "type": "insufficient_quota"}),
        (403, {"message": "x", "type": "insufficient_quota"}),
        (400, "Billing hard limit has been reached"),
        (429, {"code": "billing_hard_limit_reached"}),
        (400, "Your credit balance is too low to access the API."),
        (402, "Insufficient credits. Add more using the link"),
        (402, "Insufficient Balance"),
        (403, "Custom error: insufficient funds"),
        (403, "Your team has reached its monthly spending limit."),
        (500, "Insufficient balance, please topup your balance to continue using OneLLM"),
        (429, "insufficient_quota"),
    ],
)
def test_a_quota_that_is_used_up_is_a_balance_that_is_too_low(status: int, error: object) -> None:
    assert kind_of(status, error) is FailureKind.BALANCE_TOO_LOW


@pytest.mark.parametrize(
    "text",
    [
        "Rate limit exceeded.",
        "Rate limit reached for requests per minute: limit 3, used 3. Please try again in 20s.",
        "Quota exceeded for quota metric 'Generate requests' and limit 'Requests per minute' of service",
        "You exceeded your current quota. Quota exceeded for metric: requests, limit: 20. Please retry in 35.2s.",
        "You exceeded your current quota of 60 requests per minute.",
        "You exceeded your current quota (rate limit).",
        "Resource has been exhausted (e.g. check quota).",
        "You have exceeded the TPM quota",
        "Overloaded",
        "too many clients",
        "",
    ],
)
def test_a_quota_that_comes_back_is_a_rate_limit(text: str) -> None:
    assert kind_of(429, text) is FailureKind.RATE_LIMITED


def test_a_quota_with_a_time_to_return_is_a_rate_limit() -> None:
    error = {"message": "You exceeded your current quota"}
    assert kind_of(429, error) is FailureKind.BALANCE_TOO_LOW
    assert kind_of(429, error, Retry_After="x") is FailureKind.BALANCE_TOO_LOW
    assert kind_of(429, error, **{"Retry-After": "7"}) is FailureKind.RATE_LIMITED


OVERLOADS = [
    (401, "pool timed out while waiting for an open connection"),
    (401, "error communicating with database: Connection refused (os error 111)"),
    (401, "error returned from database: sorry, too many clients already"),
    (401, "error returned from database: no such table"),
    (401, "Custom error: the database is locked"),
    (500, "pool timed out while waiting for an open connection"),
    (500, "FATAL: too many connections for role"),
    (500, "FATAL: remaining connection slots are reserved"),
    (500, "Database unavailable"),
    (500, "The model is overloaded. Please try again later."),
    (500, {"type": "overloaded_error", "message": "x"}),
    (503, "Overloaded"),
    (503, "The server is currently overloaded with other requests."),
    (529, ""),
    (529, "anything"),
]


@pytest.mark.parametrize(("status", "error"), OVERLOADS)
def test_a_database_without_connections_and_an_overloaded_service_are_overload(status: int, error: object) -> None:
    found = error_for(status, {"Retry-After": "1"}, {"error": error}, b"", model="GPT-5", now=0.0)
    assert found.kind is FailureKind.OVERLOADED
    assert type(found) is InternalServerError, "nobody gives up a key for it"
    assert (found.status_code, found.retry_after, found.billing) == (status, 1, Billing.NOT_BILLED)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (401, "Custom error: No such user was found", FailureKind.UNKNOWN_KEY),
        (401, "No such user was found in the database", FailureKind.UNKNOWN_KEY),
        (401, "Invalid key: the database does not know it", FailureKind.UNKNOWN_KEY),
        (401, "Overloaded", FailureKind.UNKNOWN_KEY),
        (400, "Cannot parse 'pool timed out'", FailureKind.REJECTED),
        (422, "unknown variant `database`", FailureKind.REJECTED),
        (403, "database", FailureKind.REJECTED),
        (404, "no such database", FailureKind.WRONG_ADDRESS),
        (429, "too many clients", FailureKind.RATE_LIMITED),
        (500, "the bridge was overloaded by trucks", FailureKind.SERVER_ERROR),
        (500, "missing field `id` at line 1 column 42", FailureKind.SERVER_ERROR),
        (502, "pool timed out", FailureKind.GATEWAY_ERROR),
        (504, "Overloaded", FailureKind.GATEWAY_ERROR),
    ],
)
def test_other_texts_and_statuses_are_no_overload(status: int, text: str, kind: FailureKind) -> None:
    assert kind_of(status, text) is kind


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, "Insufficient balance"),
        (400, "insufficient funds"),
        (429, "You exceeded your current quota"),
        (500, "pool timed out"),
        (401, "database"),
        (503, "the model is overloaded"),
    ],
)
def test_words_of_the_request_that_an_error_repeats_do_not_tell_what_went_wrong(status: int, words: str) -> None:
    asked = as_json({"messages": [{"role": "user", "content": f"What does '{words.upper()}' mean?"}]})
    assert kind_of(status, f"cannot answer: {words}", asked) is kind_of_status(status)
    assert kind_of(status, f"cannot answer: {words}") is not kind_of_status(status)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (500, "Insufficient balance, please topup your balance to continue using OneLLM", FailureKind.BALANCE_TOO_LOW),
        (401, "pool timed out while waiting for an open connection", FailureKind.OVERLOADED),
        (401, "error communicating with database: closed", FailureKind.OVERLOADED),
    ],
)
def test_what_the_service_says_beyond_the_words_of_the_request_still_counts(
    status: int, text: str, kind: FailureKind
) -> None:
    asked = as_json({"messages": [{"role": "user", "content": "insufficient balance, pool timed out, database?"}]})
    assert kind_of(status, text, asked) is kind


@pytest.mark.parametrize(
    ("milliseconds", "seconds", "wait"),
    [
        ("1250", "9", 1.25),
        ("0", None, 0.0),
        ("0.5", None, 0.0005),
        ("1e9", "9", 9.0),
        ("-1", "9", 9.0),
        ("999999999", "9", 300.0),
        ("x", None, None),
        ("", "1.5", 1.5),
    ],
)
def test_milliseconds_go_before_seconds_where_they_are_a_number(
    milliseconds: str, seconds: str | None, wait: float | None
) -> None:
    headers = {"retry-after-ms": milliseconds} | ({} if seconds is None else {"Retry-After": seconds})
    assert error_for(503, headers, None, b"", model="GPT-5", now=0.0).retry_after == wait  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [408, 425])
def test_a_request_that_was_not_waited_for_may_be_billed_and_is_worth_another_attempt(status: int) -> None:
    error = error_for(status, {"Retry-After": "2"}, None, b"", model="GPT-5", now=0.0)
    assert type(error) is APIStatusError
    assert (error.kind, error.billing, error.retryable) == (
        FailureKind.REQUEST_TIMEOUT,
        Billing.POSSIBLY_BILLED,
        True,
    )
    assert error.retry_after == 2


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b"404: Not Found", "404: Not Found."),
        (404, b"404 page not found", "404 page not found."),
        (502, b"<title>502 Bad Gateway</title>", "502 Bad Gateway."),
        (404, b"4041 files", "404 4041 files."),
        (404, b"", "404 Not Found."),
        (499, b"", "499."),
        (500, b'{"error":{"type":"api_error"}}', "500 api_error."),
        (422, b'{"detail":[{"loc":["body","messages",0,"role"],"msg":"bad"}]}', "422 messages.0.role: bad."),
        (400, b'{"errors":[{"message":"a"},{"message":"b"}]}', "400 a; b."),
    ],
)
def test_the_message_says_the_status_once(status: int, body: bytes, message: str) -> None:
    with pytest.raises(APIError) as caught:
        decode(body, status)
    assert caught.value.message == message


def test_a_redirect_tells_where_without_what_may_be_secret() -> None:
    for location, place in {
        "https://user:secret@llm.example/api?key=secret#secret": "https://llm.example/api",
        "/login?next=secret": "/login",
        "http://[secret": "somewhere else",
        "": "somewhere else",
    }.items():
        error = error_for(307, {"location": location}, None, b"", model="GPT-5", now=0.0)
        assert error.message == f"307 Redirected to {place}."


@pytest.mark.parametrize(
    ("status", "body", "asked", "advice"),
    [
        (422, "missing field `endpoint` at line 1", b"{}", "--dialect backend or ONELLM_DIALECT=backend"),
        (422, {"detail": [{"loc": ["body", "endpoint"], "msg": "Field required"}]}, b"{}", "--dialect backend"),
        (422, "unknown variant `GPT-5-Mini`, expected one of", b"{}", "--dialect backend"),
        (422, "unknown field `endpoint`", b'{"endpoint":"u"}', "--dialect documented"),
        (400, "Unrecognized request argument supplied: endpoint", b'{"endpoint":"u"}', "--dialect documented"),
        (
            422,
            {
                "detail": [
                    {"type": "extra_forbidden", "loc": ["body", "endpoint"], "msg": "Extra inputs are not permitted"}
                ]
            },
            b'{"endpoint":"u"}',
            "--dialect documented",
        ),
        (422, {"error": "Unknown model 'GPT-5-mini'. Did you mean 'GPT-5-Mini'?"}, b'{"endpoint":"u"}', "'GPT-5-Mini'"),
        (422, {"error": "Unknown model 'GPT-5-mini'."}, b"{}", ""),
        (422, "unknown field `endpoint`", b"{}", ""),
        (422, "unknown field `endpoints_of_yours`", b'{"endpoint":"u"}', ""),
        (422, "x", b'{"endpoint":"u"}', ""),
    ],
)
def test_a_rejection_for_the_wrong_dialect_names_the_cure(status: int, body: object, asked: bytes, advice: str) -> None:
    raw = body.encode() if isinstance(body, str) else as_json(body)
    with pytest.raises(APIStatusError) as caught:
        decode_reply(status, {}, raw, model="GPT-5", now=0.0, asked=asked)
    assert advice in caught.value.advice
    assert bool(caught.value.advice) is bool(advice)


def test_lone_surrogates_survive_as_they_came() -> None:
    response = decode(b'{"content":"smile \\ud83d","usage":null}')
    assert response.content == "smile \ud83d"
    assert parse_json(dump_json(response.to_dict()))["content"] == "smile \ud83d"


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
    error = error_for(status, {}, None, b"", model="GPT-5", now=0)
    assert isinstance(error, InternalServerError)
    unbilled = status in {500, 501, 505, 506, 508, 510, 511, 529}
    assert error.billing is (Billing.NOT_BILLED if unbilled else Billing.POSSIBLY_BILLED)
    assert error.retryable is (status in {500, 529} or not unbilled)


@pytest.mark.parametrize("status", sorted({*range(300, 500)} - {408, 425, 429}))
def test_no_refused_request_is_repeated(status: int) -> None:
    error = error_for(status, {}, None, b"", model="GPT-5", now=0)
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
        ("1.5", 1.5),
        ("0.25", 0.25),
        (".5", 0.5),
        ("1.", 1.0),
        ("300.5", 300.0),
        ("1.5.2", None),
        ("1,5", None),
        ("-0.5", None),
        (".", None),
        ("1.5s", None),
        ("Sun Sep  9 01:47:40 2001", 60.0),
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
