"""Counters of a gateway, and their text for Prometheus. Pure."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

from attrs import Factory, define

from onellm_async.gateway.budget import to_usd
from onellm_async.gateway.spending import KeySpending
from onellm_async.limits.snapshot import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the durations, in seconds: at 40 requests per minute a queue takes minutes."""


@define
class Metrics:
    """What a gateway counts since it was started.

    Attributes:
        requests: Chat requests by key and status.
        durations: Chat requests with status 200 by bucket.
        duration_sum: Seconds of all of them.
        disconnected: Requests whose client left before the answer.
    """

    requests: Counter[tuple[str, int]] = Factory(Counter)
    durations: list[int] = Factory(lambda: [0] * (len(_BUCKETS) + 1))
    duration_sum: float = 0.0
    disconnected: int = 0

    def record(self, key: str, status: int, seconds: float) -> None:
        """Counts a request that was answered.

        Args:
            key: Name of its key.
            status: Status of the reply.
            seconds: From its arrival until then.
        """
        self.requests[key, status] += 1
        if status == 200:
            self.durations[bisect_left(_BUCKETS, seconds)] += 1
            self.duration_sum += seconds


def render_metrics(metrics: Metrics, snapshot: Snapshot, spending: Mapping[str, KeySpending]) -> str:
    """The text of ``GET /metrics``.

    Args:
        metrics: The counters.
        snapshot: The client.
        spending: What each key has spent.
    """
    return "".join(f"{line}\n" for line in _lines(metrics, snapshot, spending))


def _lines(metrics: Metrics, snapshot: Snapshot, spending: Mapping[str, KeySpending]) -> Iterator[str]:
    yield from _family(
        "requests_total",
        "counter",
        "Chat requests answered, by key and status.",
        {_labels(key=key, status=str(status)): count for (key, status), count in sorted(metrics.requests.items())},
    )
    yield from _family("disconnected_total", "counter", "Clients that left before the answer.", metrics.disconnected)
    yield from _histogram(metrics)
    yield from _family(
        "queued", "gauge", "Requests that wait, by lane.", {_labels(lane=k): v for k, v in snapshot.queued.items()}
    )
    gauges = {
        "in_flight": ("Requests in flight to the service.", snapshot.in_flight),
        "backing_off": ("Requests that wait to be retried.", snapshot.backing_off),
        "rate_limit": ("Requests per minute that the client keeps up.", snapshot.rate),
        "circuit_open": ("1 while the circuit is open.", int(snapshot.trial_in is not None)),
        "participants": ("Clients that share the rate.", snapshot.participants),
    }
    for name, (text, value) in gauges.items():
        if value is not None:
            yield from _family(name, "gauge", text, value)
    counters = {
        "upstream_answered_total": ("Requests that the service replied to.", snapshot.answered),
        "upstream_rate_limited_total": ("Requests that the service answered 429.", snapshot.rate_limited),
        "upstream_unanswered_total": ("Requests without a reply of the service.", snapshot.unanswered),
        "upstream_retries_total": ("Retries after a failure.", snapshot.retried),
    }
    for name, (text, value) in counters.items():
        yield from _family(name, "counter", text, value)
    if spending:
        yield from _spending(spending)


def _spending(spending: Mapping[str, KeySpending]) -> Iterator[str]:
    columns = {
        "cost_usd_total": ("counter", "List price of the answers, in USD.", "billed"),
        "at_risk_usd_total": ("counter", "Most that attempts without an answer may have cost, in USD.", "at_risk"),
        "reserved_usd": ("gauge", "Reserved for attempts in flight, in USD.", "reserved"),
        "possibly_billed_total": ("counter", "Attempts that may have been billed without an answer.", ""),
        "input_tokens_total": ("counter", "Input tokens of the answers.", ""),
        "output_tokens_total": ("counter", "Output tokens of the answers.", ""),
    }
    for name, (kind, text, amount) in columns.items():
        yield from _family(
            name,
            kind,
            text,
            {
                _labels(key=key): to_usd(getattr(row, amount)) if amount else getattr(row, name.removesuffix("_total"))
                for key, row in spending.items()
            },
        )


def _histogram(metrics: Metrics) -> Iterator[str]:
    name, total = "onellm_gateway_request_seconds", 0
    yield f"# HELP {name} Seconds from the arrival of a request until its answer, queue included."
    yield f"# TYPE {name} histogram"
    for bound, count in zip((*map(str, _BUCKETS), "+Inf"), metrics.durations, strict=True):
        total += count
        yield f'{name}_bucket{{le="{bound}"}} {total}'
    yield f"{name}_sum {metrics.duration_sum:.6f}"
    yield f"{name}_count {total}"


def _family(name: str, kind: str, text: str, values: float | Mapping[str, float]) -> Iterator[str]:
    name = f"onellm_gateway_{name}"
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in (values if isinstance(values, Mapping) else {"": values}).items():
        yield f"{name}{labels} {value:.10g}"


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
