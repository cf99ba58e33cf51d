# ruff: noqa: S301  # our own pickles
import copy
import pickle

import pytest

from onellm_async import errors
from onellm_async.chat import ChatOutcome, ChatResponse
from onellm_async.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    BatchError,
    Billing,
    BudgetExceededError,
    CircuitOpenError,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    InternalServerError,
    InvalidRequestError,
    OneLLMError,
    QueueFullError,
    RateLimitError,
    RequestCancelledError,
    ResponseDecodeError,
    StructureError,
)
from onellm_async.failure_kinds import FailureKind

STATUS_CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, errors.APIStatusError | ResponseDecodeError)
]


STATUS = {
    "BadRequestError": 400,
    "AuthenticationError": 401,
    "PermissionDeniedError": 403,
    "NotFoundError": 404,
    "MethodNotAllowedError": 405,
    "UnprocessableEntityError": 422,
    "InternalServerError": 500,
}


def one_of_each() -> list[OneLLMError]:
    return [
        OneLLMError("it broke", advice="mend it"),
        ConfigurationError("bad setting"),
        InvalidRequestError("bad prompt"),
        ClientClosedError("closed"),
        RequestCancelledError("stopped"),
        DeadlineExceededError("late", billing=Billing.POSSIBLY_BILLED),
        QueueFullError("full", pending=3, retry_after=1.5),
        CircuitOpenError("open", retry_after=15.0),
        BudgetExceededError("dear"),
        BatchError("stuck"),
        StructureError("unfit", response=ChatResponse("{}"), problems=("$: it is empty",)),
        APIError("failed"),
        APIConnectionError("refused", kind=FailureKind.NOT_TRUSTED),
        APITimeoutError("slow"),
        *(cls("no", status_code=418, body="teapot", advice="drink coffee") for cls in STATUS_CLASSES),
    ]


def with_context(error: OneLLMError) -> OneLLMError:
    error.request = "request 17 (GPT-5-Mini)"
    error.attempts = 3
    error.elapsed = 1.25
    if isinstance(error, APIError):
        error.possibly_billed = 2
        error.stop_reason = "after 3 attempts"
    if isinstance(error, RateLimitError | InternalServerError):
        error.retry_after = 7.0
    return error


def test_every_error_class_is_tried_below() -> None:
    known = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, OneLLMError)}
    public = {cls for cls in known if not cls.__name__.startswith("_")}
    assert public == {type(error) for error in one_of_each()}
    assert {cls.__name__ for cls in public} | {"Billing", "FailureKind"} == set(errors.__all__)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("error", one_of_each(), ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_and_copying_with_all_they_know(error: OneLLMError, again) -> None:
    with_context(error)
    twin = again(error)
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert twin.args == error.args
    assert str(twin) == str(error)
    for name in ("billing", "retryable", "retry_after", "status_code", "body"):
        assert getattr(twin, name, None) == getattr(error, name, None)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_among_its_own_partial_outcomes_can_be_pickled_and_copied(again) -> None:
    error = AuthenticationError("no", status_code=401)
    error.partial_results = (ChatOutcome(0, "a", error=error),)
    twin = again(error)
    assert isinstance(twin, AuthenticationError)
    assert twin.status_code == 401
    assert len(twin.partial_results) == 1
    assert isinstance(twin.partial_results[0], ChatOutcome)
    assert isinstance(twin.partial_results[0].error, AuthenticationError)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (ConfigurationError, ValueError),
        (InvalidRequestError, ValueError),
        (DeadlineExceededError, TimeoutError),
        (APITimeoutError, TimeoutError),
    ],
)
def test_errors_that_python_has_a_word_for_are_caught_by_it(cls: type, builtin: type) -> None:
    assert issubclass(cls, builtin)


def test_a_message_tells_what_to_whom_how_often_and_what_to_do() -> None:
    error = with_context(InternalServerError("500 broken.", status_code=500, advice="Ask again later."))
    error.partial_results = (1, 2)
    assert str(error) == (
        "500 broken. [request 17 (GPT-5-Mini), 3 attempts, 1.2 s] Attempts that may be billed: 2."
        " Gave up after 3 attempts."
        " 2 outcomes were already there: see .partial_results. Ask again later."
    )


@pytest.mark.parametrize(("attempts", "words"), [(0, "never sent"), (1, "1 attempt,"), (2, "2 attempts,")])
def test_a_message_counts_attempts_in_words(attempts: int, words: str) -> None:
    error = with_context(ClientClosedError("closed"))
    error.attempts = attempts
    assert words in str(error)


def test_only_failures_that_prove_it_are_called_unbilled() -> None:
    billings = {cls.__name__: cls("x", status_code=STATUS.get(cls.__name__, 500)).billing for cls in STATUS_CLASSES}
    assert billings.pop("ResponseDecodeError") is Billing.POSSIBLY_BILLED
    assert billings.pop("RateLimitError") is Billing.NOT_PROCESSED
    assert set(billings.values()) == {Billing.NOT_BILLED}


def test_only_failures_that_can_pass_are_worth_a_repeat() -> None:
    errors_by_status = [cls("x", status_code=STATUS.get(cls.__name__, 400)) for cls in STATUS_CLASSES]
    retryable = {type(error).__name__ for error in errors_by_status if error.retryable}
    assert retryable == {"ResponseDecodeError", "RateLimitError", "InternalServerError"}
