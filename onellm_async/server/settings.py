"""Settings of the local server: limits, keys and faults, as frozen values."""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from math import exp
from random import Random
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen

from onellm_async import catalog
from onellm_async.errors import ConfigurationError
from onellm_async.server.service_limits import BucketLimit, ServiceLimit
from onellm_async.validation import Checks
from onellm_async.wire import Dialect

_faults = Checks(ConfigurationError, "Faults.")
_settings = Checks(ConfigurationError, "ServerSettings.")
_share = _faults.number(0, 1)
_balance = _settings.number(0)
_MAX_SIGMA = 5.0
"""Spread of the latency beyond which its tail is hours at any median."""

PROVIDER_ERROR = "missing field `id` at line 1 column 42"
"""Text of the published backend's 500 if a provider answered with an error of any status."""

RetryAfterForm: TypeAlias = Literal["seconds", "fraction", "milliseconds", "date"]
"""How a 429 says when the limit has room again: ``Retry-After`` in whole seconds (at least 1, rounded up), with a
fraction, or as an HTTP date; or ``retry-after-ms``."""

RateHeaders: TypeAlias = Literal["openai", "seconds", "epoch"]
"""Headers that say what is left of the limit: ``x-ratelimit-remaining-requests`` and its relatives, with resets like
``1m26.4s``; ``x-ratelimit-remaining`` and its relatives, with resets in seconds, or as Unix times."""


class Fault(Enum):
    """One kind of failure of a request."""

    RESET_BEFORE = "the connection is reset before the request is processed"
    SERVER_ERROR = "500, not billed"
    GATEWAY_ERROR = "an HTML page with status 502 from a gateway, not billed"
    RESET_AFTER = "processed and billed, then the connection is reset"
    TRUNCATED = "processed and billed, but the body is truncated"
    UNFIT = "processed and billed, but the answer does not conform to the schema of its request"


@frozen
class FaultPlan:
    """Latency and fault of one request, drawn when it arrives.

    Attributes:
        latency: Processing time in seconds.
        fault: The fault; None if there is none.
        text: Error text of a `Fault.SERVER_ERROR`.
    """

    latency: float
    fault: Fault | None
    text: str = PROVIDER_ERROR


def _catalog_name(model: str) -> str:
    entry = catalog.lookup(model)
    return model if entry is None else entry.name


def _by_catalog_name(value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(model, str) for model in value):
        return value
    return {_catalog_name(model): text for model, text in value.items()}


def _check_texts(_: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for item in value.items() for text in item):
        raise _faults.error(attribute.name, value, "it must map models to texts")


def _check_retry_after(_: object, attribute: Any, value: Any) -> None:
    if value is None or (isinstance(value, str) and value in get_args(RetryAfterForm)):
        return
    if isinstance(value, str):
        rule = f"it must be a number of seconds, None, or one of {', '.join(get_args(RetryAfterForm))}"
        raise _faults.error(attribute.name, value, rule)
    _faults.check_number(attribute.name, value, 0)


