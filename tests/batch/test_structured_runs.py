"""Runs whose answers conform to a schema: values or reasons, corrections counted, every turn paid for once."""

import asyncio
import csv
import dataclasses
import json
from typing import Annotated, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from onellm_async import AsyncOneLLM, BatchError, ChatRequest, ConfigurationError, Limits
from onellm_async.batch import (
    Budget,
    HealthPolicy,
    JournalReader,
    JournalRecord,
    NullJournal,
    ProgressTracker,
    RecordState,
    RequestDefaults,
    RunCounts,
    entries_from,
)
from onellm_async.batch.budget import NO_COST, Bound, BudgetGate, Cost
from onellm_async.batch.engine import RunEngine
from onellm_async.batch.journal.record import Step, after_step
from onellm_async.batch.outcomes import outcome_of
from onellm_async.server import Faults, LocalServer, ServerSettings
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.structured_output import MAX_CORRECTION, shape_of
from onellm_async.testing import FakeTransport, answer, failure

QUICK = Limits(requests_per_minute=600_000, burst=10_000)
EXACT = 1e-9
"""USD; sums of the same prices in another order differ by less."""


@attrs.frozen
class City:
    name: str
    people: Annotated[int, msgspec.Meta(ge=0)]


@dataclasses.dataclass
class Point:
    x: int


class Tree(TypedDict):
    height: float


class Star(msgspec.Struct):
    name: str


class Planet(pydantic.BaseModel):
    moons: int = pydantic.Field(ge=0)


SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
OSLO = '{"name": "Oslo", "people": 700000}'


def server(**faults):
    return LocalServer(ServerSettings(requests_per_minute=600_000, burst=10_000, balance=1e6, faults=Faults(**faults)))


async def run_on(local, source, output, **options):
    async with AsyncOneLLM("k", base_url=local.url, limits=QUICK) as client:
        return await client.run(source, output, **options)


def run(replies, source, output, **options):
    """A run against scripted replies, and the requests that were sent."""
    transport = FakeTransport(replies)

    async def main():
        async with AsyncOneLLM(transport=transport, limits=options.pop("limits", QUICK)) as client:
            return await client.run(source, output, **{"model": "GPT-5", "response_model": City, **options})

    return asyncio.run(main()), transport.requests


def lines(output):
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


def records(output):
    with JournalReader.open(output) as journal:
        return list(journal.records()), journal.counts()


def one_in_ten(request):
    """Misfits in the first turn of every tenth prompt, and in the second turn of every twentieth."""
    number = int(request.messages[0]["content"].split()[-1])
    return answer("no" if not number % (10 if len(request.messages) == 1 else 20) else OSLO)


@pytest.mark.parametrize("corrections", [0, 1])
async def test_of_200_prompts_all_are_parsed_or_failed_with_the_reason_at_the_cost_that_was_billed(
    corrections, tmp_path
):
    output, cap = tmp_path / "out.jsonl", 1.0
    async with server(unfit_rate=0.1, seed=3) as local:
        report = await run_on(
            local,
            [f"city {n}" for n in range(200)],
            output,
            model="GPT-5",
            max_tokens=300,
            max_cost=cap,
            response_model=City,
            corrections=corrections,
        )
        ledger = local.ledger
    assert report.complete
    counts, written = report.counts, lines(output)
    failed = [line for line in written if line["error"] is not None]
    assert counts.answered + counts.failed == 200
    assert len(failed) == counts.failed
    assert 0 < len(failed) <= (30 if corrections == 0 else 10)
    assert (counts.corrections > 10) is (corrections == 1)
    assert ledger.billed == 200 + counts.corrections
    assert counts.cost == pytest.approx(ledger.billed_usd, abs=EXACT)
    assert ledger.billed_usd <= cap
    assert (counts.possibly_billed, counts.at_risk, counts.unpriced) == (0, 0, 0)
    for number, line in enumerate(written):
        if line["error"] is None:
            assert line["response"]["parsed"] == {"name": f"city {number}", "people": 0}
            assert json.loads(line["response"]["content"]) == line["response"]["parsed"]
        else:
            assert line["error"]["type"] == "StructureError"
            assert "JSON value" in line["error"]["message"]
            assert line["error"]["content"]
    paid = sum((line["response"] or line["error"])["cost"] for line in written)
    assert paid == pytest.approx(ledger.billed_usd, abs=EXACT), "the lines add up, failures included"


