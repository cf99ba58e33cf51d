"""What keys may spend: the arithmetic, those who wait, and the ledger."""

import asyncio
import sqlite3
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onellm_async import (
    BudgetExceededError,
    ChatRequest,
    ChatResponse,
    ConfigurationError,
    InvalidRequestError,
    OneLLMError,
    QueueFullError,
    Usage,
    catalog,
)
from onellm_async.call import Attempt
from onellm_async.gateway.budget import MAX_UNITS, Account, WorstCase, bound_cost, to_units, to_usd
from onellm_async.gateway.budget_queue import BudgetQueue
from onellm_async.gateway.paid_request import PaidRequest
from onellm_async.gateway.settings import GatewaySettings, default_ledger_path
from onellm_async.gateway.spending import Intent, LedgerError, Settlement, SpendingLedger, read_spending

REQUEST = ChatRequest("GPT-5-Nano", "Hello", max_tokens=100)


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_every_list_price_is_a_whole_number_of_units(read, written):
    for entry in catalog.entries():
        cost = catalog.cost(entry.name, Usage(read, written))
        if cost is not None:
            assert to_usd(to_units(cost)) == pytest.approx(cost, abs=1e-12)


def test_a_request_is_bounded_by_its_texts_and_its_max_tokens():
    plain = bound_cost(REQUEST, capped=True)
    assert plain.output_tokens == 100
    assert plain.units >= to_units(catalog.cost("GPT-5-Nano", Usage(5, 100)) or 0)
    assert bound_cost(REQUEST, capped=True, factor=3.0).units > 2 * plain.units


def test_a_cap_needs_a_bound_and_a_price():
    with pytest.raises(InvalidRequestError, match="max_tokens is missing"):
        bound_cost(ChatRequest("GPT-5-Nano", "Hello"), capped=True)
    with pytest.raises(InvalidRequestError, match="no price"):
        bound_cost(ChatRequest("my-model", "Hello", max_tokens=5), capped=True)
    for much in (2**40, 2**200):
        request = ChatRequest("GPT-5", "Hello", max_tokens=much)
        with pytest.raises(InvalidRequestError, match="max_tokens is"):
            bound_cost(request, capped=True)
        assert bound_cost(request, capped=False).units <= MAX_UNITS
    assert bound_cost(ChatRequest("GPT-5-Nano", "Hello"), capped=False) == WorstCase()
    assert bound_cost(ChatRequest("my-model", "Hello", max_tokens=5), capped=False).units == 0


# Those who wait.


class Books:
    def __init__(self, cap=None, total_cap=None):
        self.cap, self.total_cap, self.spent = cap, total_cap, {}

    def __call__(self, name):
        return Account(self.cap, self.spent.get(name, 0)), Account(self.total_cap, sum(self.spent.values()))


async def test_a_request_waits_for_reservations_and_not_for_what_is_spent():
    books = Books(cap=100)
    queue = BudgetQueue(books, max_waiting=10)
    await queue.reserve("a", 60)
    waiting = [asyncio.create_task(queue.reserve("a", units)) for units in (60, 30)]
    await asyncio.sleep(0)
    assert queue.waiting == 2  # the second would fit, but first in is first out
    await queue.reserve("b", 60)
    books.spent["a"] = 10
    queue.release("a", 60)
    await asyncio.gather(*waiting)
    books.spent["a"] = 70
    with pytest.raises(BudgetExceededError, match=r"Cost cap of key a reached"):
        await queue.reserve("a", 31)


async def test_a_waiting_request_is_refused_when_others_have_spent_the_rest():
    books = Books(total_cap=100)
    queue = BudgetQueue(books, max_waiting=10)
    await queue.reserve("a", 60)
    waiting = asyncio.create_task(queue.reserve("b", 60))
    await asyncio.sleep(0)
    books.spent["a"] = 60
    queue.release("a", 60)
    with pytest.raises(BudgetExceededError, match="all keys"):
        await waiting


async def test_the_number_that_waits_is_bounded_and_one_who_leaves_makes_room():
    queue = BudgetQueue(Books(cap=100), max_waiting=1)
    await queue.reserve("a", 100)
    waiting = asyncio.create_task(queue.reserve("a", 50))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await queue.reserve("a", 50)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert queue.waiting == 0
    second = asyncio.create_task(queue.reserve("a", 50))
    await asyncio.sleep(0)
    queue.release("a", 100)  # granted, and cancelled in the same moment
    second.cancel()
    await asyncio.wait({second})
    await queue.reserve("a", 100)


