import asyncio
import json
import re

import pytest

from onellm_async import AsyncOneLLM, AuthenticationError, BatchError, ChatRequest, ClientClosedError, Limits
from onellm_async.batch import Item, LineError, Tally, run_prompts
from onellm_async.transport import RawReply


class Service:
    """Answers when it is told to: each request waits for its turn unless its prompt is in `at_once`."""

    def __init__(self, *, at_once=True):
        self.at_once = at_once
        self.asked = []
        self.turns = {}
        self.changed = asyncio.Event()
        self.closed = False

    async def post(self, body):
        prompt = json.loads(body)["messages"][-1]["content"]
        self.asked.append(prompt)
        self.changed.set()
        if not self.at_once:
            await self.turns.setdefault(prompt, asyncio.Event()).wait()
        if prompt.startswith("bad"):
            return RawReply(422, {}, b"no")
        if prompt.startswith("nobody"):
            return RawReply(401, {}, b"no such key")
        reply = {"content": prompt.upper(), "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}
        return RawReply(200, {}, json.dumps(reply).encode())

    async def aclose(self):
        self.closed = True

    def answer(self, prompt):
        self.turns.setdefault(prompt, asyncio.Event()).set()

    async def until_asked(self, count):
        while len(self.asked) < count:
            self.changed.clear()
            await self.changed.wait()


class Lines:
    def __init__(self, *, full_after=None):
        self.text = b""
        self.full_after = full_after

    async def write(self, lines):
        if self.full_after is not None and len(self.text) >= self.full_after:
            raise BatchError("the disk is full")
        self.text += lines

    @property
    def contents(self):
        return self.text.decode().split()


class Drawn:
    """A source that knows how many entries were drawn from it, and whether it was closed."""

    def __init__(self, entries, *, then=None):
        self.entries = entries
        self.then = then
        self.count = 0
        self.closed = False

    async def __aiter__(self):
        try:
            for position, entry in enumerate(self.entries):
                self.count += 1
                if isinstance(entry, str):
                    yield Item(position, position + 1, ChatRequest("GPT-5", entry))
                else:
                    yield entry
            if self.then is not None:
                await self.then()
        finally:
            self.closed = True


def encode(item, outcome):
    return f"{outcome.response.content if outcome.response else type(outcome.error).__name__}\n".encode()


def client_for(service, concurrency=8, **options):
    limits = Limits.unlimited(max_concurrency=concurrency)
    return AsyncOneLLM(transport=service, **({"limits": limits} | options))


async def until(condition):
    while not condition():  # noqa: ASYNC110  # turns of the loop, not of a clock
        await asyncio.sleep(0)


async def forever():
    await asyncio.Event().wait()


async def test_outcomes_are_written_in_the_order_of_the_source_whatever_comes_first():
    service, sink, tally = Service(at_once=False), Lines(), Tally(0.0)
    async with client_for(service, hooks=(tally,)) as client:
        run = asyncio.create_task(
            run_prompts(client, Drawn(["a", "b", "c"]), sink=sink, encode=encode, tally=tally, clock=lambda: 2.0)
        )
        await service.until_asked(3)
        assert tally.snapshot(1.0).in_flight == 3
        for prompt in "cb":
            service.answer(prompt)
        await until(lambda: tally.snapshot(1.0).done == 2)
        assert sink.text == b""
        service.answer("a")
        report = await run

    assert sink.contents == ["A", "B", "C"]
    assert report.complete
    assert report.unsent == 0
    assert (report.progress.done, report.progress.failed, report.progress.output_tokens) == (3, 0, 6)
    assert report.progress.elapsed == 2.0


async def test_a_failed_prompt_is_an_outcome_like_any_other():
    sink = Lines()
    async with client_for(Service()) as client:
        report = await run_prompts(client, Drawn(["a", "bad", "c"]), sink=sink, encode=encode)

    assert sink.contents == ["A", "UnprocessableEntityError", "C"]
    assert report.complete
    assert report.progress.failed == 1


async def test_a_bad_line_is_told_and_the_others_are_answered():
    sink, told = Lines(), []
    bad = LineError("in", 2, "odd")
    async with client_for(Service()) as client:
        report = await run_prompts(client, Drawn(["a", bad, "c"]), sink=sink, encode=encode, on_bad_line=told.append)

    assert sink.contents == ["A", "C"]
    assert told == [bad]
    assert report.complete
    assert report.progress.bad_lines == 1


async def test_a_strict_run_ends_at_the_first_bad_line_and_keeps_what_was_sent():
    sink, bad = Lines(), LineError("in", 2, "odd")
    source = Drawn(["a", bad, "c"])
    async with client_for(Service()) as client:
        report = await run_prompts(client, source, sink=sink, encode=encode, strict=True)

    assert sink.contents == ["A"]
    assert report.strict_error == bad
    assert not report.complete
    assert not report.interrupted
    assert source.closed


async def test_an_error_that_meets_every_prompt_ends_the_run():
    service, sink = Service(), Lines()
    source = Drawn(["a", "nobody", *(f"p{number}" for number in range(1000))])
    async with client_for(service, concurrency=2) as client:
        report = await run_prompts(client, source, sink=sink, encode=encode)

    assert isinstance(report.stopped_by, AuthenticationError)
    assert sink.contents[:2] == ["A", "AuthenticationError"]
    assert len(service.asked) < 10
    assert source.closed


async def test_an_error_that_meets_every_prompt_ends_a_run_whose_source_is_silent():
    sink = Lines()
    source = Drawn(["nobody"], then=forever)
    async with client_for(Service()) as client:
        report = await run_prompts(client, source, sink=sink, encode=encode)

    assert isinstance(report.stopped_by, AuthenticationError)
    assert source.closed


async def test_a_stop_sends_nothing_more_and_awaits_and_writes_what_is_under_way():
    service, sink, stop = Service(at_once=False), Lines(), asyncio.Event()
    source = Drawn([f"p{number}" for number in range(100)])
    # Four may leave at once and the fifth in a minute: it waits for admission when the run is stopped.
    async with client_for(service, limits=Limits(requests_per_minute=1, burst=4, max_concurrency=8)) as client:
        service.answer("p0")
        run = asyncio.create_task(run_prompts(client, source, sink=sink, encode=encode, stop=stop))
        await service.until_asked(1)
        await until(lambda: sink.contents == ["P0"])
        under_way = len(service.asked) - 1
        stop.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not run.done() or not under_way
        assert not service.closed or not under_way
        for prompt in service.asked:
            service.answer(prompt)
        report = await run

    assert len(service.asked) == under_way + 1
    assert sink.contents == [prompt.upper() for prompt in service.asked]
    assert report.interrupted
    assert not report.complete
    assert report.stopped_by is None
    assert report.unsent >= 1
    assert source.closed


async def test_a_stop_ends_a_run_whose_source_is_silent():
    sink, stop = Lines(), asyncio.Event()
    source = Drawn(["a"], then=forever)
    async with client_for(Service()) as client:
        run = asyncio.create_task(run_prompts(client, source, sink=sink, encode=encode, stop=stop))
        await until(lambda: sink.text)
        stop.set()
        report = await run

    assert report.interrupted
    assert sink.contents == ["A"]
    assert source.closed


async def test_a_slow_first_prompt_holds_back_no_more_than_the_window():
    service, sink, stop = Service(at_once=False), Lines(), asyncio.Event()
    prompts = [f"p{number}" for number in range(50)]
    for prompt in prompts[1:]:
        service.answer(prompt)
    source = Drawn(prompts)
    tally = Tally(0.0)
    async with client_for(service) as client:
        run = asyncio.create_task(
            run_prompts(client, source, sink=sink, encode=encode, window=10, tally=tally, stop=stop)
        )
        await until(lambda: tally.snapshot(0.0).done == 9)
        for _ in range(50):
            await asyncio.sleep(0)
        assert service.asked == prompts[:10]
        assert source.count == 11
        assert sink.text == b""
        service.answer("p0")
        report = await run

    assert report.complete
    assert sink.contents == [prompt.upper() for prompt in prompts]


async def test_a_stop_ends_a_run_that_waits_for_room_and_writes_over_the_gap():
    service, sink, stop, tally = Service(at_once=False), Lines(), asyncio.Event(), Tally(0.0)
    for prompt in "bcd":
        service.answer(prompt)
    async with client_for(service) as client:
        run = asyncio.create_task(
            run_prompts(client, Drawn(list("abcdefgh")), sink=sink, encode=encode, window=3, stop=stop, tally=tally)
        )
        await until(lambda: tally.snapshot(0.0).done == 2)
        stop.set()
        await asyncio.sleep(0)
        service.answer("a")
        report = await run

    assert sink.contents == ["A", "B", "C"]
    assert report.interrupted


async def test_a_cancelled_run_still_writes_what_was_answered():
    service, sink, tally = Service(at_once=False), Lines(), Tally(0.0)
    service.answer("b")
    async with client_for(service) as client:
        run = asyncio.create_task(run_prompts(client, Drawn(["a", "b"]), sink=sink, encode=encode, tally=tally))
        await until(lambda: tally.snapshot(0.0).done == 1)
        assert sink.text == b""
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    assert sink.contents == ["B"]
    assert len(asyncio.all_tasks()) == 1


async def test_a_sink_that_fails_ends_the_run_and_is_its_reason():
    service, sink = Service(), Lines(full_after=2)
    async with client_for(service, concurrency=1) as client:
        report = await run_prompts(client, Drawn(list("abcdefghij")), sink=sink, encode=encode)

    assert sink.contents == ["A"]
    assert isinstance(report.stopped_by, BatchError)
    assert re.search("disk is full", str(report.stopped_by))
    assert len(service.asked) < 10


async def test_a_source_that_breaks_ends_the_run_and_is_its_reason():
    async def broken():
        raise BatchError("in cannot be read: I/O error.")

    sink = Lines()
    async with client_for(Service()) as client:
        report = await run_prompts(client, Drawn(["a"], then=broken), sink=sink, encode=encode)

    assert sink.contents == ["A"]
    assert str(report.stopped_by) == "in cannot be read: I/O error."


async def test_draining_awaits_what_is_under_way_and_refuses_what_is_new():
    service = Service(at_once=False)
    async with client_for(service) as client:
        asking = asyncio.create_task(client.chat("a", model="GPT-5"))
        await service.until_asked(1)
        draining = asyncio.create_task(client.drain())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not draining.done()
        with pytest.raises(ClientClosedError):
            await client.chat("b", model="GPT-5")
        service.answer("a")
        await draining
        assert (await asking).content == "A"
        assert service.asked == ["a"]