def test_a_record_has_the_tokens_the_cost_and_the_corrections_of_all_turns(tmp_path):
    output = tmp_path / "out.jsonl"
    report, requests = run(one_in_ten, [f"prompt {n}" for n in range(40)], output)
    found, counts = records(output)
    assert len(requests) == 44
    assert (report.counts.answered, report.counts.failed, report.counts.corrections) == (38, 2, 4)
    assert counts == report.counts
    once, corrected, failed = found[1], found[10], found[20]
    assert (once.corrections, corrected.corrections, failed.corrections) == (0, 1, 1)
    assert (once.attempts, corrected.attempts, failed.attempts) == (1, 2, 2)
    assert corrected.input_tokens > 2 * once.input_tokens
    assert corrected.output_tokens > once.output_tokens
    assert corrected.cost > 1.5 * once.cost > 0
    assert failed.cost > once.cost
    assert sum(record.cost for record in found) == pytest.approx(counts.cost)
    assert failed.state is RecordState.FAILED
    assert json.loads(failed.result) == {
        "type": "StructureError",
        "message": "The answer does not conform to the schema after 1 corrective turn. It does not fit: There is no "
        "JSON value in it.",
        "status_code": None,
        "content": "no",
        "cost": failed.cost,
    }


@pytest.mark.parametrize(
    ("response_model", "text"),
    [
        (City, OSLO),
        (Point, '{"x": 1}'),
        (Tree, '{"height": 2.5}'),
        (Star, '{"name": "Sol"}'),
        (Planet, '{"moons": 2}'),
        (list[Point], '[{"x": 1}]'),
        (SCHEMA, '{"name": "Sol", "age": 5}'),
    ],
    ids=str,
)
def test_every_kind_of_class_and_a_schema_are_taken(response_model, text, tmp_path):
    output = tmp_path / "out.jsonl"
    report, (request,) = run(answer(f"Here: {text}!"), ["Which?"], output, response_model=response_model)
    assert report.counts.answered == 1
    assert lines(output)[0]["response"]["parsed"] == json.loads(text)
    assert shape_of(response_model).instruction in request.fields["system"]


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.parquet"])
def test_tables_have_the_value_as_json_text_in_one_column(name, tmp_path):
    output = tmp_path / name
    run(one_in_ten, ["prompt 20", "prompt 1"], output)
    if name.endswith("parquet"):
        pq = pytest.importorskip("pyarrow.parquet")
        failed, answered = pq.read_table(output).to_pylist()
    else:
        with output.open(encoding="utf-8", newline="") as file:
            failed, answered = csv.DictReader(file, delimiter="\t" if name.endswith("tsv") else ",")
    assert json.loads(answered["parsed"]) == json.loads(OSLO)
    assert answered["content"] == OSLO
    assert not failed["parsed"]
    assert not failed["content"]
    assert failed["error_type"] == "StructureError"
    assert float(failed["cost"]) > 0


def test_the_body_of_an_openai_batch_is_the_answer_alone(tmp_path):
    source, output = tmp_path / "batch.jsonl", tmp_path / "out.jsonl"
    body = {"model": "GPT-5", "messages": [{"role": "user", "content": "prompt 1"}], "max_tokens": 50}
    batch = [{"custom_id": f"id {n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(2)]
    batch[1]["body"] = body | {"messages": [{"role": "user", "content": "prompt 20"}]}
    source.write_text("".join(json.dumps(each) + "\n" for each in batch), "utf-8")
    run(one_in_ten, source, output, model=None)
    answered, failed = lines(output)
    assert answered["response"]["body"]["choices"][0]["message"] == {"role": "assistant", "content": OSLO}
    assert "parsed" not in json.dumps(answered)
    assert failed["error"]["code"] == "StructureError"


def test_the_response_format_of_lines_is_replaced_and_that_is_said_once(tmp_path):
    source, said = tmp_path / "in.jsonl", []
    rows = [{"prompt": f"prompt {n}", "response_format": {"type": "text"}} for n in range(1, 4)]
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "prompt 9"}]), "utf-8")
    _, requests = run(one_in_ten, source, tmp_path / "a.jsonl", on_message=said.append)
    assert {str(request.fields["response_format"]) for request in requests} == {"{'type': 'json_object'}"}
    assert [text for text in said if "replaces" in text] == [
        "response_model=… (--schema) replaces the response_format of 3 lines."
    ]
    said.clear()
    given = {"response_format": {"type": "text"}}
    _, requests = run(one_in_ten, source, tmp_path / "b.jsonl", on_message=said.append, **given)
    assert {str(request.fields["response_format"]) for request in requests} == {"{'type': 'text'}"}
    assert not [text for text in said if "replaces" in text]
    own = ChatRequest("GPT-5", "prompt 1", response_format={"type": "text"}, system="Be brief.")
    _, (request,) = run(one_in_ten, [own], tmp_path / "c.jsonl", model=None)
    assert request.fields["response_format"] == {"type": "text"}, "a complete request keeps its own"
    assert request.fields["system"].startswith("Be brief.\n\nAnswer with one JSON value")


