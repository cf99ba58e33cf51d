import math
import random
from collections import Counter

import pytest

from onellm_async.report.latency import build_histogram
from onellm_async.report.model import Latency


def bins(*latencies: float) -> list[tuple[float, float, int]]:
    places = Counter(math.floor(math.log10(latency) * 20) for latency in latencies)
    return [(10 ** (place / 20), 10 ** ((place + 1) / 20), count) for place, count in sorted(places.items())]


@pytest.mark.parametrize("seed", range(5))
def test_every_answer_is_in_the_bin_of_its_latency(seed: int) -> None:
    chance = random.Random(seed)
    latencies = [chance.lognormvariate(chance.uniform(-5, 4), 0.6) for _ in range(5000)]
    told = build_histogram(bins(*latencies))
    assert 2 <= len(told.counts) <= 20
    assert len(told.edges) == len(told.counts) + 1
    for low, high, count in zip(told.edges, told.edges[1:], told.counts, strict=False):
        assert count == sum(low <= latency < high for latency in latencies)
    assert sum(told.counts) == 5000


def test_bins_are_as_fine_as_twenty_of_them_can_be() -> None:
    assert len(build_histogram(bins(1.01, 9.9)).counts) == 20
    assert len(build_histogram(bins(1.01, 99.0)).counts) == 20
    assert len(build_histogram(bins(1.01, 500.0)).counts) == 14


def test_latencies_from_a_microsecond_to_a_year_still_fit() -> None:
    told = build_histogram(bins(1e-6, 0.3, 50.0, 3e7))
    assert sum(told.counts) == 4
    assert len(told.counts) <= 20


def test_one_latency_is_one_bin_around_it_and_percentiles_are_those_given() -> None:
    told = build_histogram(bins(2.0), [2.0, 2.1, 2.2])
    assert told.counts == (1,)
    assert told.edges[0] <= 2.0 < told.edges[1]
    assert (told.p50, told.p90, told.p99) == (2.0, 2.1, 2.2)


def test_no_answers_have_no_latency() -> None:
    assert build_histogram([]) == build_histogram([(1.0, 1.1, 0)]) == Latency()
