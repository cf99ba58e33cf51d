"""What services advertise of their rate limit in headers."""

import asyncio
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import AsyncOneLLM, Limits, Rate
from onellm_async.testing import FakeRequest, FakeTransport, Reply
from onellm_async.transport import RawReply
from onellm_async.wire import AdvertisedLimit, RateHeaderReader, parse_rate_headers
from onellm_async.wire.rate_headers import MAX_RESET, parse_reset

NOW = 1_700_000_000.0
SPELLINGS = {
    "OpenAI": (
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-remaining-tokens": "149984",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        AdvertisedLimit(limit=60, remaining=59, reset=1),
    ),
    "Anthropic": (
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2023-11-14T22:14:20Z",
            "anthropic-ratelimit-tokens-remaining": "1",
        },
        AdvertisedLimit(limit=50, remaining=49, reset=60, is_moment=True),
    ),
    "GitHub": (
        {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "4987", "X-RateLimit-Reset": "1700003000"},
        AdvertisedLimit(limit=5000, remaining=4987, reset=3000, is_moment=True),
    ),
    "milliseconds": (
        {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000030500"},
        AdvertisedLimit(limit=20, remaining=0, reset=30.5, is_moment=True),
    ),
    "seconds": (
        {"x-rate-limit-limit": "400", "x-rate-limit-remaining": "12", "x-rate-limit-reset": "33"},
        AdvertisedLimit(limit=400, remaining=12, reset=33),
    ),
    "a minute in the name": (
        {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-remaining-req-minute": "58"},
        AdvertisedLimit(limit=60, remaining=58, window=60),
    ),
    "a day and a minute": (
        {
            "x-ratelimit-limit-requests-day": "14400",
            "x-ratelimit-remaining-requests-day": "14399",
            "x-ratelimit-limit-requests-minute": "30",
            "x-ratelimit-remaining-requests-minute": "29",
        },
        AdvertisedLimit(limit=30, remaining=29, window=60),
    ),
    "IETF draft 06": (
        {
            "RateLimit-Limit": "100",
            "RateLimit-Remaining": "50",
            "RateLimit-Reset": "50",
            "RateLimit-Policy": "100;w=60",
        },
        AdvertisedLimit(limit=100, remaining=50, reset=50, window=60),
    ),
    "IETF draft 00": (
        {"RateLimit-Limit": "10, 10;w=1, 1000;w=3600", "RateLimit-Remaining": "9"},
        AdvertisedLimit(limit=10, remaining=9, window=1),
    ),
    "IETF draft 07": (
        {"RateLimit": "limit=100, remaining=50, reset=5", "RateLimit-Policy": "100;w=60"},
        AdvertisedLimit(limit=100, remaining=50, reset=5, window=60),
    ),
    "IETF draft 10": (
        {"RateLimit": '"default";r=50;t=30', "RateLimit-Policy": '"default";q=100;w=60'},
        AdvertisedLimit(remaining=50, reset=30, window=60),
    ),
    "IETF policies alone": (
        {"RateLimit-Policy": '"burst";q=100;w=60,"daily";q=1000;w=86400'},
        AdvertisedLimit(limit=100, window=60),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_known_spelling_is_read(name: str) -> None:
    headers, limit = SPELLINGS[name]
    assert parse_rate_headers(headers, NOW) == limit


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/json", "Retry-After": "3"},
        {"x-ratelimit-limit-tokens": "150000", "x-ratelimit-remaining-tokens": "3"},
        {"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "-1"},
        {"x-ratelimit-limit": "1e9", "x-ratelimit-reset": "soon"},
        {"x-ratelimit-limit-requests": "9" * 40},
        {"RateLimit": "", "RateLimit-Policy": ";;,w=,=60"},
        {"x-ratelimit-reset": "٣"},
        {"x-account-limit-requests": "5"},
    ],
)
def test_what_is_none_of_them_is_ignored(headers: dict[str, str]) -> None:
    assert parse_rate_headers(headers, NOW) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("1.5", 1.5),
        ("1m26.4s", 86.4),
        ("6m0s", 360.0),
        ("2h3m", 7380.0),
        ("120ms", 0.12),
        ("1s500ms", 1.5),
        ("1d", 86_400.0),
        (" 9 ", 9.0),
        ("1700000060", 60.0),
        ("1700000060500", 60.5),
        ("1600000000", 0.0),
        ("2023-11-14T22:13:25Z", 5.0),
        ("2023-11-14T23:13:25+01:00", 5.0),
        ("2023-11-14T22:13:25", 5.0),
        ("", None),
        ("s", None),
        ("1m 26s", None),
        ("-3", None),
        ("1e3", None),
        ("nan", None),
        ("3d", None),
        ("200000", None),
        ("2033-11-14T22:13:25Z", None),
        ("2023-99-14T22:13:25Z", None),
        ("Tue, 14 Nov 2023 22:13:25 GMT", None),
    ],
)
def test_a_reset_is_seconds_a_duration_or_a_moment(text: str, seconds: float | None) -> None:
    assert parse_reset(text, NOW) == (None if seconds is None else pytest.approx(seconds))


