"""A Telegram bot on aiogram, for many chats at once.

::

    pip install onellm-async aiogram
    export ONELLM_API_KEY=... TELEGRAM_TOKEN=...        # BotFather gives the token
    python examples/aiogram_bot.py

Each chat has a history. "typing…" is shown while a question waits and is answered. An edit of the latest question
cancels it and asks it anew; ``/stop`` cancels, ``/undo`` takes back, ``/retry`` repeats, ``/new`` forgets. Long answers
are split at paragraphs. SIGTERM and Ctrl-C send the answers in flight, then save all chats to ``telegram-chats.json``,
from where the next start continues. What is not specific to Telegram is in ``chats.py``, beside this file.

In groups a bot gets commands and replies to its messages, unless BotFather's privacy mode is off. People in private
chats are answered before groups.
"""

import asyncio
import logging
import os
import sys
from pathlib import Path

from aiogram import Bot, Dispatcher, F
from aiogram.exceptions import TelegramNotFound, TelegramRetryAfter, TelegramUnauthorizedError
from aiogram.types import Message
from aiogram.utils.chat_action import ChatActionSender
from aiogram.utils.token import TokenValidationError
from chats import LIMITS, Chats

from onellm_async import AsyncOneLLM, OneLLMError

SAVED = Path("telegram-chats.json")
LONGEST_MESSAGE = 4_096


def make_dispatcher(chats: Chats) -> Dispatcher:
    dispatcher = Dispatcher()

    @dispatcher.message(F.text)
    async def asked(message: Message, bot: Bot) -> None:
        await answer(message, bot)

    @dispatcher.edited_message(F.text)
    async def changed(message: Message, bot: Bot) -> None:
        await answer(message, bot, edited=True)

    @dispatcher.message(F.chat.type == "private")
    async def no_text(message: Message) -> None:
        await message.answer("I can only read text.")

    async def answer(message: Message, bot: Bot, *, edited: bool = False) -> None:
        async def send(text: str) -> None:
            try:
                await message.answer(text)
            except TelegramRetryAfter as error:  # the answer is paid for
                await asyncio.sleep(error.retry_after)
                await message.answer(text)

        async with ChatActionSender.typing(bot=bot, chat_id=message.chat.id):
            await chats.answer(
                message.chat.id,
                message.text or "",
                send,
                message=message.message_id,
                edited=edited,
                group=message.chat.type != "private",
            )

    dispatcher.shutdown.register(chats.close)  # before the session of the bot is closed
    return dispatcher


async def main() -> None:
    token = os.environ.get("TELEGRAM_TOKEN") or sys.exit("Set TELEGRAM_TOKEN; BotFather gives one.")
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("aiogram.event").setLevel(logging.WARNING)
    async with AsyncOneLLM(limits=LIMITS) as client:
        dispatcher = make_dispatcher(Chats(client, SAVED, longest=LONGEST_MESSAGE))
        await dispatcher.start_polling(Bot(token))  # until SIGTERM or Ctrl-C


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except OneLLMError as error:
        sys.exit(str(error))
    except (TokenValidationError, TelegramUnauthorizedError, TelegramNotFound) as error:
        sys.exit(f"Telegram does not accept TELEGRAM_TOKEN ({error}). BotFather shows the right one.")
