"""Several declared rates: what `Limits` makes of them, and that all of them are kept at once."""

import asyncio
from random import Random

import attrs
import pytest

from onellm_async import AsyncOneLLM, ConfigurationError, Limits, Rate
from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.declared_window import DeclaredWindow
from onellm_async.limits.rate_control import SeveralRates, control_for, reconfigured
from onellm_async.testing import FakeTransport
from tests.limits.test_declared_window import busiest

DAY = 86_400.0


# What is declared.


@pytest.mark.parametrize(
    ("limits", "rates"),
    [
        (Limits(), [Rate(40, 60, burst=40)]),
        (Limits(requests_per_second=10), [Rate(10, 1, burst=10)]),
        (Limits(requests_per_second=100, burst=5), [Rate(100, 1, burst=5)]),
        (Limits(requests_per_day=1000), [Rate(1000, DAY, window=True)]),
        (Limits(rates=[Rate(7, 3)]), [Rate(7, 3)]),
        (Limits(requests_per_minute=90, requests_per_second=2), [Rate(90, 60, burst=40), Rate(2, 1)]),
        (Limits(requests_per_minute="auto", requests_per_day=9), [Rate(9, DAY, window=True)]),
        (Limits(requests_per_minute=90, adaptive="discover"), []),
        (Limits.unlimited(), []),
    ],
)
def test_naming_any_rate_drops_the_default(limits: Limits, rates: list[Rate]) -> None:
    assert list(limits.declared_rates) == rates


@pytest.mark.parametrize(
    ("limits", "per_minute"),
    [
        (Limits(), 40),
        (Limits(requests_per_second=10), 600),
        (Limits(rates=[Rate(40, 60), Rate(1000, DAY)]), 40),
        (Limits(rates=[Rate(1200, 3600)]), 20),
        (Limits(requests_per_minute="auto", requests_per_day=9), None),
        (Limits(requests_per_minute=90, adaptive="discover"), 90),
        (Limits.unlimited(), None),
    ],
)
def test_the_declared_rate_is_what_a_minute_allows(limits: Limits, per_minute: float | None) -> None:
    assert limits.declared_rate == per_minute