@given(st.dictionaries(st.sampled_from([*{n for h, _ in SPELLINGS.values() for n in h}, "x"]), st.text(max_size=40)))
def test_any_text_in_any_header_is_read_or_ignored(headers: dict[str, str]) -> None:
    found = parse_rate_headers(headers, NOW)
    if found is not None:
        assert found.reset is None or 0 <= found.reset <= MAX_RESET
        assert all(value is None or 0 <= value < 2**54 for value in (found.limit, found.remaining, found.window))


def test_headers_are_looked_at_seldom_once_none_was_found() -> None:
    reader, advertised = RateHeaderReader(), {"x-ratelimit-limit": "7"}
    assert [reader.read({"a": "b"}, NOW) for _ in range(20)] == [None] * 20
    assert sum(reader.read(advertised, NOW) is not None for _ in range(64)) >= 1
    assert all(reader.read(advertised, NOW) is not None for _ in range(64)), "and always once there is one"


# What a client makes of them.


def service(headers: dict[str, str], opens_at: float = 0.0) -> FakeTransport:
    async def reply(request: FakeRequest) -> Reply:
        if request.at < opens_at:
            left = {"X-RateLimit-Reset": f"{opens_at - request.at:.3f}", "X-RateLimit-Remaining": "0"}
            return RawReply(429, left, b"{}")
        return RawReply(200, headers, b'{"content": "Hi"}')

    return FakeTransport(reply)


async def test_a_snapshot_shows_what_the_service_advertises() -> None:
    headers = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "19"}
    async with AsyncOneLLM(transport=service(headers), limits=Limits(requests_per_minute=600)) as client:
        before = client.snapshot()
        await client.chat("Hello", model="GPT-5")
        snapshot = client.snapshot()
    assert (before.advertised_limit, before.advertised_remaining) == (None, None)
    assert (snapshot.advertised_limit, snapshot.advertised_remaining) == (20, 19)
    assert (snapshot.rate, snapshot.declared_rate) == (600, 600), "a hint, which changes nothing that is declared"


@pytest.mark.virtual_time
@pytest.mark.parametrize("limits", [Limits.unlimited(8), Limits(rates=[Rate(30, 60, window=True)])])
async def test_after_a_429_nothing_is_sent_before_the_reset_that_it_advertises(limits: Limits) -> None:
    limited = service({}, opens_at=20.0)
    async with AsyncOneLLM(transport=limited, limits=limits, random=Random(1)) as client:
        await asyncio.gather(*(client.chat("x", model="GPT-5") for _ in range(4)))
    assert len(limited.requests) <= 4 + 4
    assert sorted(request.at for request in limited.requests)[4] >= 19.99


@pytest.mark.virtual_time
async def test_a_reset_that_is_not_true_delays_no_longer_than_a_backoff() -> None:
    async def reply(request: FakeRequest) -> Reply:
        if len(limited.requests) == 1:
            return RawReply(429, {"x-ratelimit-reset-requests": "23h", "x-ratelimit-remaining-requests": "0"}, b"{}")
        return "Hi"

    limited = FakeTransport(reply)
    async with AsyncOneLLM(transport=limited, limits=Limits.unlimited(8), random=Random(1)) as client:
        await client.chat("x", model="GPT-5")
    assert asyncio.get_running_loop().time() <= 31
