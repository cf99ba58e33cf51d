"""The local server in a thread of its own, for code that has no event loop or several of them."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from onellm_async.chat import Usage
from onellm_async.server import Backend, Completion, Job, Ledger, LocalServer, ServerSettings
from onellm_async.server.backends import count_input_tokens, count_tokens, last_user_message


class ThreadedServer:
    """A `LocalServer` for as long as a ``with`` block lasts, in a thread with an event loop of its own.

    Any code of the process can use it, with or without an event loop: synchronous tests, tests of any framework,
    threads, subprocesses.

    Args:
        settings: Settings of the server; None for the documented API without a rate limit.
        answers: A mapping or a function from the last user message to the text of the answer. Prompts that a mapping
            does not contain are echoed. None echoes all of them.
        backend: Makes whole completions, instead of `answers`. Its coroutines run in the thread of the server.

    Raises:
        ValueError: If both `answers` and `backend` are given.

    Example:
        ::

            with ThreadedServer() as server:
                subprocess.run(["my-program"], env={"ONELLM_API_KEY": "any", "ONELLM_BASE_URL": server.url})
                print(server.ledger.billed)
    """

    def __init__(
        self,
        settings: ServerSettings | None = None,
        *,
        answers: Mapping[str, str] | Callable[[str], str] | None = None,
        backend: Backend | None = None,
    ) -> None:
        if answers is not None:
            if backend is not None:
                raise ValueError("answers and backend are both given; a server has one of them.")
            backend = _AnswerBackend(answers)
        if settings is None:
            settings = ServerSettings(requests_per_minute=None)
        self._server = LocalServer(settings, backend=backend)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """The ``base_url`` for clients."""
        return self._server.url

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return self._server.origin

    @property
    def ledger(self) -> Ledger:
        """What has been processed and billed. A request is in it before its reply is received."""
        return self._server.ledger

    def revoke(self, key: str) -> None:
        """Makes `key` unknown from now on; requests in flight are answered."""
        if self._loop is None:
            self._server.revoke(key)
            return

        async def revoke() -> None:
            self._server.revoke(key)

        asyncio.run_coroutine_threadsafe(revoke(), self._loop).result()

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="onellm-async-server", daemon=True
        )
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self._thread.join()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loop is not None and self._stopped is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
        if self._thread is not None:
            self._thread.join()

    async def _serve(self, started: "Future[None]") -> None:
        try:
            await self._server.__aenter__()
        except BaseException as error:
            started.set_exception(error)
            return
        try:
            self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
            started.set_result(None)
            await self._stopped.wait()
        finally:
            self._loop = None
            await self._server.__aexit__(None, None, None)


class _AnswerBackend:
    """Gives prepared answers.

    Args:
        answers: A mapping or a function from the last user message to the text of the answer.
    """

    def __init__(self, answers: Mapping[str, str] | Callable[[str], str]) -> None:
        self._answers = answers

    async def complete(self, job: Job) -> Completion:
        prompt = last_user_message(job.request)
        text = self._answers.get(prompt, prompt) if isinstance(self._answers, Mapping) else self._answers(prompt)
        read, written = count_input_tokens(job.request), count_tokens(text)
        return Completion(text, Usage(read, written, read + written))

    async def aclose(self) -> None:
        pass
