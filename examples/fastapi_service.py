"""A web service on FastAPI: ``POST /chat {"prompt": "…"}`` answers ``{"answer": "…", "cost": …}``.

::

    pip install fastapi uvicorn
    uvicorn --app-dir examples fastapi_service:app

`install` opens one client for the process and closes it at the end, and turns its errors into statuses. No user waits
longer than `DEADLINE`. A full queue sheds load: it answers 503 with ``Retry-After`` at once. A user who leaves is taken
out of the queue and not paid for. With ``ONELLM_QUOTA=host``, several workers (``--workers 4``) share the rate limit;
divide ``max_pending`` by their number.
"""

from fastapi import FastAPI, Request
from pydantic import BaseModel

from onellm_async import AsyncOneLLM, Limits
from onellm_async.integrations.fastapi import (
    ClientDependency,
    cancel_on_disconnect,
    install,
)

MODEL = "GPT-5-Nano"
DEADLINE = 30.0
# The last of 15 is sent after 22.5 s at 40 per minute: 7.5 s are for its answer.
# max_pending <= (DEADLINE - usual answer) * requests per second.
LIMITS = Limits(max_pending=15)

app = FastAPI()
install(app, lambda: AsyncOneLLM(limits=LIMITS))


class Question(BaseModel):
    """What a user sends."""

    prompt: str
    temperature: float | None = None


class Answer(BaseModel):
    """What a user gets; the cost is in USD."""

    answer: str
    cost: float | None


@app.post("/chat")
async def chat(question: Question, request: Request, client: ClientDependency) -> Answer:
    async with cancel_on_disconnect(request):
        reply = await client.chat(
            question.prompt,
            model=MODEL,
            temperature=question.temperature,
            lane="interactive",
            deadline=DEADLINE,
        )
    return Answer(answer=reply.content, cost=reply.cost)
