"""OpenTelemetry: a span and metrics for each request, by the conventions for generative AI.

::

    client = AsyncOneLLM(telemetry=Telemetry())

It needs the extra ``otel``. A request is one span ``chat MODEL`` with its tokens, which are counted once. Below it is a
span ``onellm.queue`` for each wait in the queue and a span ``onellm.attempt`` for each attempt, 429s included, whose
``traceparent`` is sent. Prompts and answers are never recorded, and neither is the key.
"""

import asyncio
from collections.abc import Mapping
from importlib.metadata import version
from typing import TypeAlias
from weakref import WeakKeyDictionary

from attrs import define
from opentelemetry import propagate
from opentelemetry.metrics import Counter, Histogram, Meter, MeterProvider, get_meter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, get_tracer, set_span_in_context
from opentelemetry.util.genai.handler import TelemetryHandler
from opentelemetry.util.genai.invocation import InferenceInvocation

from onellm_async.events import Answered, Cancelled, Event, Failed, Granted, Queued, RateLimited, Retrying, Sent

__all__ = ["Telemetry"]

_SCOPE = "onellm_async"
_PROVIDER = "onellm"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Bounds of histograms in seconds. Those of the conventions end at 82 s, and a queue takes minutes."""

_Attributes: TypeAlias = Mapping[str, str | int | float | bool]


@define
class _Operation:
    """A request that has not ended."""

    invocation: InferenceInvocation
    lane: str
    started: float
    waiting: Span | None = None
    attempt: Span | None = None
    sent_at: float = 0.0
    rate_limited: int = 0


class Telemetry:
    """Spans and metrics of the requests of clients, for ``AsyncOneLLM(telemetry=…)``.

    One value serves all clients of a process. Beside ``gen_ai.client.operation.duration`` and
    ``gen_ai.client.token.usage`` there are, with the attribute ``gen_ai.request.model``:

    - ``onellm.client.queue.duration``, ``onellm.client.attempt.duration`` (histograms, seconds)
    - ``onellm.client.attempts``, ``.rate_limited``, ``.possibly_billed``, ``.cancelled``, ``.cost`` (USD) (counters)
    - ``onellm.client.queued`` by ``onellm.lane``, ``onellm.client.in_flight`` (up and down)

    A cancelled request is no error of the service: its ``error.type`` is ``cancelled``.

    Args:
        tracer_provider: Where spans go; default the global one.
        meter_provider: Where metrics go; default the global one.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        release = version("onellm-async")
        self._handler = TelemetryHandler(
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            instrumentation_scope_name=_SCOPE,
            instrumentation_scope_version=release,
        )
        self._tracer = get_tracer(_SCOPE, release, tracer_provider)
        self._instruments = _Instruments(get_meter(_SCOPE, release, meter_provider=meter_provider))
        # A task awaits one request of a client at a time, so task and number are a key even with several clients.
        self._open: WeakKeyDictionary[asyncio.Task[object], dict[int, _Operation]] = WeakKeyDictionary()

    def headers(self, request: int, /) -> Mapping[str, str]:
        """Returns ``traceparent`` and what else the propagators write, with the span of the attempt as the parent."""
        operation = self._of_task().get(request)
        carrier: dict[str, str] = {}
        if operation is not None and operation.attempt is not None:
            propagate.inject(carrier, set_span_in_context(operation.attempt))
        return carrier

    def __call__(self, event: Event, /) -> None:
        """Handles an event, in the task that awaits the request."""
        operations = self._of_task()
        operation = operations.get(event.request)
        if isinstance(event, Queued):
            operations[event.request] = self._queued(operation, event)
        elif operation is None:
            return  # it began before this hook was there
        elif isinstance(event, Granted):
            self._stop_waiting(operation)
            self._instruments.queue_duration.record(event.waited, _model(event))
        elif isinstance(event, Sent):
            self._sent(operation, event)
        elif isinstance(event, RateLimited):
            operation.rate_limited += 1
            self._instruments.rate_limited.add(1, _model(event))
            self._end_attempt(operation, event, "429")
        elif isinstance(event, Retrying):
            self._end_attempt(operation, event, type(event.error).__name__)
        elif isinstance(event, Answered | Failed | Cancelled):
            del operations[event.request]
            self._ended(operation, event)

    def _of_task(self) -> dict[int, _Operation]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("Requests are awaited in tasks.")
        return self._open.setdefault(task, {})

    def _queued(self, operation: _Operation | None, event: Queued) -> _Operation:
        if operation is None:
            invocation = self._handler.inference(_PROVIDER, request_model=event.model, error_type_resolver=_error_type)
            operation = _Operation(invocation, event.lane, event.at)
        operation.waiting = self._tracer.start_span("onellm.queue", attributes={"onellm.lane": event.lane})
        self._instruments.queued.add(1, {"onellm.lane": event.lane})
        return operation

    def _stop_waiting(self, operation: _Operation) -> None:
        if operation.waiting is not None:
            operation.waiting.end()
            operation.waiting = None
            self._instruments.queued.add(-1, {"onellm.lane": operation.lane})

    def _sent(self, operation: _Operation, event: Sent) -> None:
        number = {"onellm.attempt.number": event.attempt, "onellm.rate_limited": operation.rate_limited}
        operation.attempt = self._tracer.start_span("onellm.attempt", kind=SpanKind.CLIENT, attributes=number)
        operation.sent_at = event.at
        self._instruments.attempts.add(1, _model(event))
        self._instruments.in_flight.add(1)

    def _end_attempt(self, operation: _Operation, event: Event, error: str | None) -> None:
        span, operation.attempt = operation.attempt, None
        if span is None:
            return
        outcome: dict[str, str] = {}
        if error is not None:
            outcome["error.type"] = error
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR, error))
        span.end()
        self._instruments.in_flight.add(-1)
        self._instruments.attempt_duration.record(event.at - operation.sent_at, {**_model(event), **outcome})

    def _ended(self, operation: _Operation, event: Answered | Failed | Cancelled) -> None:
        self._stop_waiting(operation)
        invocation, error = operation.invocation, _error_of(event)
        self._end_attempt(operation, event, None if error is None else _error_type(error))
        billed = event.error.possibly_billed if isinstance(event, Failed) else event.possibly_billed
        invocation.attributes.update(
            {
                "onellm.lane": operation.lane,
                "onellm.attempts": event.attempts,
                "onellm.rate_limited": operation.rate_limited,
                "onellm.possibly_billed": billed,
            }
        )
        self._instruments.possibly_billed.add(billed, _model(event))
        if isinstance(event, Answered):
            _describe(invocation, event)
            self._instruments.cost.add(event.cost or 0.0, _model(event))
        elif isinstance(event, Cancelled):
            self._instruments.cancelled.add(1, _model(event))
        if error is None:
            invocation.stop()
        else:
            invocation.fail(error)


