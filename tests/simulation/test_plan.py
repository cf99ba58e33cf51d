import importlib
import json
import math
from functools import cache

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.catalog import lookup
from onellm_async.chat import ChatRequest
from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import Limits
from onellm_async.simulation.extrapolation import SteadyState, extrapolate, shrink_to_mean, steady_state
from onellm_async.simulation.plan import Plan, plan
from onellm_async.simulation.simulated_run import ExpectedService, simulate_workload
from onellm_async.simulation.workload import RequestSize, Workload, WorkloadMeter

PUBLISHED = ExpectedService()
MODULE = importlib.import_module("onellm_async.simulation.plan")  # the room exports the function by this name


@pytest.fixture
def no_suggestions(monkeypatch):
    """For tests that look at none: to try them takes as many simulations as all the rest."""
    monkeypatch.setattr(MODULE, "_suggestions", lambda *_: [])


@cache
def simulated(sizes, limits, service, seed):
    return simulate_workload(sizes, limits, service, seed)


@pytest.fixture
def simulated_once(monkeypatch):
    """Plans share the runs of the same arguments, which give the same result."""
    monkeypatch.setattr(MODULE, "simulate_workload", lambda sizes, *others: simulated(tuple(sizes), *others))


@pytest.mark.usefixtures("no_suggestions", "simulated_once")
def test_the_published_limit_takes_its_arithmetic_time():
    estimate = plan(Workload.uniform(1000), Limits(), PUBLISHED)

    assert estimate.duration.median == pytest.approx((1000 - 40) / (40 / 60) + 6, rel=0.005)
    assert estimate.duration.low <= estimate.duration.median <= estimate.duration.high
    assert estimate.bottleneck == "rate"
    assert estimate.rate_limited.high == 0
    assert estimate.mean_in_flight == pytest.approx(
        1000 * 6 * math.exp(0.3**2 / 2) / estimate.duration.median, rel=0.05
    )
    assert estimate.progress[-1][1] == 1000


def test_the_same_arguments_give_the_same_plan():
    arguments = Workload.uniform(200), Limits(requests_per_minute="auto"), PUBLISHED
    assert plan(*arguments) == plan(*arguments)


def test_no_prompts_take_no_time():
    estimate = plan(Workload.uniform(0), Limits(), PUBLISHED)

    assert isinstance(estimate, Plan)
    assert (estimate.duration.median, estimate.max_in_flight, estimate.progress) == (0, 0, ())


def test_a_few_prompts_wait_for_nothing_but_their_answers():
    assert plan(Workload.uniform(5), Limits(), PUBLISHED).bottleneck == "service"


@pytest.mark.usefixtures("simulated_once")
def test_too_few_slots_are_the_bottleneck_and_enough_for_the_rate_the_suggestion(request):
    service = ExpectedService(requests_per_minute=600, burst=100, latency=8)
    limits = Limits(requests_per_minute=600, burst=100, max_concurrency=48)
    estimate = plan(Workload.uniform(1500), limits, service, seeds=3)

    assert estimate.bottleneck == "concurrency"
    assert estimate.duration.median == pytest.approx(1500 * 8 * math.exp(0.3**2 / 2) / 48, rel=0.05)
    (suggestion,) = estimate.suggestions
    assert suggestion.limit == "max_concurrency"
    assert suggestion.value >= 80 * math.exp(0.3**2 / 2), "Little's law"
    request.getfixturevalue("no_suggestions")
    better = plan(Workload.uniform(1500), evolve(limits, max_concurrency=int(suggestion.value)), service, seeds=3)
    assert better.bottleneck == "rate"
    assert estimate.duration.median - better.duration.median == pytest.approx(suggestion.saved, rel=0.05)


@pytest.mark.usefixtures("simulated_once")
def test_a_faster_limit_is_the_suggestion_if_the_rate_is_the_bottleneck():
    (suggestion,) = plan(Workload.uniform(1000), Limits(), PUBLISHED, seeds=3).suggestions

    assert (suggestion.limit, suggestion.value) == ("requests_per_minute", 80)
    assert suggestion.saved == pytest.approx((1000 - 40) / (40 / 60) / 2, rel=0.01)


def test_tokens_are_the_bottleneck_if_they_run_out_before_requests_do():
    workload = Workload.uniform(1000, body_bytes=2000, output_tokens=500)
    service = ExpectedService(requests_per_minute=600, burst=100)
    estimate = plan(workload, Limits(requests_per_minute=600, burst=100, tokens_per_minute=60_000), service)

    assert estimate.bottleneck == "tokens"
    assert estimate.duration.median == pytest.approx((1000 * 1000 - 60_000) / 60_000 * 60, rel=0.03)
    assert estimate.suggestions[0].limit == "tokens_per_minute"


