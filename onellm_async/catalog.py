"""The documented models: provider, prices, and name in the published backend.

The figures are those of the OneLLM documentation's model list, kept in ``catalog.csv`` beside this file.
"""

import csv
import difflib
import math
import os
from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias

from attrs import field, frozen

from onellm_async.chat import Usage
from onellm_async.errors import ConfigurationError
from onellm_async.validation import truncated_repr

__all__ = [
    "ANY_MODEL",
    "LIST_PRICES",
    "PROVIDERS",
    "CatalogEntry",
    "KnownModel",
    "Model",
    "PriceList",
    "Prices",
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
    return LIST_PRICES.cost(model, usage)


ANY_MODEL = "*"
"""The model of a price that is that of all models without one of their own."""
Prices: TypeAlias = Mapping[str, tuple[float, float]] | str | PathLike[str]
"""USD per million input and output tokens by model, or a CSV file of them."""
_PRICE_COLUMNS = ("model", "input_usd_per_million_tokens", "output_usd_per_million_tokens")


@frozen
class PriceList:
    """The prices of a client: its own, and for other models the list prices.

    Attributes:
        own: USD per million input and output tokens, by model; `ANY_MODEL` stands for all that are not named.
    """

    own: Mapping[str, tuple[float, float]] = field(factory=dict[str, tuple[float, float]], hash=False)

    @classmethod
    def of(cls, prices: Prices | None) -> "PriceList":
        """The prices that a caller gave; None for the list prices.

        Raises:
            ConfigurationError: If the file cannot be read, or a price is no finite number of at least 0.
        """
        if prices is None:
            return LIST_PRICES
        if isinstance(prices, Mapping):
            return cls({str(model): _checked_price("prices", model, price) for model, price in prices.items()})
        return cls(_read_prices(os.fspath(prices)))

    def price(self, model: str) -> tuple[float, float] | None:
        """USD per million input and output tokens of a model, under either of its names; None if unknown."""
        entry = _index().get(model)
        for name in (model, *(() if entry is None else (entry.name, entry.backend_name)), ANY_MODEL):
            if name is not None and name in self.own:
                return self.own[name]
        if entry is None or entry.input_price is None or entry.output_price is None:
            return None
        return entry.input_price, entry.output_price

    def cost(self, model: str, usage: Usage | None) -> float | None:
        """USD for `usage` of `model`; None when either is unknown.

        Example:
            >>> PriceList.of({"my-model": (0.0, 0.0)}).cost("my-model", Usage(input_tokens=10, output_tokens=5))
            0.0
        """
        if usage is None or usage.input_tokens is None or usage.output_tokens is None:
            return None
        if not self.own:  # the usual case, for each reply
            entry = _index().get(model)
            if entry is None or entry.input_price is None or entry.output_price is None:
                return None
            price = entry.input_price, entry.output_price
        elif (found := self.price(model)) is None:
            return None
        else:
            price = found
        # Rounded to what prices in USD per million tokens can add up to: 4.7e-07, not 4.6999999999999995e-07.
        return round((usage.input_tokens * price[0] + usage.output_tokens * price[1]) / 1_000_000, 10)


LIST_PRICES = PriceList()
"""OneLLM's list prices alone."""


def _read_prices(path: str) -> dict[str, tuple[float, float]]:
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"The prices in {path} cannot be read: {reason}.") from None
    rows = csv.DictReader(lines)
    if not set(_PRICE_COLUMNS) <= set(rows.fieldnames or ()):
        raise ConfigurationError(f"{path} has no prices: its columns must be {', '.join(_PRICE_COLUMNS)}.")
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        model, *price = (row[name] for name in _PRICE_COLUMNS)
        if not model or not all(price):  # the catalog, too, has models without a list price
            continue
        try:
            numbers = float(price[0]), float(price[1])
        except ValueError:
            numbers = math.nan, math.nan
        found[model] = _checked_price(f"{path}:{rows.line_num}", model, numbers)
    return found


def _checked_price(where: str, model: object, price: object) -> tuple[float, float]:
    if isinstance(price, tuple | list) and len(price) == 2:
        numbers = [float(each) for each in price if isinstance(each, int | float) and math.isfinite(each) and each >= 0]
        if len(numbers) == 2:
            return numbers[0], numbers[1]
    raise ConfigurationError(
        f"{where}: the price of {truncated_repr(model)} must be two numbers of at least 0, USD per million input "
        "and output tokens."
    )
