"""The Discord bot of the examples, over sockets, against a stand-in for Discord. Run by ``nox -s integrations``."""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import discord
import pytest
import yarl
from aiohttp import web
from aiohttp.test_utils import TestServer
from bots_at_work import EXAMPLES, ended, faked, questions_in, started, until
from discord.gateway import DiscordWebSocket
from discord.http import Route

from onellm_async import AsyncOneLLM, Limits
from onellm_async.testing import FakeRequest, FakeTransport, ThreadedServer, hang

sys.path.insert(0, str(EXAMPLES))
from chats import Chats
from discord_bot import ChatBot

BOT = {"id": "7", "username": "bot", "discriminator": "0000", "avatar": None, "bot": True}
ADA = {"id": "8", "username": "ada", "discriminator": "0000", "avatar": None}
DIRECT, CHANNEL, SERVER = "100", "200", "300"
MENTION = "<@7>"


class Discord:
    """The gateway and the requests that the bot needs. `say` is a person's message; `sent` is what they see."""

    def __init__(self) -> None:
        self._ids = itertools.count(1000)
        self._socket: web.WebSocketResponse | None = None
        self._sequence = itertools.count(1)
        self.ready = asyncio.Event()
        self.url = ""
        self.sent: list[tuple[str, str]] = []
        self.typing: list[str] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/users/@me", self._me)
        app.router.add_get("/api/oauth2/applications/@me", self._application)
        app.router.add_post("/api/channels/{channel}/messages", self._send)
        app.router.add_post("/api/channels/{channel}/typing", self._type)
        app.router.add_get("/", self._gateway)
        return app

    async def say(self, text: str, *, channel: str = DIRECT, edits: str | None = None, author: object = ADA) -> str:
        message = self._message(channel, text, author, edits)
        await self._dispatch("MESSAGE_CREATE" if edits is None else "MESSAGE_UPDATE", message)
        return str(message["id"])

    async def delete(self, message: str) -> None:
        await self._dispatch("MESSAGE_DELETE", {"id": message, "channel_id": DIRECT})

    def seen_in(self, channel: str) -> list[str]:
        return [text for to, text in self.sent if to == channel]

    def _message(self, channel: str, text: str, author: object, id_: str | None = None) -> dict[str, object]:
        message = {
            "id": id_ or str(next(self._ids)),
            "channel_id": channel,
            "author": author,
            "content": text,
            "timestamp": "2026-01-01T00:00:00+00:00",
            "edited_timestamp": None,
            "type": 0,
            "mentions": [BOT] if MENTION in text else [],
            **dict.fromkeys(("tts", "mention_everyone", "pinned"), False),
            **{name: [] for name in ("mention_roles", "attachments", "embeds", "components")},
        }
        return message | ({"guild_id": SERVER} if channel == CHANNEL else {})

    async def _dispatch(self, event: str, data: dict[str, object]) -> None:
        assert self._socket is not None
        await self._socket.send_json({"op": 0, "t": event, "s": next(self._sequence), "d": data})

    async def _gateway(self, request: web.Request) -> web.WebSocketResponse:
        self._socket = web.WebSocketResponse()
        await self._socket.prepare(request)
        await self._socket.send_json({"op": 10, "d": {"heartbeat_interval": 45_000}})
        async for frame in self._socket:
            said = frame.json()
            if said["op"] == 1:
                await self._socket.send_json({"op": 11})
            elif said["op"] == 2:
                assert not said["d"]["intents"] & discord.Intents(message_content=True).value  # it is privileged
                channels = [{"id": CHANNEL, "type": 0, "name": "general", "position": 0, "permission_overwrites": []}]
                server = {"id": SERVER, "name": "Friends", "channels": channels, "member_count": 2, "owner_id": "8"}
                ready = {"user": BOT, "session_id": "s", "resume_gateway_url": self.url, "guilds": [server]}
                await self._dispatch("READY", {**ready, "application": {"id": "9", "flags": 0}})
                self.ready.set()
        return self._socket

    async def _send(self, request: web.Request) -> web.Response:
        channel, body = request.match_info["channel"], await request.json()
        assert 0 < len(body["content"]) <= 2000
        assert body["allowed_mentions"] == {"parse": []}
        self.sent.append((channel, body["content"]))
        return reply_with(self._message(channel, body["content"], BOT))

    async def _type(self, request: web.Request) -> web.Response:
        self.typing.append(request.match_info["channel"])
        return web.Response(status=204)

    async def _me(self, request: web.Request) -> web.Response:
        if request.headers["Authorization"] == "Bot wrong":
            return web.json_response({"message": "401: Unauthorized", "code": 0}, status=401)
        return reply_with(BOT)

    async def _application(self, _: web.Request) -> web.Response:
        texts = dict.fromkeys(("name", "description", "summary", "verify_key"), "x")
        switches = dict.fromkeys(("bot_public", "bot_require_code_grant"), False)
        return reply_with({"id": "9", "icon": None, "owner": ADA, **texts, **switches})


