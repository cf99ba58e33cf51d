"""A web service on aiohttp: ``POST /chat {"prompt": "…"}`` answers ``{"answer": "…", "cost": …}``.

::

    python examples/aiohttp_service.py        # http://127.0.0.1:8000

`install` opens one client for the application and closes it at the end, and turns its errors into statuses. No user
waits longer than `DEADLINE`. A full queue sheds load: it answers 503 with ``Retry-After`` at once. When a user
disconnects, ``handler_cancellation`` cancels the chat, and a queued chat is never sent or billed.
"""

from aiohttp import web

from onellm_async import AsyncOneLLM, Limits
from onellm_async.integrations.aiohttp_web import CLIENT, install

MODEL = "GPT-5-Nano"
DEADLINE = 30.0
# The last of 15 is sent after 22.5 s at 40 per minute: 7.5 s are for its answer.
# max_pending <= (DEADLINE - usual answer) * requests per second.
LIMITS = Limits(max_pending=15)


async def chat(request: web.Request) -> web.Response:
    try:
        question = await request.json()
        prompt, temperature = question["prompt"], question.get("temperature")
    except (ValueError, KeyError, TypeError, AttributeError):
        return web.json_response(
            {"detail": 'Send a JSON object with "prompt".'},
            status=422,
        )
    reply = await request.app[CLIENT].chat(
        prompt, model=MODEL, temperature=temperature, lane="interactive", deadline=DEADLINE
    )
    return web.json_response({"answer": reply.content, "cost": reply.cost})


def make_app() -> web.Application:
    app = web.Application()
    install(app, lambda: AsyncOneLLM(limits=LIMITS))
    app.add_routes([web.post("/chat", chat)])
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8000, handler_cancellation=True)
