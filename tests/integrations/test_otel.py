import asyncio
import re

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from yarl import URL

from onellm_async import AsyncOneLLM, Limits, OneLLMError
from onellm_async.integrations.otel import Telemetry
from onellm_async.server import LocalServer, ServerSettings
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.testing import FakeTransport, answer, failure

MODEL = "GPT-5-Nano"


class Seen:
    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.telemetry = Telemetry(tracer_provider=self.tracers, meter_provider=self.meters)

    def spans(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def metric(self, name):
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name):
        return sum(point.value for point in self.metric(name))

    def close(self):
        self.tracers.shutdown()
        self.meters.shutdown()


@pytest.fixture
def seen():
    seen = Seen()
    yield seen
    seen.close()


def test_a_request_is_one_span_over_its_waits_and_attempts(seen):
    replies = iter([429, failure(503), answer("a secret answer")])

    async def chat():
        async with AsyncOneLLM(transport=FakeTransport(lambda _: next(replies)), telemetry=seen.telemetry) as client:
            await client.chat("a secret prompt", model=MODEL, lane="interactive")

    run_in_virtual_time(chat())
    (operation,) = seen.spans(f"chat {MODEL}")
    assert operation.kind is SpanKind.CLIENT
    told = operation.attributes
    assert (told["gen_ai.operation.name"], told["gen_ai.provider.name"], told["gen_ai.request.model"]) == (
        "chat",
        "onellm",
        MODEL,
    )
    assert (told["onellm.attempts"], told["onellm.rate_limited"], told["onellm.possibly_billed"]) == (2, 1, 1)
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert told["gen_ai.usage.output_tokens"] > 0
    attempts, waits = seen.spans("onellm.attempt"), seen.spans("onellm.queue")
    assert [span.attributes.get("error.type") for span in attempts] == ["429", "InternalServerError", None]
    assert len(waits) >= 2
    assert {span.parent.span_id for span in (*attempts, *waits)} == {operation.context.span_id}
    everything = "".join(span.to_json() for span in seen.exporter.get_finished_spans())
    assert "secret" not in everything


def test_tokens_cost_and_durations_are_counted_once(seen):
    async def chats():
        transport = FakeTransport(delay=100)
        async with AsyncOneLLM(transport=transport, telemetry=seen.telemetry, limits=Limits.unlimited(2)) as client:
            return await client.gather_chats(["one", "two", "three", "four"], model=MODEL)

    replies = run_in_virtual_time(chats())
    assert seen.total("onellm.client.cost") == pytest.approx(sum(reply.cost for reply in replies))
    assert seen.total("onellm.client.attempts") == 4
    assert (seen.total("onellm.client.in_flight"), seen.total("onellm.client.queued")) == (0, 0)
    usage = {
        point.attributes["gen_ai.token.type"]: (point.count, point.sum)
        for point in seen.metric("gen_ai.client.token.usage")
    }
    assert usage["output"] == (4, sum(reply.usage.output_tokens for reply in replies))
    (durations,) = seen.metric("onellm.client.attempt.duration")
    assert (durations.count, durations.sum) == (4, pytest.approx(400))
    assert durations.explicit_bounds[-1] == 3600


def test_a_request_that_its_caller_cancels_is_no_error_of_the_service_and_leaves_no_gauge(seen):
    async def cancelled():
        async with AsyncOneLLM(transport=FakeTransport(delay=60), telemetry=seen.telemetry) as client:
            in_flight = asyncio.ensure_future(client.chat("x", model=MODEL))
            await asyncio.sleep(1)
            client.pause()
            queued = asyncio.ensure_future(client.chat("y", model=MODEL, lane="batch"))
            await asyncio.sleep(1)
            during = seen.total("onellm.client.in_flight"), seen.total("onellm.client.queued")
            for chat in (in_flight, queued):
                chat.cancel()
            await asyncio.wait({in_flight, queued})
            return during

    assert run_in_virtual_time(cancelled()) == (1, 1)
    assert (seen.total("onellm.client.in_flight"), seen.total("onellm.client.queued")) == (0, 0)
    assert seen.total("onellm.client.cancelled") == 2
    assert seen.total("onellm.client.possibly_billed") == 1
    assert [span.attributes["error.type"] for span in seen.spans(f"chat {MODEL}")] == ["cancelled"] * 2
    assert not trace.get_current_span().is_recording()


