"""What a client of the gateway is told of each failure."""

import pytest
from attrs import evolve

from onellm_async import (
    APIConnectionError,
    AuthenticationError,
    BudgetExceededError,
    CircuitOpenError,
    ClientClosedError,
    DeadlineExceededError,
    FailureKind,
    InsufficientBalanceError,
    InvalidRequestError,
    Limits,
    OneLLMError,
    QueueFullError,
    UnprocessableEntityError,
)
from onellm_async.gateway.error_replies import _STATUS, seconds_until_room, translate_error
from onellm_async.limits.snapshot import empty_snapshot

SNAPSHOT = evolve(empty_snapshot(Limits()), rate=60.0, level=1, queued={"interactive": 0, "default": 100, "batch": 0})


def reply_to(error: OneLLMError, **attributes: object):
    for name, value in attributes.items():
        setattr(error, name, value)
    return translate_error(error, SNAPSHOT, max_wait=40)


def test_every_kind_of_failure_has_a_row():
    assert set(_STATUS) == set(FailureKind)


@pytest.mark.parametrize("kind", FailureKind)
def test_no_failure_is_passed_on_as_a_429_and_all_have_the_shape(kind):
    error = UnprocessableEntityError("x", status_code=422, kind=kind) if kind is FailureKind.REJECTED else None
    reply = reply_to(error or OneLLMError("x", kind=kind))
    assert 400 <= reply.status < 600
    assert reply.status != 429
    assert set(reply.body()["error"]) == {"message", "type", "param", "code"}


def test_a_full_queue_and_an_open_circuit_say_when_to_come_back():
    full = reply_to(QueueFullError("Queue full.", pending=5, retry_after=12.3))
    assert (full.status, full.code, full.all_headers()["Retry-After"]) == (503, "queue_full", "13")
    circuit = reply_to(CircuitOpenError("Circuit open.", retry_after=0.2))
    assert (circuit.status, circuit.code, circuit.all_headers()["Retry-After"]) == (503, "circuit_open", "1")
    assert full.all_headers()["x-should-retry"] == "false"


def test_a_deadline_is_a_503_while_nothing_was_sent_and_a_504_after():
    shed = reply_to(DeadlineExceededError("It cannot be met."))
    assert (shed.status, shed.all_headers()["Retry-After"]) == (503, "60")  # 100 wait at 1/s; 40 s are allowed
    late = reply_to(DeadlineExceededError("It passed."), attempts=1, possibly_billed=1)
    assert (late.status, late.retry_after) == (504, None)
    assert "may be billed: 1" in late.message


def test_errors_of_the_request_keep_their_status():
    reply = reply_to(UnprocessableEntityError("unknown variant", status_code=422))
    assert (reply.status, reply.type) == (422, "invalid_request_error")


def test_the_key_of_the_gateway_is_not_the_fault_of_its_user():
    reply = reply_to(AuthenticationError("No such user.", status_code=401))
    assert (reply.status, reply.code) == (502, "onellm_key_rejected")
    assert "key of the gateway" in reply.message


def test_money_is_a_402():
    assert reply_to(InsufficientBalanceError("Insufficient balance", status_code=500)).status == 402
    assert reply_to(BudgetExceededError("Cost cap reached.")).code == "max_cost_reached"


def test_a_shutdown_may_be_retried_at_once_if_nothing_was_sent():
    reply = reply_to(ClientClosedError("The client was closed."))
    assert (reply.status, reply.all_headers()["x-should-retry"]) == (503, "true")
    lost = reply_to(ClientClosedError("The client was closed."), possibly_billed=1)
    assert lost.all_headers()["x-should-retry"] == "false"


def test_an_unusable_value_names_its_field():
    reply = reply_to(InvalidRequestError("stop_sequences is 5; it must be strings."))
    assert (reply.status, reply.param) == (400, "stop")
    assert reply_to(InvalidRequestError("A message's role is 5.")).param == "messages"
    assert reply_to(InvalidRequestError("Something else.")).param is None


def test_an_unreachable_service_is_a_502():
    assert reply_to(APIConnectionError("No connection.", kind=FailureKind.CANNOT_CONNECT)).status == 502


def test_the_time_until_there_is_room_follows_from_queue_and_rate():
    assert seconds_until_room(SNAPSHOT, 40) == 60
    assert seconds_until_room(SNAPSHOT, 500) == 1
    assert seconds_until_room(evolve(SNAPSHOT, rate=None), 40) == 1
    assert seconds_until_room(evolve(SNAPSHOT, participants=2), 40) == 160
    assert seconds_until_room(evolve(SNAPSHOT, retry_after=30.0), 40) == 90
