# ruff: noqa: PT017  # an error is one of several right results
import json
from pathlib import Path

import attrs
import pytest

from onellm_async import errors
from onellm_async.errors import APIError, OneLLMError
from onellm_async.wire import Dialect, decode_reply, encode_request, parse_json, request_from_body

SAMPLES = Path(__file__).parents[1] / "samples"
REPLIES = sorted(path.parent for path in SAMPLES.glob("*/reply.json"))
REQUESTS = sorted(path.parent for path in SAMPLES.glob("*/request.json"))
LAST_DAY_OF_1999 = 946_598_400.0


def test_every_sample_is_tried() -> None:
    assert len(REPLIES) + len(REQUESTS) == len(list(SAMPLES.iterdir()))
    assert len(REPLIES) > 70


@pytest.mark.parametrize("case", REPLIES, ids=lambda case: case.name)
def test_a_recorded_reply_is_understood(case: Path) -> None:
    reply = json.loads((case / "reply.json").read_text(encoding="utf-8"))
    expected = json.loads((case / "expected.json").read_text(encoding="utf-8"))
    body = (case / "body.raw").read_bytes()
    try:
        response = decode_reply(reply["status"], reply["headers"], body, model=reply["model"], now=LAST_DAY_OF_1999)
    except APIError as error:
        assert "error" in expected, error
        assert_error(error, expected, body)
    else:
        assert "response" in expected, response
        seen = attrs.asdict(response, filter=lambda field, _: field.name not in {"parsed", "corrections"})
        seen["cost"] = pytest.approx(seen["cost"]) if seen["cost"] is not None else None
        if "score" in seen["extra"]:
            seen["extra"] = {**seen["extra"], "score": str(seen["extra"]["score"])}
        assert seen == {**expected["response"], "attempts": 1, "rate_limited": 0, "possibly_billed": 0}


def assert_error(error: APIError, expected: dict[str, object], body: bytes) -> None:
    assert type(error).__name__ == expected["error"]
    assert getattr(error, "status_code", None) == expected["status_code"]
    assert (error.billing.value, error.retryable) == (expected["billing"], expected["retryable"])
    assert expected["message"] in error.message  # type: ignore[operator]
    assert expected["advice"] in error.advice  # type: ignore[operator]
    assert getattr(error, "retry_after", None) == expected["retry_after"]
    assert getattr(error, "body", None) == body.decode("utf-8", "replace")[:500]
    assert len(error.message) < 700


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name)
def test_a_recorded_request_is_written_so(case: Path) -> None:
    given = json.loads((case / "request.json").read_text(encoding="utf-8"))
    expected = json.loads((case / "expected.json").read_text(encoding="utf-8"))
    try:
        body = encode_request(request_from_body(given["request"]), Dialect(given["dialect"]))
    except OneLLMError as error:
        assert "error" in expected, error
        assert type(error) is getattr(errors, expected["error"])
        assert expected["message"] in str(error)
    else:
        assert parse_json(body) == expected["body"]
