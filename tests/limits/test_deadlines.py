"""A deadline that cannot be met is told at once, and only then; in virtual time."""

import asyncio
from random import Random

import pytest

from onellm_async import AsyncOneLLM, DeadlineExceededError, Limits, Usage
from onellm_async.limits.limiter import Limiter
from onellm_async.testing import FakeTransport, answer, failure

pytestmark = pytest.mark.virtual_time


def now():
    return asyncio.get_running_loop().time()


def answers_after(**seconds):
    """Answers after the seconds of the model that is asked."""
    return lambda request: answer("hi", usage=Usage(5, 2), delay=seconds[request.model])


def models(**seconds):
    return FakeTransport(answers_after(**seconds))


async def stop(task):
    task.cancel()
    await asyncio.wait([task])


async def test_a_slow_model_does_not_make_the_deadlines_of_another_hopeless():
    limits = Limits(requests_per_minute=120, burst=10)
    async with AsyncOneLLM(transport=models(slow=5.0, fast=0.02), limits=limits) as client:
        batch = asyncio.create_task(client.gather_chats(["q"] * 100, model="slow"))
        await asyncio.sleep(6.5)
        for _ in range(5):
            began = now()
            await client.chat("user", model="fast", lane="interactive", deadline=4)
            assert now() - began < 4
            await asyncio.sleep(3)
        await stop(batch)


async def test_the_slow_model_itself_is_known_to_be_too_slow():
    service = models(slow=5.0, fast=0.02)
    async with AsyncOneLLM(transport=service, limits=Limits(requests_per_minute=60, burst=1)) as client:
        await client.gather_chats(["q"] * 3, model="slow")
        await client.chat("x", model="fast")
        began, sent = now(), len(service.requests)
        told = r"The deadline is 5\.5 s away, .* an answer usually takes 5\.0 s\."
        with pytest.raises(DeadlineExceededError, match=told):
            await client.chat("user", model="slow", lane="interactive", deadline=5.5)
        assert (len(service.requests), now()) == (sent, began)
        await client.chat("user", model="slow", lane="interactive", deadline=7)


async def test_one_slow_answer_does_not_shed_a_model_for_good():
    service = models(model=6.0, other=0.1)
    async with AsyncOneLLM(transport=service, limits=Limits(requests_per_minute=120, burst=1)) as client:
        batch = asyncio.create_task(client.gather_chats(["q"] * 1000, model="other"))
        await client.chat("cold start", model="model")
        service.set_replies(answers_after(model=0.2, other=0.1))
        answered = []
        for second in range(200):
            await asyncio.sleep(1)
            try:
                await client.chat("user", model="model", lane="interactive", deadline=4)
                answered.append(second)
            except DeadlineExceededError:
                assert not answered, "after the first answer it is known to be fast"
        assert len(answered) > 100
        await stop(batch)


async def test_users_behind_a_slow_batch_that_has_all_slots_wait_for_few_of_them():
    async with AsyncOneLLM(transport=models(slow=40.0, fast=0.1), limits=Limits.unlimited(8)) as client:
        await client.chat("warm up", model="fast")
        batch = asyncio.create_task(client.gather_chats(["q"] * 100, model="slow"))
        await asyncio.sleep(45)
        users = [client.chat("user", model="fast", lane="interactive", deadline=60) for _ in range(30)]
        replies = await asyncio.gather(*users, return_exceptions=True)
        assert not [reply for reply in replies if isinstance(reply, Exception)]
        await stop(batch)


async def test_a_batch_that_ended_does_not_make_a_crowd_of_users_wait_on_paper():
    """Slots are released as fast as what is in flight now, not as what was answered last."""
    async with AsyncOneLLM(transport=models(slow=40.0, fast=0.1), limits=Limits.unlimited(8)) as client:
        await client.chat("warm up", model="fast")
        await client.gather_chats(["q"] * 80, model="slow")
        await client.chat("user", model="fast")
        users = [client.chat("user", model="fast", deadline=4) for _ in range(100)]
        assert len(await asyncio.gather(*users)) == 100


def limiter(**limits):
    return Limiter(Limits(**limits), random=Random(0))


def wait(slots, number, **options):
    return [asyncio.create_task(slots.acquire(**options)) for _ in range(number)]


TOLD_TO_WAIT = r"The deadline is 5\.0 s away, but the service asked to wait 60\.0 s \(Retry-After\)\."


@pytest.mark.parametrize("limits", [Limits(), Limits(requests_per_minute="auto"), Limits.unlimited(4)])
async def test_a_retry_after_beyond_the_deadline_is_not_waited_for(limits):
    async with AsyncOneLLM(
        transport=FakeTransport(failure(429, headers={"Retry-After": "60"})), limits=limits
    ) as client:
        with pytest.raises(DeadlineExceededError, match=TOLD_TO_WAIT):
            await client.chat("x", model="GPT-5", deadline=5)
        assert now() == 0
        with pytest.raises(DeadlineExceededError, match="asked to wait"):
            await client.chat("a newcomer", model="GPT-5", deadline=30)
        assert now() == 0


async def test_each_prompt_of_a_fan_out_hears_of_it_at_once():
    async with AsyncOneLLM(transport=FakeTransport(failure(429, headers={"Retry-After": "60"}))) as client:
        replies = await client.gather_chats(["q"] * 100, model="GPT-5", deadline=5, return_exceptions=True)
        assert {type(reply) for reply in replies} == {DeadlineExceededError}
        assert now() < 1


