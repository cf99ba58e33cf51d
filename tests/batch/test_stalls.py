"""A stall counts only time in which something waited for the service, and tells what it waited for."""

import asyncio

import pytest
from virtual_runs import BOOM, run

from onellm_async import Limits, Rate, RetryPolicy
from onellm_async.batch import HealthPolicy
from onellm_async.errors import APIConnectionError, FailureKind
from onellm_async.transport import RawReply

UNLIMITED = Limits.unlimited(48)
SOON = HealthPolicy(notify_after=4, stall_after=8)
REFUSED = "Connection refused by 127.0.0.1:9."


def answered(prompt, now):
    return None


def refused(prompt, now):
    return APIConnectionError(REFUSED, kind=FailureKind.CANNOT_CONNECT)


def test_a_producer_that_is_slow_is_no_stall():
    async def lines():
        yield "one"
        await asyncio.sleep(600)
        yield "two"

    ran = run(lines(), answered, limits=UNLIMITED, health=SOON)
    assert ran.report.complete
    assert ran.lines == ["0 answered", "1 answered"]
    assert ran.said == []


def test_the_own_declared_limits_are_no_stall():
    by_rate = run(["a", "b", "c"], answered, limits=Limits(requests_per_minute=1, burst=1), health=SOON)
    by_tokens = run(["a", "b", "c"], answered, limits=Limits(requests_per_minute=None,
                                                             tokens_per_minute=60), health=SOON)  # fmt: skip
    assert by_rate.report.complete
    assert by_rate.seconds > 100
    assert by_tokens.report.complete


@pytest.mark.parametrize("rate", ["auto", None])
def test_a_window_that_is_used_up_is_neither_a_stall_nor_an_outage(rate):
    limits = Limits(requests_per_minute=rate, rates=[Rate(3, per=1800, window=True)])
    policy = RetryPolicy(max_outage=600)
    failed = []

    def last_one_fails(prompt, now):
        failed.append(now)
        return BOOM if len(failed) == 3 else None

    ran = run(["a", "b", "c", "d"], last_one_fails, limits=limits, health=SOON, retry=policy)
    assert ran.report.complete
    assert ran.lines == ["0 answered", "1 answered", "2 answered", "3 answered"]
    assert 1800 < ran.seconds < 1860


def test_429s_without_end_are_a_stall_that_tells_their_text():
    reply = RawReply(429, {}, b'{"error": "slow down"}')
    ran = run(["a", "b"], lambda prompt, now: reply, health=HealthPolicy(notify_after=60, stall_after=600))
    assert not ran.report.complete
    told = str(ran.report.stopped_by)
    assert told.startswith("No answer for 10 min. ")
    assert "Last error: 429 slow down." in told
    assert any(said.startswith("No answer for 1 min. ") for said in ran.said)
    assert ran.seconds < 700


def test_a_prompt_that_takes_too_long_is_a_stall():
    ran = run(["a"], answered, limits=UNLIMITED, latency=100, health=SOON)
    waits = "1 in flight, 0 waiting for a retry."
    assert ran.said == [f"No answer for 4 s. {waits}", f"No answer for 8 s. {waits} Stopping: nothing more is sent."]
    told = "No answer for 8 s. 1 in flight, 0 waiting for a retry. Run the same command again to resume."
    assert str(ran.report.stopped_by) == told


def test_an_open_circuit_is_told_once_with_its_cause_and_the_next_attempt_and_again_with_a_stall():
    ran = run(
        [f"p {number}" for number in range(60)],
        lambda prompt, now: refused(prompt, now) if now > 5 else None,
        limits=Limits.unlimited(4),
        latency=1,
        health=HealthPolicy(notify_after=60, stall_after=90),
    )
    opened = [said for said in ran.said if said.startswith("Circuit open since ")]
    assert len(opened) == 1
    assert REFUSED in opened[0]
    assert "Next attempt in " in opened[0]
    quiet = next(said for said in ran.said if said.startswith("No answer for 1 min. Circuit open since "))
    assert REFUSED in quiet
    assert str(ran.report.stopped_by).startswith("No answer for 1 min 30 s. Circuit open since ")
    assert REFUSED in str(ran.report.stopped_by)


def test_a_circuit_that_closes_is_told():
    ran = run(
        [f"p {number}" for number in range(60)],
        lambda prompt, now: refused(prompt, now) if 5 < now < 60 else None,
        limits=Limits.unlimited(4),
        latency=1,
    )
    assert ran.report.complete
    assert ran.said[-1] == "Circuit closed: the service answers again."


def test_an_address_that_never_answered_ends_the_run_with_its_error():
    ran = run([f"p {number}" for number in range(60)], refused)
    assert ran.report.stopped_by.message == REFUSED
    assert ran.report.stopped_by.affects_every_prompt
    assert ran.report.counts.in_flight == ran.report.counts.failed == 0
    assert ran.seconds < 120


def test_a_service_that_answered_is_waited_for_as_long_as_the_retry_policy_says():
    ran = run(
        [f"p {number}" for number in range(60)],
        lambda prompt, now: refused(prompt, now) if now > 5 else None,
        limits=Limits.unlimited(4),
        latency=1,
        retry=RetryPolicy(max_outage=300),
    )
    assert ran.report.stopped_by.message == REFUSED
    assert ran.report.counts.answered > 0
    assert 300 < ran.seconds < 700


def test_a_prompt_that_deserves_a_500_fails_while_the_circuit_is_open_for_other_reasons():
    def failure(prompt, now):
        return BOOM if prompt == "p 3" else refused(prompt, now) if 1.5 < now < 40 else None

    ran = run([f"p {number}" for number in range(40)], failure, limits=Limits.unlimited(4), latency=1)
    assert ran.report.complete
    assert ran.failed == [3]


@pytest.mark.parametrize("concurrency", [100_000, 5000])
def test_there_are_no_more_workers_than_prompts_may_be_at_work(concurrency):
    most = []

    def failure(prompt, now):
        most.append(len(asyncio.all_tasks()))

    ran = run([f"p {number}" for number in range(300)], failure, limits=Limits.unlimited(concurrency), latency=0.1)
    assert ran.report.complete
    assert max(most) < 4200
