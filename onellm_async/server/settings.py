"""How the local server behaves: limits, keys and faults, as frozen values."""

from collections.abc import Collection, Mapping
from enum import Enum
from math import exp
from random import Random
from typing import Any

from attrs import field, frozen

from onellm_async import catalog
from onellm_async.errors import ConfigurationError
from onellm_async.validation import Checks
from onellm_async.wire import Dialect

_faults = Checks(ConfigurationError, "Faults.")
_settings = Checks(ConfigurationError, "ServerSettings.")
_share = _faults.number(0, 1)
_balance = _settings.number(0)
_WIDEST_SIGMA = 5.0
"""Beyond it the tail is hours at any median."""


PROVIDER_ERROR = "missing field `id` at line 1 column 42"
"""What the published backend says when a provider answered with an error, of whatever status."""


class Fault(Enum):
    """What goes wrong with a request."""

    RESET_BEFORE = "the connection is reset before the request is processed"
    SERVER_ERROR = "500, not billed"
    GATEWAY_ERROR = "an HTML page with status 502 from a gateway, not billed"
    RESET_AFTER = "processed and billed, then the connection is reset"
    TRUNCATED = "processed and billed, but the body ends half-way"


@frozen
class FaultPlan:
    """What will happen to one request, decided when it arrives.

    Attributes:
        latency: Seconds that processing takes.
        fault: What goes wrong; None when nothing does.
        text: What the service says with a `Fault.SERVER_ERROR`.
    """

    latency: float
    fault: Fault | None
    text: str = PROVIDER_ERROR


def _name_of(model: str) -> str:
    entry = catalog.lookup(model)
    return model if entry is None else entry.name


def _own_models(value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(model, str) for model in value):
        return value
    return {_name_of(model): text for model, text in value.items()}


def _texts(_: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for item in value.items() for text in item):
        raise _faults.refusal(attribute.name, value, "it must map models to texts")


@frozen(kw_only=True)
class Faults:
    """Switches for everything that can go wrong, drawn from one seed.

    Only accepted requests are drawn for: those that a limit, a bad key or a bad body stops end at once, as always.

    Attributes:
        seed: The same seed and the same sequence of requests give the same faults.
        latency: Median seconds of processing. Default 0.
        latency_sigma: Spread of its logarithm: 0 (the default) makes it constant, 0.5 gives a tail of 2.3 times the
            median at the 95th percentile. At most 5.
        reset_before_rate: Share of requests whose connection is reset before processing.
        server_error_rate: Share answered with 500.
        server_error_text: What these say. Default as the published backend when a provider answered with an error.
            Others that it knows: ``error sending request`` (the provider was not reached), ``An Unexpected error
            occurred`` (the balance could not be written), ``invalid type: null, expected a string at line 1 column
            176`` (an answer without text).
        failing_models: Models that never answer: from a model, in either spelling, to the text of its 500. The
            published backend does so where it cannot read the answers of a new model.
        html_502_rate: Share answered with an HTML page and status 502, as from a gateway; not processed.
        reset_after_rate: Share processed and billed whose connection is then reset.
        truncate_rate: Share processed and billed whose body is cut off.
        retry_after: Seconds announced with each 429; None announces nothing, as the real service does.
        database_places: Most requests that are processed at once; None: any number. The published backend has as many
            as its database has connections. Further ones wait.
        database_wait: Seconds that they wait. Who finds no place in that time gets the backend's 401 ``pool timed out
            while waiting for an open connection``, over HTTP in the documented dialect. Default 30.

    Raises:
        ConfigurationError: If a value is out of range, or the shares exceed 1 together.
    """

    seed: int = field(default=0, validator=_faults.integer())
    latency: float = field(default=0.0, validator=_faults.number(0))
    latency_sigma: float = field(default=0.0, validator=_faults.number(0, _WIDEST_SIGMA))
    reset_before_rate: float = field(default=0.0, validator=_share)
    server_error_rate: float = field(default=0.0, validator=_share)
    html_502_rate: float = field(default=0.0, validator=_share)
    reset_after_rate: float = field(default=0.0, validator=_share)
    truncate_rate: float = field(default=0.0, validator=_share)
    retry_after: float | None = field(default=None, validator=_faults.number(0, optional=True))
    server_error_text: str = field(default=PROVIDER_ERROR, validator=_faults.kind(str, "it must be a text"))
    failing_models: Mapping[str, str] = field(factory=dict, converter=_own_models, validator=_texts, hash=False)
    database_places: int | None = field(default=None, validator=_faults.integer(1, optional=True))
    database_wait: float = field(default=30.0, validator=_faults.number(0))

    def __attrs_post_init__(self) -> None:
        total = sum(rate for _, rate in self._rates())
        if total > 1 + 1e-9:
            raise ConfigurationError(f"The shares of faults add up to {total:g}; together they can be 1 at most.")

    def _rates(self) -> tuple[tuple[Fault, float], ...]:
        return (
            (Fault.RESET_BEFORE, self.reset_before_rate),
            (Fault.SERVER_ERROR, self.server_error_rate),
            (Fault.GATEWAY_ERROR, self.html_502_rate),
            (Fault.RESET_AFTER, self.reset_after_rate),
            (Fault.TRUNCATED, self.truncate_rate),
        )

    def plan(self, random: Random, model: str = "") -> FaultPlan:
        """What happens to the next request. Draws the same number of random values whatever comes out.

        Args:
            random: Where they come from.
            model: The model asked.
        """
        latency = self.latency * exp(self.latency_sigma * random.gauss(0, 1))
        drawn = random.random()
        text = self.failing_models.get(_name_of(model))
        if text is not None:
            return FaultPlan(latency, Fault.SERVER_ERROR, text)
        for fault, rate in self._rates():
            if drawn < rate:
                return FaultPlan(latency, fault, self.server_error_text)
            drawn -= rate
        return FaultPlan(latency, None)


