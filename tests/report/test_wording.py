from datetime import UTC

import pytest

from onellm_async.report.wording import clock, count, duration, moment, number, percent, seconds


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
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1, "100 %"), (0.99999, "99.9 %"), (0.971, "97.1 %"), (0.5, "50 %"), (0, "0 %")]
)
def test_only_the_whole_is_a_hundred_percent(value: float, text: str) -> None:
    assert percent(value) == text


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
    assert duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0004, "0.4 ms"), (0.012, "12 ms"), (0.9996, "1 s"), (1.234, "1.23 s"), (75.25, "75.2 s"), (1800, "30 min")],
)
def test_a_short_time_has_three_digits(value: float, text: str) -> None:
    assert seconds(value) == text


def test_counts_and_moments_read_as_usual() -> None:
    assert (count(1234), count(2.25), count(7.0)) == ("1,234", "2.2", "7")
    assert moment(1_767_258_000, UTC) == "2026-01-01 09:00:00 UTC"
    assert clock(1_767_258_000, UTC) == "09:00:00"
