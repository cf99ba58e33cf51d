"""The client waits as the service asks, says so meanwhile, and continues at once when that ends."""

import asyncio

from onellm_async.limits.policy import Limits
from onellm_async.server.settings import Faults
from onellm_async.simulation import LimitChange, Outage, Scenario
from tests.fuzzing.observed_run import observe
from tests.fuzzing.recorder import Recorder

DECLARED = Limits(requests_per_minute=60, burst=10)


def declared(**scenario):
    """One client that is told the truth."""
    return Scenario(limits=DECLARED, requests_per_minute=60, burst=10, **scenario)


class SnapshotRecorder(Recorder):
    """Also keeps the client's snapshot whenever time passes, with its time."""

    def __init__(self, scenario):
        super().__init__(scenario.limits, scenario.deadline)
        self.snapshots = []

    def idle(self, seconds):
        self.snapshots.append((asyncio.get_running_loop().time(), self._client.snapshot()))
        super().idle(seconds)


def watched(scenario):
    """The result of a run, its violations, and the client's snapshots."""
    recorders = []

    def recorder(scenario):
        recorders.append(SnapshotRecorder(scenario))
        return recorders[-1]

    run = observe(scenario, recorder)
    return run.result, run.violations, recorders[0].snapshots


def sent_between(run, begin, end):
    return sum(begin < at < end for times in run.sent_at for at in times)


def first_answer_after(run, moment):
    return min(at for times in run.answered_at for at in times if at > moment)


def test_a_limit_of_zero_for_ten_minutes_is_tried_rarely_and_work_continues_when_it_ends():
    run, violations, snapshots = watched(
        declared(
            prompts=60,
            faults=Faults(latency=2, retry_after=20),
            changes=(LimitChange(15, 0), LimitChange(615, 60)),
        )
    )
    assert (run.answered, run.failed, violations) == (60, 0, [])
    assert sent_between(run, 17, 615) <= 600 / 20 + 10, "one for each Retry-After, after what was in flight"
    meanwhile = [said for at, said in snapshots if 60 < at < 610]
    assert meanwhile
    assert all(said.queued["batch"] and said.bottleneck in {"retry_after", "rate", "concurrency"} for said in meanwhile)
    assert sum(said.bottleneck == "retry_after" for said in meanwhile) >= len(meanwhile) / 2
    assert first_answer_after(run, 615) - 615 <= 20 + 4, "one Retry-After, and an answer"
    assert run.makespan <= 615 + 20 + 60, "and then at the old rate"


def test_endless_429s_with_a_long_retry_after_are_waited_out():
    run, violations, snapshots = watched(
        declared(
            prompts=30,
            faults=Faults(latency=2, retry_after=240),
            changes=(LimitChange(5, 0), LimitChange(3605, 60)),
        )
    )
    assert (run.answered, run.failed, violations) == (30, 0, [])
    assert sent_between(run, 10, 3605) <= 3600 / 240 + 10, "one for each Retry-After, after what was in flight"
    waiting = [said for at, said in snapshots if 100 < at < 3600 and said.bottleneck == "retry_after"]
    assert waiting
    assert all(said.retry_after is not None and 0 < said.retry_after <= 240.001 for said in waiting)
    assert first_answer_after(run, 3605) - 3605 <= 240 + 4


def test_a_server_that_never_answers_gets_trial_requests_and_is_used_again_when_it_is_back():
    run, violations, snapshots = watched(
        declared(
            prompts=60,
            faults=Faults(latency=2),
            timeout=10,
            outages=(Outage(15, 615, "silent"),),
        )
    )
    assert violations == []
    assert run.answered + run.failed == 60
    assert any(said.bottleneck == "circuit_open" for at, said in snapshots if 60 < at < 610)
    assert sent_between(run, 60, 615) <= 40, "trial requests, not a storm"
    assert first_answer_after(run, 615) - 615 <= 300 + 10 + 4, "the longest wait for a trial request"


def test_an_unreachable_service_loses_no_prompt_of_a_fan_out():
    run, violations, snapshots = watched(
        declared(
            prompts=60,
            faults=Faults(latency=2),
            outages=(Outage(15, 1815, "unreachable"),),
        )
    )
    assert (run.answered, run.failed, violations) == (60, 0, [])
    assert any(said.bottleneck == "circuit_open" for at, said in snapshots if 100 < at < 1800)
    assert first_answer_after(run, 1815) - 1815 <= 300 + 4


def test_prompts_with_a_deadline_do_not_wait_for_a_silent_server_longer_than_that():
    run, violations, _ = watched(
        declared(
            prompts=20,
            deadline=30,
            timeout=600,
            faults=Faults(latency=2),
            outages=(Outage(0, 1e6, "silent"),),
        )
    )
    assert (run.answered, run.failed, violations) == (0, 20, [])
    assert run.makespan <= 30.001
