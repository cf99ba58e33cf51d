import json
import math

import pytest

from onellm_async import (
    BottleneckAnalysis,
    ChatOutcome,
    ChatRequest,
    ChatResponse,
    ClientClosedError,
    Message,
    RateLimitError,
    RateState,
    Snapshot,
    Usage,
)
from onellm_async.errors import ConfigurationError, InvalidRequestError
from onellm_async.serialization import from_dict

RESPONSE = ChatResponse("x", usage=Usage(1, 2), attempts=2, extra={"id": 1, "parts": ({"a": None},)})
VALUES = [
    RESPONSE,
    ChatResponse(""),
    Usage(),
    ChatOutcome(0, "hello", RESPONSE),
    ChatOutcome(
        1, [Message.user("a"), {"role": "user", "content": "b"}], error=RateLimitError("slow", status_code=429)
    ),
    ChatOutcome(2, ChatRequest("GPT-5", "Hi", tools=[{"type": "function"}], stop_sequences=["."])),
    Snapshot(max_concurrency=3, next_in=math.inf),
    RateState(rate=0.5, burst=40, high=math.inf),
    BottleneckAnalysis(1.0, {"rate": 1.0}, 0.0, 0.0, "ok"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_value_becomes_json_and_comes_back_from_it_unchanged(value) -> None:
    saved = value.to_dict()
    assert json.loads(json.dumps(saved, allow_nan=False)) == saved


def test_an_answer_becomes_json_without_what_is_not_set() -> None:
    assert RESPONSE.to_dict() == {
        "content": "x",
        "usage": {"input_tokens": 1, "output_tokens": 2},
        "extra": {"id": 1, "parts": [{"a": None}]},
        "attempts": 2,
        "rate_limited": 0,
        "possibly_billed": 0,
        "corrections": 0,
    }
    assert ChatResponse("").to_dict().keys() == {
        "content",
        "attempts",
        "rate_limited",
        "possibly_billed",
        "corrections",
    }


def test_an_answer_read_from_json_equals_the_one_that_was_written() -> None:
    response = ChatResponse("x", usage=Usage(1, 2, 3), cost=0.5, extra={"tool_calls": [{"id": "1"}]})
    assert ChatResponse.from_dict(json.loads(json.dumps(response.to_dict()))) == response


def test_an_error_in_an_outcome_names_its_type_and_what_became_of_the_bill() -> None:
    error = RateLimitError("Slow down.", status_code=429, advice="Wait.")
    error.retry_after, error.attempts, error.request = 2.0, 1, "request 7 (GPT-5)"
    assert ChatOutcome(3, "x", error=error).to_dict()["error"] == {
        "type": "RateLimitError",
        "message": "Slow down.",
        "advice": "Wait.",
        "kind": "rate limited",
        "billing": "not processed",
        "status_code": 429,
        "retry_after": 2.0,
        "request": "request 7 (GPT-5)",
        "attempts": 1,
        "rate_limited": 0,
        "possibly_billed": 0,
        "elapsed": 0.0,
    }
    assert "billing" not in ClientClosedError("x").to_dict()


def test_an_answer_as_deep_as_json_may_be_becomes_json() -> None:
    deep = None
    for _ in range(900):
        deep = [deep]
    assert ChatResponse("x", extra={"deep": deep}).to_dict()["extra"]["deep"] == deep


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "response.content is missing."),
        ({"content": 3}, "response.content is of type int; it must be a string."),
        ({"content": "x", "cost": "1"}, "response.cost is '1'; it must be a finite number."),
        ({"content": "x", "cost": True}, "response.cost is True; it must be a finite number."),
        ({"content": "x", "cost": math.nan}, "response.cost is nan; it must be a finite number."),
        ({"content": "x", "attempts": 1.5}, "response.attempts is 1.5; it must be an integer."),
        ({"content": "x", "usage": 3}, "response.usage is of type int; it must be an object."),
        (
            {"content": "x", "usage": {"input_tokens": "3"}},
            "response.usage.input_tokens is '3'; it must be an integer.",
        ),
        ({"content": "x", "cotent": 1}, "response has the unknown field 'cotent'."),
        ({"content": "x", "extra": 3}, "response.extra cannot be read: 'int' object has no attribute 'items'."),
        ([], "response is of type list; it must be what to_dict returned."),
        (None, "response is None; it must be what to_dict returned."),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_path_of_the_field(saved, message) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatResponse.from_dict(saved)
    assert caught.value.message == message


def test_a_value_that_its_class_refuses_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^turn cannot be read: A message's role is 'nix'; it must be one of"):
        from_dict(Message, {"role": "nix", "content": "x"}, name="turn", error=ConfigurationError)
