import asyncio
import json
from collections import Counter

import pytest

from onellm_async import AsyncOneLLM, AuthenticationError, ChatRequest, Limits, RetryPolicy
from onellm_async.batch.budget import Budget
from onellm_async.batch.config import RunPolicy
from onellm_async.batch.engine import RunEngine
from onellm_async.batch.identity import RunIdentity
from onellm_async.batch.inputs.entry import Entry, LineError, ParsedEntry
from onellm_async.batch.journal.commands import Command, reply_to, send_command
from onellm_async.batch.journal.journal import Journal
from onellm_async.batch.journal.null_journal import NullJournal
from onellm_async.batch.journal.reader import JournalReader
from onellm_async.batch.journal.record import RecordState
from onellm_async.batch.outputs import ordered_writer
from onellm_async.batch.progress import ProgressTracker
from onellm_async.errors import APIConnectionError, BatchError, BudgetExceededError
from onellm_async.testing import FakeTransport, failure


class Service(FakeTransport):
    """Answers at once, except prompts in `held`, which wait until they are released; ``bad`` and ``nobody`` fail."""

    def __init__(self):
        super().__init__(self._reply_to)
        self.held = {}
        self.down = False

    def hold(self, prompt):
        self.held[prompt] = asyncio.Event()

    async def _reply_to(self, request):
        prompt = request.prompt
        if prompt in self.held:
            await self.held[prompt].wait()
        if prompt.startswith("lost"):
            return APIConnectionError("reset")
        if self.down or prompt.startswith("bad"):
            return failure(422, "no")
        if prompt.startswith("nobody"):
            return failure(401, "no such key")
        return {"content": prompt.upper(), "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}


class Sink:
    def __init__(self, *, full_after=None):
        self.text = b""
        self.full_after = full_after

    async def write(self, lines):
        if self.full_after is not None and len(self.text) >= self.full_after:
            raise BatchError("the disk is full")
        self.text += lines

    @property
    def contents(self):
        return self.text.decode().splitlines()


class Prompts:
    """Entries of a list; the text before a colon is the custom_id."""

    source = "prompts.txt"

    def __init__(self, *prompts, max_tokens=None):
        self.prompts = prompts
        self.max_tokens = max_tokens
        self.parsed = []

    def read(self, raw, *, line, index):
        self.parsed.append(index)
        text = raw.decode()
        if text == "?":
            return LineError(self.source, line, "no prompt")
        custom_id, _, prompt = text.rpartition(":")
        return ParsedEntry(
            index, line, ChatRequest("GPT-5", prompt, max_tokens=self.max_tokens, temperature=0), custom_id or None
        )

    async def __aiter__(self):
        for index, prompt in enumerate(self.prompts):
            yield Entry(index, index + 1, prompt.encode(), self)

    def reserve_custom_id(self, custom_id):
        pass


def encode(row):
    if row.state is RecordState.IN_FLIGHT:
        return f"{row.index} possibly billed\n".encode()
    result = json.loads(row.result)
    return f"{row.index} {result['content'] if row.state is RecordState.ANSWERED else result['type']}\n".encode()


@pytest.fixture
def opened(tmp_path):
    return lambda: Journal.open(tmp_path / "answers.journal", RunIdentity(input="prompts.txt"))


@pytest.fixture
def ask(opened):
    """One session of a run, from beginning to end."""

    async def ask(service, source, *, sink=None, concurrency=8, retry=None, **options):
        limits = Limits.unlimited(max_concurrency=concurrency)
        tracker = options.setdefault("tracker", ProgressTracker(0.0))
        client = AsyncOneLLM(transport=service, limits=limits, retry=retry, hooks=(tracker,))
        sink = sink if sink is not None else Sink()
        async with client, opened() as journal:
            report = await RunEngine(client, source, journal=journal, sink=sink, encode=encode, **options).run()
        return report, sink

    return ask


async def until(condition):
    while True:  # the journal's thread runs in real time
        if condition():
            return
        await asyncio.sleep(0.001)


async def test_outcomes_are_written_in_the_order_of_the_source(ask):
    service = Service()
    service.hold("a")
    running = asyncio.create_task(ask(service, Prompts("a", "b", "bad", "?", "c")))
    await until(lambda: len(service.prompts) == 4)
    service.held["a"].set()
    report, sink = await running
    assert sink.contents == ["0 A", "1 B", "2 UnprocessableEntityError", "4 C"]
    assert report.complete
    assert (report.progress.answered, report.progress.failed, report.progress.bad_lines) == (3, 1, 1)
    assert (report.counts.answered, report.counts.failed, report.counts.in_flight) == (3, 1, 0)


async def test_a_finished_run_asks_and_parses_nothing_again_and_writes_the_same(ask):
    service, prompts = Service(), ("a", "b", "bad")
    _, first = await ask(service, Prompts(*prompts))
    again = Prompts(*prompts)
    report, second = await ask(service, again)
    assert sorted(service.prompts) == ["a", "b", "bad"]
    assert again.parsed == []
    assert second.text == first.text
    assert (report.progress.completed, report.progress.completed_before) == (3, 3)


async def test_what_failed_is_asked_again_on_request(ask):
    service = Service()
    service.down = True
    await ask(service, Prompts("a", "b"))
    service.down = False
    _, sink = await ask(service, Prompts("a", "b"), policy=RunPolicy(retry_failed=True))
    assert sink.contents == ["0 A", "1 B"]
    report, _ = await ask(service, Prompts("a", "b"))
    assert (report.counts.answered, report.counts.failed) == (2, 0)


async def cancelled_in_flight(ask, service, source):
    """A session that ends like a crash: two prompts answered, ``lost`` under way."""
    running = asyncio.create_task(ask(service, source))
    await until(lambda: len(service.prompts) == 3)
    await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.wait({running})


async def test_what_was_under_way_in_a_crash_is_asked_again_and_remembered_as_possibly_billed(ask):
    service = Service()
    service.hold("c")
    await cancelled_in_flight(ask, service, Prompts("a", "b", "c"))
    del service.held["c"]
    report, sink = await ask(service, Prompts("a", "b", "c"))
    assert sink.contents == ["0 A", "1 B", "2 C"]
    assert sorted(service.prompts) == ["a", "b", "c", "c"]
    assert report.counts.possibly_billed == 1


async def test_what_was_under_way_in_a_crash_is_held_back_on_request_and_asked_on_the_next(ask):
    service = Service()
    service.hold("c")
    await cancelled_in_flight(ask, service, Prompts("a", "b", "c"))
    del service.held["c"]
    report, sink = await ask(service, Prompts("a", "b", "c"), policy=RunPolicy(ambiguous="hold"))
    assert sink.contents == ["0 A", "1 B", "2 possibly billed"]
    assert (report.progress.held, report.counts.in_flight) == (1, 1)
    _, sink = await ask(service, Prompts("a", "b", "c"))
    assert sink.contents == ["0 A", "1 B", "2 C"]


async def test_a_stopped_run_finishes_what_is_under_way_and_goes_on_later(ask):
    service, stop = Service(), asyncio.Event()
    service.hold("b")
    running = asyncio.create_task(ask(service, Prompts("a", "b", "c", "d"), stop=stop, concurrency=1))
    await until(lambda: service.prompts == ["a", "b"])
    stop.set()
    await asyncio.sleep(0.02)
    service.held["b"].set()
    report, sink = await running
    assert report.interrupted
    assert not report.complete
    assert sink.contents == ["0 A", "1 B"]
    assert report.counts.in_flight == 0
    report, sink = await ask(service, Prompts("a", "b", "c", "d"))
    assert service.prompts == ["a", "b", "c", "d"]
    assert sink.contents == ["0 A", "1 B", "2 C", "3 D"]


async def test_a_run_that_is_told_to_stop_twice_is_not_taken_for_complete(ask, tmp_path):
    service, stop = Service(), asyncio.Event()
    service.hold("b")
    said = []
    options = {"stop": stop, "concurrency": 1, "say": said.append}
    running = asyncio.create_task(ask(service, Prompts("a", "b", "c", "d"), **options))
    await until(lambda: service.prompts == ["a", "b"])
    stop.set()
    send_command(tmp_path / "answers.journal", Command("stop"))
    await until(lambda: said)
    service.held["b"].set()
    report, sink = await running
    assert report.interrupted
    assert not report.complete
    assert sink.contents == ["0 A", "1 B"]


async def test_a_run_told_to_stop_when_nothing_is_left_to_stop_is_complete(ask):
    service, stop = Service(), asyncio.Event()
    service.hold("b")
    running = asyncio.create_task(ask(service, Prompts("a", "b"), stop=stop))
    await until(lambda: service.prompts == ["a", "b"])
    stop.set()
    await asyncio.sleep(0.02)
    service.held["b"].set()
    report, sink = await running
    assert report.complete
    assert not report.interrupted
    assert sink.contents == ["0 A", "1 B"]


async def test_an_error_that_meets_every_prompt_ends_the_run_and_its_prompts_count_as_never_sent(ask):
    report, sink = await ask(Service(), Prompts("nobody", *"abcdefgh"), concurrency=1)
    assert isinstance(report.stopped_by, AuthenticationError)
    assert sink.contents == []
    assert (report.counts.answered, report.counts.failed, report.counts.in_flight) == (0, 0, 0)


async def test_identical_requests_are_sent_once_and_all_answered(ask):
    service = Service()
    service.hold("a")
    running = asyncio.create_task(ask(service, Prompts("x:a", "y:a", "b", "z:a")))
    await until(lambda: len(service.prompts) == 2)
    service.held["a"].set()
    report, sink = await running
    assert sorted(service.prompts) == ["a", "b"]
    assert sink.contents == ["0 A", "1 A", "2 B", "3 A"]
    assert report.progress.deduplicated == 2
    assert report.counts.cost == pytest.approx(2 * (1 * 1.28 + 2 * 10.2) / 1e6, rel=0.5)
    _, again = await ask(service, Prompts("x:a", "y:a", "b", "z:a"))
    assert again.text == sink.text


async def test_a_repetition_that_comes_after_the_answer_copies_it(ask):
    service = Service()
    prompts = ["a", *(f"p{number}" for number in range(200)), "a"]
    report, sink = await ask(service, Prompts(*prompts), concurrency=2)
    assert service.prompts.count("a") == 1
    assert sink.contents[-1] == "201 A"
    assert report.progress.deduplicated == 1


async def test_who_wants_every_repetition_asked_gets_it(ask):
    service = Service()
    await ask(service, Prompts("a", "a", "a"), policy=RunPolicy(deduplicate=False))
    assert service.prompts == ["a", "a", "a"]


async def test_a_repeat_that_waits_for_its_turn_keeps_no_money_from_whoever_has_the_turn(ask):
    class FailsOnce(Service):
        async def _reply_to(self, request):
            return 500 if request.number == 1 else await super()._reply_to(request)

    prompts = Prompts("a", "b", max_tokens=10)
    cap = Budget(max_cost=Budget(max_cost=1.0).worst_case(ChatRequest("GPT-5", "a", max_tokens=10)).cost * 1.5)
    retry = RetryPolicy(backoff_cap=0.05)
    report, sink = await asyncio.wait_for(ask(FailsOnce(), prompts, budget=cap, concurrency=1, retry=retry), 10)
    assert report.complete
    assert sink.contents == ["0 A", "1 B"]


async def test_a_spent_budget_ends_the_run_and_a_larger_one_goes_on(ask):
    service = Service()
    prompts = [f"p{number}" for number in range(10)]
    one = 2 + 32 + 5  # bytes, what a chat format adds, max_tokens; each answer uses 3
    report, _ = await ask(service, Prompts(*prompts, max_tokens=5), budget=Budget(max_tokens=one + 6))
    assert isinstance(report.stopped_by, BudgetExceededError)
    assert report.counts.answered == 3
    report, _ = await ask(service, Prompts(*prompts, max_tokens=5), budget=Budget(max_tokens=one + 3 * 9))
    assert report.complete
    assert len(service.prompts) == 10


async def test_a_prompt_without_a_highest_price_is_a_bad_line_under_a_budget(ask):
    told = []
    report, _ = await ask(Service(), Prompts("a"), budget=Budget(max_cost=1), on_bad_line=told.append)
    assert "Without max_tokens" in str(told[0])
    assert report.progress.bad_lines == 1


@pytest.fixture
def _soon(monkeypatch):
    """The first trial follows at once."""
    monkeypatch.setattr("onellm_async.batch.recovery.FIRST_TRIAL", 0.05)


NUMBERS = [f"p{number}" for number in range(60)]


async def in_a_pause(ask, service, **options):
    """A run in a pause, as the service is down."""
    service.down, said = True, []
    running = asyncio.create_task(ask(service, Prompts(*NUMBERS), say=said.append, **options))
    await until(lambda: any(text.startswith("Still failing") for text in said))
    return running


def counts(tmp_path):
    with JournalReader.open(tmp_path / "answers.journal") as journal:
        return journal.counts()


@pytest.mark.usefixtures("_soon")
async def test_what_failed_before_and_in_a_pause_is_retried_and_leaves_no_trace_in_the_journal(ask, tmp_path):
    service = Service()
    service.down, said = True, []
    running = asyncio.create_task(ask(service, Prompts(*NUMBERS), say=said.append))
    await until(lambda: any(text.startswith("Paused") for text in said))
    service.down = False
    report, sink = await running
    assert report.complete
    assert sink.contents == [f"{number} P{number}" for number in range(60)]
    assert (report.counts.answered, report.counts.failed, report.counts.possibly_billed) == (60, 0, 0)
    assert (report.progress.completed, report.progress.failed) == (60, 0)
    assert max(Counter(service.prompts).values()) == 2


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
async def test_a_run_that_ends_in_a_pause_asks_all_of_it_again_and_nothing_is_at_risk(ask, tmp_path, kill):
    service, stop = Service(), asyncio.Event()
    running = await in_a_pause(ask, service, stop=stop)
    assert (counts(tmp_path).failed, counts(tmp_path).in_flight) == (0, 0)
    if kill:
        running.cancel()
        await asyncio.wait({running})
    else:
        stop.set()
        report, sink = await running
        assert report.interrupted
        assert (report.progress.completed, report.progress.failed, sink.contents) == (0, 0, [])
    assert (counts(tmp_path).failed, counts(tmp_path).in_flight, counts(tmp_path).possibly_billed) == (0, 0, 0)
    service.down = False
    report, sink = await ask(service, Prompts(*NUMBERS))
    assert report.complete
    assert sink.contents == [f"{number} P{number}" for number in range(60)]


@pytest.mark.usefixtures("_soon")
async def test_a_run_that_stops_as_half_of_it_fails_is_completed_by_the_same_command_when_the_cause_is_fixed(ask):
    service = Service()
    prompts = [f"bad{number}" if number % 2 else f"p{number}" for number in range(60)]
    report, _ = await ask(service, Prompts(*prompts), concurrency=4)
    assert isinstance(report.stopped_by, BatchError)
    assert "failed alike: 422 no. Fix the cause and run the same command again" in str(report.stopped_by)
    assert report.counts.failed == report.counts.in_flight == 0

    class Fixed(Service):
        async def post(self, body, headers=None):
            return await super().post(body.replace(b'"bad', b'"was bad'))

    report, sink = await ask(Fixed(), Prompts(*prompts))
    assert report.complete
    assert len(sink.contents) == 60
    assert report.counts.failed == 0


async def test_a_failure_becomes_an_outcome_when_fifty_others_have_followed(ask, tmp_path):
    service = Service()
    service.hold("p59")
    running = asyncio.create_task(ask(service, Prompts("bad", *NUMBERS), concurrency=2))
    await until(lambda: service.prompts[-1:] == ["p59"] and counts(tmp_path).answered == 59)
    assert counts(tmp_path).failed == 1
    service.held["p59"].set()
    report, _ = await running
    assert report.complete


async def test_an_interrupted_run_keeps_its_failures_unless_it_is_in_trouble(ask):
    service, stop = Service(), asyncio.Event()
    service.hold("p2")
    running = asyncio.create_task(ask(service, Prompts("p0", "bad", "p2", "p3"), stop=stop, concurrency=1))
    await until(lambda: service.prompts[-1:] == ["p2"])
    stop.set()
    await asyncio.sleep(0.02)
    service.held["p2"].set()
    report, sink = await running
    assert report.interrupted
    assert report.counts.failed == 1
    assert sink.contents == ["0 P0", "1 UnprocessableEntityError", "2 P2"]


@pytest.mark.usefixtures("_soon")
async def test_identical_prompts_share_what_becomes_of_the_one_that_is_retried(ask):
    service = Service()
    service.down, said = True, []
    doubled = [prompt for number in range(30) for prompt in (f"x{number}:p{number}", f"y{number}:p{number}")]
    running = asyncio.create_task(ask(service, Prompts(*doubled), say=said.append))
    await until(lambda: any(text.startswith("Paused") for text in said))
    service.down = False
    report, sink = await running
    assert report.complete
    assert sink.contents == [f"{place} P{place // 2}" for place in range(60)]
    assert report.progress.deduplicated == 30


async def test_an_attempt_that_may_have_been_billed_is_written_down_as_such(ask):
    report, sink = await ask(Service(), Prompts("lost"), retry=RetryPolicy(max_attempts=2, ambiguous="retry"))
    assert sink.contents == ["0 APIConnectionError"]
    assert report.counts.possibly_billed == 2


async def test_an_input_that_has_changed_is_refused_where_it_differs(ask):
    service = Service()
    await ask(service, Prompts("a", "b"))
    report, _ = await ask(service, Prompts("a", "other"))
    assert "prompts.txt:2 is not what it was" in str(report.stopped_by)
    assert service.prompts == ["a", "b"]


async def test_strictness_ends_the_run_at_the_first_bad_line(ask):
    report, _ = await ask(Service(), Prompts("a", "?", "b"), policy=RunPolicy(strict=True), concurrency=1)
    assert report.strict_error == LineError("prompts.txt", 2, "no prompt")
    assert not report.complete


async def test_a_sink_that_is_full_ends_the_run_and_loses_nothing(ask):
    service, prompts = Service(), [f"p{number}" for number in range(50)]
    report, _ = await ask(service, Prompts(*prompts), sink=Sink(full_after=1), concurrency=1)
    assert "the disk is full" in str(report.stopped_by)
    _, sink = await ask(service, Prompts(*prompts))
    assert len(service.prompts) == 50
    assert len(sink.contents) == 50


async def test_only_the_first_entries_are_asked_on_request(ask):
    service = Service()
    report, _ = await ask(service, Prompts("a", "b", "c"), policy=RunPolicy(first=2))
    assert report.limit_reached
    assert not report.complete
    assert sorted(service.prompts) == ["a", "b"]
    report, sink = await ask(service, Prompts("a", "b", "c"))
    assert report.complete
    assert sink.contents == ["0 A", "1 B", "2 C"]


async def test_without_a_journal_a_window_bounds_how_far_the_source_is_read_ahead():
    service, sink = Service(), Sink()
    service.hold("p0")
    prompts = Prompts(*(f"p{number}" for number in range(100)))
    async with AsyncOneLLM(transport=service, limits=Limits.unlimited(max_concurrency=8)) as client:
        engine = RunEngine(client, prompts, journal=NullJournal(), sink=sink, encode=encode, window=10)
        running = asyncio.create_task(engine.run())
        await until(lambda: len(service.prompts) == 10)
        await asyncio.sleep(0.05)
        assert len(service.prompts) == 10
        service.held["p0"].set()
        assert (await running).complete
    assert sink.contents == [f"{number} P{number}" for number in range(100)]


async def test_no_task_is_left_when_a_run_is_cancelled(ask):
    service = Service()
    service.hold("a")
    running = asyncio.create_task(ask(service, Prompts("a", "b")))
    await until(lambda: len(service.prompts) == 2)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()


async def test_callbacks_that_raise_end_nothing_and_are_logged(ask, caplog):
    def broken(argument):
        raise ZeroDivisionError

    service = Service()
    service.hold("a")
    running = asyncio.create_task(ask(service, Prompts("a", "?", "b"), say=broken, on_bad_line=broken))
    await until(lambda: "b" in service.prompts)
    service.held["a"].set()
    report, sink = await running

    assert report.complete
    assert sink.contents == ["0 A", "2 B"]
    assert [record.getMessage() for record in caplog.records] == ["on_bad_line raised; the run continues."]
    assert {(record.name, record.exc_info[0]) for record in caplog.records} == {("onellm_async", ZeroDivisionError)}


async def test_an_encoder_that_raises_stops_a_run_gracefully_and_loses_no_answer(opened, caplog):
    def broken(row):
        if row.index == 1:
            raise ZeroDivisionError("no way")
        return encode(row)

    service, sink = Service(), Sink()
    service.hold("c")
    async with AsyncOneLLM(transport=service, limits=Limits.unlimited(max_concurrency=3)) as client:
        async with opened() as journal:
            source = Prompts("a", "b", "c", *"defghij")
            running = asyncio.create_task(RunEngine(client, source, journal=journal, sink=sink, encode=broken).run())
            await until(lambda: caplog.records)
            service.held["c"].set()
            report = await running
        assert not report.complete
        assert str(report.stopped_by) == "The output of entry 1 cannot be made: ZeroDivisionError('no way')."
        assert report.counts.in_flight == 0
        assert report.counts.answered == len(service.prompts)

        async with opened() as journal:
            report = await RunEngine(client, source, journal=journal, sink=(again := Sink()), encode=encode).run()
    assert report.complete
    assert again.contents == [f"{index} {prompt.upper()}" for index, prompt in enumerate(source.prompts)]
    assert sorted(service.prompts) == list("abcdefghij")


async def test_limits_that_cannot_be_used_are_refused_to_both_sides_and_the_run_goes_on(ask, tmp_path):
    service, said = Service(), []
    service.hold("a")
    journal = tmp_path / "answers.journal"
    running = asyncio.create_task(ask(service, Prompts("a", "b"), say=said.append))
    await until(lambda: len(service.prompts) == 2)
    refused = send_command(journal, Command("retune", {"requests_per_minute": -5}))
    unknown = send_command(journal, Command("retune", {"colour": "red"}))
    obeyed = send_command(journal, Command("retune", {"max_concurrency": 100_000}))
    await until(lambda: reply_to(journal, obeyed) is not None)
    assert reply_to(journal, refused).startswith("Limits.requests_per_minute is -5")
    assert "colour" in reply_to(journal, unknown)
    assert reply_to(journal, obeyed) == ""
    assert len(asyncio.all_tasks()) < 4200
    service.held["a"].set()
    report, sink = await running
    assert report.complete
    assert sink.contents == ["0 A", "1 B"]
    assert said[0].startswith("From another terminal: retune was refused, nothing changes: Limits.requests_per_minute")
    assert said[-1] == "From another terminal: retune."


async def test_one_slow_prompt_holds_up_no_others_however_many_they_are(ask, monkeypatch):
    monkeypatch.setattr(ordered_writer, "_MAX_EARLY", 2_000)  # the others are read again from the journal
    service = Service()
    service.hold("p0")
    prompts = [f"p{number}" for number in range(1000)]
    running = asyncio.create_task(ask(service, Prompts(*prompts), window=100))
    await until(lambda: len(service.prompts) == len(prompts))
    assert service.in_flight <= 8
    service.held["p0"].set()
    report, sink = await running
    assert report.complete
    assert sink.contents == [f"{number} P{number}" for number in range(1000)]


async def test_many_duplicates_of_a_slow_prompt_hold_the_input_back_and_all_get_its_answer(ask, monkeypatch):
    monkeypatch.setattr("onellm_async.batch.deduplication._MAX_WAITING", 10)
    service, prompts = Service(), Prompts(*["a"] * 30, "b")
    service.hold("a")
    running = asyncio.create_task(ask(service, prompts))
    await until(lambda: len(prompts.parsed) == 11)
    await asyncio.sleep(0.05)
    assert len(prompts.parsed) == 11
    service.held["a"].set()
    report, sink = await running
    assert sink.contents == [*(f"{number} A" for number in range(30)), "30 B"]
    assert (report.counts.answered, report.counts.deduplicated, service.prompts) == (31, 29, ["a", "b"])


async def test_a_failure_that_is_held_back_is_recorded_with_all_its_duplicates_however_many_they_are(ask, monkeypatch):
    monkeypatch.setattr("onellm_async.batch.deduplication._MAX_WAITING", 10)
    monkeypatch.setattr("onellm_async.batch.monitor._EVERY", 0.01)
    report, sink = await ask(Service(), Prompts(*["bad"] * 30))
    assert len(sink.contents) == 30
    assert report.counts.failed == 30


async def test_a_journal_whose_commands_cannot_be_read_ends_the_run_in_good_order(ask, opened, monkeypatch):
    def gone(self):
        raise BatchError("The journal has gone.")

    monkeypatch.setattr("onellm_async.batch.monitor._EVERY", 0.01)
    service = Service()
    service.hold("a")
    running = asyncio.create_task(ask(service, Prompts("a", "b", "c"), concurrency=1))
    await until(lambda: service.prompts == ["a"])
    monkeypatch.setattr(Journal, "commands", gone)
    await asyncio.sleep(0.05)
    service.held["a"].set()
    report, _ = await running
    assert str(report.stopped_by) == "The journal has gone."
    assert (report.counts.answered, report.counts.in_flight) == (1, 0)


async def test_a_prompt_whose_attempt_fails_after_the_run_was_stopped_is_not_failed_but_open(ask):
    class Overloaded(Service):
        async def _reply_to(self, request):
            reply = await super()._reply_to(request)
            return failure(503, "overloaded") if len(self.requests) == 2 else reply

    service, stop = Overloaded(), asyncio.Event()
    service.hold("b")
    running = asyncio.create_task(ask(service, Prompts("a", "b", "c"), concurrency=1, stop=stop))
    await until(lambda: service.prompts == ["a", "b"])
    stop.set()
    await asyncio.sleep(0.05)
    service.held["b"].set()
    report, _ = await running
    assert report.interrupted
    assert (report.counts.answered, report.counts.failed, report.counts.in_flight) == (1, 0, 0)

    report, sink = await ask(service, Prompts("a", "b", "c"))
    assert sink.contents == ["0 A", "1 B", "2 C"]