def test_a_finished_run_asks_nothing_again_and_retry_failed_adds_to_what_was_paid(tmp_path):
    prompts, output = [f"prompt {n}" for n in range(30)], tmp_path / "out.jsonl"
    first, _ = run(one_in_ten, prompts, output)
    before = records(output)[0][20]
    again, requests = run(one_in_ten, prompts, output)
    assert (requests, again.counts) == ([], first.counts)
    retried, requests = run(answer(OSLO), prompts, output, retry_failed=True)
    after, counts = records(output)[0][20], records(output)[1]
    assert len(requests) == 2
    assert (after.state, retried.counts.failed) == (RecordState.ANSWERED, 0)
    assert after.cost > before.cost
    assert (after.corrections, counts.corrections) == (1, first.counts.corrections)
    assert lines(output)[20]["response"]["cost"] == after.cost


def test_another_schema_is_another_run_and_another_number_of_corrections_is_not(tmp_path):
    output = tmp_path / "out.jsonl"
    run(answer(OSLO), ["prompt 1"], output)
    report, requests = run(answer(OSLO), ["prompt 1"], output, corrections=0)
    assert (report.complete, requests) == (True, [])
    with pytest.raises(BatchError, match="the schema of the answers has changed"):
        run(answer(OSLO), ["prompt 1"], output, response_model=SCHEMA)
    with pytest.raises(BatchError, match="the schema of the answers was given and is not any more"):
        run(answer(OSLO), ["prompt 1"], output, response_model=None)
    plain = tmp_path / "plain.jsonl"
    run(answer(OSLO), ["prompt 1"], plain, response_model=None)
    with pytest.raises(BatchError, match="the schema of the answers was not given and is now"):
        run(answer(OSLO), ["prompt 1"], plain)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"response_model": 5}, "response_model is 5, which has no JSON Schema"),
        ({"response_model": {"type": 5}}, "response_model is no JSON Schema"),
        ({"corrections": 6}, "corrections is 6"),
        ({"corrections": True}, "corrections is True"),
    ],
)
def test_what_is_no_schema_or_no_number_is_refused_before_anything_is_opened(option, text, tmp_path):
    with pytest.raises(ConfigurationError, match=text):
        run(answer("{}"), ["prompt 1"], tmp_path / "out.jsonl", **option)
    assert list(tmp_path.iterdir()) == []


def test_identical_prompts_share_the_value_of_one(tmp_path):
    output = tmp_path / "out.jsonl"
    report, requests = run(one_in_ten, ["prompt 10"] * 3 + ["prompt 20"] * 2, output, deduplicate=True)
    assert len(requests) == 4
    assert [(line["response"] or line["error"])["cost"] > 0 for line in lines(output)[:4]] == [True, False, False, True]
    assert (report.counts.answered, report.counts.failed, report.counts.corrections) == (3, 2, 2)
    found, counts = records(output)
    assert sum(record.cost for record in found) == pytest.approx(counts.cost)


def test_a_corrective_turn_that_the_service_refuses_is_a_failure_with_the_first_answer(tmp_path):
    def reply(request):
        return answer("no") if len(request.messages) == 1 else failure(422, "too long")

    output = tmp_path / "out.jsonl"
    report, requests = run(reply, ["a", "b"], output)
    assert (report.complete, report.counts.failed, len(requests)) == (True, 2, 4)
    for line in lines(output):
        assert line["error"]["type"] == "APIStatusError" or "Its correction failed: 422" in line["error"]["message"]
        assert (line["error"]["content"], line["error"]["cost"] > 0) == ("no", True)
    assert report.counts.cost > 0


