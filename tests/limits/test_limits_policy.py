"""`Limits` as users write them."""

import attrs
import pytest

from onellm_async import AsyncOneLLM, ConfigurationError, Limits
from onellm_async.testing import FakeTransport


@pytest.mark.parametrize(
    ("rate", "burst"), [(40, 40), (600, 40), (10, 10), (1.5, 1), (0.25, 1), (39.9, 39), ("auto", 40), (None, 40)]
)
def test_the_burst_is_no_larger_than_the_rate_and_at_least_one(rate: float | None, burst: int) -> None:
    assert Limits(requests_per_minute=rate).burst == burst


def test_a_given_burst_stands() -> None:
    assert Limits(requests_per_minute=10, burst=25).burst == 25
    assert attrs.evolve(Limits(burst=25), requests_per_minute=10).burst == 25


def test_a_rate_that_is_no_number_is_refused_before_the_burst_is_made_of_it() -> None:
    for rate in (float("nan"), "40", True, [], object(), -1, 0):
        with pytest.raises(ConfigurationError, match=r"Limits.requests_per_minute is .*; it must be a finite number"):
            Limits(requests_per_minute=rate)  # type: ignore[arg-type]


def test_limits_are_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        Limits(40)  # type: ignore[misc]


async def test_a_number_for_limits_is_refused_with_the_right_form() -> None:
    form = r"limits is 40; it must be a Limits. Use Limits\(requests_per_minute=40\)."
    with pytest.raises(ConfigurationError, match=form):
        AsyncOneLLM("key", limits=40)  # type: ignore[arg-type]
    async with AsyncOneLLM(transport=FakeTransport()) as client:
        with pytest.raises(ConfigurationError, match=form):
            client.retune(40)  # type: ignore[arg-type]


async def test_the_limits_of_a_client_are_read_and_changed_by_retune_alone() -> None:
    async with AsyncOneLLM(transport=FakeTransport(), limits=Limits(max_concurrency=3)) as client:
        with pytest.raises(AttributeError):
            client.limits = Limits()  # type: ignore[misc]
        assert client.limits.max_concurrency == 3
        client.retune(attrs.evolve(client.limits, max_concurrency=5))
        assert client.limits.max_concurrency == 5
