from datetime import UTC

import pytest

from onellm_async.formatting import (
    format_clock,
    format_count,
    format_duration,
    format_number,
    format_percent,
    format_seconds,
    format_time,
    format_usd,
    pluralize,
)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0.00"),
        (0.00042, "$0.00042"),
        (0.0015, "$0.0015"),
        (0.4213, "$0.42"),
        (0.01, "$0.01"),
        (0.0996, "$0.10"),
        (0.999, "$1.00"),
        (12.345, "$12.35"),
        (1234.5, "$1,234.50"),
        (-0.25, "-$0.25"),
        (float("inf"), "$inf"),
    ],
)
def test_money_below_a_dollar_keeps_two_significant_digits(amount: float, text: str) -> None:
    assert format_usd(amount) == text


@pytest.mark.parametrize("exponent", range(-12, 7))
def test_money_that_is_not_zero_is_never_shown_as_zero(exponent: int) -> None:
    for digits in (1, 1.872, 9.999):
        amount = digits * 10**exponent
        assert float(format_usd(amount).strip("$").replace(",", "")) == pytest.approx(amount, rel=0.05)


@pytest.mark.parametrize(
    ("cap", "text"),
    [
        (5, "$5.00"),
        (5.0, "$5.00"),
        (0.005, "$0.005"),
        (0.00001, "$0.00001"),
        (0.125, "$0.125"),
        (1.0049, "$1.0049"),
        (25_000, "$25,000.00"),
        (1e-7, "$0.0000001"),
    ],
)
def test_a_cap_is_shown_with_all_digits_that_the_user_gave(cap: float, text: str) -> None:
    assert format_usd(cap, exact=True) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.2345, "1.23"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (250.0, "250"),
        (-3.5, "-3.5"),
    ],
)
def test_a_number_has_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1, "100 %"), (0.99999, "99.9 %"), (0.971, "97.1 %"), (0.5, "50 %"), (0, "0 %")]
)
def test_only_the_whole_is_a_hundred_percent(value: float, text: str) -> None:
    assert format_percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (2.5, "2.5 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (11_220, "3 h 7 min"),
        (187_200, "2 d 4 h"),
        (3605, "1 h"),
    ],
)
def test_a_long_time_is_told_in_its_two_largest_units(value: float, text: str) -> None:
    assert format_duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0004, "0.4 ms"), (0.012, "12 ms"), (0.9996, "1 s"), (1.234, "1.23 s"), (75.25, "75.2 s"), (1800, "30 min")],
)
def test_a_short_time_has_three_digits(value: float, text: str) -> None:
    assert format_seconds(value) == text


def test_counts_and_moments_read_as_usual() -> None:
    assert (format_count(1234), format_count(2.25), format_count(7.0)) == ("1,234", "2.2", "7")
    assert format_time(1_767_258_000, UTC) == "2026-01-01 09:00:00 UTC"
    assert format_clock(1_767_258_000, UTC) == "09:00:00"


def test_a_noun_has_the_number_of_its_count() -> None:
    assert [pluralize(count, "line") for count in (0, 1, 2000)] == ["0 lines", "1 line", "2,000 lines"]
