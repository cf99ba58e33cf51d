"""The Telegram bot of the examples, over sockets, against a stand-in for Telegram. Run by ``nox -s integrations``."""

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiohttp import web
from aiohttp.test_utils import TestServer
from bots_at_work import EXAMPLES, ended, faked, questions_in, started, until

from onellm_async import AsyncOneLLM, Limits
from onellm_async.testing import FakeRequest, FakeTransport, ThreadedServer, hang

sys.path.insert(0, str(EXAMPLES))
from aiogram_bot import make_dispatcher
from chats import Chats

ADA, BOB, GROUP = 1, 2, -3


class Telegram:
    """The four methods that the bot calls. `say` is a person's message; `sent` is what they see."""

    def __init__(self) -> None:
        self._updates: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        self._ids = itertools.count(1)
        self.sent: list[tuple[int, str]] = []
        self.typing: list[int] = []
        self.refuse_once = False

    def say(self, chat: int, text: str | None, *, edits: int | None = None) -> int:
        message = next(self._ids) if edits is None else edits
        body: dict[str, object] = {
            "message_id": message,
            "date": int(time.time()),
            "chat": {"id": chat, "type": "private" if chat > 0 else "group", "title": "Friends"},
            "from": {"id": abs(chat), "is_bot": False, "first_name": "Ada"},
        } | ({} if text is None else {"text": text})
        kind = "message" if edits is None else "edited_message"
        self._updates.put_nowait({"update_id": next(self._ids), kind: body})
        return message

    def seen_by(self, chat: int) -> list[str]:
        return [text for to, text in self.sent if to == chat]

    async def handle(self, request: web.Request) -> web.Response:
        method, form = request.match_info["method"], await request.post()
        result: object = True
        if request.match_info["token"] == "7:wrong":
            refused = {"ok": False, "error_code": 401, "description": "Unauthorized"}
            return web.json_response(refused, status=401)
        if method == "getMe":
            result = {"id": 7, "is_bot": True, "first_name": "Bot", "username": "a_bot"}
        elif method == "getUpdates":
            assert set(json.loads(str(form["allowed_updates"]))) == {"message", "edited_message"}
            result = [await self._updates.get()]
        elif method == "sendChatAction":
            self.typing.append(int(str(form["chat_id"])))
        elif method == "sendMessage" and self.refuse_once:
            self.refuse_once = False
            refused = {"ok": False, "error_code": 429, "description": "Busy", "parameters": {"retry_after": 1}}
            return web.json_response(refused, status=429)
        elif method == "sendMessage":
            chat, text = int(str(form["chat_id"])), str(form["text"])
            assert 0 < len(text.encode("utf-16-le")) <= 2 * 4096
            self.sent.append((chat, text))
            result = {"message_id": next(self._ids), "date": 0, "chat": {"id": chat, "type": "private"}, "text": text}
        return web.json_response({"ok": True, "result": result})


@pytest.fixture
async def telegram() -> AsyncIterator[tuple[Telegram, Bot]]:
    platform = Telegram()
    app = web.Application()
    app.router.add_post("/bot{token}/{method}", platform.handle)
    async with TestServer(app, handler_cancellation=True) as server:
        api = TelegramAPIServer.from_base(str(server.make_url("/")).rstrip("/"))
        yield platform, Bot("7:token", session=AiohttpSession(api=api))