async def test_keys_take_turns_and_one_that_floods_leaves_room_for_others():
    queue, admitted = BudgetQueue(Books(total_cap=100), max_waiting=18), []

    async def reserve(name):
        await queue.reserve(name, 100)
        admitted.append(name)

    await queue.reserve("a", 100)
    flood = [asyncio.create_task(reserve("a")) for _ in range(30)]
    await asyncio.sleep(0)
    single = asyncio.create_task(reserve("b"))
    await asyncio.sleep(0)
    assert queue.waiting == 17
    for _ in range(2):
        queue.release("a", 100)
        await asyncio.sleep(0)
    assert admitted == ["a", "b"]
    for task in (*flood, single):
        task.cancel()
    results = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(each, QueueFullError) for each in results) == 14
    assert queue.waiting == 0


async def test_one_who_left_in_the_same_moment_is_passed_over():
    queue = BudgetQueue(Books(cap=100), max_waiting=9)
    await queue.reserve("a", 100)
    first, second = (asyncio.create_task(queue.reserve("a", 100)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    queue.release("a", 100)
    await second
    assert first.cancelled()
    assert queue.waiting == 0


# The ledger.


@pytest.fixture
async def ledger(tmp_path):
    ledger = SpendingLedger(tmp_path / "spent.sqlite3")
    yield ledger
    await ledger.aclose()


def intent(units=10, *, name="a", cap=None, total_cap=None):
    return Intent(name, units, cap, total_cap, 0.0)


async def test_an_intent_counts_with_its_worst_case_until_it_is_settled(ledger, tmp_path):
    first = await ledger.record_intent(intent(10, cap=100))
    second = await ledger.record_intent(intent(20, cap=100))
    third = await ledger.record_intent(intent(30, cap=100))
    assert (await ledger.read())["a"].reserved == 60
    ledger.settle(Settlement(intent=first, name="a", outcome="answered", units=4, input_tokens=1, output_tokens=2))
    ledger.settle(Settlement(intent=second, name="a", outcome="at risk", units=20))
    ledger.settle(Settlement(intent=third, name="a", outcome="released"))
    found = (await ledger.read())["a"]
    assert (found.billed, found.at_risk, found.reserved, found.spent) == (4, 20, 0, 24)
    assert (found.requests, found.answered, found.possibly_billed) == (2, 1, 1)
    assert (found.input_tokens, found.output_tokens) == (1, 2)
    assert read_spending(tmp_path / "spent.sqlite3")["a"] == found
    assert (ledger.spent("a"), ledger.total_spent) == (24, 24)


async def test_the_file_holds_both_caps_whatever_the_process_believes(ledger, tmp_path):
    other = SpendingLedger(tmp_path / "spent.sqlite3")
    held = await ledger.record_intent(intent(60, cap=100))
    with pytest.raises(QueueFullError, match="reserved for requests in flight"):
        await other.record_intent(intent(60, cap=100))
    await other.record_intent(intent(60, name="b", cap=100))
    with pytest.raises(QueueFullError, match="all keys"):
        await other.record_intent(intent(60, name="c", total_cap=150))
    ledger.settle(Settlement(intent=held, name="a", outcome="answered", units=60))
    await ledger.read()
    with pytest.raises(BudgetExceededError, match="key a"):
        await other.record_intent(intent(60, cap=100))
    await other.aclose()


async def test_an_outcome_that_is_written_twice_counts_once(ledger):
    number = await ledger.record_intent(intent())
    for _ in range(2):
        ledger.settle(Settlement(intent=number, name="a", outcome="answered", units=4))
    assert (await ledger.read())["a"].billed == 4


async def test_what_a_killed_gateway_had_in_flight_is_at_risk_once_no_other_one_lives(tmp_path):
    path = tmp_path / "spent.sqlite3"
    living = SpendingLedger(path)
    with sqlite3.connect(path) as killed:
        killed.execute("INSERT INTO intents (name, units, sent_at) VALUES ('a', 70, 0)")
    killed.close()
    second = SpendingLedger(path)
    assert (await second.read())["a"].reserved == 70
    await second.aclose()
    await living.aclose()
    third = SpendingLedger(path)
    found = (await third.read())["a"]
    assert (found.at_risk, found.reserved, found.possibly_billed, third.spent("a")) == (70, 0, 1, 70)
    await third.aclose()


async def test_one_who_stops_waiting_for_the_ledger_leaves_no_intent(ledger):
    for _ in range(20):
        waiting = asyncio.create_task(ledger.record_intent(intent()))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
    await ledger.record_intent(intent(1, name="b"))
    await asyncio.sleep(0.01)
    found = await ledger.read()
    assert {name: row.reserved for name, row in found.items()} == {"b": 1}


async def test_nothing_is_sent_while_the_ledger_cannot_be_written_and_outcomes_are_kept(ledger):
    number = await ledger.record_intent(intent())
    database, ledger._database = ledger._database, sqlite3.connect(":memory:", check_same_thread=False)
    with pytest.raises(LedgerError, match="nothing was sent"):
        await ledger.record_intent(intent())
    ledger.settle(Settlement(intent=number, name="a", outcome="answered", units=4))
    await ledger._idle.wait()
    ledger._database.close()
    ledger._database = database
    await ledger.record_intent(intent(1, name="b"))
    assert (await ledger.read())["a"].billed == 4


async def test_outcomes_that_cannot_be_written_at_the_end_are_told_and_count_in_full(tmp_path, caplog):
    ledger = SpendingLedger(tmp_path / "spent.sqlite3")
    number = await ledger.record_intent(intent(10))
    database, ledger._database = ledger._database, sqlite3.connect(":memory:", check_same_thread=False)
    ledger.settle(Settlement(intent=number, name="a", outcome="answered", units=4))
    await ledger.aclose()
    database.close()
    assert "1 outcomes are lost" in caplog.text
    again = SpendingLedger(tmp_path / "spent.sqlite3")
    assert again.spent("a") == 10
    await again.aclose()


async def test_the_ledger_is_for_its_owner_alone_and_refuses_other_files(tmp_path):
    ledger = SpendingLedger(tmp_path / "spent.sqlite3")
    assert stat.S_IMODE((tmp_path / "spent.sqlite3").stat().st_mode) == 0o600
    await ledger.aclose()
    (tmp_path / "text").write_text("not a database, but long enough to be read as one" * 100)
    (tmp_path / "link").symlink_to(tmp_path / "spent.sqlite3")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    for name in ("text", "link", "other.db", "", "no/such/folder"):
        with pytest.raises(ConfigurationError, match="ledger"):
            SpendingLedger(tmp_path / name)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_spending(tmp_path / "text")
    assert read_spending(tmp_path / "none") == {}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("intend"), st.integers(0, 40)),
        st.tuples(st.sampled_from(["answer", "lose", "release"]), st.integers(0, 9)),
        st.tuples(st.just("kill"), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=25)
@given(STEPS)
def test_after_any_order_of_attempts_and_kills_the_cap_holds_and_nothing_is_uncounted(steps):
    cap = 100

    async def walk(path):
        ledger, in_flight, spent = SpendingLedger(path), [], 0
        for step, value in steps:
            if step == "intend":
                fits = spent + sum(units for _, units in in_flight) + value <= cap
                try:
                    in_flight.append((await ledger.record_intent(intent(value, cap=cap)), value))
                except (BudgetExceededError, QueueFullError):
                    assert not fits
                else:
                    assert fits
            elif step == "kill":
                spent += sum(units for _, units in in_flight)
                in_flight = []
                await ledger.aclose()
                ledger = SpendingLedger(path)
            elif in_flight:
                number, units = in_flight.pop(value % len(in_flight))
                outcome, cost = {"answer": ("answered", units // 2), "lose": ("at risk", units)}.get(
                    step, ("released", 0)
                )
                ledger.settle(Settlement(intent=number, name="a", outcome=outcome, units=cost))
                spent += cost
        row = (await ledger.read()).get("a")
        await ledger.aclose()
        assert (0 if row is None else row.spent) == spent <= cap
        assert (0 if row is None else row.reserved) == sum(units for _, units in in_flight)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(walk(Path(folder) / "spent.sqlite3"))


ROUNDS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), max_size=8),
        st.lists(st.sampled_from(["answered", "at risk", "released"]), max_size=6),
    ),
    max_size=6,
)