@pytest.mark.parametrize(
    ("rate", "is_window", "capacity"),
    [
        (Rate(40, 60), False, 40),
        (Rate(10, 1), False, 10),
        (Rate(0.5, 60), False, 1),
        (Rate(600, 60), False, 40),
        (Rate(600, 60, burst=100), False, 100),
        (Rate(600, 60, window=True), True, 600),
        (Rate(1000, DAY), True, 1000),
        (Rate(1000, DAY, burst=40), False, 40),
    ],
)
def test_a_rate_is_a_bucket_and_a_daily_one_a_window(rate: Rate, is_window: bool, capacity: int) -> None:
    assert (rate.is_window, rate.capacity) == (is_window, capacity)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rate(0, 60), r"Rate.count is 0; it must be a finite number above 0"),
        (lambda: Rate("40", 60), r"Rate.count is '40'"),
        (lambda: Rate(True, 60), r"Rate.count is True"),
        (lambda: Rate(40, 0), r"Rate.per is 0"),
        (lambda: Rate(40, float("inf")), r"Rate.per is inf"),
        (lambda: Rate(40, float("nan")), r"Rate.per is nan"),
        (lambda: Rate(40, 60, burst=0), r"Rate.burst is 0; it must be an integer of at least 1"),
        (lambda: Rate(40, 60, burst=4, window=True), r"Rate.burst is 4; a window has none"),
        (lambda: Rate(40, 60, window=1), r"Rate.window is 1; it must be True or False"),
        (lambda: Rate(4.5, 60, window=True), r"Rate.count is 4.5; the count of a window must be an integer"),
        (lambda: Rate(0.5, DAY), r"Rate.count is 0.5; .* kept as one\) must be an integer of at least 1"),
        (
            lambda: Limits(rates=40),
            r"Limits.rates is 40; it must be a list of Rate, for example \[Rate\(40, per=60\)\]",
        ),
        (lambda: Limits(rates=[40]), r"Limits.rates is \(40,\); each of them must be a Rate"),
        (lambda: Limits(rates=Rate(40, 60)), r"Limits.rates is Rate\(.*it must be a list of Rate"),
        (lambda: Limits(rates="40/60s"), r"Limits.rates is '40/60s'; it must be a list"),
        (lambda: Limits(requests_per_second=0), r"Limits.requests_per_second is 0"),
        (lambda: Limits(requests_per_day=1.5), r"Limits.requests_per_day is 1.5; it must be an integer"),
        (lambda: Limits(requests_per_day=9, adaptive="discover"), r"only requests_per_minute can be discovered"),
        (lambda: Rate.parse("40"), r"A rate is '40'; it must be COUNT/DURATION, for example 40/60s"),
        (lambda: Rate.parse("0/60s"), r"Rate.count is 0"),
        (lambda: Rate.parse("40/0s"), r"Rate.per is 0"),
        (lambda: Rate.parse("40/60 s"), r"A rate is '40/60 s'"),
        (lambda: Rate.parse("٤٠/60s"), r"A rate is"),
        (lambda: Rate.parse("-1/s"), r"A rate is '-1/s'"),
    ],
)
def test_what_is_no_rate_is_refused_in_words(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("40/60s", Rate(40, 60)),
        ("1000/1d", Rate(1000, DAY)),
        ("10/s", Rate(10, 1)),
        ("2.5/m", Rate(2.5, 60)),
        ("30/500ms", Rate(30, 0.5)),
        ("window:300/min", Rate(300, 60, window=True)),
        ("100/2h", Rate(100, 7200)),
        ("40/60", Rate(40, 60)),
    ],
)
def test_a_rate_is_written_as_count_and_duration(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


# What is kept.


class Sends:
    """Notes when requests arrive, and answers after `latency` seconds."""

    def __init__(self, latency: float = 1.0) -> None:
        self.at: list[float] = []
        self.transport = FakeTransport(self._answer)
        self.latency = latency

    async def _answer(self, request: object) -> str:
        self.at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.latency)
        return "Hi"


async def sends_of(limits: Limits, prompts: int) -> list[float]:
    sends = Sends()
    async with AsyncOneLLM(transport=sends.transport, limits=limits, random=Random(1)) as client:
        await client.gather_chats(["x"] * prompts, model="GPT-5")
        assert client.snapshot().at_rest
    return sends.at


@pytest.mark.virtual_time
async def test_all_rates_are_kept_together() -> None:
    limits = Limits(max_concurrency=200, rates=[Rate(5, 1), Rate(100, 60, window=True), Rate(250, DAY)])
    at = await sends_of(limits, 300)
    assert busiest(at, 60) == 100
    assert busiest(at, DAY) == 250
    assert busiest(at, 1) <= 5 + 5 + 1, "a bucket: its burst and its refill"
    assert at[249] < 130, "100 at once, and again as soon as the window allows"
    assert at[250] > DAY, "the next day"


@pytest.mark.virtual_time
async def test_a_window_alone_loses_nothing_after_the_first() -> None:
    at = await sends_of(Limits(max_concurrency=300, rates=[Rate(300, 60, window=True)]), 1500)
    assert busiest(at, 60) == 300
    assert 240 / at[-1] > 0.98, "but for the pace of the first"


@pytest.mark.virtual_time
async def test_a_limit_is_discovered_beside_a_declared_window() -> None:
    limits = Limits(requests_per_minute="auto", rates=[Rate(20, 60, window=True)])
    at = await sends_of(limits, 45)
    assert busiest(at, 60) == 20
    control = control_for(limits, 0.0, Random(1))
    assert isinstance(control, SeveralRates)
    assert isinstance(control.parts[0], AdaptiveRate)
    control.take(0.0)
    control.rate_limited(0.0, 0.1)
    assert control.parts[1].time_until(1, 0.1) == 0, "the 429 is of the limit that is not known"