class Running:
    """The bot at work, until it gets SIGTERM at the end of the block."""

    def __init__(self, bot: Bot, client: AsyncOneLLM, path: Path | None = None) -> None:
        self._bot, self._client, self._path = bot, client, path

    async def __aenter__(self) -> None:
        await self._client.__aenter__()
        dispatcher = make_dispatcher(Chats(self._client, self._path, longest=4096))
        self._polling = asyncio.create_task(dispatcher.start_polling(self._bot))

    async def __aexit__(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(90):
            await self._polling
        await self._client.aclose()


async def test_people_are_answered_with_their_history_while_the_bot_types(telegram: tuple[Telegram, Bot]) -> None:
    platform, bot = telegram
    with ThreadedServer() as server:
        async with Running(bot, AsyncOneLLM("local", base_url=server.url, limits=Limits.unlimited())):
            platform.say(ADA, "What is a prime?")
            await until(lambda: platform.seen_by(ADA) == ["What is a prime?"])  # the server echoes
            platform.say(ADA, "Is 51 one?")
            platform.say(BOB, "Tell me a joke.")
            await until(lambda: len(platform.sent) == 3)
        inputs = {row.prompt: row.input_tokens for row in server.ledger.rows}
    assert platform.seen_by(ADA)[1:] == ["Is 51 one?"]
    assert platform.seen_by(BOB) == ["Tell me a joke."]
    assert {ADA, BOB} <= set(platform.typing)
    assert inputs["Is 51 one?"] > inputs["What is a prime?"]  # the first turn is in it


async def test_a_full_queue_says_when_to_come_back(telegram: tuple[Telegram, Bot]) -> None:
    platform, bot = telegram
    limits = Limits(requests_per_minute=1, burst=1, max_pending=0)
    with ThreadedServer() as server:
        async with Running(bot, AsyncOneLLM("local", base_url=server.url, limits=limits)):
            platform.say(ADA, "One")
            await until(lambda: len(platform.sent) == 1)
            platform.say(BOB, "Two")
            await until(lambda: len(platform.sent) == 2)
    (text,) = platform.seen_by(BOB)
    wait = int(text.partition("try again in ")[2].partition(" s")[0])
    assert 40 <= wait <= 61


async def test_an_edit_cancels_the_question_and_asks_it_anew(telegram: tuple[Telegram, Bot]) -> None:
    platform, bot = telegram
    transport, client = faked(lambda request: hang() if "pirme" in request.prompt else "Two.")
    async with Running(bot, client):
        asked = platform.say(ADA, "What is the first pirme?")
        await until(lambda: len(transport.requests) == 1)
        platform.say(ADA, "What is the first prime?", edits=asked)
        await until(lambda: platform.seen_by(ADA) == ["Two."])
        platform.say(ADA, "And the third?")
        await until(lambda: len(platform.sent) == 2)
        platform.say(ADA, "An edit of an old question", edits=asked)
        platform.say(BOB, "Hello")
        await until(lambda: len(platform.sent) == 3)
    assert [message["content"] for message in transport.requests[2].messages] == [
        "What is the first prime?",
        "Two.",
        "And the third?",
    ]
    assert len(transport.requests) == 4


async def test_commands_stop_undo_retry_and_forget(telegram: tuple[Telegram, Bot]) -> None:
    platform, bot = telegram
    transport, client = faked([hang(), "Yes.", "No."])
    async with Running(bot, client):
        platform.say(ADA, "Is 51 a prime?")
        await until(lambda: len(transport.requests) == 1)
        for number, (text, reply) in enumerate(
            [
                ("/stop", "Stopped. /retry asks the last question again."),
                ("/retry", "Yes."),
                ("/undo", "Taken back: Is 51 a prime?"),
                ("/undo@a_bot", "There is nothing to take back."),
                ("Are you sure?", "No."),
                ("/new", "Forgotten. What shall we talk about?"),
                ("Still there?", "No."),
                (None, "I can only read text."),
            ],
            start=1,
        ):
            platform.say(ADA, text)
            await until(lambda number=number: len(platform.sent) == number)
            assert platform.sent[-1][1] == reply
    assert len(transport.requests[-1].messages) == 1


async def test_a_long_answer_is_split_at_paragraphs_and_survives_a_429_of_telegram(
    telegram: tuple[Telegram, Bot],
) -> None:
    platform, bot = telegram
    paragraphs = ["🙂" * 900, "b" * 3000, "c" * 5000, "d"]
    _, client = faked("\n\n".join(paragraphs))
    platform.refuse_once = True
    async with Running(bot, client):
        platform.say(GROUP, "Tell me everything.")
        await until(lambda: len(platform.sent) == 4)
    pieces = platform.seen_by(GROUP)
    assert pieces == ["🙂" * 900, "b" * 3000, "c" * 4096, "c" * 904 + "\n\nd"]


async def test_single_people_are_answered_before_groups_and_a_flood_delays_no_one(
    telegram: tuple[Telegram, Bot],
) -> None:
    platform, bot = telegram
    release = asyncio.Event()

    async def reply(request: FakeRequest) -> str:
        await release.wait()
        return request.prompt

    transport = FakeTransport(reply)
    async with Running(bot, AsyncOneLLM(transport=transport, limits=Limits(max_concurrency=1))):
        platform.say(9, "first")
        await until(lambda: len(transport.requests) == 1)
        for text in ("g1", "g2", "g3", "g4"):
            platform.say(GROUP, text)
        await until(lambda: platform.seen_by(GROUP) == ["One moment, let me answer your other questions first."])
        platform.say(ADA, "ada")
        await until(lambda: ADA in platform.typing)
        release.set()
        await until(lambda: len(platform.sent) == 6)
    assert [request.prompt for request in transport.requests] == ["first", "ada", "g1", "g2", "g3"]


async def test_sigterm_sends_the_answers_in_flight_and_a_restart_continues(
    telegram: tuple[Telegram, Bot], tmp_path: Path
) -> None:
    platform, bot = telegram
    saved = tmp_path / "chats.json"
    release = asyncio.Event()

    async def reply(request: FakeRequest) -> str:
        await release.wait()
        return f"answer to {request.prompt}"

    transport = FakeTransport(reply)
    async with Running(bot, AsyncOneLLM(transport=transport, limits=Limits(max_concurrency=1)), saved):
        platform.say(ADA, "in flight")
        await until(lambda: len(transport.requests) == 1)
        platform.say(BOB, "queued")
        await until(lambda: BOB in platform.typing)
        asyncio.get_running_loop().call_later(0.2, release.set)
    assert platform.seen_by(ADA) == ["answer to in flight"]
    assert platform.seen_by(BOB) == ["I am being restarted. In a minute, /retry asks the question again."]
    assert saved.stat().st_mode & 0o777 == 0o600
    transport, client = faked(lambda request: str(len(request.messages)))
    async with Running(bot, client, saved):
        platform.say(ADA, "and now?")
        platform.say(BOB, "/retry")
        await until(lambda: len(platform.sent) == 4)
    assert platform.seen_by(ADA)[-1] == "3"
    assert [request.prompt for request in transport.requests if len(request.messages) == 1] == ["queued"]


def redirect_to(bot: Bot) -> str:
    """Code that makes the stand-in the default of aiogram; `Bot` has no other way without an argument."""
    base = bot.session.api.base
    return f"from aiogram.client import telegram\nobject.__setattr__(telegram.PRODUCTION, 'base', {base!r})\n"


async def test_the_program_answers_saves_its_chats_at_the_end_and_continues(
    telegram: tuple[Telegram, Bot], tmp_path: Path
) -> None:
    platform, bot = telegram
    with ThreadedServer() as server:
        service = {"ONELLM_API_KEY": "local", "ONELLM_BASE_URL": server.url, "TELEGRAM_TOKEN": "7:token"}
        for text, number in (("What is a prime?", signal.SIGTERM), ("Is 51 one?", signal.SIGINT)):
            process = await started("aiogram_bot.py", tmp_path, redirect_to(bot), **service)
            platform.say(ADA, text)
            try:
                await until(lambda text=text: text in platform.seen_by(ADA))
            finally:
                process.send_signal(number)
                code, log = await ended(process)
            assert (code, "Traceback" in log, "Unclosed" in log) == (0, False, False), log
    assert questions_in(tmp_path / "telegram-chats.json") == ["What is a prime?", "Is 51 one?"]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ONELLM_API_KEY": "local", "TELEGRAM_TOKEN": ""}, "Set TELEGRAM_TOKEN"),
        ({"ONELLM_API_KEY": "", "TELEGRAM_TOKEN": "7:token"}, "ONELLM_API_KEY"),
        ({"ONELLM_API_KEY": "local", "TELEGRAM_TOKEN": "malformed"}, "TELEGRAM_TOKEN"),
        ({"ONELLM_API_KEY": "local", "TELEGRAM_TOKEN": "7:wrong"}, "TELEGRAM_TOKEN"),
    ],
)
async def test_the_program_says_which_key_is_missing_or_wrong(
    telegram: tuple[Telegram, Bot], tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    _, bot = telegram
    code, log = await ended(await started("aiogram_bot.py", tmp_path, redirect_to(bot), **environment))
    assert code == 1
    assert sentence in log
    assert "Traceback" not in log
