"""The documented models: provider, prices, and name in the published backend.

The figures are those of the OneLLM documentation's model list, kept in ``catalog.csv`` beside this file.
"""

import csv
import difflib
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from attrs import frozen

from onellm_async.chat import Usage

__all__ = [
    "PROVIDERS",
    "CatalogEntry",
    "KnownModel",
    "Model",
    "closest_name",
    "cost",
    "entries",
    "lookup",
    "provider_called",
]

PROVIDERS = {
    "openai": "OpenAI",
    "anthropic": "Anthropic",
    "deepseek": "DeepSeek",
    "google": "Gemini",
    "mistral": "Mistral",
}
"""What the providers are called: in the catalog, and by people."""
_OTHER_PROVIDER_NAMES = {"claude": "anthropic"}
"""What the replies of the published backend call one of them."""

KnownModel: TypeAlias = Literal[
    "GPT-5",
    "GPT-5-Mini",
    "GPT-5-Nano",
    "GPT-5-Chat-Latest",
    "GPT-4.1",
    "GPT-4.1-Mini",
    "GPT-4.1-Nano",
    "GPT-o3",
    "GPT-o3-pro",
    "GPT-o3-DeepResearch",
    "GPT-o3-Mini",
    "GPT-o4-mini",
    "GPT-4o",
    "GPT-4o-mini",
    "GPT-o1",
    "GPT-o1-Mini",
    "Opus-4",
    "Sonnet-4",
    "Haiku-3.5",
    "Opus-3",
    "Sonnet-3.7",
    "Haiku-3",
    "DeepSeek-Reasoner",
    "DeepSeek-Chat",
    "2.5-Flash-preview",
    "2.5-Pro-preview",
    "2.0-Flash",
    "2.0-Flash-lite",
    "1.5-Flash",
    "1.5-Flash-8B",
    "1.5-Pro",
    "Mistral-Medium-3",
    "Magistral-Medium",
    "Codestral",
    "Devstral-Medium",
    "Mistral-Saba",
    "Mistral-Large",
    "Pixtral-Large",
    "Ministral-8B-24.10",
    "Ministral-3B-24.10",
    "Mistral-Small-3.2",
    "Magistral-Small",
    "Devstral-Small",
    "Pixtral-12B",
    "Mistral-NeMo",
    "Mistral-7B",
    "Mixtral-8x7B",
    "Mixtral-8x22B",
]

Model: TypeAlias = KnownModel | str
"""A model id: the documented ones complete in an editor, and any other string is accepted and sent as it is."""


@frozen
class CatalogEntry:
    """One documented model.

    Attributes:
        name: The documented id.
        provider: ``openai``, ``anthropic``, ``deepseek``, ``google`` or ``mistral``.
        input_price: USD per million input tokens, None when no price is listed.
        output_price: USD per million output tokens, None when no price is listed.
        backend_name: The id that the published backend accepts, None when it lacks the model.
    """

    name: str
    provider: str
    input_price: float | None
    output_price: float | None
    backend_name: str | None


def _price(text: str) -> float | None:
    return float(text) if text else None


@cache
def entries() -> tuple[CatalogEntry, ...]:
    """All documented models, in the documentation's order. Read once, on first use."""
    table = Path(__file__).with_name("catalog.csv").read_text(encoding="utf-8")
    return tuple(
        CatalogEntry(
            name=row["model"],
            provider=row["provider"],
            input_price=_price(row["input_usd_per_million_tokens"]),
            output_price=_price(row["output_usd_per_million_tokens"]),
            backend_name=row["backend_model"] or None,
        )
        for row in csv.DictReader(table.splitlines())
    )


@cache
def _index() -> dict[str, CatalogEntry]:
    by_backend_name = {entry.backend_name: entry for entry in entries() if entry.backend_name}
    return by_backend_name | {entry.name: entry for entry in entries()}


def lookup(model: str) -> CatalogEntry | None:
    """The entry of a model under its documented or its backend name; None for any other string."""
    return _index().get(model)


def provider_called(name: str) -> str | None:
    """The catalog's name of the provider that is called `name`, in any case; None for any other string.

    Example:
        >>> [provider_called(name) for name in ("OpenAI", "Gemini", "Claude", "Groq")]
        ['openai', 'google', 'anthropic', None]
    """
    folded = name.strip().casefold()
    by_name = {people.casefold(): provider for provider, people in PROVIDERS.items()}
    return folded if folded in PROVIDERS else by_name.get(folded) or _OTHER_PROVIDER_NAMES.get(folded)


def closest_name(model: str) -> str | None:
    """Returns the documented id closest to `model`, for "did you mean"; None if none is close."""
    folded = {entry.name.casefold(): entry.name for entry in entries()}
    close = difflib.get_close_matches(model.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def cost(model: str, usage: Usage | None) -> float | None:
    """USD for `usage` of `model` by list price; None when either is unknown.

    Example:
        >>> cost("GPT-5", Usage(input_tokens=1_000_000, output_tokens=0))
        1.28
    """
    if usage is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    entry = _index().get(model)
    if entry is None or entry.input_price is None or entry.output_price is None:
        return None
    # Rounded to what prices in USD per million tokens can add up to: 4.7e-07, not 4.6999999999999995e-07.
    return round((usage.input_tokens * entry.input_price + usage.output_tokens * entry.output_price) / 1_000_000, 10)
