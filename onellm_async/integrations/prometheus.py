"""Prometheus: a collector for the state of a client and for what its requests cost.

::

    collector = OneLLMCollector(client)
    REGISTRY.register(collector)
    app.mount("/metrics", make_asgi_app())

It needs the extra ``prometheus``. Where a service has several worker processes, each is a target of its own: prometheus
multi-process mode leaves collectors out.
"""

import asyncio
import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias, get_args

from attrs import Factory, define

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
except ModuleNotFoundError as _missing:
    _missing.add_note("Install it with: pip install 'onellm-async[prometheus]'")
    raise

from onellm_async import AsyncOneLLM, CircuitOpenError, DeadlineExceededError, QueueFullError, Snapshot
from onellm_async.catalog import lookup
from onellm_async.events import Answered, Cancelled, Event, Failed, Granted, RateLimited, Retrying
from onellm_async.limits import Bottleneck

__all__ = ["OneLLMCollector"]

_Values: TypeAlias = Iterable[tuple[Sequence[str], float]]

_log = logging.getLogger("onellm_async.integrations")

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper bounds in seconds. At 40 requests per minute a queue takes minutes, and a batch takes hours."""


@define
class _Durations:
    """Durations by bucket; the last one has no upper bound."""

    counts: list[int] = Factory(lambda: [0] * (len(_BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_BUCKETS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> Sequence[tuple[str, float]]:
        return list(zip([*map(str, _BUCKETS), "+Inf"], accumulate(self.counts), strict=True))


@define
class _Totals:
    """What events add up to. Models that the catalog does not know count as ``other``."""

    requests: Counter[tuple[str, str]] = Factory(Counter)
    tokens: Counter[tuple[str, str]] = Factory(Counter)
    cost: Counter[tuple[str]] = Factory(Counter)
    rate_limited: int = 0
    retries: int = 0
    possibly_billed: int = 0
    queued_seconds: _Durations = Factory(_Durations)
    request_seconds: _Durations = Factory(_Durations)

    def add(self, event: Event) -> None:
        match event:
            case Granted(waited=waited):
                self.queued_seconds.observe(waited)
            case RateLimited():
                self.rate_limited += 1
            case Retrying():
                self.retries += 1
            case Answered():
                model = self._end("answered", event.model, event.elapsed)
                self.possibly_billed += event.possibly_billed
                self.tokens["input", model] += event.input_tokens or 0
                self.tokens["output", model] += event.output_tokens or 0
                self.cost[(model,)] += event.cost or 0.0  # type: ignore[assignment]  # a Counter takes floats
            case Failed():
                shed = isinstance(event.error, QueueFullError | CircuitOpenError) or (
                    isinstance(event.error, DeadlineExceededError) and not event.attempts
                )
                self._end("shed" if shed else "failed", event.model, event.elapsed)
                self.possibly_billed += event.error.possibly_billed
            case Cancelled():
                self._end("cancelled", event.model, event.elapsed)
                self.possibly_billed += event.possibly_billed
            case _:
                pass  # what is queued or in flight is in the snapshot

    def _end(self, outcome: str, model: str, elapsed: float) -> str:
        found = lookup(model)
        label = "other" if found is None else found.name
        self.requests[outcome, label] += 1
        self.request_seconds.observe(elapsed)
        return label


class OneLLMCollector:
    """A collector of `prometheus_client` over one client, or over all clients of a process.

    Counters begin when the collector is made. Gauges are of the moment of the scrape, which has to happen in the
    clients' event loop, as `prometheus_client.make_asgi_app` does; in another thread they are left out.

    Args:
        clients: A client, which has the label ``client="default"``, or several by their label.

    Example:
        ::

            async with AsyncOneLLM() as client:
                REGISTRY.register(OneLLMCollector(client))
    """

    def __init__(self, clients: AsyncOneLLM | Mapping[str, AsyncOneLLM]) -> None:
        self._clients = {"default": clients} if isinstance(clients, AsyncOneLLM) else dict(clients)
        self._totals = {name: _Totals() for name in self._clients}
        self._told = False
        for name, client in self._clients.items():
            client.add_hook(self._totals[name].add)

    def close(self) -> None:
        """Stops counting. Unregister the collector as well."""
        for name, client in self._clients.items():
            client.remove_hook(self._totals[name].add)

    def describe(self) -> Iterator[Metric]:
        """Yields the metrics without samples."""
        yield from (*_gauges({}), *_counters({}))

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics with their samples."""
        yield from (*_gauges(self._snapshots()), *_counters(self._totals))

    def _snapshots(self) -> Mapping[str, Snapshot]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            if not self._told:
                self._told = True
                _log.warning("Metrics were read outside of the event loop of the client: gauges are left out.")
            return {}
        return {name: client.snapshot() for name, client in self._clients.items()}


def _gauges(snapshots: Mapping[str, Snapshot]) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: Callable[[Snapshot], float | None]) -> Metric:
        family = GaugeMetricFamily(f"onellm_{name}", text, labels=["client"])
        for client, seen in snapshots.items():
            if (found := value(seen)) is not None:
                family.add_metric([client], found)
        return family

    yield gauge("in_flight", "Requests that are in flight.", lambda seen: seen.in_flight)
    yield gauge("backing_off", "Requests that wait to be retried.", lambda seen: seen.backing_off)
    yield gauge("rate_per_minute", "Requests per minute, declared or discovered.", lambda seen: seen.rate)
    yield gauge("circuit_open", "1 while the circuit is open.", lambda seen: seen.trial_in is not None)
    queued = GaugeMetricFamily("onellm_queued", "Requests that are queued.", labels=["client", "lane"])
    bottleneck = GaugeMetricFamily(
        "onellm_bottleneck", "1 for what keeps the next request from being sent.", labels=["client", "bottleneck"]
    )
    for client, seen in snapshots.items():
        for lane, number in seen.queued.items():
            queued.add_metric([client, lane], number)
        for name in get_args(Bottleneck):
            bottleneck.add_metric([client, name], name == seen.bottleneck)
    yield queued
    yield bottleneck


def _counters(totals: Mapping[str, _Totals]) -> Iterator[Metric]:
    def counter(name: str, text: str, values: Callable[[_Totals], _Values], *labels: str) -> Metric:
        family = CounterMetricFamily(f"onellm_{name}", text, labels=["client", *labels])
        for client, total in totals.items():
            for key, value in values(total):
                family.add_metric([client, *key], value)
        return family

    def histogram(name: str, text: str, durations: Callable[[_Totals], _Durations]) -> Metric:
        family = HistogramMetricFamily(f"onellm_{name}", text, labels=["client"])
        for client, total in totals.items():
            found = durations(total)
            family.add_metric([client], buckets=found.cumulative(), sum_value=found.total)
        return family

    yield counter("requests", "Requests that ended.", lambda total: total.requests.items(), "outcome", "model")
    yield counter("rate_limited", "429s.", lambda total: [((), total.rate_limited)])
    yield counter("retries", "Retries after a failure.", lambda total: [((), total.retries)])
    yield counter(
        "possibly_billed", "Attempts that may be billed without an answer.", lambda total: [((), total.possibly_billed)]
    )
    yield counter("tokens", "Tokens of answers.", lambda total: total.tokens.items(), "direction", "model")
    yield counter("cost_usd", "USD for answers by list prices.", lambda total: total.cost.items(), "model")
    yield histogram("queue_seconds", "Seconds in the queue.", lambda total: total.queued_seconds)
    yield histogram("request_seconds", "Seconds until the end of a request.", lambda total: total.request_seconds)
