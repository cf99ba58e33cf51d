"""What a service advertises is a prior and a check: it spares 429s where it is true, and costs little else."""

from random import Random

import pytest

from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.policy import Limits
from onellm_async.server.service_limits import AccountLimits, BucketLimit, WindowLimit
from onellm_async.server.settings import Faults
from onellm_async.simulation.scenario import LimitChange, Scenario
from onellm_async.simulation.simulate import simulate

ROUND_TRIP = 0.02
SECONDS = 0.5
"""Until an answer."""


def play(true, said, number, *, changes=()):
    """A client that discovers the limit `true` of a service whose headers speak of the limit `said`.

    Args:
        true: What the service keeps to.
        said: What its headers follow from; None for none.
        number: Requests to be accepted.
        changes: From how many accepted requests on, and to which limits, both change.

    Returns:
        When each request was accepted, the number of 429s, and the control.
    """
    control, service = AdaptiveRate(0.0, random=Random(1)), AccountLimits([true], 0.0)
    speaker = None if said is None else AccountLimits([said], 0.0)
    now, accepted, refused, events, changes = 0.0, [], 0, [], list(changes)
    while len(accepted) < number:
        if changes and len(accepted) >= changes[0][0]:
            service.change([changes[0][1]], now)
            speaker.change([changes.pop(0)[1]], now)
        at = now + control.time_until(1, now)
        if events and events[0][0] <= at:
            now, _, sent_at, is_accepted, quota = events.pop(0)
            if quota is not None:
                reply = AdvertisedReply(
                    sent_at=sent_at,
                    is_accepted=is_accepted,
                    limit=quota.limit,
                    remaining=quota.remaining,
                    reset=round(quota.reset, 3),
                )
                control.advise(now, reply)
            (control.answered if is_accepted else control.rate_limited)(sent_at, now)
            continue
        now = at
        control.take(now)
        is_accepted = service.admit(now) is None
        if is_accepted:
            accepted.append(now)
        refused += not is_accepted
        quota = None
        if speaker is not None:
            if is_accepted:
                speaker.admit(now)
            (quota,) = speaker.quotas(now)
        takes = ROUND_TRIP + (SECONDS if is_accepted else 0.0)
        events.append((now + takes, len(accepted) + refused, now, is_accepted, quota))
        events.sort()
    return accepted, refused, control


BUCKET = BucketLimit(600, 10)
SLIDING, FIXED = WindowLimit(60, 10, sliding=True), WindowLimit(60, 10, sliding=False, phase=0.6)


@pytest.mark.parametrize("limit", [BUCKET, SLIDING, FIXED])
def test_a_true_claim_costs_no_time_and_no_more_429s(limit):
    silent, refused_in_silence, _ = play(limit, None, 400)
    told, refused, _ = play(limit, limit, 400)
    assert told[-1] <= 1.01 * silent[-1]
    assert refused <= refused_in_silence


@pytest.mark.parametrize(
    ("limit", "number", "best", "most"),
    [(BucketLimit(1200, 200), 500, 15, 1), (WindowLimit(1500, 60, sliding=True), 2000, 60, 0)],
)
def test_a_limit_that_is_not_reached_at_once_is_found_without_a_429(limit, number, best, most):
    told, refused, control = play(limit, limit, number)
    assert refused <= most, "but that of the early probe of a bucket"
    assert told[-1] <= best / 0.95 + 1
    assert control.found is not None


@pytest.mark.parametrize("true", [BUCKET, SLIDING, FIXED])
@pytest.mark.parametrize(
    "said",
    [
        BucketLimit(6000, 10),
        BucketLimit(6000, 1000),
        BucketLimit(300, 10),
        BucketLimit(10, 10_000),
        WindowLimit(600, 10, sliding=True),
        WindowLimit(30, 10, sliding=True),
        WindowLimit(600, 10, sliding=False),
        WindowLimit(14_400, 86_400, sliding=False),
    ],
)
def test_a_claim_of_another_limit_costs_little(true, said):
    """Headers may tell of another limit than the one that binds, or of one that is no more."""
    silent, refused_in_silence, _ = play(true, None, 800)
    told, refused, _ = play(true, said, 800)
    assert told[-1] <= 1.15 * silent[-1] + 15
    assert refused <= refused_in_silence + 20


@pytest.mark.parametrize(
    ("before", "after", "seconds"),
    [
        (BucketLimit(120, 30), BucketLimit(600, 60), 37),
        (WindowLimit(60, 10, sliding=True), WindowLimit(240, 10, sliding=True), 15),
        (WindowLimit(240, 10, sliding=True), WindowLimit(60, 10, sliding=True), 75),
    ],
)
def test_a_change_that_is_advertised_is_used_at_once(before, after, seconds):
    told, _, _ = play(before, before, 640, changes=[(300, after)])
    assert told[-1] - told[300] <= seconds


@pytest.mark.parametrize(
    ("limit", "prompts", "latency", "network", "least"),
    [
        ([BucketLimit(3000, 40)], 1000, 0.3, 0.3, 0.9),  # 0.65 without headers
        ([WindowLimit(3000, 60, sliding=True)], 9000, 0.3, 0.3, 0.9),  # 0.67
        ([BucketLimit(300, 3)], 600, 1.0, 0.01, 0.98),  # 0.89
    ],
)
def test_the_client_reaches_more_of_the_limit_with_headers(limit, prompts, latency, network, least):
    found = simulate(
        Scenario(
            prompts=prompts,
            service_limits=limit,
            rate_headers="openai",
            faults=Faults(latency=latency, latency_sigma=0.3),
            network_delay=network / 2,
            network_jitter=network / 10,
            limits=Limits(requests_per_minute="auto", max_concurrency=1024),
            seed=100,
        )
    )
    assert found.goodput >= least


@pytest.mark.parametrize("form", ["openai", "seconds", "epoch"])
def test_a_window_that_grows_is_used_within_seconds_if_the_headers_say_so(form):
    grows = LimitChange(120.0, limits=[WindowLimit(120, 60, sliding=True)])
    found = simulate(
        Scenario(
            prompts=400,
            service_limits=[WindowLimit(40, 60, sliding=True)],
            rate_headers=form,
            changes=[grows],
            faults=Faults(latency=3, latency_sigma=0.3),
            limits=Limits(requests_per_minute="auto", max_concurrency=1024),
            seed=100,
        )
    )
    assert found.goodput >= 0.96
