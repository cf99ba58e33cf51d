"""What is kept for interactive requests, while the first burst still leaves at its pace."""

import pytest

from onellm_async.limits.rate import DeclaredRate


@pytest.mark.xfail(strict=True, reason="the pace's bucket, which holds one request, is to hold what is kept as well")
def test_a_reserve_does_not_stop_the_first_burst():
    rate = DeclaredRate(4 / 60, 980, 0.0)
    rate.take(0.0)
    assert rate.time_until(1, 60.0, 3.0) == 0, "hundreds of tokens are there, and a minute has passed"
