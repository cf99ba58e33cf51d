"""Runs in which many prompts fail alike, in virtual time: bad prompts are told from an outage."""

import os
from random import Random

import pytest
from virtual_runs import BOOM, run

from onellm_async import Limits, RetryPolicy
from onellm_async.batch import HealthPolicy, RunPolicy
from onellm_async.errors import BatchError
from onellm_async.transport import RawReply

FAST = Limits(requests_per_minute=6000, burst=100)
SEEDS = range(int(os.environ.get("SEEDS", "3")))
"""The gate plays three; a seed is an hour or more of virtual time, at 3,600 looks of the monitor."""


def bad_prompts(number, which, seed):
    if which == "all":
        return set(range(number))
    if isinstance(which, int):
        return set(range(number - which, number))
    return set(Random(seed).sample(range(number), round(number * which)))


def failing(bad, reply=BOOM):
    return lambda prompt, now: reply if int(prompt.split()[1]) in bad else None


def prompts(number):
    return [f"p {index}" for index in range(number)]


def longest(number, bad):
    """Seconds that a run may take: 1.3 times those of all requests at the declared limit, and a minute."""
    requests = number + 2 * len(bad)
    return 1.3 * max(0, requests - 40) * 60 / 40 + 60


@pytest.mark.parametrize("number", [50, 300])
@pytest.mark.parametrize("which", [3, 8, 0.03, 0.1], ids=["last 3", "last 8", "3 %", "10 %"])
def test_few_bad_prompts_fail_with_the_text_of_the_service_and_all_others_are_answered(number, which):
    for seed in SEEDS:
        bad = bad_prompts(number, which, seed)
        ran = run(prompts(number), failing(bad), latency=5, seed=seed)
        assert ran.report.complete
        assert set(ran.failed) == bad
        assert all(ran.lines[index] == f"{index} 500 boom." for index in bad)
        assert ran.seconds <= longest(number, bad)
        assert ran.report.failures == {"500 boom.": len(bad)}


@pytest.mark.parametrize("number", [50, 300])
@pytest.mark.parametrize("which", [0.5, "all"], ids=["50 %", "all"])
def test_where_half_or_more_fail_the_run_pauses_tells_why_and_ends_resumable(number, which):
    for seed in SEEDS:
        bad = bad_prompts(number, which, seed)
        ran = run(prompts(number), failing(bad), latency=5, seed=seed)
        assert not ran.report.complete
        assert "500 boom." in str(ran.report.stopped_by)
        paused = next(said for said in ran.said if said.startswith("Paused: "))
        assert "prompts failed alike: 500 boom. The next single prompt is tried in 1 s." in paused
        assert ran.seconds < 3700


@pytest.mark.parametrize("limits", [Limits(), FAST, Limits.unlimited(48)])
@pytest.mark.parametrize("start", [0, 100])
def test_a_block_of_bad_prompts_is_no_outage(limits, start):
    bad = range(start, start + 59)
    ran = run(prompts(300), failing(bad), limits=limits)
    assert ran.report.complete
    assert ran.failed == list(bad)
    assert [int(line.split()[0]) for line in ran.lines] == list(range(300))


def test_an_outage_of_500s_is_waited_for_and_what_failed_in_it_is_retried():
    ran = run(prompts(300), lambda prompt, now: BOOM if 60 < now < 660 else None)
    assert ran.report.complete
    assert ran.failed == []
    trials = [at for at, _ in ran.service.sent if 180 < at < 660]
    assert len(trials) <= 3 * 7  # of three attempts each
    assert any(said.startswith("Resumed: the service has answered. Failed prompts that are retried once:")
               for said in ran.said)  # fmt: skip


def test_a_prompt_that_failed_in_a_pause_is_retried_once_and_then_its_failure_stands():
    bad = {7}
    ran = run(prompts(300), lambda prompt, now: BOOM if 60 < now < 200 or prompt == "p 7" else None, limits=FAST)
    assert ran.failed == [7]
    outage = run(prompts(100), lambda prompt, now: BOOM if now < 30 or int(prompt.split()[1]) in bad else None)
    assert outage.failed == [7]
    assert len(outage.service.times_of("p 7")) <= 3 * 3  # tried, perhaps as a trial, and retried once


