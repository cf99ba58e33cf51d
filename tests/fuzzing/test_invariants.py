"""Each invariant is found broken where it is, in traces made by hand and in runs of a broken client."""

import pytest
from attrs import evolve

from onellm_async.chat import ChatOutcome, ChatResponse
from onellm_async.errors import APIConnectionError, APIStatusError, FailureKind
from onellm_async.events import Granted, Queued, RateLimited, Retrying, Sent
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.policy import Limits
from onellm_async.retry import RetryPolicy
from onellm_async.server.settings import Faults
from onellm_async.simulation import Pause, Retune, Scenario
from tests.fuzzing.invariants import Violation, violations
from tests.fuzzing.observed_run import observe
from tests.fuzzing.trace import (
    Cancelled,
    Finding,
    Paused,
    RequestSent,
    ResponseReceived,
    Resumed,
    Retuned,
    Trace,
    TrueLimit,
)


def trace(*events, **changes):
    plain = Trace(
        limits=Limits(max_concurrency=2, requests_per_minute=60, burst=1),
        retry=RetryPolicy(max_attempts=2),
        true_limit=TrueLimit(1.0, 1.0),
        events=events,
        deadlines={},
        singles=frozenset(),
        prompts=(),
        outcomes=(),
        chat_answers=(),
        billed={},
        state_mismatches=(),
        missed_wakeups=(),
        leaks=(),
        finished=True,
    )
    return evolve(plain, **changes)


def attempt(request, at, until=None, attempt=1):
    until = at if until is None else until
    return (
        Granted(request, "m", at, 0.0),
        Sent(request, "m", at, attempt),
        RequestSent(request, "m", at),
        ResponseReceived(request, "m", until, arrived=True),
    )


def queued(request, at, lane="batch"):
    return Queued(request, "m", at, lane)


def failure():
    return APIConnectionError("reset")


def overload():
    return APIStatusError("529 Overloaded.", status_code=529, kind=FailureKind.OVERLOADED)


def outcome(index, prompt, content):
    return ChatOutcome(index, prompt, ChatResponse(content))


