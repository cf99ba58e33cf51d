import csv
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import catalog
from onellm_async.catalog import KnownModel, closest_name, cost, entries, lookup
from onellm_async.chat import Usage


def test_there_are_48_documented_models() -> None:
    assert len(entries()) == 48
    assert len({entry.name for entry in entries()}) == 48


def test_the_names_an_editor_completes_are_those_of_the_table_in_its_order() -> None:
    assert get_args(KnownModel) == tuple(entry.name for entry in entries())


def test_the_table_has_a_price_on_both_sides_or_on_none() -> None:
    for entry in entries():
        assert (entry.input_price is None) == (entry.output_price is None), entry.name
        assert entry.input_price is None or 0 < entry.input_price <= (entry.output_price or 0), entry.name


def test_the_providers_are_the_five_that_the_backend_forwards_to() -> None:
    assert {entry.provider for entry in entries()} == {"openai", "anthropic", "deepseek", "google", "mistral"}


def test_the_backend_lacks_four_documented_models() -> None:
    lacking = {entry.name for entry in entries() if entry.backend_name is None}
    assert lacking == {"Mistral-Saba", "Mistral-7B", "Mixtral-8x7B", "Mixtral-8x22B"}


def test_backend_names_are_unique_and_never_the_documented_name_of_another_model() -> None:
    backend_names = [entry.backend_name for entry in entries() if entry.backend_name]
    assert len(set(backend_names)) == len(backend_names)
    documented = {entry.name: entry for entry in entries()}
    for entry in entries():
        if entry.backend_name in documented:
            assert documented[entry.backend_name] is entry


@pytest.mark.parametrize(
    ("model", "dollars_in", "dollars_out"),
    [("GPT-5", 1.28, 10.40), ("GPT-5-Mini", 0.26, 2.08), ("GPT-5-Nano", 0.05, 0.42)],
)
def test_prices_are_dollars_per_million_tokens(model: str, dollars_in: float, dollars_out: float) -> None:
    assert cost(model, Usage(1_000_000, 0)) == pytest.approx(dollars_in)
    assert cost(model, Usage(0, 1_000_000)) == pytest.approx(dollars_out)
    assert cost(model, Usage(1_000_000, 1_000_000)) == pytest.approx(dollars_in + dollars_out)
    assert cost(model, Usage(0, 0)) == 0


def test_every_price_of_the_table_reaches_the_cost() -> None:
    table = Path(catalog.__file__).with_name("catalog.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(table.splitlines()):
        dollars = cost(row["model"], Usage(2_000_000, 3_000_000))
        if row["input_usd_per_million_tokens"]:
            listed = 2 * float(row["input_usd_per_million_tokens"]) + 3 * float(row["output_usd_per_million_tokens"])
            assert dollars == pytest.approx(listed), row["model"]
        else:
            assert dollars is None, row["model"]


@pytest.mark.parametrize("usage", [None, Usage(), Usage(5, None), Usage(None, 5), Usage(total_tokens=10)])
def test_the_cost_of_unknown_usage_is_unknown(usage: Usage | None) -> None:
    assert cost("GPT-5", usage) is None


def test_the_cost_of_an_unknown_model_is_unknown_not_zero() -> None:
    assert cost("my-own-model", Usage(5, 5)) is None


def test_a_model_is_found_under_both_names() -> None:
    assert lookup("GPT-5-Mini") is lookup("GPT-5-mini")
    assert lookup("gpt-5-MINI") is None
    assert cost("GPT-5-mini", Usage(1, 1)) == cost("GPT-5-Mini", Usage(1, 1))


@pytest.mark.parametrize(
    ("typo", "meant"), [("gpt5-mini", "GPT-5-Mini"), ("sonnet4", "Sonnet-4"), ("GPT-4.1mini", "GPT-4.1-Mini")]
)
def test_a_typo_finds_the_model_that_was_meant(typo: str, meant: str) -> None:
    assert closest_name(typo) == meant


@given(st.text())
def test_any_string_may_be_looked_up(text: str) -> None:
    assert closest_name(text) is None or lookup(closest_name(text) or "") is not None
    assert lookup(text) is None or text in {lookup(text).name, lookup(text).backend_name}  # type: ignore[union-attr]


def test_providers_are_known_by_the_names_of_the_catalog_of_people_and_of_replies() -> None:
    assert {entry.provider for entry in catalog.entries()} == set(catalog.PROVIDERS)
    for provider, name in catalog.PROVIDERS.items():
        assert {catalog.provider_called(each) for each in (provider, name, name.upper(), f" {name} ")} == {provider}
    assert catalog.provider_called("Claude") == "anthropic"
    assert [catalog.provider_called(name) for name in ("", "Groq", "open ai", "OpenAI=x")] == [None] * 4
