import asyncio
import logging
from math import inf

import pytest

from onellm_async import AsyncOneLLM, ChatResponse, Limits, errors
from onellm_async.integrations.web import HttpError, drain, readiness, to_http
from onellm_async.simulation.clock import run_in_virtual_time
from onellm_async.testing import FakeTransport, answer


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (errors.InvalidRequestError("temperature is 3."), 422, None),
        (errors.QueueFullError("full", pending=3, retry_after=2.1), 503, 3),
        (errors.QueueFullError("full", pending=3, retry_after=0.0), 503, 1),
        (errors.QueueFullError("full", pending=3, retry_after=inf), 503, None),
        (errors.CircuitOpenError("open", retry_after=12.5), 503, 13),
        (errors.ClientClosedError("closed"), 503, None),
        (errors.RequestCancelledError("cancelled"), 503, None),
        (errors.BudgetExceededError("spent"), 503, None),
        (errors.DeadlineExceededError("late"), 504, None),
        (errors.ConfigurationError("lane is 'interactiv'"), 500, None),
        (errors.StructureError("unfit", response=ChatResponse("no"), problems=("$: no",)), 502, None),
        (errors.APITimeoutError("slow"), 502, None),
        (errors.RateLimitError("429", status_code=429), 502, None),
        (errors.AuthenticationError("401 key 17 is unknown", status_code=401), 502, None),
        (errors.InsufficientBalanceError("402", status_code=402), 502, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_a_status_and_a_wait_that_is_rounded_up(error, status, retry_after):
    found = to_http(error)
    assert (found.status, found.retry_after) == (status, retry_after)
    assert found.headers == ({} if retry_after is None else {"Retry-After": str(retry_after)})


def test_what_the_service_says_is_logged_and_not_shown_to_the_user(caplog):
    with caplog.at_level(logging.ERROR, "onellm_async.integrations"):
        found = to_http(errors.AuthenticationError("401 Unknown key of account 17.", status_code=401))
    assert found == HttpError(502, "The language model did not answer.")
    assert "Unknown key of account 17" in caplog.text


def test_a_client_is_ready_until_it_is_paused_full_or_its_circuit_is_open():
    async def reasons() -> list[tuple[bool, str]]:
        transport = FakeTransport(lambda request: answer("hi", delay=1))
        async with AsyncOneLLM(transport=transport, limits=Limits(max_concurrency=1, max_pending=1)) as client:
            seen = [readiness(client)]
            client.pause()
            seen.append(readiness(client))
            client.resume()
            group = client.gather_chats(["a", "b", "c"], model="GPT-5-Nano")
            batch = asyncio.ensure_future(group)
            await asyncio.sleep(0.1)
            seen.append(readiness(client))  # what a fan-out queues takes no user's place
            chat = asyncio.ensure_future(client.chat("d", model="GPT-5-Nano", lane="interactive"))
            await asyncio.sleep(0.1)
            seen.append(readiness(client))
            await batch
            await chat
            seen.append(readiness(client))
            return seen

    assert run_in_virtual_time(reasons()) == [
        (True, "ready"),
        (False, "paused"),
        (True, "ready"),
        (False, "queue full: 1 queued"),
        (True, "ready"),
    ]


def test_a_service_that_fails_again_and_again_makes_a_client_unready_with_the_reason():
    async def reason() -> tuple[bool, str]:
        async with AsyncOneLLM(transport=FakeTransport(lambda request: 503), limits=Limits.unlimited()) as client:
            await client.gather_chats(["x"] * 20, model="GPT-5-Nano", return_exceptions=True, deadline=60)
            return readiness(client)

    ready, why = run_in_virtual_time(reason())
    assert not ready
    assert why.startswith("circuit open: ")
    assert "503" in why


def test_a_drain_ends_in_time_and_says_what_is_left(caplog):
    async def drained() -> None:
        transport = FakeTransport(lambda request: answer("hi", delay=100))
        async with AsyncOneLLM(transport=transport) as client:
            chat = asyncio.ensure_future(client.chat("x", model="GPT-5-Nano"))
            await asyncio.sleep(1)
            started = asyncio.get_running_loop().time()
            await drain(client, 5)
            assert asyncio.get_running_loop().time() - started == pytest.approx(5)
            chat.cancel()
            await asyncio.wait({chat})

    run_in_virtual_time(drained())
    assert "After 5 s of draining, requests in flight: 1." in caplog.text