@pytest.mark.usefixtures("no_suggestions")
def test_discovering_a_rate_costs_429s():
    estimate = plan(Workload.uniform(400), Limits(requests_per_minute="auto"), PUBLISHED)

    assert 1 <= estimate.rate_limited.median <= 12


@pytest.mark.usefixtures("no_suggestions")
def test_a_declaration_that_the_service_does_not_keep_is_estimated_with_its_429s():
    honest = plan(Workload.uniform(300), Limits(), PUBLISHED)
    deceived = plan(Workload.uniform(300), Limits(requests_per_minute=80), PUBLISHED)

    assert deceived.rate_limited.median > 0
    assert deceived.duration.median == pytest.approx(honest.duration.median, rel=0.1)


def test_failures_take_their_share_of_the_rate(request):
    stormy = plan(Workload.uniform(300), Limits(), ExpectedService(failure_rate=0.5), seeds=1)
    assert stormy.failed.median > 0
    request.getfixturevalue("no_suggestions")
    calm = plan(Workload.uniform(600), Limits(), PUBLISHED, seeds=5)
    rough = plan(Workload.uniform(600), Limits(), ExpectedService(failure_rate=0.05), seeds=5)

    assert rough.duration.median / calm.duration.median == pytest.approx(640 / 600 - 0.01, abs=0.03)


@pytest.mark.usefixtures("no_suggestions")
@pytest.mark.parametrize(
    ("limits", "service", "within"),
    [
        (Limits(), PUBLISHED, 0.0005),
        (Limits(requests_per_minute="auto"), PUBLISHED, 0.005),
        (Limits(), ExpectedService(failure_rate=0.03), 0.01),
        (
            Limits(requests_per_minute=600, burst=100),
            ExpectedService(requests_per_minute=600, burst=100, latency=8, latency_sigma=0.5),
            0.03,
        ),
    ],
    ids=["declared", "undeclared", "failures", "slots"],
)
def test_what_is_extrapolated_is_what_a_full_simulation_gives(limits, service, within):
    workload = Workload.uniform(2400)
    short = plan(workload, limits, service, seeds=2, max_simulated=1200)
    full = plan(workload, limits, service, seeds=1, max_simulated=2400)

    assert (short.simulated, full.simulated) == (1200, 2400)
    assert short.duration.median == pytest.approx(full.duration.median, rel=within)
    assert short.rate_limited.median == pytest.approx(full.rate_limited.median, abs=3)
    assert short.mean_in_flight == pytest.approx(full.mean_in_flight, rel=0.03)
    assert short.progress[-1][1] == full.progress[-1][1] == 2400
    for (quick, done), (slow, same) in zip(short.progress, full.progress, strict=True):
        assert done == same
        assert quick == pytest.approx(slow, rel=0.03, abs=60)


@pytest.mark.usefixtures("no_suggestions")
def test_a_million_prompts_are_extrapolated_to_the_rate_that_was_declared():
    estimate = plan(Workload.uniform(1_000_000), Limits(), PUBLISHED, seeds=1)

    assert estimate.duration.median == pytest.approx((1_000_000 - 40) * 1.5, rel=1e-5)


@pytest.mark.parametrize("name", ["requests_per_minute", "burst", "latency", "latency_sigma", "failure_rate"])
def test_impossible_expectations_are_refused_by_name(name):
    with pytest.raises(ConfigurationError, match=f"ExpectedService.{name} is -1"):
        ExpectedService(**{name: -1})


# The arithmetic.


@given(rate=st.floats(0.1, 100), burst=st.integers(0, 50), number=st.integers(200, 400), more=st.integers(0, 10**6))
def test_a_pure_bucket_is_extrapolated_exactly(rate, burst, number, more):
    sent_at = [max(0, index - burst) / rate for index in range(number)]
    state = steady_state(sent_at, [], warm_up=100, tail=10)

    assert state.gap == pytest.approx(1 / rate)
    assert sent_at[-1] + more * state.gap == pytest.approx((number + more - 1 - burst) / rate)