def test_a_429_counts_against_the_rate_that_is_nearest_to_its_end() -> None:
    control = control_for(Limits(rates=[Rate(100, 1), Rate(10, 60)]), 0.0, Random(1))
    assert isinstance(control, SeveralRates)
    second, minute = control.parts
    control.take(0.0)
    control.rate_limited(0.0, 0.1)
    assert second.time_until(1, 0.1) > 0
    assert minute.time_until(1, 0.1) == 0
    for number in range(8):
        control.take(1.0 + number / 10)
    control.rate_limited(1.7, 1.8)
    assert minute.time_until(1, 1.8) >= 6


def test_a_429_counts_in_no_window() -> None:
    control = control_for(Limits(rates=[Rate(100, 1), Rate(5, DAY), Rate(4, 3600, window=True)]), 0.0, Random(1))
    assert isinstance(control, SeveralRates)
    for number in range(20):
        control.take(float(number))
        control.rate_limited(float(number), number + 0.1)
    assert [part.used(20.0) for part in control.parts if isinstance(part, DeclaredWindow)] == [0, 0]


# What a change keeps.


def changed(before: Limits, limits: Limits, takes: int, at: float = 0.0) -> tuple[object, object]:
    control = control_for(before, 0.0, Random(1))
    for _ in range(takes):
        control.take(at)
    return control, reconfigured(control, before, limits, at, Random(2))


def test_a_window_keeps_what_was_sent_in_it() -> None:
    before = Limits(rates=[Rate(10, 60, window=True), Rate(100, DAY)])
    _, control = changed(before, Limits(rates=[Rate(100, DAY), Rate(12, 60, window=True)]), 10)
    assert isinstance(control, SeveralRates)
    day, minute = control.parts
    assert isinstance(day, DeclaredWindow)
    assert isinstance(minute, DeclaredWindow)
    assert (day.used(0.0), minute.used(0.0), minute.count) == (10, 10, 12)
    assert minute.time_until(3, 0.0) > 0


def test_the_short_form_and_the_same_rate_are_one_bucket() -> None:
    before, control = changed(Limits(requests_per_minute=60), Limits(rates=[Rate(60, 60)]), 30)
    assert control is before


def test_a_bucket_of_another_length_keeps_its_level() -> None:
    _, control = changed(Limits(requests_per_minute=60), Limits(requests_per_second=2, burst=40), 38)
    assert isinstance(control, DeclaredRate)
    assert control.time_until(1, 0.0) > 0


def test_a_discovered_rate_stays_known_when_only_a_declared_one_changes() -> None:
    before = Limits(requests_per_minute="auto", requests_per_day=100)
    control, after = changed(before, attrs.evolve(before, requests_per_day=50), 1)
    assert isinstance(control, SeveralRates)
    assert isinstance(after, SeveralRates)
    assert after.parts[0] is control.parts[0]
    assert after.parts[1] is control.parts[1]


async def test_a_client_is_retuned_from_one_rate_to_several_and_back() -> None:
    async with AsyncOneLLM(transport=FakeTransport(), random=Random(1)) as client:
        for limits in (
            Limits(rates=[Rate(50, 1), Rate(90, DAY)]),
            Limits(),
            Limits.unlimited(),
            Limits(requests_per_day=5),
        ):
            client.retune(limits)
            await client.chat("Hello", model="GPT-5")
            assert client.snapshot().declared_rate == limits.declared_rate


# What is not possible.


@pytest.mark.parametrize("limits", [Limits(rates=[Rate(5, 1), Rate(40, 60)]), Limits(requests_per_day=1000)])
def test_a_quota_refuses_what_its_board_cannot_share(limits: Limits) -> None:
    with pytest.raises(
        ConfigurationError, match=r"A quota shares one rate limit, a token bucket, and these Limits have"
    ):
        AsyncOneLLM(transport=FakeTransport(), limits=limits, quota="host", base_url="http://127.0.0.1:9")