def test_a_failure_is_told_by_its_class(seen):
    async def fail():
        transport = FakeTransport(lambda _: 422)
        async with AsyncOneLLM(transport=transport, telemetry=seen.telemetry) as client:
            with pytest.raises(OneLLMError):
                await client.chat("x", model=MODEL)

    run_in_virtual_time(fail())
    (operation,) = seen.spans(f"chat {MODEL}")
    assert operation.attributes["error.type"] == "UnprocessableEntityError"
    assert operation.status.status_code is StatusCode.ERROR


def test_two_clients_with_the_same_numbers_have_spans_of_their_own(seen):
    async def both():
        async with (
            AsyncOneLLM(transport=FakeTransport(delay=2), telemetry=seen.telemetry) as one,
            AsyncOneLLM(transport=FakeTransport(delay=1), telemetry=seen.telemetry) as two,
        ):
            await asyncio.gather(one.chat("x", model=MODEL), two.chat("y", model="GPT-5"))

    run_in_virtual_time(both())
    assert len(seen.spans(f"chat {MODEL}")) == len(seen.spans("chat GPT-5")) == 1


def test_the_span_of_the_caller_is_the_parent_and_stays_current(seen):
    async def chat():
        async with AsyncOneLLM(transport=FakeTransport(), telemetry=seen.telemetry) as client:
            with seen.tracers.get_tracer("a service").start_as_current_span("POST /chat") as outer:
                await client.chat("x", model=MODEL, deadline=60)
                assert trace.get_current_span() is outer
            return outer.get_span_context().span_id

    outer = run_in_virtual_time(chat())
    assert seen.spans(f"chat {MODEL}")[0].parent.span_id == outer


@pytest.mark.parametrize("size", [1, 200_000])
@pytest.mark.parametrize("own_session", [True, False])
async def test_each_attempt_sends_its_own_traceparent_over_the_wire(seen, size, own_session):
    async with LocalServer(ServerSettings(requests_per_minute=60_000, burst=1000)) as server:
        heard = []
        async with Proxy(server.url, heard) as url:
            session = None if own_session else aiohttp.ClientSession()
            async with AsyncOneLLM("local", base_url=url, telemetry=seen.telemetry, session=session) as client:
                for _ in range(2):
                    await client.chat("x" * size, model=MODEL)
            if session is not None:
                await session.close()
    sent = [re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-0[13]", value).groups() for value in heard]
    spans = [span.context for span in seen.spans("onellm.attempt")]
    assert sent == [(f"{span.trace_id:032x}", f"{span.span_id:016x}") for span in spans]


class Proxy:
    """Passes requests on and keeps their `traceparent`."""

    def __init__(self, target, heard):
        self.target, self.heard = target, heard

    async def __aenter__(self):
        self.session = aiohttp.ClientSession()

        async def handle(request):
            self.heard.append(request.headers["traceparent"])
            headers = {name: request.headers[name] for name in ("Authorization", "Content-Type")}
            async with self.session.post(self.target, data=await request.read(), headers=headers) as reply:
                return web.Response(body=await reply.read(), status=reply.status, content_type="application/json")

        app = web.Application(client_max_size=2**22)
        app.router.add_post("/{path:.*}", handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return str(URL(site.name).with_path(URL(self.target).path))

    async def __aexit__(self, *_):
        await self.runner.cleanup()
        await self.session.close()


def test_telemetry_that_raises_harms_no_request(caplog):
    class Broken:
        def __call__(self, event):
            pass

        def headers(self, request):
            raise RuntimeError("no exporter")

    async def chat():
        async with AsyncOneLLM(transport=FakeTransport(), telemetry=Broken()) as client:
            return await client.chat("x", model=MODEL)

    assert run_in_virtual_time(chat()).content == "x"
    assert "Telemetry raised on the headers of request 1; it is sent without." in caplog.text


async def test_a_header_that_would_begin_another_one_is_refused():
    class Forged:
        def __call__(self, event):
            pass

        def headers(self, request):
            return {"traceparent": "1\r\nAuthorization: Bearer other"}

    async with LocalServer() as server:
        async with AsyncOneLLM("local", base_url=server.url, telemetry=Forged()) as client:
            with pytest.raises(ValueError, match="must not hold a line end"):
                await client.chat("x", model=MODEL)
        assert server.ledger.received == 0
