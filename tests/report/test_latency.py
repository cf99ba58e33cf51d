import random
from collections import Counter

import pytest

from onellm_async.report.latency import bin_of, latency_of
from onellm_async.report.model import Latency


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_and_counts_are_those_of_the_latencies(seed: int) -> None:
    chance = random.Random(seed)
    latencies = sorted(chance.lognormvariate(chance.uniform(-5, 4), 0.6) for _ in range(20_000))
    told = latency_of(Counter(map(bin_of, latencies)))
    assert sum(told.counts) == 20_000
    assert 5 <= len(told.counts) <= 20
    assert len(told.edges) == len(told.counts) + 1
    assert told.edges[0] <= latencies[0] * 1.0001
    assert latencies[-1] <= told.edges[-1] * 1.0001
    assert told.p50 == pytest.approx(latencies[10_000], rel=0.02)
    assert told.p90 == pytest.approx(latencies[18_000], rel=0.02)
    assert told.p99 == pytest.approx(latencies[19_800], rel=0.04)
    for low, high, count in zip(told.edges, told.edges[1:], told.counts, strict=False):
        assert count == pytest.approx(sum(low <= latency < high for latency in latencies), abs=20)


def test_one_latency_is_one_bin_around_it() -> None:
    told = latency_of({bin_of(2.0): 1})
    assert told.counts == (1,)
    assert told.edges[0] <= 2.0 <= told.edges[1]
    assert told.p50 == pytest.approx(2.0, rel=0.04)


def test_latencies_from_nothing_to_a_week_still_fit() -> None:
    told = latency_of(Counter(map(bin_of, (0.0, 1e-9, 0.3, 50.0, 604_800.0))))
    assert sum(told.counts) == 5
    assert len(told.counts) <= 20


def test_no_answers_have_no_latency() -> None:
    assert latency_of({}) == latency_of({3: 0}) == Latency()
