"""What a request takes from every dimension, and how another dimension is added."""

import asyncio
from random import Random

import attrs
import pytest

from onellm_async.errors import ConfigurationError, DeadlineExceededError
from onellm_async.limits import Limiter, Limits, TokenBucket
from onellm_async.limits.admission import Admission
from onellm_async.limits.dimensions import DIMENSIONS, Concurrency, Dimension, Requests, Tokens
from onellm_async.limits.queue import Ticket
from onellm_async.limits.rate_control import control_for
from onellm_async.validation import Checks

_check = Checks(ConfigurationError, "Limits.")


@attrs.frozen(kw_only=True)
class DraftLimits(Limits):
    """Limits with one more field."""

    drafts_at_once: int | None = attrs.field(default=None, validator=_check.integer(1, optional=True))


class Drafts(Dimension):
    """Requests to the model "draft" in flight: the dimension that the field is for."""

    __slots__ = ("in_flight", "size")

    NAME = "concurrency"

    def __init__(self, limits: Limits, now: float) -> None:
        self.in_flight = 0
        super().__init__(limits, now)

    def time_until(self, ticket: Ticket, now: float) -> float:
        return float("inf") if ticket.model == "draft" and self.in_flight >= self.size else 0.0

    def take(self, ticket: Ticket, now: float) -> None:
        self.in_flight += ticket.model == "draft"

    def settle(self, ticket: Ticket, used: float | None, now: float) -> None:
        self.in_flight -= ticket.model == "draft"

    def reconfigure(self, limits: Limits, now: float) -> None:
        self.size = getattr(limits, "drafts_at_once", None) or 10**9


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onellm_async.limits.admission.DIMENSIONS", (*DIMENSIONS, Drafts))


async def test_a_new_limit_is_one_class_and_one_field(drafts: None) -> None:
    limiter = Limiter(DraftLimits(drafts_at_once=1, requests_per_minute=None), random=Random(0))
    first = await limiter.acquire(model="draft")
    with pytest.raises(DeadlineExceededError):
        await limiter.acquire(model="draft", deadline=limiter.time() + 0.01)
    assert limiter.snapshot().in_flight == 1, "a request that one dimension holds back takes nothing from the others"
    other = await limiter.acquire(model="final")
    first.answered()
    (await limiter.acquire(model="draft")).release()
    other.give_back()
    assert limiter.snapshot().at_rest


@pytest.mark.virtual_time
async def test_what_a_new_limit_keeps_waiting_starts_when_it_gets_room(drafts: None) -> None:
    limiter = Limiter(DraftLimits(drafts_at_once=1, requests_per_minute=None), random=Random(0))
    permits = [await limiter.acquire(model="draft")]
    waiting = asyncio.ensure_future(limiter.acquire(model="draft"))
    await asyncio.sleep(1)
    assert limiter.snapshot().bottleneck == "concurrency"
    limiter.retune(DraftLimits(drafts_at_once=2, requests_per_minute=None))
    permits.append(await waiting)
    for permit in permits:
        permit.rate_limited()


def core_with(limits: Limits) -> Admission:
    return Admission(limits, control_for(limits, 0.0, Random(0)), 0.0)


def test_a_request_takes_from_all_dimensions_or_from_none() -> None:
    core = core_with(Limits(max_concurrency=5, requests_per_minute=600, burst=10, tokens_per_minute=100))
    assert core.try_enter(Ticket("default", 90.0), 0.0)
    tokens = core.tokens
    assert isinstance(tokens, TokenBucket)
    before = core.in_flight, tokens.level_at(0.0), core.rate.time_until(9, 0.0)
    assert not core.try_enter(Ticket("default", 90.0), 0.0), "there are a slot and a request, but no tokens"
    assert (core.in_flight, tokens.level_at(0.0), core.rate.time_until(9, 0.0)) == before


def test_a_dimension_without_a_limit_is_not_asked() -> None:
    limits = Limits.unlimited(4)
    concurrency, requests, tokens = (kind(limits, 0.0) for kind in (Concurrency, Requests, Tokens))
    assert (concurrency.is_limited, requests.is_limited, tokens.is_limited) == (True, True, False)
    assert (concurrency.level(0.0), tokens.level(0.0)) == (4, None)
    assert requests.name == "backoff"
