"""What was learned can be stored and given back."""

import json

import pytest

from onellm_async.errors import ConfigurationError
from onellm_async.limits.rate_state import RateState

STATE = RateState(rate=2 / 3, burst=40)
SAVED = STATE.to_dict()


def test_what_was_learned_survives_json():
    assert RateState.from_dict(json.loads(json.dumps(SAVED, allow_nan=False))) == STATE


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (SAVED | {"rat": 1}, "rate_state has 'rat', which is none of rate, burst"),
        ({name: value for name, value in SAVED.items() if name != "rate"}, "rate_state has no 'rate'"),
        (SAVED | {"rate": "fast"}, "rate_state.rate is 'fast'; it must be a finite number above 0"),
        (SAVED | {"rate": 0}, "rate_state.rate is 0"),
        (SAVED | {"rate": -1}, "rate_state.rate is -1"),
        (SAVED | {"rate": float("nan")}, "rate_state.rate is nan"),
        (SAVED | {"burst": True}, "rate_state.burst is True"),
        (SAVED | {"burst": None}, "rate_state.burst is None"),
        ([1, 2], "rate_state is .1, 2.; it must be what RateState.to_dict returned"),
    ],
    ids=str,
)
def test_what_is_not_such_a_state_is_refused_by_value(saved, message):
    with pytest.raises(ConfigurationError, match=message):
        RateState.from_dict(saved)
