import asyncio

import pytest

from onellm_async import Usage
from onellm_async.batch.budget import NO_COST, Bound, Budget, BudgetGate, Cost
from onellm_async.errors import BudgetExceededError

pytestmark = pytest.mark.virtual_time

TEN = Cost(tokens=10)


def of(tokens: int, model: str = "m") -> Bound:
    return Bound(model, 0, tokens)


def budget_gate_of(tokens: int, **options) -> BudgetGate:
    """A budget gate that knows what its only model bills."""
    budget_gate = BudgetGate(Budget(max_tokens=tokens), **options)
    budget_gate.learn(of(1), Usage(0, 1))
    return budget_gate


async def test_a_charge_that_does_not_fit_yet_waits_until_another_turns_out_cheaper():
    budget_gate = budget_gate_of(19)
    await budget_gate.reserve(of(10))
    second = asyncio.create_task(budget_gate.reserve(of(10)))
    await asyncio.sleep(1)
    assert not second.done()
    budget_gate.settle(TEN, Cost(tokens=9))
    await second
    assert budget_gate.reserved == TEN


async def test_charges_are_served_in_order_so_that_a_large_one_is_not_starved():
    budget_gate = budget_gate_of(20)
    await budget_gate.reserve(of(10))
    large = asyncio.create_task(budget_gate.reserve(of(15)))
    small = asyncio.create_task(budget_gate.reserve(of(1)))
    await asyncio.sleep(1)
    assert not small.done()
    budget_gate.settle(TEN, Cost(tokens=1))
    await asyncio.gather(large, small)


async def test_what_does_not_fit_while_nothing_is_under_way_is_refused_with_the_sums():
    budget_gate = budget_gate_of(25)
    await budget_gate.reserve(of(10))
    budget_gate.settle(TEN, TEN)
    with pytest.raises(BudgetExceededError, match="15 of 25 tokens are left, and the next prompt could use 16"):
        await budget_gate.reserve(of(16))
    dollars = BudgetGate(Budget(max_cost=0.5), Cost(cost=0.25))
    with pytest.raises(BudgetExceededError, match=r"\$0.25 of \$0.50 are left, and .* could cost \$0.30"):
        await dollars.reserve(Bound("GPT-5", 0, 28_846))


async def test_all_who_wait_are_refused_when_the_last_one_under_way_leaves_too_little():
    budget_gate = budget_gate_of(10)
    await budget_gate.reserve(of(10))
    waiting = [asyncio.create_task(budget_gate.reserve(of(10))) for _ in range(3)]
    await asyncio.sleep(1)
    budget_gate.settle(TEN, Cost(tokens=5))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [BudgetExceededError] * 3


async def test_a_cancelled_wait_holds_nothing_and_lets_the_next_one_go():
    budget_gate = budget_gate_of(20)
    await budget_gate.reserve(of(10))
    large = asyncio.create_task(budget_gate.reserve(of(15)))
    small = asyncio.create_task(budget_gate.reserve(of(10)))
    await asyncio.sleep(1)
    large.cancel()
    await small
    assert budget_gate.reserved == Cost(tokens=20)


async def test_a_wait_cancelled_in_the_moment_of_being_served_gives_its_charge_back():
    budget_gate = budget_gate_of(10)
    await budget_gate.reserve(of(10))
    waiting = asyncio.create_task(budget_gate.reserve(of(10)))
    await asyncio.sleep(1)
    budget_gate.settle(TEN, Cost())
    waiting.cancel()
    await asyncio.wait({waiting})
    assert budget_gate.reserved == NO_COST
    assert budget_gate.reserved == Cost()


async def test_the_first_reply_of_a_model_is_waited_for_where_the_budget_is_tight():
    budget_gate = BudgetGate(Budget(max_tokens=100))
    await budget_gate.reserve(of(10))
    second = asyncio.create_task(budget_gate.reserve(of(10)))
    await asyncio.sleep(1)
    assert not second.done()
    budget_gate.learn(of(10), Usage(0, 78))
    budget_gate.settle(TEN, Cost(tokens=78))
    with pytest.raises(BudgetExceededError, match=r"could use 78, as replies bill up to 7\.8 × max_tokens"):
        await second
    assert budget_gate.spent.tokens < 100


async def test_that_replies_bill_more_than_was_asked_is_told_once():
    told = []
    budget_gate = budget_gate_of(10_000, say=told.append)
    for billed in (9, 34, 50):
        await budget_gate.reserve(of(10))
        budget_gate.learn(of(10), Usage(0, billed))
        budget_gate.settle(TEN, Cost(tokens=billed))
    assert told == ["Replies bill up to 3.4 × max_tokens; reservations are scaled."]


async def test_without_a_cap_nothing_is_told():
    told = []
    budget_gate = BudgetGate(Budget(), say=told.append)
    for _ in range(100):
        await budget_gate.reserve(of(10**6))
    budget_gate.learn(of(10), Usage(0, 1000))
    assert told == []
