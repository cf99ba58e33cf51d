"""The table of failure kinds, cell by cell, as its readers take it."""

from pathlib import Path

import pytest

from onellm_async.chat import ChatResponse
from onellm_async.errors import (
    APIConnectionError,
    APIStatusError,
    BatchError,
    BudgetExceededError,
    CircuitOpenError,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    InsufficientBalanceError,
    InvalidRequestError,
    OneLLMError,
    QueueFullError,
    RateLimitError,
    RequestCancelledError,
    ResponseDecodeError,
    StructureError,
)
from onellm_async.failure_kinds import RULES, FailureKind, in_context, kind_of_status


def test_the_documented_table_is_the_one_that_is_used() -> None:
    rows = [
        f"| `{kind.name}` | {rule.retry} | {'yes' if rule.budgeted else 'no'} | {rule.attempt} | {rule.breaker} |"
        f" {rule.gives_back} | {rule.billing.value} | {rule.every_prompt} | {'yes' if rule.new_key else 'no'} |"
        for kind, rule in RULES.items()
    ]
    assert "\n".join(rows) in (Path(__file__).parents[2] / "docs/architecture.md").read_text("utf-8")


def test_every_kind_has_one_rule() -> None:
    assert set(RULES) == set(FailureKind)


@pytest.mark.parametrize("kind", FailureKind, ids=lambda kind: kind.name)
def test_what_was_possibly_billed_gives_nothing_back(kind: FailureKind) -> None:
    rule = RULES[kind]
    assert (rule.billing.name == "POSSIBLY_BILLED") <= (rule.gives_back == "nothing")


@pytest.mark.parametrize("kind", FailureKind, ids=lambda kind: kind.name)
def test_what_never_reached_the_service_does_not_close_the_circuit(kind: FailureKind) -> None:
    rule = RULES[kind]
    assert not (rule.gives_back == "everything" and rule.breaker == "closes")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OneLLMError("x"), FailureKind.NOT_SENT),
        (ConfigurationError("x"), FailureKind.LOCAL),
        (InvalidRequestError("x"), FailureKind.INVALID),
        (ClientClosedError("x"), FailureKind.CLOSED),
        (RequestCancelledError("x"), FailureKind.CANCELLED),
        (DeadlineExceededError("x"), FailureKind.DEADLINE),
        (QueueFullError("x", pending=1, retry_after=1.0), FailureKind.NOT_SENT),
        (CircuitOpenError("x", retry_after=1.0), FailureKind.NOT_SENT),
        (BudgetExceededError("x"), FailureKind.RUN_STOPPED),
        (BatchError("x"), FailureKind.RUN_STOPPED),
        (StructureError("x", response=ChatResponse(""), problems=()), FailureKind.UNFIT_ANSWER),
        (APIConnectionError("x"), FailureKind.CONNECTION_LOST),
        (ResponseDecodeError("x", status_code=200), FailureKind.NOT_JSON),
        (RateLimitError("x", status_code=429), FailureKind.RATE_LIMITED),
        (InsufficientBalanceError("x", status_code=500), FailureKind.BALANCE_TOO_LOW),
        (APIStatusError("x", status_code=418), FailureKind.REJECTED),
        (APIStatusError("x", status_code=529), FailureKind.OVERLOADED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, OneLLMError) else value.name,
)
def test_every_error_has_one_kind(error: OneLLMError, kind: FailureKind) -> None:
    assert error.kind is kind
    assert error.affects_every_prompt is (RULES[kind].every_prompt == "yes")


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ((401,), FailureKind.UNKNOWN_KEY),
        ((301, 302, 303, 307, 308, 404, 405), FailureKind.WRONG_ADDRESS),
        ((408, 425), FailureKind.REQUEST_TIMEOUT),
        ((429,), FailureKind.RATE_LIMITED),
        ((400, 402, 403, 409, 413, 415, 418, 422, 451, 499), FailureKind.REJECTED),
        ((500,), FailureKind.SERVER_ERROR),
        ((501, 505, 506, 508, 510, 511), FailureKind.NOT_IMPLEMENTED),
        ((502, 503, 504, 520, 599), FailureKind.GATEWAY_ERROR),
        ((529,), FailureKind.OVERLOADED),
        ((0, 100, 199, 600, 999), FailureKind.NOT_JSON),
    ],
    ids=lambda value: value.name if isinstance(value, FailureKind) else "",
)
def test_every_status_has_one_kind(statuses: tuple[int, ...], kind: FailureKind) -> None:
    assert {kind_of_status(status) for status in statuses} == {kind}


@pytest.mark.parametrize("key_accepted", [False, True])
def test_a_connection_that_never_worked_is_told_from_one_that_did(key_accepted: bool) -> None:
    kind = FailureKind.CANNOT_CONNECT
    assert in_context(kind, answered=False, key_accepted=key_accepted) is FailureKind.CANNOT_CONNECT
    assert in_context(kind, answered=True, key_accepted=key_accepted) is FailureKind.CANNOT_RECONNECT


@pytest.mark.parametrize("answered", [False, True])
def test_a_key_that_was_never_accepted_is_told_from_one_that_was(answered: bool) -> None:
    kind = FailureKind.UNKNOWN_KEY
    assert in_context(kind, answered=answered, key_accepted=False) is FailureKind.UNKNOWN_KEY
    assert in_context(kind, answered=answered, key_accepted=True) is FailureKind.REVOKED_KEY
