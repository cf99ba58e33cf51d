"""The search for the rate, where hardly anybody asks: hours pass between two requests."""

from random import Random

from onellm_async.limits.adaptive import AdaptiveRate


def test_a_refusal_after_an_hour_of_silence_does_not_make_the_next_hour_one_of_waiting():
    rate = AdaptiveRate(0.0, random=Random(1))
    rate.take(0.0)
    rate.rate_limited(0.0, 0.03, retry_after=7)
    for sent_at in (17.0, 22.0):
        rate.take(sent_at)
        rate.answered(sent_at, sent_at + 0.2)
    rate.take(3234.0)
    rate.rate_limited(3234.0, 3234.03, retry_after=7)  # somebody else was quicker
    assert rate.time_until(1, 3234.03) <= 300
