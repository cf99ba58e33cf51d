from random import Random

import pytest

from onellm_async.limits.binomial import BinomialRate


def test_a_refusal_takes_a_share_and_answers_bring_it_back():
    rate = BinomialRate(1.0, floor=0.01, ceiling=1.0)
    rate.decrease()
    assert rate.value == pytest.approx(0.7)
    assert not rate.at_ceiling
    for _ in range(20):
        rate.increase()
    assert rate.at_ceiling


@pytest.mark.parametrize(("mean", "after"), [(None, 0.7), (2.0, 0.7), (0.5, 0.35), (0.001, 0.01)])
def test_a_rate_above_the_mean_falls_below_the_mean(mean, after):
    rate = BinomialRate(1.0, floor=0.01, ceiling=1.0)
    rate.decrease(mean)
    assert rate.value == pytest.approx(after)


def test_it_stays_between_floor_and_ceiling():
    rate = BinomialRate(1.0, floor=0.5, ceiling=2.0)
    for _ in range(10):
        rate.decrease()
    assert rate.value == 0.5
    for _ in range(200):
        rate.increase()
    assert rate.value == 2.0


def test_who_has_less_grows_by_a_larger_share():
    small, large = (BinomialRate(value, floor=0.0, ceiling=100.0) for value in (0.1, 10.0))
    small.increase()
    large.increase()
    assert small.value / 0.1 > large.value / 10.0 > 1


def test_the_longer_nobody_is_refused_the_larger_are_the_steps():
    rate = BinomialRate(1.0, floor=0.0, ceiling=1e9)
    values = [rate.value]
    for _ in range(40):
        rate.increase()
        values.append(rate.value)
    assert values[40] / values[39] > 3 * (values[1] / values[0] - 1) + 1
    rate.decrease()
    before = rate.value
    rate.increase()
    assert rate.value / before < values[40] / values[39]


def test_two_clients_that_start_apart_become_equals():
    rates = [BinomialRate(0.9, floor=0.001, ceiling=10.0), BinomialRate(0.1, floor=0.001, ceiling=10.0)]
    random, level, totals = Random(0), 0.0, [0, 0]
    for step in range(20_000):  # tenths of a second; one request a second for both
        level = min(40.0, level + 0.1)
        for who, rate in enumerate(rates):
            if random.random() >= 0.1 * rate.value:
                continue
            if level >= 1:
                level -= 1
                totals[who] += step > 5000
                rate.increase()
            else:
                rate.decrease()
    assert 0.6 < totals[0] / totals[1] < 1.6, "it began with nine to one"
    assert sum(totals) >= 0.9 * 1500
