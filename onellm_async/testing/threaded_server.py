"""The local server in a thread of its own, for code that has no event loop or several of them."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeAlias

from onellm_async.chat import Usage
from onellm_async.server import Backend, BackendError, Completion, EchoBackend, Job, Ledger, LocalServer, ServerSettings
from onellm_async.server.backends import count_input_tokens, count_tokens, last_user_message
from onellm_async.testing.fake_transport import FakeReply, fake_reply, provider_of
from onellm_async.transport import RawReply
from onellm_async.validation import truncated_repr
from onellm_async.wire import parse_json, parse_retry_after


class ThreadedServer:
    """A `LocalServer` for as long as a ``with`` block lasts, in a thread with an event loop of its own.

    Any code of the process can use it, with or without an event loop: synchronous tests, tests of any framework,
    threads, subprocesses.

    Args:
        settings: Settings of the server; None for the documented API without a rate limit.
        answers: A mapping or a function from the last user message to the text of the answer. Prompts that a mapping
            does not contain are echoed. None echoes all of them. Or a list of replies, of which the last one repeats:
            texts, statuses of errors, and what `answer`, `failure` and `hang` of `onellm_async.testing` return.
        backend: Makes whole completions, instead of `answers`. Its coroutines run in the thread of the server.

    Raises:
        ValueError: If both `answers` and `backend` are given, or a number is not the status of an error, 400 to 599.

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
        answers: "Answers | None" = None,
        backend: Backend | None = None,
    ) -> None:
        self._answers: _AnswerBackend | None = None
        if backend is None:
            backend = self._answers = _AnswerBackend(answers)
        elif answers is not None:
            raise ValueError("answers and backend are both given; a server has one of them.")
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

    def set_answers(self, answers: "Answers | None") -> None:
        """Answers differently from now on. Requests in flight get the reply that they were sent for.

        Args:
            answers: As for `ThreadedServer`; a list starts at its first reply.

        Raises:
            ValueError: If the server has a `backend`, or a number is not the status of an error, 400 to 599. The
                answers are then as before.
        """
        if self._answers is None:
            raise ValueError("The server has a backend, which decides on its answers.")
        self._answers.use(answers)

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


Answers: TypeAlias = Mapping[str, str] | Callable[[str], str] | Sequence[str | int | FakeReply]
"""What a `ThreadedServer` answers."""


class _AnswerBackend:
    """Gives prepared answers and failures.

    Args:
        answers: As for `ThreadedServer`.
    """

    def __init__(self, answers: Answers | None) -> None:
        self._echo = EchoBackend()
        self._reply: Callable[[str], FakeReply] | None
        self.use(answers)

    def use(self, answers: Answers | None) -> None:
        """Gives other answers from now on."""
        if answers is None:
            self._reply = None
        elif isinstance(answers, Mapping):
            for prompt, value in answers.items():
                _check_step(fake_reply(value), f"answers[{truncated_repr(prompt)}]")
            self._reply = lambda prompt: fake_reply(answers.get(prompt, prompt))
        elif callable(answers):
            self._reply = lambda prompt: fake_reply(answers(prompt))
        else:
            script = [fake_reply(each) for each in answers] if isinstance(answers, list | tuple) else []
            if not script:
                raise ValueError("answers must be a mapping, a function, or a list with at least one reply.")
            for number, step in enumerate(script):
                _check_step(step, f"answers[{number}]")
            self._reply = lambda prompt: script.pop(0) if len(script) > 1 else script[0]

    async def complete(self, job: Job) -> Completion:
        if self._reply is None:
            return await self._echo.complete(job)
        reply = self._reply(last_user_message(job.request))
        _check_step(reply, "The answer")
        if reply.delay:
            await asyncio.sleep(reply.delay)
        if reply.raw is not None:
            wait = parse_retry_after(reply.raw.headers.get("Retry-After"), time.time())
            raise BackendError(_text_of(reply.raw), status=reply.raw.status, retry_after=wait)
        if reply.content is None:
            await asyncio.get_running_loop().create_future()
        text = reply.content or ""
        read, written = count_input_tokens(job.request), count_tokens(text)
        # Without a model the server derives both from the request, so a provider alone needs the requested model.
        model = reply.model or (job.request.model.lower() if reply.provider else None)
        return Completion(
            text,
            reply.usage or Usage(read, written, read + written),
            reply.finish_reason,
            model,
            provider=reply.provider or (provider_of(model) if model else None),
        )

    async def aclose(self) -> None:
        pass


def _check_step(step: FakeReply, name: str) -> None:
    if step.error is not None:
        raise ValueError(f"{name} is an exception; a server gives texts and errors, FakeTransport raises exceptions.")
    if step.raw is not None and not 400 <= step.raw.status <= 599:
        raise ValueError(
            f"{name} has the status {step.raw.status}; it must be that of an error, 400 to 599. "
            "FakeTransport takes any other."
        )


def _text_of(reply: RawReply) -> str:
    problem = parse_json(reply.body)
    return str(problem.get("error", "")) if isinstance(problem, dict) else reply.body.decode("utf-8", "replace")
