import asyncio

import pytest

from onellm_async.batch.budget import Account, Budget, Charge
from onellm_async.batch.purse import Purse
from onellm_async.errors import BudgetExceededError

pytestmark = pytest.mark.virtual_time

TEN = Charge(tokens=10)


def purse_of(tokens: int) -> Purse:
    return Purse(Account(Budget(max_tokens=tokens)))


async def test_a_charge_that_does_not_fit_yet_waits_until_another_turns_out_cheaper():
    purse = purse_of(19)
    await purse.reserve(TEN)
    second = asyncio.create_task(purse.reserve(TEN))
    await asyncio.sleep(1)
    assert not second.done()
    purse.settle(TEN, Charge(tokens=9))
    await second
    assert purse.account.reserved == TEN


async def test_charges_are_served_in_order_so_that_a_large_one_is_not_starved():
    purse = purse_of(20)
    await purse.reserve(TEN)
    large = asyncio.create_task(purse.reserve(Charge(tokens=15)))
    small = asyncio.create_task(purse.reserve(Charge(tokens=1)))
    await asyncio.sleep(1)
    assert not small.done()
    purse.settle(TEN, Charge(tokens=1))
    await asyncio.gather(large, small)


async def test_what_does_not_fit_while_nothing_is_under_way_is_refused_with_the_sums():
    purse = purse_of(25)
    await purse.reserve(TEN)
    purse.settle(TEN, TEN)
    with pytest.raises(BudgetExceededError, match="15 of 25 tokens are left, and the next prompt could use 16"):
        await purse.reserve(Charge(tokens=16))
    dollars = Purse(Account(Budget(max_cost=0.5), spent=Charge(cost=0.25)))
    with pytest.raises(BudgetExceededError, match=r"\$0.25 of \$0.50 are left, and .* could cost \$0.30"):
        await dollars.reserve(Charge(cost=0.3))


async def test_all_who_wait_are_refused_when_the_last_one_under_way_leaves_too_little():
    purse = purse_of(10)
    await purse.reserve(TEN)
    waiting = [asyncio.create_task(purse.reserve(TEN)) for _ in range(3)]
    await asyncio.sleep(1)
    purse.settle(TEN, Charge(tokens=5))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [BudgetExceededError] * 3


async def test_a_cancelled_wait_holds_nothing_and_lets_the_next_one_go():
    purse = purse_of(20)
    await purse.reserve(TEN)
    large = asyncio.create_task(purse.reserve(Charge(tokens=15)))
    small = asyncio.create_task(purse.reserve(TEN))
    await asyncio.sleep(1)
    large.cancel()
    await small
    assert purse.account.reserved == Charge(tokens=20)


async def test_a_wait_cancelled_in_the_moment_of_being_served_gives_its_charge_back():
    purse = purse_of(10)
    await purse.reserve(TEN)
    waiting = asyncio.create_task(purse.reserve(TEN))
    await asyncio.sleep(1)
    purse.settle(TEN, Charge())
    waiting.cancel()
    await asyncio.wait({waiting})
    assert purse.account.under_way == 0
    assert purse.account.reserved == Charge()