def reply_with(body: object) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), content_type="application/json")  # without a charset


@pytest.fixture
async def platform(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Discord]:
    platform = Discord()
    async with TestServer(platform.app()) as server:
        platform.url = str(server.make_url("/")).replace("http", "ws", 1)
        monkeypatch.setattr(Route, "BASE", str(server.make_url("/api")))
        monkeypatch.setattr(DiscordWebSocket, "DEFAULT_GATEWAY", yarl.URL(platform.url))
        yield platform


class Running:
    """The bot at work, until it gets SIGTERM at the end of the block."""

    def __init__(self, platform: Discord, client: AsyncOneLLM, path: Path | None = None) -> None:
        self._platform, self._client, self._path = platform, client, path

    async def __aenter__(self) -> None:
        await self._client.__aenter__()
        self._platform.ready.clear()
        self._main = asyncio.create_task(self._run())
        await asyncio.wait(
            [self._main, asyncio.ensure_future(self._platform.ready.wait())], return_when=asyncio.FIRST_COMPLETED
        )

    async def _run(self) -> None:
        chats = Chats(self._client, self._path, prefix="!", longest=2000)
        async with ChatBot(chats) as bot:
            await bot.start("token")

    async def __aexit__(self, *_: object) -> None:
        if not self._main.done():
            os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(90):
            await self._main
        await self._client.aclose()


async def test_direct_messages_and_mentions_are_answered_with_their_history(platform: Discord) -> None:
    with ThreadedServer() as server:
        client = AsyncOneLLM("local", base_url=server.url, limits=Limits.unlimited())
        async with Running(platform, client):
            await platform.say("What is a prime?")
            await until(lambda: platform.seen_in(DIRECT) == ["What is a prime?"])  # the server echoes
            await platform.say("no mention", channel=CHANNEL)
            await platform.say("of another bot", author={**ADA, "bot": True})
            await platform.say(f"{MENTION} Is 51 one?", channel=CHANNEL)
            await platform.say("Is 51 one?")
            await until(lambda: len(platform.sent) == 3)
        prompts = sorted(row.prompt for row in server.ledger.rows)
    assert prompts == ["Is 51 one?", "Is 51 one?", "What is a prime?"]
    assert platform.seen_in(CHANNEL) == ["Is 51 one?"]
    assert set(platform.typing) == {DIRECT, CHANNEL}


async def test_a_full_queue_says_when_to_come_back(platform: Discord) -> None:
    limits = Limits(requests_per_minute=1, burst=1, max_pending=0)
    with ThreadedServer() as server:
        async with Running(platform, AsyncOneLLM("local", base_url=server.url, limits=limits)):
            await platform.say("One")
            await until(lambda: len(platform.sent) == 1)
            await platform.say(f"{MENTION} Two", channel=CHANNEL)
            await until(lambda: len(platform.sent) == 2)
    (text,) = platform.seen_in(CHANNEL)
    assert 40 <= int(text.partition("try again in ")[2].partition(" s")[0]) <= 61
    assert text.endswith("!retry asks the question again.")


async def test_an_edit_asks_anew_and_a_deletion_takes_back(platform: Discord) -> None:
    transport, client = faked(lambda request: hang() if "pirme" in request.prompt else "Two.")
    async with Running(platform, client):
        asked = await platform.say("What is the first pirme?")
        await until(lambda: len(transport.requests) == 1)
        await platform.say("What is the first pirme?", edits=asked)  # a preview was added: no question
        await platform.say("What is the first prime?", edits=asked)
        await until(lambda: platform.seen_in(DIRECT) == ["Two."])
        asked = await platform.say("Another pirme")
        await until(lambda: len(transport.requests) == 3)
        await platform.delete(asked)
        await platform.say("And the third?")
        await until(lambda: len(platform.sent) == 2)
    assert [message["content"] for message in transport.requests[-1].messages] == [
        "What is the first prime?",
        "Two.",
        "And the third?",
    ]
    assert len(transport.requests) == 4


