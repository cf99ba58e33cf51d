"""FastAPI: the functions of `onellm_async.integrations.starlette`, and the client as a dependency.

::

    app = FastAPI()
    install(app, lambda: AsyncOneLLM(limits=Limits(max_pending=15)))


    @app.post("/chat")
    async def chat(question: Question, request: Request, client: ClientDependency) -> Answer:
        async with cancel_on_disconnect(request):
            reply = await client.chat(question.prompt, model="GPT-5-Mini", lane="interactive", deadline=30)
        return Answer(answer=reply.content, cost=reply.cost)

A `ChatResponse` cannot be returned from a handler, as it has slots: return a model of your own, or
``reply.to_dict()``.
"""

from typing import Annotated, TypeAlias

from fastapi import Depends

from onellm_async import AsyncOneLLM
from onellm_async.integrations.starlette import cancel_on_disconnect, get_client, install

__all__ = ["ClientDependency", "cancel_on_disconnect", "get_client", "install"]

ClientDependency: TypeAlias = Annotated[AsyncOneLLM, Depends(get_client)]
"""A parameter of this type is the client of the application."""
