import math

import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.errors import ConfigurationError, InvalidRequestError
from onellm_async.validation import Checks, truncated_repr

check = Checks(ConfigurationError, "Thing.")


def test_a_long_value_is_shown_shortened() -> None:
    assert len(truncated_repr("x" * 1000)) == 81
    assert truncated_repr("x" * 1000).endswith("…")


def test_what_python_cannot_print_is_named_by_its_type() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert truncated_repr(nested) == "a list too large to show"
    assert truncated_repr(10**5000) == "a int too large to show"


@frozen
class Thing:
    share: float = field(default=0.5, validator=check.number(0, 1))
    rate: float = field(default=1.0, validator=check.number(0, above=True))
    wait: float = field(default=1.0, validator=check.number(0))
    count: int = field(default=1, validator=check.integer(1))
    flag: bool | None = field(default=None, validator=check.kind(bool, "it must be a bool", optional=True))


NOT_NUMBERS = [None, "1", True, False, math.nan, math.inf, -math.inf, 10**400, -(10**5000), [], 1j, b"1"]


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -0.001, 1.001, 2], ids=truncated_repr)
def test_a_number_outside_its_range_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^Thing\.share is .*; it must be a number from 0 to 1\.$") as caught:
        Thing(share=value)  # type: ignore[arg-type]
    assert truncated_repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 0, -1], ids=truncated_repr)
def test_a_number_that_must_be_above_its_bound_is_refused_at_it(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^Thing\.rate is .*; it must be a finite number above 0\.$"):
        Thing(rate=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -1e-9], ids=truncated_repr)
def test_an_open_range_names_its_lower_end(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^Thing\.wait is .*; it must be a finite number of at least 0\.$"):
        Thing(wait=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -5, 1.0, True, None, "1", -(10**5000), 10**5000], ids=truncated_repr)
def test_an_integer_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^Thing\.count is ") as caught:
        Thing(count=value)  # type: ignore[arg-type]
    assert truncated_repr(value) in str(caught.value)


@pytest.mark.parametrize("value", [1, 0, "True"], ids=truncated_repr)
def test_a_value_of_another_kind_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^Thing\.flag is .*; it must be a bool\.$"):
        Thing(flag=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, {"b": math.nan}]}, "extra['a'][1]['b'] is nan; JSON has no such number."),
        ({"a": math.inf}, "extra['a'] is inf; JSON has no such number."),
        ({"a": 10**5000}, "extra['a'] is a int too large to show; JSON has no such number."),
        ({"a": 10**400}, "; JSON has no such number."),
        ({1: 2}, "A key of extra is 1; JSON keys are strings."),
        ({"a": {b"k": 1}}, "A key of extra['a'] is b'k'; JSON keys are strings."),
        ({"a": {1, 2}}, "extra['a'] is {1, 2}; it is not a JSON value."),
        ({"a": b"x"}, "extra['a'] is b'x'; it is not a JSON value."),
        ({"a": object}, "; it is not a JSON value."),
    ],
    ids=truncated_repr,
)
def test_what_json_cannot_hold_is_refused_at_its_place(value: object, place: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Checks(InvalidRequestError).json("extra", value)
    assert str(caught.value).endswith(place)


def test_nesting_beyond_a_hundred_levels_is_refused_even_when_endless() -> None:
    endless: list[object] = []
    endless += [endless, endless]
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (endless, deep):
        with pytest.raises(InvalidRequestError, match="nested deeper than 100 levels"):
            Checks(InvalidRequestError).json("extra", value)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_whatever_is_json_passes(value: object) -> None:
    Checks(InvalidRequestError).json("extra", value)
