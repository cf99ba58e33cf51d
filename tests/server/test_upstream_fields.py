import pytest

from onellm_async.server import Outcome

TOOLS = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]


async def test_every_field_goes_on_under_its_openai_name(front, upstream):
    same = {
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "tools": TOOLS,
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "seed": 7,
        "n": 1,
        "user": "u",
        "frequency_penalty": 1,
        "presence_penalty": -1,
        "logprobs": True,
        "top_logprobs": 2,
        "top_k": 5,
        "reasoning_effort": "low",
        "logit_bias": {"50256": -100},
        "max_completion_tokens": 90,
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
        "a field of tomorrow": [1, {"x": None}],
    }
    asked = await front()
    status, _, _ = await asked.post(system="Be brief.", stop_sequences=["END"], stream=False, **same)
    assert status == 200
    assert upstream.body == same | {
        "model": "GPT-5-Mini",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}],
        "stop": ["END"],
    }


async def test_unset_fields_stay_unset(front, upstream):
    # The official client of the service sends nulls for what was not set.
    status, _, _ = await (await front()).post(
        temperature=None,
        stop_sequences=[],
        stream=None,
        contents=None,
        endpoint=None,
        reasoning_effort=None,
        tools=None,
    )
    assert status == 200
    assert upstream.body == {"model": "GPT-5-Mini", "messages": [{"role": "user", "content": "Hello there"}]}


async def test_stop_of_the_openai_api_goes_on_as_it_is(front, upstream):
    await (await front()).post(stop="END")
    assert upstream.body["stop"] == "END"


@pytest.mark.parametrize("dialect", ["documented", "backend"])
@pytest.mark.parametrize(
    "fields",
    [
        {"contents": []},
        {"safety_settings": [{}]},
        {"generation_config": {}},
        {"stop": ["a"], "stop_sequences": ["b"]},
    ],
)
async def test_field_that_cannot_arrive_is_refused_by_name(front, upstream, dialect, fields):
    asked = await front(dialect=dialect)
    status, _, reply = await asked.post(**fields)
    status, reply = (reply["code"], reply["output"]) if dialect == "backend" else (status, reply)
    assert status == 422
    assert all(name in reply["error"] for name in fields)
    assert not upstream.requests
    assert asked.ledger.outcomes == {Outcome.FAILED: 1}


async def test_endpoint_is_refused_where_it_would_be_a_choice(front, upstream):
    status, _, reply = await (await front()).post(endpoint="https://elsewhere.example")
    assert (status, "endpoint" in reply["error"]) == (422, True)
    assert not upstream.requests


async def test_endpoint_that_the_backend_dialect_demands_stays_here(front, upstream):
    status, _, reply = await (await front(dialect="backend")).post(model="any", system="Be brief.", top_k=5)
    assert (status, reply["code"]) == (200, 200)
    assert upstream.body == {
        "model": "any",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}],
        "max_tokens": 100,
        "top_p": 1.0,
        "top_k": 5,
    }


async def test_every_limit_of_tokens_is_lowered_to_what_the_balance_affords(front, upstream):
    asked = await front(balance=0.104, list_prices=True)
    await asked.post(model="GPT-5", max_tokens=50, max_completion_tokens=1_000_000)
    assert (upstream.body["max_tokens"], upstream.body["max_completion_tokens"]) == (50, 9999)