def test_while_a_run_is_paused_only_single_prompts_are_sent():
    ran = run(prompts(300), lambda prompt, now: BOOM if now < 660 else None, limits=FAST)
    assert ran.report.complete
    in_the_pause = {prompt for at, prompt in ran.service.sent if 40 < at < 650}
    assert 2 <= len(in_the_pause) <= 7


def test_trials_come_from_places_spread_over_a_thousand_entries():
    ran = run(prompts(5000), lambda prompt, now: BOOM if now < 660 else None, limits=FAST)
    assert ran.report.complete
    tried = {int(prompt.split()[1]) for at, prompt in ran.service.sent if 40 < at < 650}
    assert len(tried) >= 4
    assert 600 < max(tried) < 1100
    assert min(abs(one - other) for one in tried for other in tried if one != other) > 20


def test_two_outages_are_waited_for():
    ran = run(prompts(600), lambda prompt, now: BOOM if 60 < now < 660 or 900 < now < 1200 else None)
    assert ran.report.complete
    assert ran.failed == []


def test_an_outage_without_end_ends_the_run_after_an_hour_and_nothing_that_failed_in_it_is_an_outcome():
    ran = run(prompts(300), lambda prompt, now: BOOM if now > 60 else None)
    assert not ran.report.complete
    assert "500 boom." in str(ran.report.stopped_by)
    assert ran.failed == []
    assert ran.report.counts.failed == ran.report.counts.in_flight == 0
    assert 3600 < ran.seconds < 3800


def test_a_shorter_patience_ends_a_pause_sooner():
    health = HealthPolicy(notify_after=60, stall_after=120)
    ran = run(prompts(300), lambda prompt, now: BOOM, health=health)
    assert isinstance(ran.report.stopped_by, BatchError)
    told = str(ran.report.stopped_by)
    assert told.startswith("No answer for 2 min. Paused: 11 of the last 11 prompts failed alike: 500 boom. ")
    assert told.endswith(" Run the same command again to resume.")
    assert ran.seconds < 180


def test_at_the_tail_failures_stand_where_others_were_answered():
    ran = run(prompts(80), failing(range(60, 80)), limits=Limits.unlimited(48))
    assert ran.report.complete
    assert ran.failed == list(range(60, 80))
    assert not any(said.startswith("Paused") for said in ran.said)


def test_a_long_bad_tail_is_used_up_by_trials():
    ran = run(prompts(300), failing(range(270, 300)))
    assert ran.report.complete
    assert ran.failed == list(range(270, 300))


@pytest.mark.parametrize("limits", [Limits(), FAST, Limits.unlimited(48)])
@pytest.mark.parametrize("bad", [range(60), range(60, 120), range(0, 120, 2)], ids=["first", "last", "every second"])
def test_half_of_a_run_ends_it_resumable_wherever_it_is_and_the_other_half_may_be_answered(limits, bad):
    ran = run(prompts(120), failing(bad), limits=limits)
    assert "500 boom." in str(ran.report.stopped_by)
    assert ran.report.counts.in_flight == 0
    if bad[0] == 0 and bad[1] == 1:
        assert ran.report.counts.answered == 60


def test_who_wants_to_keep_going_is_never_paused():
    ran = run(prompts(120), failing(range(100)), limits=FAST, health=HealthPolicy(max_failure_share=1))
    assert ran.report.complete
    assert ran.failed == list(range(100))
    assert ran.said == ["in.txt:1 failed: 500 boom."]


def test_a_small_window_of_the_output_does_not_wait_for_failures_that_are_held_back():
    ran = run(prompts(200), failing({5, 50, 100}), limits=FAST, window=10)
    assert ran.report.complete
    assert ran.failed == [5, 50, 100]


def test_with_a_slow_input_a_failure_is_an_outcome_soon_after_the_next_answer():
    import asyncio

    async def lines():
        yield "p 0"
        await asyncio.sleep(100)
        yield "p 1"
        await asyncio.sleep(100)
        written.append(len(sink.lines))

    from virtual_runs import Lines

    written, sink = [], Lines()
    ran = run(lines(), failing({0}), sink=sink)
    assert written == [2]
    assert ran.failed == [0]


