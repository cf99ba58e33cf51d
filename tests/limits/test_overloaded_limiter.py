"""The limiter alone against a service that takes only so much at once; in virtual time."""

import asyncio
from random import Random

import pytest

from onellm_async.limits.limiter import Limiter
from onellm_async.limits.policy import Limits

pytestmark = pytest.mark.virtual_time

MAX_ATTEMPTS = 4
AT_ONCE = {"requests_per_minute": 60_000, "burst": 1000}


def now():
    return asyncio.get_running_loop().time()


class Service:
    """Has some places. Who waits longer than its patience for one hears that it is overloaded."""

    def __init__(self, places, seconds, patience, failing=0.0, seed=0):
        self.places, self.seconds, self.patience = asyncio.Semaphore(places), seconds, patience
        self.failing, self.random = failing, Random(seed)
        self.faults = 0

    async def answers(self):
        if self.random.random() < self.failing:
            await asyncio.sleep(0.05)
            self.faults += 1
            return False
        try:
            async with asyncio.timeout(self.patience):
                await self.places.acquire()
        except TimeoutError:
            self.faults += 1
            return False
        await asyncio.sleep(self.seconds)
        self.places.release()
        return True


async def ask_all(slots, service, number, seed):
    """When each of so many requests was answered; none may fail for good."""
    random, answered = Random(seed), []

    async def ask():
        order, attempts = -1, 0
        while True:
            permit = await slots.acquire(order=order)
            order = permit.order
            if await service.answers():
                permit.answered()
                answered.append(now())
                return
            attempts += permit.overloaded()
            assert attempts < MAX_ATTEMPTS
            await asyncio.sleep(random.uniform(0, 0.25 * 2**attempts))

    await asyncio.gather(*(ask() for _ in range(number)))
    return answered


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [40, 400])
async def test_a_service_with_four_places_answers_everything_nearly_as_fast_as_it_can(number, seed):
    service, slots = Service(4, 0.3, 1.0), Limiter(Limits(max_concurrency=48, **AT_ONCE), random=Random(seed))
    answered = await ask_all(slots, service, number, seed)
    assert len(answered) == number
    best = 4 / 0.3
    assert answered[-1] <= 10 + number / best / 0.8
    late = [time for time in answered if time > 10]
    assert len(late) >= 0.8 * best * (now() - 10) - 4
    assert service.faults <= 48
    assert slots.snapshot().at_rest


@pytest.mark.parametrize(
    ("places", "seconds", "patience", "number"),
    [(1, 0.3, 1.0, 60), (8, 0.3, 0.005, 400), (8, 6.0, 0.005, 400), (4, 5.0, 1.0, 100), (20, 0.3, 1.0, 1000)],
    ids=["one place", "no patience", "no patience and slow", "slow", "many places"],
)
async def test_so_do_services_with_other_places_and_other_patience(places, seconds, patience, number):
    service, slots = (
        Service(places, seconds, patience),
        Limiter(Limits(max_concurrency=200, **AT_ONCE), random=Random(1)),
    )
    answered = await ask_all(slots, service, number, 1)
    assert len(answered) == number
    assert now() <= 1.2 * number * seconds / places + 10 * seconds


async def test_a_fault_leaves_the_rate_alone_and_gives_tokens_and_slot_back():
    slots = Limiter(
        Limits(max_concurrency=4, requests_per_minute=60, burst=10, tokens_per_minute=600), random=Random(0)
    )
    permits = [await slots.acquire(tokens=100) for _ in range(4)]
    before = slots.snapshot()
    permits[0].answered(100)
    assert permits[1].overloaded()
    after = slots.snapshot()
    assert (after.in_flight, after.rate, after.level) == (2, before.rate, before.level)
    assert after.tokens_level == 600 - 300
    assert (after.max_concurrency, after.concurrency) == (4, 1)
    assert not permits[2].overloaded(), "sent before the cut"
    waiting = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    assert slots.snapshot().bottleneck == "concurrency"
    permits[3].release()
    (await waiting).answered()
    assert slots.snapshot().concurrency > 1