@settings(max_examples=25)
@given(ROUNDS)
def test_what_is_written_in_one_transaction_is_decided_as_one_after_the_other(rounds):
    cap, total_cap = 50, 80

    async def walk(path):
        ledger, in_flight, spent = SpendingLedger(path), [], {"a": 0, "b": 0}
        for wanted, outcomes in rounds:
            for outcome in outcomes[: len(in_flight)]:
                number, name, units = in_flight.pop(0)
                cost = 0 if outcome == "released" else units // 2
                ledger.settle(Settlement(intent=number, name=name, outcome=outcome, units=cost))
                spent[name] += cost
            intents = [intent(units, name=name, cap=cap, total_cap=total_cap) for name, units in wanted]
            found = await asyncio.gather(*map(ledger.record_intent, intents), return_exceptions=True)
            for (name, units), number in zip(wanted, found, strict=True):
                reserved = {key: sum(held for _, of, held in in_flight if of == key) for key in "ab"}
                own = spent[name] + reserved[name] + units <= cap
                fits = own and sum(spent.values()) + sum(reserved.values()) + units <= total_cap
                assert isinstance(number, int) == fits
                if fits:
                    in_flight.append((number, name, units))
        rows = await ledger.read()
        await ledger.aclose()
        for name in rows:
            assert (rows[name].spent, ledger.spent(name)) == (spent[name], spent[name])
            assert rows[name].reserved == sum(units for _, of, units in in_flight if of == name)
        assert ledger.total_spent == sum(spent.values())

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(walk(Path(folder) / "spent.sqlite3"))