def _own_keys(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _keys(_: object, attribute: object, value: Any) -> None:
    # The messages show balances, never keys.
    if value is None:
        return
    if not isinstance(value, dict) or not all(isinstance(key, str) and key for key in value):
        raise ConfigurationError("ServerSettings.keys must map keys (strings) to balances in USD, or be None.")
    for balance in value.values():
        _balance(None, _Named("balance"), balance)


def _blocked(_: object, attribute: object, value: frozenset[Any]) -> None:
    if not all(isinstance(key, str) for key in value):
        raise ConfigurationError("ServerSettings.blocked must be a set of keys, which are strings.")


def _own_blocked(value: Any) -> frozenset[Any]:
    return frozenset([value] if isinstance(value, str) else value)


@frozen
class _Named:
    name: str


@frozen(kw_only=True)
class ServerSettings:
    """What the local server pretends to be.

    Attributes:
        dialect: The documented API, or the published backend with its envelope and its strict bodies.
        requests_per_minute: Refill of each key's bucket; None: no limit. Default 40, as published.
        burst: Capacity of each key's bucket. Default 40, as published.
        initial_level: Tokens in a new bucket; None: full.
        keys: Balance in USD of each key; None accepts any key with `balance`.
        blocked: Keys without access: 403, or an unknown key (401) in the backend dialect, which knows no 403.
        balance: USD that a key begins with when `keys` is None. Default 100.
        any_model: Accept models beyond the catalog, too, as an upstream may have them. Without a listed price
            they cost nothing.
        list_prices: Whether tokens cost the list prices of OneLLM. With False they are counted and cost nothing. None,
            the default: they cost something, except before an upstream, which has prices of its own and may only
            borrow the name of a model.
        faults: What goes wrong.
        keep_rows: Most rows of the ledger that are kept; the counters always count all. Default 100,000, which is
            about 50 MB. 0 keeps none.

    Raises:
        ConfigurationError: If a value is out of range or of the wrong type.
    """

    dialect: Dialect = field(default=Dialect.DOCUMENTED, converter=Dialect)
    requests_per_minute: float | None = field(default=40.0, validator=_settings.number(0, optional=True))
    burst: float = field(default=40.0, validator=_settings.number(1))
    initial_level: float | None = field(default=None, validator=_settings.number(0, optional=True))
    keys: Mapping[str, float] | None = field(default=None, converter=_own_keys, validator=_keys, repr=False)
    blocked: Collection[str] = field(default=frozenset(), converter=_own_blocked, validator=_blocked, repr=False)
    balance: float = field(default=100.0, validator=_balance)
    any_model: bool = field(default=False, validator=_settings.kind(bool, "it must be True or False"))
    list_prices: bool | None = field(
        default=None, validator=_settings.kind(bool, "it must be True, False or None", optional=True)
    )
    faults: Faults = field(factory=Faults, validator=_settings.kind(Faults, "it must be a Faults"))
    keep_rows: int = field(default=100_000, validator=_settings.integer(0))
