"""How the local server behaves: limits, keys and faults, as frozen values."""

from collections.abc import Mapping
from enum import Enum
from math import exp
from random import Random
from typing import Any

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.validation import Checks
from onellm_async.wire import Dialect

__all__ = ["Fault", "FaultPlan", "Faults", "ServerSettings"]

_faults = Checks(ConfigurationError, "Faults.")
_settings = Checks(ConfigurationError, "ServerSettings.")
_share = _faults.number(0, 1)


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
    """

    latency: float
    fault: Fault | None


@frozen(kw_only=True)
class Faults:
    """Switches for everything that can go wrong, drawn from one seed.

    Attributes:
        seed: The same seed and the same sequence of requests give the same faults.
        latency: Median seconds of processing. Default 0.
        latency_sigma: Spread of its logarithm: 0 (the default) makes it constant, 0.5 gives a tail of 2.3 times the
            median at the 95th percentile.
        reset_before_rate: Share of requests whose connection is reset before processing.
        server_error_rate: Share answered with 500.
        html_502_rate: Share answered with an HTML page and status 502, as from a gateway; not processed.
        reset_after_rate: Share processed and billed whose connection is then reset.
        truncate_rate: Share processed and billed whose body is cut off.
        retry_after: Seconds announced with each 429; None announces nothing, as the real service does.

    Raises:
        ConfigurationError: If a share is not from 0 to 1, or they exceed 1 together.
    """

    seed: int = 0
    latency: float = field(default=0.0, validator=_faults.number(0))
    latency_sigma: float = field(default=0.0, validator=_faults.number(0))
    reset_before_rate: float = field(default=0.0, validator=_share)
    server_error_rate: float = field(default=0.0, validator=_share)
    html_502_rate: float = field(default=0.0, validator=_share)
    reset_after_rate: float = field(default=0.0, validator=_share)
    truncate_rate: float = field(default=0.0, validator=_share)
    retry_after: int | None = field(default=None, validator=_faults.integer(0, optional=True))

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

    def plan(self, random: Random) -> FaultPlan:
        """What happens to the next request. Draws the same number of random values whatever comes out."""
        latency = self.latency * exp(self.latency_sigma * random.gauss(0, 1))
        drawn = random.random()
        for fault, rate in self._rates():
            if drawn < rate:
                return FaultPlan(latency, fault)
            drawn -= rate
        return FaultPlan(latency, None)


def _keys(_: object, attribute: object, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise _settings.refusal("keys", value, "it must map keys to balances in USD, or be None")


@frozen(kw_only=True)
class ServerSettings:
    """What the local server pretends to be.

    Attributes:
        dialect: The documented API, or the published backend with its envelope and its strict bodies.
        requests_per_minute: Refill of each key's bucket. Default 40, as published.
        burst: Capacity of each key's bucket. Default 40, as published.
        initial_level: Tokens in a new bucket; None: full.
        keys: Balance in USD of each key; None accepts any key with `balance`.
        blocked: Keys without access (403).
        balance: USD that a key begins with when `keys` is None. Default 100.
        faults: What goes wrong.
        keep_rows: Most rows of the ledger that are kept; the counters always count all. Default 100,000.
    """

    dialect: Dialect = field(default=Dialect.DOCUMENTED, converter=Dialect)
    requests_per_minute: float = field(default=40.0, validator=_settings.number(0))
    burst: float = field(default=40.0, validator=_settings.number(1))
    initial_level: float | None = field(default=None, validator=_settings.number(0, optional=True))
    keys: Mapping[str, float] | None = field(default=None, validator=_keys, repr=False)
    blocked: frozenset[str] = field(default=frozenset(), converter=frozenset, repr=False)
    balance: float = field(default=100.0, validator=_settings.number(0))
    faults: Faults = field(factory=Faults)
    keep_rows: int = field(default=100_000, validator=_settings.integer(0))