class Lines:
    async def write(self, lines):
        """Takes them."""


@pytest.mark.parametrize("how", ["stop", "balance"])
@pytest.mark.parametrize("ambiguous", ["retry", "hold"])
def test_a_run_that_ends_between_two_turns_keeps_what_was_paid_and_starts_the_prompt_over(how, ambiguous, tmp_path):
    stop = []

    def reply(request):
        if len(request.messages) == 1:
            if how == "stop":
                stop[0].set()
            return answer("no")
        return failure(403, "Insufficient balance.")

    async def session(replies):
        stop[:] = [asyncio.Event()]
        transport = FakeTransport(replies)
        async with AsyncOneLLM(transport=transport, limits=QUICK) as client:
            report = await client.run(
                ["a"],
                Lines(),
                journal=tmp_path / "out.journal",
                stop=stop[0],
                model="GPT-5",
                response_model=City,
                max_tokens=50,
                max_cost=1,
                ambiguous=ambiguous,
            )
        return report, transport.requests

    first, requests = asyncio.run(session(reply))
    assert not first.complete
    assert len(requests) == (1 if how == "stop" else 2)
    (record,), counts = records(tmp_path / "out.journal")
    assert (record.state, record.possibly_billed, record.corrections) == (RecordState.IN_FLIGHT, 0, 0)
    assert (counts.in_flight, counts.possibly_billed, counts.at_risk, counts.failed) == (0, 0, 0, 0)
    assert counts.cost == record.cost > 0
    assert b"was not corrected" in outcome_of(record)[1]
    second, requests = asyncio.run(session(answer(OSLO)))
    assert (second.complete, len(requests)) == (True, 1)
    (record,), counts = records(tmp_path / "out.journal")
    assert (counts.answered, counts.possibly_billed, counts.at_risk) == (1, 0, 0)
    assert counts.cost == pytest.approx(record.cost)
    assert json.loads(record.result)["cost"] == record.cost > first.counts.cost
    assert record.input_tokens > first.counts.input_tokens


def test_an_outage_between_two_turns_is_waited_for_and_no_failure():
    """Corrective turns that fail are held back as every request that fails so, and their prompts are sent again."""

    def reply(request):
        if len(request.messages) == 1:
            return answer("no")
        return failure(500, "boom") if request.at < 60 else answer(OSLO)

    async def main():
        loop, said = asyncio.get_running_loop(), []
        tracker = ProgressTracker(loop.time())
        transport = FakeTransport(reply)
        shape = shape_of(City)
        async with AsyncOneLLM(transport=transport, limits=QUICK, hooks=(tracker,)) as client:
            report = await RunEngine(
                client,
                entries_from([f"p {n}" for n in range(60)], defaults=RequestDefaults(model="GPT-5", shape=shape)),
                journal=NullJournal(),
                sink=Lines(),
                encode=lambda record: b"\n",
                shape=shape,
                corrections=1,
                tracker=tracker,
                say=said.append,
                clock=loop.time,
            ).run()
        return report, said, transport.requests

    report, said, requests = run_in_virtual_time(main())
    assert any(text.startswith("Paused: ") for text in said)
    assert any(text.startswith("Resumed: ") for text in said)
    assert (report.counts.answered, report.counts.failed) == (60, 0)
    billed = [request for request in requests if len(request.messages) == 1]
    assert report.counts.input_tokens > 0
    assert len(billed) > 60, "prompts start over"


@pytest.mark.parametrize("corrections", [0, 1])
def test_where_no_answer_fits_a_run_stops_after_few_and_goes_on_when_told_to(corrections, tmp_path):
    prompts, output = [f"p {n}" for n in range(2000)], tmp_path / "out.jsonl"
    options = {"corrections": corrections, "limits": attrs.evolve(QUICK, max_concurrency=8)}
    report, requests = run(answer("no"), prompts, output, **options)
    assert not report.complete
    assert "do not conform to the schema" in str(report.stopped_by)
    assert "There is no JSON value in it" in str(report.stopped_by)
    assert "max_failure_share=1" in report.stopped_by.advice
    assert 11 <= report.counts.failed <= 40
    assert len(requests) <= 40 * (1 + corrections)
    assert report.counts.possibly_billed == 0

    mended, requests = run(answer(OSLO), prompts, output, retry_failed=True, **options)
    assert (mended.complete, mended.counts.answered, len(requests)) == (True, 2000, 2000)


