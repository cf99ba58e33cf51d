"""Prices of one's own, for costs, caps and plans."""

import pytest

from onellm_async import AsyncOneLLM, ConfigurationError, Limits, Usage
from onellm_async.batch.budget import Budget
from onellm_async.catalog import LIST_PRICES, PriceList, cost
from onellm_async.chat import ChatRequest
from onellm_async.gateway.budget import bound_cost
from onellm_async.simulation.workload import WorkloadMeter
from onellm_async.testing import FakeTransport

MILLION = Usage(input_tokens=1_000_000, output_tokens=1_000_000)


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "prices.csv"
        path.write_text(text, "utf-8")
        return path

    return write


def test_a_file_has_the_columns_of_the_catalog_and_may_have_others(file):
    prices = PriceList.of(
        file(
            "provider,model,input_usd_per_million_tokens,output_usd_per_million_tokens\n"
            "local,llama,0,0\nopenai,GPT-5,1,2.5\nopenai,unlisted,,\n"
        )
    )
    assert [prices.cost(model, MILLION) for model in ("llama", "GPT-5", "unlisted")] == [0.0, 3.5, None]
    assert prices.cost("GPT-5-Mini", MILLION) == cost("GPT-5-Mini", MILLION)


def test_a_model_has_its_price_under_both_of_its_names():
    prices = PriceList.of({"GPT-5-Mini": (1, 1)})
    assert prices.cost("GPT-5-mini", MILLION) == 2.0


def test_a_star_is_any_other_model():
    prices = PriceList.of({"*": (0, 0), "dear": (5, 5)})
    assert [prices.cost(model, MILLION) for model in ("anything", "GPT-5", "dear")] == [0.0, 0.0, 10.0]


def test_no_prices_are_the_list_prices():
    assert PriceList.of(None) is LIST_PRICES
    assert LIST_PRICES.cost("GPT-5", MILLION) == cost("GPT-5", MILLION) == pytest.approx(11.68)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model,input,output\nx,1,2\n",
        "model,input_usd_per_million_tokens,output_usd_per_million_tokens\nx,1,two\n",
        "model,input_usd_per_million_tokens,output_usd_per_million_tokens\nx,1,-2\n",
        "model,input_usd_per_million_tokens,output_usd_per_million_tokens\nx,1,inf\n",
    ],
)
def test_a_file_without_prices_is_refused(file, text):
    with pytest.raises(ConfigurationError, match=r"prices\.csv"):
        PriceList.of(file(text))


@pytest.mark.parametrize("price", [1.0, (1,), (1, 2, 3), (-1, 2), ("1", "2"), (float("nan"), 1), None])
def test_a_price_that_is_none_is_refused(price):
    with pytest.raises(ConfigurationError, match="price of 'x'"):
        AsyncOneLLM(transport=FakeTransport("x"), prices={"x": price})


async def test_answers_caps_and_plans_have_the_own_price(tmp_path):
    prices = {"local": (0.0, 0.0), "own": (1000.0, 1000.0)}
    service = FakeTransport("x")
    async with AsyncOneLLM(transport=service, limits=Limits.unlimited(1), prices=prices) as client:
        assert (await client.chat("Hi", model="local")).cost == 0.0
        assert (await client.chat("Hi", model="own")).cost > 0
        free = await client.run(["a", "b"], tmp_path / "a.jsonl", model="local", max_tokens=9, max_cost=0.000001)
        assert (free.complete, free.counts.cost, free.counts.unpriced) == (True, 0.0, 0)
        dear = await client.run(["a", "b"], tmp_path / "b.jsonl", model="own", max_tokens=9, max_cost=0.000001)
        assert dear.stopped_by is not None
    own = PriceList.of(prices)
    request = ChatRequest("own", "Hi", max_tokens=10)
    assert Budget(max_cost=1, prices=own).worst_case(request).cost > 0.01
    assert bound_cost(request, capped=True, prices=own).units > 0
    meter = WorkloadMeter(prices=own)
    meter.add(request)
    assert meter.workload().price.high > 0.01
