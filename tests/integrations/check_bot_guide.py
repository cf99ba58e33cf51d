"""The functions of the guide for bots, against stand-ins for the platforms. Run by ``nox -s integrations``."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from bots_at_work import until
from nio import AsyncClient
from slack_bolt.async_app import AsyncApp, AsyncBoltRequest
from slack_sdk.signature import SignatureVerifier
from slack_sdk.web.async_client import AsyncWebClient
from telegram.ext import ApplicationBuilder

from onellm_async import AsyncOneLLM, Limits
from onellm_async.testing import FakeTransport

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from chats import Chats

GUIDE = Path(__file__).parents[2] / "docs/how-to/bot.md"


def function_of_the_guide(name: str) -> Callable[..., Any]:
    texts = GUIDE.read_text("utf-8").split("```python\n")
    source = next(text for text in texts if f"def {name}(" in text).partition("```")[0]
    namespace: dict[str, Any] = {}
    exec(compile(source, name, "exec"), namespace)  # noqa: S102  # our own documentation
    return namespace[name]


class Platform:
    """Answers what the handlers return; `sent` is what they got."""

    def __init__(self, **handlers: Callable[[dict[str, Any]], object]) -> None:
        self._handlers = handlers
        self.sent: list[dict[str, Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        if request.content_type == "application/json":
            body = json.loads(await request.text() or "{}")
        else:
            body = dict(await request.post())
        for name, handler in self._handlers.items():
            if name in request.path.replace(".", "_"):
                body |= {"method": name}
                self.sent.append(body)
                result = handler(body)
                return web.json_response(await result if asyncio.iscoroutine(result) else result)
        return web.json_response({"ok": True, "result": True})

    def server(self) -> TestServer:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        return TestServer(app, handler_cancellation=True)

    def got(self, method: str) -> list[dict[str, Any]]:
        return [body for body in self.sent if body["method"] == method]


@pytest.fixture
async def chats():
    transport = FakeTransport(lambda request: f"{request.prompt} ({len(request.messages)})")
    async with AsyncOneLLM(transport=transport, limits=Limits.unlimited()) as client:
        yield Chats(client)


async def test_slack(chats: Chats) -> None:
    platform = Platform(
        auth_test=lambda _: {"ok": True, "user_id": "U1", "bot_id": "B1", "team_id": "T1"},
        chat_postMessage=lambda _: {"ok": True, "ts": "9"},
    )
    async with platform.server() as server:
        slack = AsyncWebClient(token="xoxb-1", base_url=str(server.make_url("/api/")))
        app = AsyncApp(signing_secret="secret", client=slack)
        function_of_the_guide("connect_slack")(app, chats)

        async def deliver(**event: object) -> None:
            body = json.dumps({"type": "event_callback", "event": {"type": "message", "channel": "C1", **event}})
            at = str(int(time.time()))
            signature = SignatureVerifier("secret").generate_signature(timestamp=at, body=body)
            headers = {"x-slack-signature": signature, "x-slack-request-timestamp": at}
            headers |= {"content-type": "application/json"}
            response = await app.async_dispatch(AsyncBoltRequest(body=body, headers=headers))
            assert response.status == 200

        texts = lambda: [body["text"] for body in platform.got("chat_postMessage")]  # noqa: E731
        await deliver(user="U2", text="Hello", ts="1")
        await until(lambda: texts() == ["Hello (1)"])
        await deliver(user="U1", bot_id="B1", text="Hello (1)", ts="2")
        old, new = ({"text": text, "ts": "1", "user": "U2"} for text in ("Hello", "Hallo"))
        await deliver(subtype="message_changed", message=new, previous_message=old, ts="3")
        await until(lambda: len(texts()) == 2)
    assert texts() == ["Hello (1)", "Hallo (1)"]


async def test_python_telegram_bot(chats: Chats) -> None:
    updates: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    chat = {"id": 1, "type": "private"}

    async def next_update(_: object) -> object:
        return {"ok": True, "result": [await updates.get()]}

    platform = Platform(
        getMe=lambda _: {"ok": True, "result": {"id": 7, "is_bot": True, "first_name": "Bot", "username": "a_bot"}},
        getUpdates=next_update,
        sendMessage=lambda body: {
            "ok": True,
            "result": {"message_id": 9, "date": 0, "chat": chat, "text": body["text"]},
        },
    )
    async with platform.server() as server:
        builder = ApplicationBuilder().token("7:token").base_url(str(server.make_url("/bot")))
        application = function_of_the_guide("telegram_application")(builder, chats)
        async with application:
            await application.start()
            await application.updater.start_polling()
            sender = {"id": 1, "is_bot": False, "first_name": "Ada"}
            for number, text in enumerate(["Hello", "Hallo"], start=1):
                message = {"message_id": 5, "date": int(time.time()), "chat": chat, "from": sender, "text": text}
                kind = "message" if number == 1 else "edited_message"
                updates.put_nowait({"update_id": number, kind: message | {"edit_date": int(time.time())}})
                await until(lambda number=number: len(platform.got("sendMessage")) == number)
            await application.updater.stop()
            await application.stop()
            await application.post_stop(application)
    assert [body["text"] for body in platform.got("sendMessage")] == ["Hello (1)", "Hallo (1)"]


async def test_matrix(chats: Chats) -> None:
    events = [
        {"sender": sender, "event_id": f"${number}", "origin_server_ts": 0, "type": "m.room.message"}
        | {"content": {"msgtype": "m.text", "body": text}}
        for number, (sender, text) in enumerate([("@ada:local", "One"), ("@bot:local", "own"), ("@ada:local", "Two")])
    ]
    timeline = {"events": events, "limited": False, "prev_batch": "p"}
    room = {"timeline": timeline, "state": {"events": []}, "ephemeral": {"events": []}, "account_data": {"events": []}}
    platform = Platform(
        sync=lambda _: {"next_batch": "n", "rooms": {"join": {"!r:local": room}, "invite": {}, "leave": {}}},
        send=lambda _: {"event_id": "$x"},
    )
    async with platform.server() as server:
        matrix = AsyncClient(str(server.make_url("/")).rstrip("/"), "@bot:local")
        matrix.restore_login("@bot:local", "device", "token")
        async with asyncio.TaskGroup() as replies:
            function_of_the_guide("connect_matrix")(matrix, chats, replies)
            await matrix.sync()
        await matrix.close()
    assert [body["body"] for body in platform.got("send")] == ["One (1)", "Two (3)"]