def test_a_run_may_keep_going_although_no_answer_fits(tmp_path):
    prompts = [f"p {n}" for n in range(60)]
    report, _ = run(answer("no"), prompts, tmp_path / "out.jsonl", max_failure_share=1)
    assert (report.complete, report.counts.failed) == (True, 60)


def test_the_last_answers_of_a_run_may_all_be_unfit(tmp_path):
    report, _ = run(answer("no"), [f"p {n}" for n in range(11)], tmp_path / "out.jsonl")
    assert (report.complete, report.counts.failed) == (True, 11)


def test_an_answer_that_does_not_fit_ends_a_pause_as_the_service_answers_again():
    """A trial that is answered, and paid, proves that the service is up, whatever the answer says."""

    def reply(request):
        if request.at < 60:
            return failure(500, "boom")
        return answer("no" if int(request.prompt.split()[1]) % 3 else OSLO)

    async def main():
        loop, said, transport = asyncio.get_running_loop(), [], FakeTransport(reply)
        shape = shape_of(City)
        async with AsyncOneLLM(transport=transport, limits=QUICK) as client:
            report = await RunEngine(
                client,
                entries_from([f"p {n}" for n in range(1, 90, 3)], defaults=RequestDefaults(model="GPT-5", shape=shape)),
                journal=NullJournal(),
                sink=Lines(),
                encode=lambda record: b"\n",
                shape=shape,
                health=HealthPolicy(),
                say=said.append,
                clock=loop.time,
            ).run()
        return report, said

    _, said = run_in_virtual_time(main())
    resumed = [number for number, text in enumerate(said) if text.startswith("Resumed: ")]
    assert len(resumed) == 1
    assert not [text for text in said[resumed[0] :] if text.startswith("Still failing")]


async def test_money_of_a_correction_is_set_aside_before_the_first_turn_and_given_away_where_nothing_else_can_go_on():
    gate = BudgetGate(Budget(max_tokens=100))
    bound = Bound("GPT-5", 10, 10)
    assert await gate.reserve(bound, 2) == bound.charge
    assert gate.reserved.tokens == 40
    gate.park("a", bound.charge * 2, Cost(tokens=15), left=bound.charge)
    assert gate.spent.tokens == 15
    assert await gate.reserve(Bound("GPT-5", 40, 20)) is not None, "60 beside 15 and the 20 that are parked"
    waiting = asyncio.ensure_future(gate.reserve(Bound("GPT-5", 40, 44)))
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.settle(Cost(tokens=60), Cost(tokens=1))
    assert (await waiting).tokens == 84, "parked money is lent where nothing is in flight"
    assert not gate.unpark("a")
    gate.settle(Cost(tokens=84), Cost(tokens=2))
    assert (gate.spent.tokens, gate.reserved) == (18, NO_COST)


def test_the_bound_of_a_turn_has_the_answers_before_it_and_the_texts_of_their_corrections():
    request = ChatRequest("GPT-5", "Hi", max_tokens=100, n=2)
    plain, corrected = Budget(max_cost=1).bound(request), Budget(max_cost=1).bound(request, 2)
    assert corrected.output_tokens == plain.output_tokens == 200
    assert corrected.input_tokens > plain.input_tokens + 2 * 2 * (100 + MAX_CORRECTION)


def test_a_record_that_is_paid_for_survives_that_its_next_attempt_is_retracted():
    paid = JournalRecord(0, 1, 7, b"digest", possibly_billed=1, cost=0.5, input_tokens=9, reserved=2.0)
    left = after_step(Step.RETRACT, paid, None)
    assert (left.possibly_billed, left.cost, left.state) == (0, 0.5, RecordState.IN_FLIGHT)
    counts = RunCounts().replacing(None, left)
    assert (counts.in_flight, counts.possibly_billed, counts.cost, counts.at_risk) == (0, 0, 0.5, 0)
    open_again = RunCounts().replacing(None, paid)
    assert (open_again.in_flight, open_again.possibly_billed, open_again.cost, open_again.at_risk) == (1, 0, 0.5, 2.0)
    assert after_step(Step.RETRACT, attrs.evolve(paid, cost=None, input_tokens=None), None) is None
