"""A chat bot in the terminal, for several people at once: each has a history, and none waits for another.

::

    export ONELLM_API_KEY=...
    python examples/bot.py
    ada: What is a prime?
    bob: Tell me a joke.
    ada: Is 51 one?

It needs a key. Without one, use a local server, which echoes: ``onellm-async serve`` in another terminal, and here
``export ONELLM_BASE_URL=http://127.0.0.1:8080/api ONELLM_API_KEY=any``.

A line is ``name: text``. Each reply is printed when it arrives. As texts, ``/new`` clears that person's history,
``/undo`` takes the last question back, ``/retry`` asks it again, and ``/stop`` ends the turns in flight. The end of the
input (Ctrl-D) waits for requests in flight, Ctrl-C does not. What a bot for a real chat network needs as well is in
``chats.py``, beside this file.
"""

import asyncio
import sys
import threading

from chats import LIMITS, Chats

from onellm_async import AsyncOneLLM, OneLLMError


async def main() -> None:
    lines: asyncio.Queue[str | None] = asyncio.Queue(maxsize=100)
    # A daemon thread, because nothing can interrupt a read from a terminal: Ctrl-C must not wait for it.
    threading.Thread(target=read_lines, args=(lines, asyncio.get_running_loop()), daemon=True).start()
    async with AsyncOneLLM(limits=LIMITS) as client, asyncio.TaskGroup() as replies:
        chats = Chats(client)

        async def answer(name: str, text: str) -> None:
            async def send(reply: str) -> None:
                print(f"bot to {name}: {reply}", flush=True)

            await chats.answer(name, text, send)

        while (line := await lines.get()) is not None:
            name, _, text = (part.strip() for part in line.partition(":"))
            if name and text:
                replies.create_task(answer(name, text))
            elif line.strip():
                print("Please write a line as  name: text", flush=True)


def read_lines(lines: "asyncio.Queue[str | None]", loop: asyncio.AbstractEventLoop) -> None:
    with open(0, encoding="utf-8", errors="replace", closefd=False) as stdin:
        for line in stdin:
            asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
    asyncio.run_coroutine_threadsafe(lines.put(None), loop).result()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except OneLLMError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
