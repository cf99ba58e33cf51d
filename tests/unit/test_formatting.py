import pytest

from onellm_async.formatting import format_usd


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