BROKEN = {
    "sends beyond the bucket": (1, trace(*attempt(1, 0.0), *attempt(2, 0.1), *attempt(3, 0.2))),
    "more in flight than slots": (2, trace(*(RequestSent(n, "m", 0.0) for n in range(3)), true_limit=None)),
    "a timer that is left": (2, trace(leaks=["1 timers are left"])),
    "a slot without a request": (2, trace(state_mismatches=[Finding(1.0, "1 slots are taken by 0 requests")])),
    "a request without a permit": (3, trace(RequestSent(1, "m", 0.0), ResponseReceived(1, "m", 0.0, arrived=True))),
    "a grant that is never used": (3, trace(Granted(1, "m", 0.0, 0.0))),
    "overtaking": (4, trace(queued(1, 0.0), queued(2, 0.0), *attempt(2, 1.0), *attempt(1, 9.0))),
    "a request with a 429 that loses its place": (
        4,
        trace(
            queued(1, 0.0),
            *attempt(1, 0.0),
            queued(2, 0.1),
            RateLimited(1, "m", 0.2, None),
            queued(1, 0.2),
            *attempt(2, 5.0),
            *attempt(1, 9.0),
        ),
    ),
    "time that passes for nothing": (5, trace(missed_wakeups=[Finding(1.0, "1 s pass")])),
    "a cancelled request that goes on": (6, trace(Cancelled(1, "", 0.0, queued=True), *attempt(1, 1.0))),
    "a send within Retry-After": (7, trace(RateLimited(1, "m", 0.0, 30.0), *attempt(2, 29.0))),
    "a send after the deadline": (7, trace(*attempt(1, 5.0), deadlines={1: 4.0})),
    "one attempt too many": (8, trace(Retrying(1, "m", 0.0, 2, 0.1, failure()))),
    "one attempt too many, after overloads": (
        8,
        trace(
            *attempt(1, 0.0),
            Retrying(1, "m", 0.1, 1, 0.1, overload()),
            *attempt(1, 0.2),
            Retrying(1, "m", 0.3, 2, 0.1, overload()),
        ),
    ),
    "an unreported bill": (
        8,
        trace(prompts=["a"], outcomes=[outcome(0, "a", "a")], billed={"a": 2}),
    ),
    "the answer of another": (9, trace(prompts=["a"], outcomes=[outcome(0, "a", "b")])),
    "no answer": (9, trace(prompts=["a"])),
    "two answers": (9, trace(prompts=["a"], outcomes=[outcome(0, "a", "a")] * 2)),
    "no end": (10, trace(finished=False)),
    "a send while paused": (11, trace(Paused(0, "", 1.0), *attempt(1, 2.0), Resumed(0, "", 3.0))),
    "more in flight than the new slots": (
        2,
        trace(
            RequestSent(1, "m", 0.0),
            Retuned(0, "", 1.0, Limits(max_concurrency=1, requests_per_minute=60, burst=1)),
            RequestSent(2, "m", 2.0),
            true_limit=None,
        ),
    ),
    "a storm": (13, trace(RequestSent(1, "m", 0.0), *(RateLimited(n, "m", 11 + n / 12, None) for n in range(12)))),
    "tokens that were not there": (12, trace(token_errors=[Finding(1.0, "sent without tokens", 1)])),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_invariant_is_found(name):
    invariant, run = BROKEN[name]
    assert any(found.invariant == invariant for found in violations(run))


def test_nothing_is_wrong_with_a_good_run():
    events = (
        queued(1, 0.0),
        *attempt(1, 0.0),
        queued(2, 0.1),
        Paused(0, "", 0.2),
        Resumed(0, "", 0.9),
        Retuned(0, "", 1.0, Limits(max_concurrency=1, requests_per_minute=60, burst=1)),
        *attempt(2, 1.1),
    )
    assert violations(trace(*events, prompts=["a"], outcomes=[outcome(0, "a", "a")], billed={"a": 1})) == []


def test_overloads_of_requests_that_were_in_flight_at_an_overload_are_no_attempts():
    events = [
        *attempt(1, 0.0),
        Sent(2, "m", 0.0, 1),
        Retrying(1, "m", 0.1, 1, 0.1, overload()),
        Retrying(2, "m", 0.2, 1, 0.1, overload()),
        Sent(2, "m", 0.3, 2),
        Retrying(2, "m", 0.4, 2, 0.1, overload()),
    ]
    assert not [found for found in violations(trace(*events)) if found.invariant == 8]
    again = [Sent(2, "m", 0.5, 3), Retrying(2, "m", 0.6, 3, 0.1, overload())]
    assert [found.at for found in violations(trace(*events, *again)) if found.invariant == 8] == [0.6]


def test_429s_are_no_storm_while_a_client_searches_or_while_requests_are_accepted():
    events = [
        RequestSent(1, "m", 0.0),
        *(RateLimited(number, "m", 9 + number / 10, None) for number in range(10)),
        *(RateLimited(number, "m", 20 + number / 10, None) for number in range(10)),
    ]
    accepted_at = [20.25, 20.55, 20.85]
    assert not [found for found in violations(trace(*events, accepted_at=accepted_at)) if found.invariant == 13]
    assert [found.at for found in violations(trace(*events)) if found.invariant == 13]
    fixed = Limits(max_concurrency=2, requests_per_minute=60, burst=1, adaptive="off")
    assert not [found for found in violations(trace(*events, limits=fixed)) if found.invariant == 13]
    many = Limits(max_concurrency=50, requests_per_minute="auto")
    storm = [RequestSent(1, "m", 0.0), *(RateLimited(number, "m", 20 + number / 50, None) for number in range(36))]
    assert [found.at for found in violations(trace(*storm, limits=many)) if found.invariant == 13] == [20.68, 20.7]
    few = Limits(max_concurrency=2, requests_per_minute="auto")
    assert next(found.at for found in violations(trace(*storm, limits=few)) if found.invariant == 13) == 20.18
    declared = Limits(max_concurrency=50, requests_per_minute=60, burst=1)
    assert not [found for found in violations(trace(*storm, limits=declared)) if found.invariant == 13]


def test_more_in_flight_than_new_slots_is_no_error_as_long_as_nothing_is_added():
    events = [
        RequestSent(1, "m", 0.0),
        RequestSent(2, "m", 0.0),
        Retuned(0, "", 1.0, Limits(max_concurrency=1, requests_per_minute=60, burst=1)),
    ]
    ended = [
        ResponseReceived(1, "m", 2.0, arrived=True),
        ResponseReceived(2, "m", 2.0, arrived=True),
        RequestSent(3, "m", 2.0),
    ]
    assert not [found for found in violations(trace(*events, *ended, true_limit=None)) if found.invariant == 2]


def test_a_violation_names_its_request_and_its_time():
    run = trace(*attempt(1, 0.0), Retrying(7, "m", 3.25, 2, 0.1, failure()), prompts=["a"], requests={"a": 1})
    retried, missing = violations(run)
    assert str(retried) == "(8) request 7, 3.250 s: retried after 2 attempts"
    assert str(missing) == "(9) request 1, 0.000 s: prompt a has no outcome"
    assert (
        str(Violation(10, 9.5, "3 prompts had no outcome", client=2))
        == "(10) client 2, 9.500 s: 3 prompts had no outcome"
    )


# A broken client.

DECLARED = Limits(max_concurrency=20, requests_per_minute=600, burst=10)
TOKENS = evolve(DECLARED, tokens_per_minute=3000)


def declared(limits=DECLARED, **scenario):
    """One client that knows the limit."""
    faults = Faults(latency=1.0, latency_sigma=0.3)
    return Scenario(limits=limits, requests_per_minute=600, burst=10, faults=faults, **scenario)


@pytest.mark.parametrize(
    ("broken", "instead", "invariant", "scenario"),
    [
        ("gate.Gate.pause", lambda gate: None, 2, declared(prompts=60, controls=[Pause(at=2, seconds=10)])),
        (
            "gate.Gate._update",
            lambda gate: setattr(gate, "opens_at", gate.expected_at),
            11,
            declared(prompts=60, controls=[Pause(at=2, seconds=10)]),
        ),
        (
            "admission.Admission.retune",
            lambda core, limits, rate, now: None,
            2,
            declared(prompts=60, controls=[Retune(at=2, limits=evolve(DECLARED, max_concurrency=1))]),
        ),
        (
            "dimensions.Tokens.settle",
            lambda tokens, ticket, used, now: None,
            12,
            declared(TOKENS, prompts=60),
        ),
        (
            "dimensions.Tokens.settle",
            lambda tokens, ticket, used, now: tokens.bucket.give_back(2 * (ticket.tokens - used), now),
            12,
            declared(TOKENS, prompts=60),
        ),
    ],
    ids=["a pause that is not heard", "sends while paused", "a deaf retune", "lost tokens", "tokens from nowhere"],
)
def test_a_broken_client_breaks_an_invariant(monkeypatch, broken, instead, invariant, scenario):
    monkeypatch.setattr(f"onellm_async.limits.{broken}", instead)
    assert any(found.invariant == invariant for found in observe(scenario).violations)


def test_requests_that_do_not_wait_for_their_tokens_break_an_invariant(monkeypatch):
    time_until = TokenBucket.time_until
    heedless = 3000.0

    def hasty(bucket, amount, now):
        return 0.0 if bucket.capacity == heedless else time_until(bucket, amount, now)

    monkeypatch.setattr(TokenBucket, "time_until", hasty)
    violations = observe(declared(TOKENS, prompts=60, max_prompt_length=2000)).violations
    assert any(found.invariant == 12 and "needed" in found.text for found in violations)


def test_a_limiter_that_forgets_a_slot_is_caught(monkeypatch):
    monkeypatch.setattr("onellm_async.limits.permit.Permit.release", lambda permit: None)
    faults = Faults(latency=1, reset_before_rate=0.2)
    scenario = Scenario(
        prompts=60,
        limits=Limits(max_concurrency=20, requests_per_minute=600, burst=40),
        requests_per_minute=600,
        faults=faults,
    )
    assert any(found.invariant == 2 for found in observe(scenario).violations)
