"""A web service on aiohttp: ``POST /chat {"prompt": "…"}`` answers ``{"answer": "…", "cost": …}``.

::

    python examples/aiohttp_service.py        # http://127.0.0.1:8000

The client lives in a cleanup context, so that it is closed when the server stops. No user waits longer than
`DEADLINE`. A full queue sheds load: it answers 503 with ``Retry-After`` at once. When a user disconnects,
``handler_cancellation`` cancels the chat, and a queued chat is never sent or billed.
"""

import logging
import math
from collections.abc import AsyncIterator

from aiohttp import web

from onellm_async import (
    AsyncOneLLM,
    CircuitOpenError,
    DeadlineExceededError,
    InvalidRequestError,
    Limits,
    OneLLMError,
    QueueFullError,
)

MODEL = "GPT-5-Nano"
DEADLINE = 30.0
# The last of 15 is sent after 22.5 s at 40 requests per minute, which leaves 7.5 s for its answer:
# max_pending <= (DEADLINE - usual answer) * requests per second.
LIMITS = Limits(max_pending=15)

log = logging.getLogger("chat_service")
CLIENT = web.AppKey("client", AsyncOneLLM)


async def own_client(app: web.Application) -> AsyncIterator[None]:
    async with AsyncOneLLM(limits=LIMITS) as client:
        app[CLIENT] = client
        yield


async def chat(request: web.Request) -> web.Response:
    try:
        question = await request.json()
        prompt, temperature = question["prompt"], question.get("temperature")
    except (ValueError, KeyError, TypeError, AttributeError):
        return refusal(422, 'Send a JSON object with "prompt".')
    try:
        reply = await request.app[CLIENT].chat(
            prompt, model=MODEL, temperature=temperature, lane="interactive", deadline=DEADLINE
        )
    except InvalidRequestError as error:
        return refusal(422, error.message)
    except (QueueFullError, CircuitOpenError) as error:
        return refusal(503, "Busy. Please try again later.", retry_after=error.retry_after)
    except DeadlineExceededError:
        return refusal(504, f"No answer within {DEADLINE:g} s.")
    except OneLLMError:
        log.exception("A chat failed.")
        return refusal(502, "The language model did not answer.")
    return web.json_response({"answer": reply.content, "cost": reply.cost})


def refusal(status: int, reason: str, *, retry_after: float | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
    return web.json_response({"error": reason}, status=status, headers=headers)


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(own_client)
    app.add_routes([web.post("/chat", chat)])
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8000, handler_cancellation=True)
