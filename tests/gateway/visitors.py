"""Those who ask a gateway."""

import io
from typing import Any

import aiohttp
from attrs import frozen

from onellm_async import AsyncOneLLM, Limits

QUESTION = {"model": "GPT-5-Nano", "messages": [{"role": "user", "content": "Hello"}]}
FAST = Limits(requests_per_minute=600_000, burst=10_000)


@frozen
class Answer:
    status: int
    body: Any
    headers: Any

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.body["error"])


@frozen
class Visitor:
    """Asks a gateway."""

    url: str
    session: aiohttp.ClientSession
    client: AsyncOneLLM

    async def ask(self, body: object = None, *, key: str | None = None, **headers: str) -> Answer:
        given = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if key is not None:
            given["Authorization"] = f"Bearer {key}"
        data = io.BytesIO(body) if isinstance(body, bytes) else aiohttp.JsonPayload(QUESTION if body is None else body)
        async with self.session.post(f"{self.url}/v1/chat/completions", data=data, headers=given) as reply:
            text = await reply.read()
            found = await reply.json() if reply.content_type == "application/json" else text.decode()
            return Answer(reply.status, found, reply.headers)

    async def get(self, path: str, **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(f"{self.url}{path}", headers=given) as reply:
            return Answer(reply.status, await reply.text(), reply.headers)
