"""A Discord bot on discord.py, for many channels at once.

::

    pip install onellm-async discord.py
    export ONELLM_API_KEY=... DISCORD_TOKEN=...         # the page of your application gives the token
    python examples/discord_bot.py

It answers direct messages, and messages that mention it; Discord shows a bot their text without privileged intents.
Each channel has a history. "typing…" is shown while a question waits and is answered. An edit of the latest question
cancels it and asks it anew, its deletion takes it back; ``!stop`` cancels, ``!undo`` takes back, ``!retry`` repeats,
``!new`` forgets. Long answers are split at paragraphs. SIGTERM and Ctrl-C send the answers in flight, then save all
chats to ``discord-chats.json``, from where the next start continues. What is not specific to Discord is in
``chats.py``, beside this file.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import discord
from chats import LIMITS, Chats

from onellm_async import AsyncOneLLM, OneLLMError

SAVED = Path("discord-chats.json")
LONGEST_MESSAGE = 2_000


class ChatBot(discord.Client):
    """Passes messages to `Chats`.

    Args:
        chats: The chats of the bot.
    """

    def __init__(self, chats: Chats) -> None:
        # A mention of everyone in an answer must not ring.
        super().__init__(intents=discord.Intents.default(), allowed_mentions=discord.AllowedMentions.none())
        self._chats = chats
        self._stopping: asyncio.Task[None] | None = None

    async def setup_hook(self) -> None:
        """Stops gracefully on signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """Ends `start`, after answers in flight; a second call changes nothing."""
        self._stopping = self._stopping or asyncio.create_task(self.close())

    async def close(self) -> None:
        """Sends the answers in flight and saves all chats before the connection is closed."""
        await self._chats.close()
        await super().close()

    async def on_message(self, message: discord.Message) -> None:
        """Answers a message."""
        await self._answer(message)

    async def on_message_edit(self, before: discord.Message, after: discord.Message) -> None:
        """Asks a changed question anew. An edit without another text has only got a preview of a link."""
        if before.content != after.content:
            await self._answer(after, edited=True)

    async def on_message_delete(self, message: discord.Message) -> None:
        """Takes a deleted question back."""
        self._chats.take_back(message.channel.id, message.id)

    async def _answer(self, message: discord.Message, *, edited: bool = False) -> None:
        direct = message.guild is None
        if message.author.bot or self.user is None or not (direct or self.user in message.mentions):
            return
        text = message.content.replace(self.user.mention, "").strip()
        if not text:
            return
        async with message.channel.typing():
            await self._chats.answer(
                message.channel.id, text, message.channel.send, message=message.id, edited=edited, group=not direct
            )


async def main() -> None:
    token = os.environ.get("DISCORD_TOKEN") or sys.exit("Set DISCORD_TOKEN; the page of your application gives one.")
    discord.utils.setup_logging()
    async with AsyncOneLLM(limits=LIMITS) as client:
        chats = Chats(client, SAVED, prefix="!", longest=LONGEST_MESSAGE)
        async with ChatBot(chats) as bot:
            await bot.start(token)  # until SIGTERM or Ctrl-C


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except OneLLMError as error:
        sys.exit(str(error))
    except discord.LoginFailure as error:
        sys.exit(f"Discord does not accept DISCORD_TOKEN ({error}) The page of your application gives another one.")
