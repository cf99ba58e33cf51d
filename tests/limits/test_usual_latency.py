"""Which latency a model usually has, and how soon a slot becomes free."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.limits.usual_latency import UsualLatency


def known(**seconds):
    latency = UsualLatency()
    for model, took in seconds.items():
        latency.observe(model, took, 0.0)
    return latency


def test_each_model_has_its_own():
    latency = known(slow=5.0, fast=0.02)
    assert (latency.of("slow", 1.0), latency.of("fast", 1.0)) == (5.0, 0.02)
    assert latency.of("unheard of", 1.0) is None
    latency.observe("slow", 15.0, 2.0)
    assert latency.of("slow", 2.0) == pytest.approx(6.0)
    assert latency.of("fast", 2.0) == 0.02


def test_what_was_long_ago_is_not_relied_on_and_the_next_answer_replaces_it():
    latency = known(fast=1.0, slow=100.0)
    assert latency.of("fast", 60.0) == 1.0
    assert latency.of("fast", 61.0) is None
    assert latency.of("slow", 200.0) == 100.0, "requests of such a model answer seldom"
    assert latency.of("slow", 201.0) is None
    latency.observe("slow", 2.0, 201.0)
    assert latency.of("slow", 201.0) == 2.0


def test_any_number_of_names_takes_bounded_memory_and_those_in_use_are_kept():
    latency = known(used=3.0)
    for number in range(5000):
        latency.observe(f"typo {number}", 1.0, 0.0)
        latency.observe("used", 3.0, 0.0)
    assert len(latency._known) == UsualLatency.MAX_MODELS
    assert latency.of("used", 0.0) == pytest.approx(3.0)
    assert latency.of("typo 0", 0.0) is None


def test_a_clock_that_was_set_back_makes_nothing_older():
    latency = UsualLatency()
    latency.observe("a", 2.0, 1000.0)
    latency.forget_times(5.0)
    assert latency.of("a", 60.0) == 2.0
    assert latency.of("a", 66.0) is None


@pytest.mark.parametrize("releases", [1, 3, 4, 5, 17, 400])
def test_slots_of_one_model_become_free_one_by_one(releases):
    latency = known(a=5.0)
    assert latency.slot_wait(releases, {"a": 4}, 4, 5.0) == pytest.approx(releases * 5.0 / 4)


def test_free_slots_are_taken_by_those_ahead():
    assert known(a=5.0).slot_wait(16, {"a": 3}, 48, 5.0) == pytest.approx(16 * 5.0 / 48)


def test_one_request_waits_for_one_of_the_slow_ones():
    assert known(slow=40.0, fast=0.1).slot_wait(1, {"slow": 8}, 8, 0.1) == pytest.approx(5.0)


def test_many_fast_requests_behind_slow_ones_need_only_a_few_of_their_slots():
    latency = known(slow=40.0, fast=0.1)
    few, many = (latency.slot_wait(number, {"slow": 8}, 8, 0.1) for number in (1, 60))
    assert few == pytest.approx(5.0)
    assert many == pytest.approx(5.0 + 5.5, rel=0.3), "the first slot, then one more every five seconds"


def test_slow_requests_behind_fast_ones_wait_for_each_other():
    latency = known(slow=40.0, fast=0.1)
    assert latency.slot_wait(8 + 8, {"fast": 8}, 8, 40.0) == pytest.approx(40.0, rel=0.2)


def test_where_nothing_is_known_nothing_is_assumed():
    assert UsualLatency().slot_wait(100, {"a": 4}, 4, None) == 0
    assert known(b=9.0).slot_wait(100, {"a": 4}, 4, None) == 0
    assert known(a=8.0).slot_wait(100, {"a": 4}, 4, None) == pytest.approx(2.0), "the first slot, and no more"
    assert known(a=8.0).slot_wait(2, {"a": 2, "new": 2}, 4, None) == pytest.approx(2.0), "the new one as the others"


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 30), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.0, 1e4)),
    st.integers(1, 60),
    st.none() | st.floats(0.0, 1e4),
)
def test_who_is_further_behind_never_waits_less(in_flight, seconds, slots, usual):
    latency = known(**seconds)
    waits = [latency.slot_wait(releases, in_flight, slots, usual) for releases in (0, 1, 2, 5, 30, 200, 5000)]
    assert waits[0] == 0
    for fewer, more in itertools.pairwise(waits):
        assert fewer <= more * (1 + 1e-9) + 1e-12
