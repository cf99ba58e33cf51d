"""What follows from the headers of many replies: a bucket, a sliding or a fixed window, or nothing."""

from math import ceil, floor
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.limits.advertised import Advertised, AdvertisedBucket, AdvertisedReply, AdvertisedWindow
from onellm_async.server.service_limits import AccountLimits, BucketLimit, WindowLimit


def rounded(seconds, unit):
    return ceil(seconds / unit - 1e-9) * unit


def read(limit, moments, *, unit=0.001, latency=0.0, random=None, advertised=None):
    """Sends requests at `moments` to a service with that limit, and reads its replies in the order of their arrival."""
    service, replies = AccountLimits([limit], 0.0), []
    for at in moments:
        is_accepted = service.admit(at) is None
        (quota,) = service.quotas(at)
        said = AdvertisedReply(
            sent_at=at,
            is_accepted=is_accepted,
            limit=quota.limit,
            remaining=quota.remaining,
            reset=rounded(quota.reset, unit),
        )
        arrives = at + (latency * (random or Random(1)).random() if is_accepted else 0.0)
        replies.append((arrives, len(replies), said))
    advertised = advertised or Advertised()
    for arrives, _, said in sorted(replies):
        advertised.record(said, arrives)
    return advertised


def every(gap, seconds, start=0.0):
    return [start + gap * number for number in range(floor(seconds / gap))]


def test_a_bucket_shows_its_rate_by_the_time_that_what_is_missing_takes():
    claim = read(BucketLimit(40, 40), every(0.5, 10)).claim
    assert isinstance(claim, AdvertisedBucket)
    assert claim.capacity == 40
    assert claim.low <= 40 / 60 <= claim.high <= 1.25 * claim.low


@pytest.mark.parametrize("unit", [0.001, 1.0])
def test_a_sliding_window_shows_its_length_with_each_answer(unit):
    assert read(WindowLimit(40, 60, sliding=True), every(0.5, 15), unit=unit).claim == AdvertisedWindow(40, 60)


@pytest.mark.parametrize(("unit", "seconds"), [(0.001, 4), (1.0, 60)])
def test_a_fixed_window_shows_its_length_when_the_next_one_begins(unit, seconds):
    window = WindowLimit(60, seconds, sliding=False, phase=0.3)
    assert read(window, every(seconds / 40, 0.6 * seconds), unit=unit).claim is None
    claim = read(window, every(seconds / 40, 1.2 * seconds), unit=unit).claim
    assert isinstance(claim, AdvertisedWindow)
    assert claim.count == 60
    assert claim.seconds == pytest.approx(seconds, abs=unit + 0.1)


def test_a_policy_names_the_length_where_the_numbers_do_not_show_it():
    advertised = Advertised()
    for number in range(Advertised.MIN_REPLIES):
        assert advertised.claim is None
        advertised.record(AdvertisedReply(sent_at=number, limit=100, remaining=99 - number, window=60), number)
    assert advertised.claim == AdvertisedWindow(100, 60)


def test_another_limit_is_known_after_a_few_replies_and_keeps_the_length_of_the_window():
    advertised = read(WindowLimit(40, 60, sliding=True), every(0.5, 15))
    read(WindowLimit(120, 60, sliding=True), every(0.1, 0.5, 100), advertised=advertised)
    assert advertised.claim is None
    read(WindowLimit(120, 60, sliding=True), every(0.1, 0.8, 100), advertised=advertised)
    assert advertised.claim == AdvertisedWindow(120, 60)


def test_a_bucket_whose_rate_changes_is_read_anew():
    advertised = read(BucketLimit(40, 40), every(0.2, 12))
    read(BucketLimit(20, 40), every(0.2, 12, 100), advertised=advertised)
    assert advertised.claim.low <= 20 / 60 <= advertised.claim.high


@pytest.mark.parametrize(
    "said",
    [
        {"limit": 40.0, "remaining": 41.0, "reset": 1.0},
        {"limit": 0.0, "remaining": 0.0, "reset": 1.0},
        {"remaining": 3.0, "reset": 1.0},
        {"limit": 40.0, "reset": 1.0},
        {"limit": 40.0, "remaining": 3.0},
    ],
)
def test_what_is_incomplete_or_impossible_claims_nothing(said):
    advertised = Advertised()
    for number in range(100):
        advertised.record(AdvertisedReply(sent_at=number, **said), number)
    assert advertised.claim is None


def test_numbers_that_do_not_follow_the_requests_claim_nothing():
    advertised, random = Advertised(), Random(1)
    for number in range(500):
        said = AdvertisedReply(
            sent_at=number, limit=40.0, remaining=float(random.randrange(40)), reset=random.uniform(0, 60)
        )
        advertised.record(said, number)
        assert advertised.claim is None


def test_a_reset_that_is_still_ahead_outlives_replies_to_earlier_requests():
    advertised = Advertised()
    advertised.record(AdvertisedReply(sent_at=2.0, is_accepted=False, limit=9, remaining=0, reset=30), 2.1)
    assert advertised.reset_at == pytest.approx(32.1)
    advertised.record(AdvertisedReply(sent_at=1.0, limit=9, remaining=1, reset=31), 2.5)
    assert advertised.reset_at == pytest.approx(32.1)
    advertised.record(AdvertisedReply(sent_at=33.0, limit=9, remaining=8, reset=60), 33.1)
    assert advertised.reset_at < 0


@given(
    per_minute=st.floats(10, 6000),
    burst=st.integers(1, 100),
    sliding=st.booleans(),
    is_bucket=st.booleans(),
    seconds=st.sampled_from([1, 4, 10, 60]),
    unit=st.sampled_from([0.001, 0.01, 1.0]),
    pace=st.floats(0.2, 4),
    latency=st.sampled_from([0.0, 0.3, 5.0]),
    seed=st.integers(0, 1000),
)
def test_a_claim_is_true(per_minute, burst, sliding, is_bucket, seconds, unit, pace, latency, seed):
    """Whatever the limit is, how it is rounded and how fast requests are sent: what is claimed is the limit."""
    random, now, moments = Random(seed), 0.0, []
    limit = BucketLimit(per_minute, burst) if is_bucket else WindowLimit(burst, seconds, sliding=sliding, phase=0.4)
    rate = per_minute / 60 if is_bucket else burst / seconds
    for _ in range(300):
        now += random.expovariate(pace * rate)
        moments.append(now)
    claim = read(limit, moments, unit=unit, latency=latency, random=random).claim
    if isinstance(claim, AdvertisedBucket):
        true = rate if is_bucket else None
        assert claim.capacity == burst
        assert true is None or claim.low <= true * 1.001
        assert true is None or claim.high >= true * 0.999
        assert is_bucket or burst == 1
    elif claim is not None:
        assert claim.count == burst
        assert not is_bucket or burst == 1, "a bucket is no window"
        assert is_bucket or claim.seconds == pytest.approx(seconds, abs=unit + 0.15 + 0.02 * seconds)