async def test_a_lower_declared_concurrency_holds_beside_a_cut_and_a_higher_one_waits_for_it():
    slots = Limiter(Limits(max_concurrency=8, **AT_ONCE), random=Random(0))
    permits = [await slots.acquire() for _ in range(8)]
    for permit in permits[:4]:
        permit.answered()
    permits[4].overloaded()
    assert slots.snapshot().concurrency == 3
    slots.retune(Limits(max_concurrency=2, **AT_ONCE))
    assert slots.snapshot().concurrency == 2
    slots.retune(Limits(max_concurrency=100, **AT_ONCE))
    assert slots.snapshot().concurrency == 3
    for permit in permits[5:]:
        permit.answered()
    assert slots.snapshot().concurrency == 4


@pytest.mark.parametrize("slots", [4, 8, 19, 20, 48, 200])
async def test_faults_of_one_percent_of_the_requests_cost_little(slots):
    """They do not depend on what is in flight, so that less concurrency would not help."""
    shares = []
    for seed in range(3):
        began, number = now(), 60 * slots
        service = Service(10_000, 0.3, 1.0, failing=0.01, seed=seed)
        limiter = Limiter(Limits(max_concurrency=slots, **AT_ONCE), random=Random(seed))
        assert len(await ask_all(limiter, service, number, seed)) == number
        shares.append(number * 0.3 / slots / (now() - began))
    assert sorted(shares)[1] >= 0.8


# The concurrency is found out.


@pytest.mark.parametrize("number", [40, 400])
async def test_the_places_of_a_service_are_found_out(number):
    service, slots = Service(4, 0.3, 1.0), Limiter(Limits(max_concurrency="auto", **AT_ONCE), random=Random(1))
    assert slots.snapshot().concurrency == slots.slots == 4
    answered = await ask_all(slots, service, number, 1)
    best = 4 / 0.3
    assert answered[-1] <= 10 + number / best / 0.8
    late = [time for time in answered if time > 10]
    assert len(late) >= 0.8 * best * (now() - 10) - 4
    assert service.faults <= 0.1 * number
    assert slots.snapshot().concurrency == slots.slots < 40
    assert slots.snapshot().max_concurrency == 512


@pytest.mark.parametrize("most", [1, 3, 8, 64])
async def test_a_429_without_any_rate_is_of_the_concurrency(most):
    limits, in_flight, refused = Limits(max_concurrency="auto", requests_per_minute=None), 0, 0
    slots, number = Limiter(limits, random=Random(1)), 60 * most

    async def ask():
        nonlocal in_flight, refused
        order = -1
        while True:
            permit = await slots.acquire(order=order)
            order = permit.order
            if in_flight < most:
                break
            refused += 1
            await asyncio.sleep(0.02)
            permit.rate_limited()
        in_flight += 1
        await asyncio.sleep(0.3)
        in_flight -= 1
        permit.answered()

    await asyncio.gather(*(ask() for _ in range(number)))
    assert number / most * 0.3 / now() >= 0.8
    assert refused / number <= (0.15 if most > 1 else 0.2)
    assert slots.snapshot().concurrency <= 1.5 * most + 1


async def test_a_429_of_a_rate_ends_the_doubling_and_takes_no_concurrency_away():
    slots = Limiter(Limits(max_concurrency="auto", **AT_ONCE), random=Random(1))
    permits = [await slots.acquire() for _ in range(4)]
    for permit in permits:
        permit.answered()
    assert slots.snapshot().concurrency == 8
    (await slots.acquire()).rate_limited()
    await asyncio.sleep(1)
    permits = [await slots.acquire() for _ in range(8)]
    for permit in permits:
        permit.answered()
    assert slots.snapshot().concurrency == 9


async def test_a_retune_to_auto_and_back_keeps_what_is_in_flight():
    slots = Limiter(Limits(max_concurrency=8, **AT_ONCE), random=Random(0))
    permits = [await slots.acquire() for _ in range(8)]
    slots.retune(Limits(max_concurrency="auto", **AT_ONCE))
    assert (slots.snapshot().concurrency, slots.snapshot().in_flight) == (4, 8)
    slots.retune(Limits(max_concurrency=6, **AT_ONCE))
    assert slots.snapshot().concurrency == 6
    for permit in permits:
        permit.answered()
    assert slots.snapshot().at_rest