async def test_those_that_wait_already_hear_of_it_when_it_comes():
    slots = limiter(max_concurrency=1, requests_per_minute=6000)
    held = await slots.acquire()
    soon, later, ever = (*wait(slots, 1, deadline=5.0), *wait(slots, 1, deadline=61.0), *wait(slots, 1))
    await asyncio.sleep(1)
    held.rate_limited(retry_after=59)
    with pytest.raises(DeadlineExceededError, match=r"4\.0 s away, but the service asked to wait 59\.0 s"):
        await soon
    assert now() == 1
    (await later).answered()
    assert now() == pytest.approx(60, abs=0.1)
    (await ever).answered()


async def test_a_retry_after_that_the_deadline_allows_is_waited_for():
    slots = limiter(requests_per_minute=6000)
    permit = await slots.acquire()
    permit.rate_limited(retry_after=20)
    (await slots.acquire(deadline=21.0, order=permit.order)).answered()
    assert now() == pytest.approx(20, abs=0.1)


async def test_a_retry_after_counts_during_a_pause_too_as_it_ends_with_no_resume():
    slots = limiter(requests_per_minute=6000)
    permit = await slots.acquire()
    slots.pause()
    waiting = wait(slots, 2, deadline=30.0)
    await asyncio.sleep(1)
    permit.rate_limited(retry_after=60)
    for task in waiting:
        with pytest.raises(DeadlineExceededError, match="asked to wait 60"):
            await task
    with pytest.raises(DeadlineExceededError, match="asked to wait 60"):
        await slots.acquire(deadline=30.0)
    assert now() == 1


async def test_a_pause_alone_makes_no_deadline_hopeless():
    slots = limiter(requests_per_minute=60, burst=1)
    (await slots.acquire()).answered()
    slots.pause()
    task = wait(slots, 1, deadline=0.5)[0]
    await asyncio.sleep(0.4)
    assert not task.done()
    with pytest.raises(DeadlineExceededError, match="passed while the request waited"):
        await task
    assert now() == 0.5


async def test_a_request_that_comes_back_does_not_wait_for_a_token_that_comes_too_late():
    slots = limiter(requests_per_minute=1, burst=1)
    permit = await slots.acquire()
    permit.release()
    with pytest.raises(DeadlineExceededError, match=r"The deadline is 9\.0 s away, but the queue takes about 60"):
        await slots.acquire(deadline=9.0, order=permit.order)
    assert now() == 0


async def test_a_request_that_comes_back_is_not_held_up_by_those_behind_it():
    slots = limiter(requests_per_minute=60, burst=1)
    permit = await slots.acquire()
    others = wait(slots, 50)
    await asyncio.sleep(0)
    permit.rate_limited()
    (await slots.acquire(deadline=10.0, order=permit.order)).answered()
    for task in others:
        task.cancel()
    await asyncio.wait(others)


async def test_a_refusal_that_puts_the_next_token_off_is_told_to_those_it_makes_hopeless():
    slots = limiter(requests_per_minute=6, burst=2)
    first = await slots.acquire()
    hopeless, patient = (*wait(slots, 1, deadline=9.5), *wait(slots, 1))
    await asyncio.sleep(0.1)
    assert not hopeless.done(), "the token that is left over from the burst is saved up in 5 s"
    first.rate_limited()
    with pytest.raises(DeadlineExceededError, match="the queue takes about 1"):
        await hopeless
    assert now() < 0.2
    (await patient).answered()


async def test_while_something_is_in_flight_a_token_may_still_come_back():
    slots = limiter(requests_per_minute=6, burst=1)
    held = await slots.acquire()
    slots.pause()
    task = wait(slots, 1, deadline=8.0)[0]
    await asyncio.sleep(1)
    slots.resume()
    await asyncio.sleep(1)
    held.give_back()
    (await task).answered()
    assert now() == 2


async def test_a_circuit_that_opens_for_longer_than_the_deadline_is_told_once_nothing_can_close_it():
    slots = limiter(max_concurrency=1, requests_per_minute=6000)
    straggler = await slots.acquire()
    waiting = wait(slots, 2, deadline=9.0)
    await asyncio.sleep(0)
    slots.open_circuit(15.0)
    await asyncio.sleep(1)
    straggler.answered()
    slots.close_circuit()  # the answer closes the circuit
    trial = await waiting[0]
    slots.open_circuit(now() + 15.0)
    await asyncio.sleep(1)
    assert not waiting[1].done(), "what is in flight may still be answered"
    trial.release()
    with pytest.raises(DeadlineExceededError, match=r"but the circuit is open for another 14\.0 s\."):
        await waiting[1]
    assert now() == 2


async def test_tokens_that_come_too_late_are_told_at_once():
    slots = limiter(requests_per_minute=6000, tokens_per_minute=600)
    (await slots.acquire(tokens=600)).answered(600)
    with pytest.raises(DeadlineExceededError, match="the queue takes about 50"):
        await slots.acquire(tokens=500, deadline=40.0)
    small, large = (*wait(slots, 1, tokens=100), *wait(slots, 1, tokens=300, deadline=40.5))
    (await small).answered(300)
    with pytest.raises(DeadlineExceededError, match="the queue takes about 50"):
        await large
    assert now() == pytest.approx(10)


async def test_a_request_whose_deadline_has_passed_during_its_backoff_is_told_so():
    slots = limiter(max_concurrency=1)
    permit = await slots.acquire()
    await asyncio.sleep(10)
    with pytest.raises(DeadlineExceededError):
        await slots.acquire(order=permit.order, deadline=9.0)
    assert now() == 10
    permit.release()