# One request.


def paid(ledger, *, cap=None, worst=10):
    return PaidRequest(ledger, "a", REQUEST, WorstCase(worst, 100), cap=cap, total_cap=None, clock=lambda: 0.0)


async def totals(ledger):
    found = (await ledger.read()).get("a")
    return None if found is None else (found.billed, found.at_risk, found.reserved)


async def test_each_attempt_is_reserved_and_those_that_may_be_billed_stay_counted(ledger):
    request = paid(ledger)
    await request.before_sending(Attempt(1, 0))
    request.after_failing(0)  # a 429
    await request.before_sending(Attempt(1, 0))
    request.after_failing(1)  # a reset
    await request.before_sending(Attempt(2, 1))
    assert await totals(ledger) == (0, 10, 10)
    request.answered(ChatResponse("x", cost=to_usd(3), usage=Usage(1, 2)))
    assert await totals(ledger) == (3, 10, 0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(asyncio.CancelledError(), (0, 10, 0)), (OneLLMError("unsent"), None), (ValueError("a bug"), (0, 10, 0))],
)
async def test_what_ends_in_flight_is_at_risk_and_what_was_not_sent_is_free(ledger, error, expected):
    request = paid(ledger)
    request.failed(error)
    assert await totals(ledger) is None
    await request.before_sending(Attempt(1, 0))
    request.failed(error)
    request.failed(error)
    assert await totals(ledger) == expected


async def test_an_answer_of_unknown_cost_counts_with_its_worst_case(ledger):
    request = paid(ledger)
    await request.before_sending(Attempt(1, 0))
    request.answered(ChatResponse("x"))
    assert await totals(ledger) == (10, 0, 0)
    assert (await ledger.read())["a"].unpriced == 1


async def test_no_reply_of_the_service_makes_the_sums_overflow(ledger):
    for _ in range(3):
        request = paid(ledger)
        await request.before_sending(Attempt(1, 0))
        request.answered(ChatResponse("x", cost=1e300, usage=Usage(2**90, -5)))
    row = (await ledger.read())["a"]
    assert row.billed == 3 * MAX_UNITS
    assert (row.answered, row.output_tokens) == (3, 0)


async def test_a_model_that_bills_beyond_max_tokens_is_remembered(ledger, tmp_path):
    request = paid(ledger)
    await request.before_sending(Attempt(1, 0))
    request.answered(ChatResponse("x", cost=1e-6, usage=Usage(1, 250)))
    await ledger.read()
    assert ledger.factors == {"GPT-5-Nano": 2.5}
    again = SpendingLedger(tmp_path / "spent.sqlite3")
    assert again.factors == {"GPT-5-Nano": 2.5}
    await again.aclose()


def test_settings_are_checked_and_a_cap_needs_a_place():
    with pytest.raises(ConfigurationError, match=r"--keys FILE.*--ledger FILE"):
        GatewaySettings(max_cost=5)
    for wrong in ({"max_wait": 0}, {"max_tokens": 0}, {"max_cost": -1, "keys": "k"}, {"lane": "fast"}, {"keys": 5}):
        with pytest.raises(ConfigurationError):
            GatewaySettings(**wrong)
    settings = GatewaySettings(keys="a/keys.toml")
    assert settings.ledger_path == default_ledger_path(settings.keys)
    assert settings.ledger_path.name == "keys.spent.sqlite3"
    assert GatewaySettings().ledger_path is None