def test_what_may_have_been_billed_is_not_retried_where_the_user_wants_it_held():
    reply = RawReply(200, {}, b'{"nothing": "that is a reply"}')
    held = run(prompts(60), lambda prompt, now: reply if now < 5 else None, limits=FAST, latency=0.1,
               policy=RunPolicy(ambiguous="hold"), retry=RetryPolicy(ambiguous="never"))  # fmt: skip
    for index in range(60):
        assert len(held.service.times_of(f"p {index}")) <= 1


def test_all_prompts_of_one_model_that_fail_alike_are_told():
    from onellm_async import ChatRequest

    lines = [ChatRequest(("2.0-Flash", "GPT-5-Mini")[index % 4 > 0], f"p {index}") for index in range(80)]
    text = b'{"error": "missing field `safetyRatings` at line 1 column 117"}'
    ran = run(lines, failing(range(0, 80, 4), RawReply(500, {}, text)), limits=FAST)
    assert ran.report.complete
    text = "500 missing field `safetyRatings` at line 1 column 117."
    assert ran.report.failed_models == {"2.0-Flash": (20, text)}
    assert run(prompts(5), failing(range(5))).report.failed_models == {}


def test_the_first_failure_of_each_cause_is_told_with_its_line():
    reply = RawReply(422, {}, b'{"error": "Unknown model"}')
    ran = run(prompts(40), lambda prompt, now: {"p 3": BOOM, "p 4": BOOM, "p 9": reply}.get(prompt))
    told = sorted(said for said in ran.said if "failed: " in said)
    assert [said.partition(" failed: ")[2] for said in told] == ["422 Unknown model.", "500 boom."]
    assert told[0].startswith("in.txt:10 ")


def test_what_met_a_revoked_key_just_before_the_run_ended_is_asked_again():
    reply = RawReply(401, {}, b'{"error": "No such key"}')
    ran = run(prompts(60), lambda prompt, now: reply if now > 5 else None, latency=0.5)
    assert ran.report.stopped_by.status_code == 401
    assert ran.report.counts.failed == ran.report.counts.in_flight == 0
    assert ran.seconds < 60


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_each_prompt_has_one_outcome_in_its_place(seed):
    random = Random(seed)
    number = random.choice([30, 100, 400])
    bad = set(random.sample(range(number), round(number * random.choice([0, 0.05, 0.3, 0.6]))))
    ends = sorted(random.uniform(0, 600) for _ in range(random.choice([0, 2, 4])))
    outages = list(zip(ends[::2], ends[1::2], strict=True))
    limits = Limits(
        max_concurrency=random.choice([2, 16, 200]),
        requests_per_minute=random.choice([60, 600, 6000]),
        burst=random.choice([1, 50]),
    )
    doubled = [f"p {index}" for index in range(number)]
    doubled = [random.choice(doubled) if random.random() < 0.1 else prompt for prompt in doubled]

    def failure(prompt, now):
        down = any(start < now < end for start, end in outages)
        return BOOM if down or int(prompt.split()[1]) in bad else None

    policy, window = RunPolicy(deduplicate=random.random() < 0.5), random.choice([20, 4096])
    ran = run(doubled, failure, limits=limits, seed=seed, policy=policy, window=window, latency=random.choice([0.1, 5]))
    written = [int(line.split()[0]) for line in ran.lines]
    assert written == sorted(set(written))
    counts = ran.report.counts
    assert counts.in_flight == 0
    if ran.report.complete:
        assert written == list(range(number))
        assert counts.answered + counts.failed == number
        assert (ran.report.progress.answered, ran.report.progress.failed) == (counts.answered, counts.failed)
        if not outages:
            assert ran.failed == [place for place, prompt in enumerate(doubled) if int(prompt.split()[1]) in bad]
    else:
        assert "500 boom." in str(ran.report.stopped_by)
        assert bad or outages
    answered = [index for index in range(number) if ran.service.times_of(f"p {index}") and index not in bad]
    assert all(len(ran.service.times_of(f"p {index}")) <= 3 * 6 for index in answered)