class _Instruments:
    """The metrics that the conventions do not have."""

    def __init__(self, meter: Meter) -> None:
        def seconds(name: str, text: str) -> Histogram:
            return meter.create_histogram(
                f"onellm.client.{name}", "s", text, explicit_bucket_boundaries_advisory=_SECONDS
            )

        def count(name: str, unit: str, text: str) -> Counter:
            return meter.create_counter(f"onellm.client.{name}", unit, text)

        self.queue_duration = seconds("queue.duration", "Time in the queue.")
        self.attempt_duration = seconds("attempt.duration", "Time from sending an attempt until its end.")
        self.attempts = count("attempts", "{attempt}", "Attempts, 429s included.")
        self.rate_limited = count("rate_limited", "{attempt}", "Attempts that were answered 429.")
        self.possibly_billed = count("possibly_billed", "{attempt}", "Attempts that may be billed without an answer.")
        self.cancelled = count("cancelled", "{request}", "Requests that were cancelled by their callers.")
        self.cost = count("cost", "USD", "Cost of answers by list prices.")
        self.queued = meter.create_up_down_counter("onellm.client.queued", "{request}", "Requests that are queued.")
        self.in_flight = meter.create_up_down_counter("onellm.client.in_flight", "{attempt}", "Attempts in flight.")


def _model(event: Event) -> _Attributes:
    return {"gen_ai.request.model": event.model}


def _error_of(event: Answered | Failed | Cancelled) -> BaseException | None:
    if isinstance(event, Failed):
        return event.error
    return asyncio.CancelledError() if isinstance(event, Cancelled) else None


def _error_type(error: BaseException) -> str:
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def _describe(invocation: InferenceInvocation, event: Answered) -> None:
    invocation.response_model_name = event.response_model
    invocation.finish_reasons = [event.finish_kind]
    invocation.input_tokens = event.input_tokens
    invocation.output_tokens = event.output_tokens
    if event.provider is not None:
        invocation.attributes["onellm.provider"] = event.provider
    if event.cost is not None:
        invocation.attributes["onellm.cost_usd"] = event.cost