def _check_overload_status(_: object, attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or value not in (401, 503, 529):
        raise _faults.error(attribute.name, value, "it must be 401, 503 or 529")


@frozen(kw_only=True)
class Faults:
    """Faults of the local server, drawn from one seed.

    Faults apply to accepted requests only. A rate limit, an invalid key or an invalid body ends a request before.

    Attributes:
        seed: Seed of the random numbers. The same seed and the same sequence of requests give the same faults.
        latency: Median processing time in seconds. Default 0.
        latency_sigma: Standard deviation of the latency's logarithm, at most 5. With 0 (the default) the latency is
            constant. With 0.5 its 95th percentile is 2.3 times the median.
        reset_before_rate: Share of requests whose connection is reset before they are processed.
        server_error_rate: Share of requests answered with 500.
        server_error_text: Text of these 500s. The default is the published backend's text for a provider that answered
            with an error. Its other texts are ``error sending request`` (the provider was not reached), ``An
            Unexpected error occurred`` (the balance could not be written) and ``invalid type: null, expected a string
            at line 1 column 176`` (an answer without text).
        failing_models: Models that always fail, as a mapping from a model (in either spelling) to the text of its 500.
            The published backend fails like this if it cannot read the answers of a new model.
        html_502_rate: Share of requests answered with a gateway's HTML page and status 502; not processed.
        reset_after_rate: Share of requests processed and billed whose connection is then reset.
        truncate_rate: Share of requests processed and billed whose reply is truncated.
        unfit_rate: Share of requests whose answer is no JSON, if they have the schema of a ``response_model``; billed.
        retry_after: What each 429 says of the wait. None: nothing, like the real service. A number: that many seconds
            in ``Retry-After``, whatever the limit. A `RetryAfterForm`: the time until the limit has room, in that
            form; nothing where it is not known, as with a limit of concurrency.
        database_places: Size of the database's connection pool: the maximum number of requests processed at once. None
            means no limit. Further requests wait for a connection.
        database_wait: Maximum seconds that a request waits for a connection. Then it gets the published backend's 401
            ``pool timed out while waiting for an open connection``, as an HTTP status in the documented dialect.
            Default 30.
        overload_status: Status of a request that got no connection: 401 as above, or 503 or 529 with the text
            ``Overloaded``.

    Raises:
        ConfigurationError: If a value is out of range, or the sum of the shares exceeds 1.
    """

    seed: int = field(default=0, validator=_faults.integer())
    latency: float = field(default=0.0, validator=_faults.number(0))
    latency_sigma: float = field(default=0.0, validator=_faults.number(0, _MAX_SIGMA))
    reset_before_rate: float = field(default=0.0, validator=_share)
    server_error_rate: float = field(default=0.0, validator=_share)
    html_502_rate: float = field(default=0.0, validator=_share)
    reset_after_rate: float = field(default=0.0, validator=_share)
    truncate_rate: float = field(default=0.0, validator=_share)
    unfit_rate: float = field(default=0.0, validator=_share)
    retry_after: float | RetryAfterForm | None = field(default=None, validator=_check_retry_after)
    server_error_text: str = field(default=PROVIDER_ERROR, validator=_faults.kind(str, "it must be a text"))
    failing_models: Mapping[str, str] = field(
        factory=dict, converter=_by_catalog_name, validator=_check_texts, hash=False
    )
    database_places: int | None = field(default=None, validator=_faults.integer(1, optional=True))
    database_wait: float = field(default=30.0, validator=_faults.number(0))
    overload_status: Literal[401, 503, 529] = field(default=401, validator=_check_overload_status)

    def __attrs_post_init__(self) -> None:
        total = sum(rate for _, rate in self._rates())
        if total > 1 + 1e-9:
            raise ConfigurationError(f"The shares of faults add up to {total:g}; the sum must be at most 1.")

    def _rates(self) -> tuple[tuple[Fault, float], ...]:
        return (
            (Fault.RESET_BEFORE, self.reset_before_rate),
            (Fault.SERVER_ERROR, self.server_error_rate),
            (Fault.GATEWAY_ERROR, self.html_502_rate),
            (Fault.RESET_AFTER, self.reset_after_rate),
            (Fault.TRUNCATED, self.truncate_rate),
            (Fault.UNFIT, self.unfit_rate),
        )

    def plan(self, random: Random, model: str = "") -> FaultPlan:
        """Draws latency and fault of the next request. Always draws the same number of random values.

        Args:
            random: Source of the random values.
            model: The requested model.
        """
        latency = self.latency * exp(self.latency_sigma * random.gauss(0, 1))
        drawn = random.random()
        text = self.failing_models.get(_catalog_name(model))
        if text is not None:
            return FaultPlan(latency, Fault.SERVER_ERROR, text)
        for fault, rate in self._rates():
            if drawn < rate:
                return FaultPlan(latency, fault, self.server_error_text)
            drawn -= rate
        return FaultPlan(latency, None)


def _copy_keys(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _check_keys(_: object, attribute: object, value: Any) -> None:
    # The messages show balances, never keys.
    if value is None:
        return
    if not isinstance(value, dict) or not all(isinstance(key, str) and key for key in value):
        raise ConfigurationError("ServerSettings.keys must map keys (strings) to balances in USD, or be None.")
    for balance in value.values():
        _balance(None, _Named("balance"), balance)


def _check_blocked(_: object, attribute: object, value: frozenset[Any]) -> None:
    if not all(isinstance(key, str) for key in value):
        raise ConfigurationError("ServerSettings.blocked must be a set of keys, which are strings.")


def _copy_blocked(value: Any) -> frozenset[Any]:
    return frozenset([value] if isinstance(value, str) else value)


def _copy_limits(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _check_limits(_: object, attribute: Any, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, tuple) or not all(isinstance(limit, ServiceLimit) for limit in value):
        rule = "it must be a list of limits, such as WindowLimit(40, 60), or None"
        raise _settings.error(attribute.name, value, rule)


def _check_rate_headers(_: object, attribute: Any, value: Any) -> None:
    if value is not None and value not in get_args(RateHeaders):
        rule = f"it must be None, or one of {', '.join(get_args(RateHeaders))}"
        raise _settings.error(attribute.name, value, rule)


@frozen
class _Named:
    name: str


@frozen(kw_only=True)
class ServerSettings:
    """Limits, keys, prices and faults of the local server.

    Attributes:
        dialect: The documented API, or the published backend with its envelope and its required fields.
        requests_per_minute: Refill of each key's token bucket; None means no limit. Default 40, as published.
        burst: Capacity of each key's token bucket, in requests. Default 40, as published.
        initial_level: Level of a new token bucket, in requests; None means full.
        limits: All limits of each key, in place of this one bucket: windows, concurrency, several buckets. With None,
            the default, there is only the bucket.
        background_rate: Requests per second that other clients of each key send, at random times. They count in the
            limits and appear nowhere else.
        rate_headers: Whether replies say what is left of the scarcest limit, and how; see `RateHeaders`.
        keys: Balance in USD of each key; None accepts any key with `balance`.
        blocked: Keys without access: 403, or in the backend dialect 401, as for an unknown key.
        balance: USD in each new account if `keys` is None. Default 100.
        any_model: Whether models beyond the catalog are accepted, too. A model without a list price costs nothing.
        list_prices: Whether tokens cost OneLLM's list prices. With False they are counted and cost nothing. None, the
            default, is False with an upstream, because it has prices of its own, and True otherwise.
        faults: The faults. Default none.
        keep_rows: Maximum number of rows in the ledger; 0 keeps none. The counters always count all requests. Default
            100,000, about 50 MB.

    Raises:
        ConfigurationError: If a value is out of range or of the wrong type.
    """

    dialect: Dialect = field(default=Dialect.DOCUMENTED, converter=Dialect)
    requests_per_minute: float | None = field(default=40.0, validator=_settings.number(0, optional=True))
    burst: float = field(default=40.0, validator=_settings.number(1))
    initial_level: float | None = field(default=None, validator=_settings.number(0, optional=True))
    limits: Sequence[ServiceLimit] | None = field(default=None, converter=_copy_limits, validator=_check_limits)
    background_rate: float = field(default=0.0, validator=_settings.number(0))
    rate_headers: RateHeaders | None = field(default=None, validator=_check_rate_headers)
    keys: Mapping[str, float] | None = field(default=None, converter=_copy_keys, validator=_check_keys, repr=False)
    blocked: Collection[str] = field(default=frozenset(), converter=_copy_blocked, validator=_check_blocked, repr=False)
    balance: float = field(default=100.0, validator=_balance)
    any_model: bool = field(default=False, validator=_settings.kind(bool, "it must be True or False"))
    list_prices: bool | None = field(
        default=None, validator=_settings.kind(bool, "it must be True, False or None", optional=True)
    )
    faults: Faults = field(factory=Faults, validator=_settings.kind(Faults, "it must be a Faults"))
    keep_rows: int = field(default=100_000, validator=_settings.integer(0))

    def __attrs_post_init__(self) -> None:
        if self.limits is not None and (self.requests_per_minute, self.burst, self.initial_level) != (40.0, 40.0, None):
            rule = "the bucket of requests_per_minute, burst and initial_level belongs into it, as BucketLimit(…)"
            raise _settings.error("limits", self.limits, rule)

    @property
    def all_limits(self) -> Sequence[ServiceLimit]:
        """`limits`, or the bucket in their place; empty without a limit."""
        if self.limits is not None:
            return self.limits
        if self.requests_per_minute is None:
            return ()
        return (BucketLimit(self.requests_per_minute, self.burst, initial_level=self.initial_level),)