def test_between_two_429s_the_pace_is_that_of_the_refill():
    """Slow for nine tenths of each cycle, then a probe until the savings are gone: one 429."""
    sent_at, rate_limited_at, now = [], [], 0.0
    for _ in range(20):
        for _ in range(90):
            now += 1.1
            sent_at.append(now)
        for _ in range(30):
            now += 0.7
            sent_at.append(now)
        rate_limited_at.append(now)
    state = steady_state(sent_at, rate_limited_at, warm_up=700, tail=7)

    assert state.gap == pytest.approx((90 * 1.1 + 30 * 0.7) / 120)
    assert state.rate_limited == pytest.approx(1 / 120)


def test_a_run_too_short_for_a_pace_has_none():
    assert steady_state([], [], warm_up=100, tail=3) == SteadyState(0.0, 0.0, 0)
    assert steady_state([1.0], [], warm_up=100, tail=3) == SteadyState(0.0, 0.0, 0)


def test_runs_move_towards_their_mean_as_they_get_longer():
    states = [SteadyState(gap, 0, 100) for gap in (1.0, 1.2, 1.4)]

    assert shrink_to_mean(states, 0) == pytest.approx([1.2] * 3)
    assert shrink_to_mean(states, 50) == pytest.approx([1.0, 1.2, 1.4])
    assert shrink_to_mean(states, 10_000) == pytest.approx([1.18, 1.2, 1.22])


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50).map(sorted), st.integers(0, 1000), st.integers(1, 70))
def test_progress_never_goes_back_and_ends_with_everything(times, more, points):
    curve = extrapolate(times, 0.5, more, points)

    assert curve[-1] == (times[-1] + more * 0.5, len(times) + more)
    assert [count for _, count in curve] == sorted({count for _, count in curve})
    assert [time for time, _ in curve] == sorted(time for time, _ in curve)


# The workload.


def test_tokens_and_prices_are_summed_up_with_their_bounds():
    entry = lookup("GPT-5")
    meter = WorkloadMeter(output_tokens=100)
    meter.add(ChatRequest("GPT-5", "x" * 400, max_tokens=1000))
    meter.add(ChatRequest("GPT-5", "x" * 380, system="y" * 20, max_tokens=50))
    workload = meter.workload()

    assert (workload.prompts, workload.input_tokens, workload.models) == (2, 200, (("GPT-5", 2),))
    least = 200 * entry.input_price / 1e6
    assert workload.price.low == pytest.approx(least)
    assert workload.price.typical == pytest.approx(least + 150 * entry.output_price / 1e6)
    assert workload.price.high == pytest.approx(least + 1050 * entry.output_price / 1e6)


def test_a_prompt_without_a_bound_has_no_highest_cost_and_an_unknown_model_no_price():
    meter = WorkloadMeter()
    meter.add(ChatRequest("GPT-5", "Hi", max_tokens=5))
    meter.add(ChatRequest("GPT-5", "Hi"))
    meter.add(ChatRequest("a-model-of-my-own", "Hi"))
    price = meter.workload().price

    assert price.high is None
    assert price.unpriced == 1


def test_a_sample_is_evenly_spaced_and_bounded():
    meter = WorkloadMeter()
    short, long = ChatRequest("m", "x"), ChatRequest("m", "x" * 1001)
    for index in range(50_000):
        meter.add(long if index >= 25_000 else short)
    sample = meter.workload().sample

    assert 4096 <= len(sample) < 8192
    assert sum(size.body_bytes > 1000 for size in sample) == pytest.approx(len(sample) / 2, abs=1)


def test_a_simulated_run_has_the_sizes_of_the_workload():
    """Big prompts first: while tokens are the bottleneck, they are sent further apart than small ones."""
    sizes = [RequestSize(8000, 100, 100)] * 40 + [RequestSize(800, 100, 100)] * 40
    limits = Limits(requests_per_minute=6000, burst=1000, tokens_per_minute=6000)
    service = ExpectedService(requests_per_minute=6000, burst=1000, latency=0.5, latency_sigma=0)
    left = simulate_workload(sizes, limits, service, seed=0).sent_at

    big, small = left[39] - left[20], left[79] - left[60]
    assert big / small == pytest.approx((2000 + 100) / (200 + 100), rel=0.15)


def test_a_plan_is_json_without_the_sizes_of_its_prompts():
    estimate = plan(Workload.uniform(50), Limits(), ExpectedService(), seeds=1)
    found = estimate.to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["duration"]["median"] == estimate.duration.median
    assert found["workload"]["prompts"] == 50
    assert found["workload"].keys() == {"prompts", "input_tokens", "price", "models"}
    assert found["bottleneck"] == estimate.bottleneck
