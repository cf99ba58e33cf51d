"""A web service on FastAPI: ``POST /chat {"prompt": "…"}`` answers ``{"answer": "…", "cost": …}``.

::

    pip install fastapi uvicorn
    uvicorn --app-dir examples fastapi_service:app

The client lives in the lifespan, so that it is closed when the server stops. No user waits longer than `DEADLINE`.
A full queue sheds load: it answers 503 with ``Retry-After`` at once. Each worker process has its own client, but the
rate limit is the key's: run one worker, or declare a share of the rate for each.
"""

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

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


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncOneLLM(limits=LIMITS) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    """What a visitor sends."""

    prompt: str
    temperature: float | None = None


class Answer(BaseModel):
    """What a visitor gets; the cost is in USD."""

    answer: str
    cost: float | None


@app.post("/chat")
async def chat(question: Question, request: Request) -> Answer:
    client: AsyncOneLLM = request.app.state.client
    reply = await client.chat(
        question.prompt, model=MODEL, temperature=question.temperature, lane="interactive", deadline=DEADLINE
    )
    return Answer(answer=reply.content, cost=reply.cost)


@app.exception_handler(InvalidRequestError)
async def unusable(_: Request, error: InvalidRequestError) -> JSONResponse:
    return JSONResponse({"error": error.message}, status_code=422)


@app.exception_handler(QueueFullError)
@app.exception_handler(CircuitOpenError)
async def busy(_: Request, error: QueueFullError | CircuitOpenError) -> JSONResponse:
    headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    return JSONResponse({"error": "Busy. Please try again later."}, status_code=503, headers=headers)


@app.exception_handler(DeadlineExceededError)
async def too_late(_: Request, error: DeadlineExceededError) -> JSONResponse:
    return JSONResponse({"error": f"No answer within {DEADLINE:g} s."}, status_code=504)


@app.exception_handler(OneLLMError)
async def unreachable(_: Request, error: OneLLMError) -> JSONResponse:
    log.error("A chat failed: %s", error)
    return JSONResponse({"error": "The language model did not answer."}, status_code=502)