async def test_commands_stop_retry_undo_and_forget(platform: Discord) -> None:
    transport, client = faked([hang(), "Yes.", "No."])
    async with Running(platform, client):
        await platform.say("Is 51 a prime?")
        await until(lambda: len(transport.requests) == 1)
        for number, (text, reply) in enumerate(
            [
                ("!stop", "Stopped. !retry asks the last question again."),
                ("!retry", "Yes."),
                ("!undo", "Taken back: Is 51 a prime?"),
                ("Are you sure?", "No."),
                ("!new", "Forgotten. What shall we talk about?"),
                ("Still there?", "No."),
            ],
            start=1,
        ):
            await platform.say(text)
            await until(lambda number=number: len(platform.sent) == number)
            assert platform.sent[-1][1] == reply
    assert len(transport.requests[-1].messages) == 1


async def test_a_long_answer_is_split_at_paragraphs(platform: Discord) -> None:
    _, client = faked("\n\n".join(["a" * 1500, "b" * 1500, "c" * 2500]))
    async with Running(platform, client):
        await platform.say("Tell me everything.")
        await until(lambda: len(platform.sent) == 4)
    assert platform.seen_in(DIRECT) == ["a" * 1500, "b" * 1500, "c" * 2000, "c" * 500]


async def test_sigterm_sends_the_answer_in_flight_and_a_restart_continues(platform: Discord, tmp_path: Path) -> None:
    saved = tmp_path / "chats.json"
    release = asyncio.Event()

    async def reply(request: FakeRequest) -> str:
        await release.wait()
        return f"answer to {request.prompt}"

    transport = FakeTransport(reply)
    async with Running(platform, AsyncOneLLM(transport=transport, limits=Limits(max_concurrency=1)), saved):
        await platform.say("in flight")
        await until(lambda: len(transport.requests) == 1)
        await platform.say(f"{MENTION} queued", channel=CHANNEL)
        await until(lambda: CHANNEL in platform.typing)
        asyncio.get_running_loop().call_later(0.2, release.set)
    assert platform.seen_in(DIRECT) == ["answer to in flight"]
    assert platform.seen_in(CHANNEL) == ["I am being restarted. In a minute, !retry asks the question again."]
    transport, client = faked(lambda request: str(len(request.messages)))
    async with Running(platform, client, saved):
        await platform.say("and now?")
        await platform.say(f"{MENTION} !retry", channel=CHANNEL)
        await until(lambda: len(platform.sent) == 4)
    assert platform.seen_in(DIRECT)[-1] == "3"
    assert [request.prompt for request in transport.requests if len(request.messages) == 1] == ["queued"]


def redirected() -> str:
    """Code that leads discord.py to the stand-in, as the fixture did here."""
    gateway = str(DiscordWebSocket.DEFAULT_GATEWAY)
    return (
        "import yarl\n"
        "from discord.gateway import DiscordWebSocket\n"
        "from discord.http import Route\n"
        f"Route.BASE = {Route.BASE!r}\n"
        f"DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL({gateway!r})\n"
    )


async def test_the_program_answers_saves_its_chats_at_the_end_and_continues(platform: Discord, tmp_path: Path) -> None:
    with ThreadedServer() as server:
        service = {"ONELLM_API_KEY": "local", "ONELLM_BASE_URL": server.url, "DISCORD_TOKEN": "token"}
        for text, number in (("What is a prime?", signal.SIGTERM), ("Is 51 one?", signal.SIGINT)):
            platform.ready.clear()
            process = await started("discord_bot.py", tmp_path, redirected(), **service)
            try:
                async with asyncio.timeout(90):
                    await platform.ready.wait()
                await platform.say(text)
                await until(lambda text=text: text in platform.seen_in(DIRECT))
            finally:
                process.send_signal(number)
                code, log = await ended(process)
            assert (code, "Traceback" in log, "Unclosed" in log) == (0, False, False), log
    assert questions_in(tmp_path / "discord-chats.json") == ["What is a prime?", "Is 51 one?"]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ONELLM_API_KEY": "local", "DISCORD_TOKEN": ""}, "Set DISCORD_TOKEN"),
        ({"ONELLM_API_KEY": "", "DISCORD_TOKEN": "token"}, "ONELLM_API_KEY"),
        ({"ONELLM_API_KEY": "local", "DISCORD_TOKEN": "wrong"}, "DISCORD_TOKEN"),
    ],
)
async def test_the_program_says_which_key_is_missing_or_wrong(
    platform: Discord, tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    code, log = await ended(await started("discord_bot.py", tmp_path, redirected(), **environment))
    assert code == 1
    assert sentence in log
    assert "Traceback" not in log
