"""`OneLLM`: the client for programs without an event loop. It has one of its own, in a thread."""

import asyncio
import atexit
import contextvars
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Self, TypeVar, Unpack, overload

from onellm_async.catalog import Model
from onellm_async.chat import ChatOutcome, ChatRequest, ChatResponse, Messages, Parsed, Prompt, RequestOptions
from onellm_async.client import AsyncOneLLM, ClientOptions
from onellm_async.errors import ClientClosedError, ConfigurationError, OneLLMError
from onellm_async.fanout import FanoutProgress
from onellm_async.key_source import ApiKeyFunction
from onellm_async.limits.permit import RequestGroup
from onellm_async.limits.policy import Lane, Limits
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import Snapshot
from onellm_async.settings import ApiKey

if TYPE_CHECKING:
    from onellm_async.batch.config import RunOptions
    from onellm_async.batch.inputs.entry import LineError
    from onellm_async.batch.outputs.ordered_writer import LineSink
    from onellm_async.batch.progress import RunProgress
    from onellm_async.batch.run import Prompts
    from onellm_async.batch.run_report import RunReport

T = TypeVar("T")


class _Call(Generic[T]):
    """A coroutine that runs in the loop of a portal, as the thread sees it that waits for it."""

    def __init__(self, function: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self.result: Future[T] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._function = function
        self._context = contextvars.copy_context()
        self._task: asyncio.Task[T] | None = None

    def submit(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hands the coroutine to `loop`. Ctrl-C may come before or after it is there."""
        self._loop = loop
        loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        """Runs in the loop."""
        try:
            coroutine = self._function()
        except BaseException as error:  # wrong arguments, for example, for which a thread waits
            self.result.set_exception(error)
            return
        self._task = asyncio.get_running_loop().create_task(coroutine, context=self._context)
        self._task.add_done_callback(self._finish)

    def cancel(self) -> None:
        """Cancels the coroutine. Its end is still to be awaited."""
        self.call_soon(lambda: self._task is not None and self._task.cancel())

    def call_soon(self, action: Callable[[], object]) -> None:
        """Runs `action` in the loop, if the coroutine began there. If it never will, it ends."""

        def act() -> None:
            if self._task is None:  # what was handed over before this would have begun
                self._refuse()
            else:
                action()

        if self._loop is None:
            self._refuse()
        elif not self.result.done():
            try:
                self._loop.call_soon_threadsafe(act)
            except RuntimeError:  # the loop was closed, and with it every call ended that had begun
                if self._task is None:
                    self._refuse()

    def _refuse(self) -> None:
        if not self.result.done():
            self.result.set_exception(ClientClosedError("The call was interrupted before it began."))

    def _finish(self, task: "asyncio.Task[T]") -> None:
        if task.cancelled():
            self.result.set_exception(ClientClosedError("The client was closed before this call ended."))
        elif (error := task.exception()) is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())


class Portal:
    """An event loop in a thread of its own, in which any other thread runs coroutines.

    The thread starts with the first call and ends with `stop`, or when the interpreter exits. Safe to use from several
    threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped: asyncio.Event | None = None
        self._pid = 0

    @property
    def running(self) -> bool:
        """Whether the thread runs, in this process."""
        return self._loop is not None and self._pid == os.getpid()

    def is_own_thread(self) -> bool:
        """Whether the caller runs in the thread of the portal."""
        return self._thread is threading.current_thread()

    def check_thread(self) -> None:
        """Refuses calls that would wait for themselves.

        Raises:
            ConfigurationError: If the caller runs in the thread of the portal.
        """
        if self.is_own_thread():
            raise ConfigurationError(
                "A synchronous call was made in the event loop of the client itself, which it would block.",
                advice="Hooks and on_progress run there; hand such work to another thread.",
            )

    def call(
        self, function: Callable[[], Coroutine[Any, Any, T]], *, interrupt: Callable[[], object] | None = None
    ) -> T:
        """Runs the coroutine that `function` returns, and returns its result.

        If the wait is interrupted (`KeyboardInterrupt`), the coroutine is cancelled, and its end awaited.

        Args:
            function: Called in the loop.
            interrupt: Called in the loop at the first interruption, instead of cancelling the coroutine.

        Raises:
            ConfigurationError: If this thread is that of the loop, or the process was forked.
        """
        self.check_thread()
        call = _Call(function)
        try:  # Ctrl-C may come while the call is handed over, too
            self._submit(call)
            return call.result.result()
        except BaseException:
            if not call.result.done():
                self._end(call, interrupt)
            raise

    @staticmethod
    def _end(call: _Call[T], interrupt: Callable[[], object] | None) -> None:
        if interrupt is not None:
            call.call_soon(interrupt)
            try:
                call.result.exception()
            except BaseException:  # interrupted once more
                call.cancel()
                raise
            return
        call.cancel()
        call.result.exception()

    async def acall(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Like `call`, from any event loop. Cancelling it cancels the coroutine; Ctrl-C does not await its end.

        Args:
            function: Called in the loop of the portal.
        """
        if self._loop is asyncio.get_running_loop():
            return await function()
        call = _Call(function)
        waiting = asyncio.wrap_future(call.result)
        try:
            self._submit(call)
            return await asyncio.shield(waiting)
        except KeyboardInterrupt:  # while it was handed over, in a loop that does not take Ctrl-C for a cancellation
            call.cancel()
            raise
        except asyncio.CancelledError:
            call.cancel()
            await asyncio.wait({waiting})
            if not waiting.cancelled():
                waiting.exception()  # it is known
            raise

    def stop(self, last: Callable[[], Coroutine[Any, Any, object]] | None = None) -> None:
        """Ends the thread. Coroutines that still run are cancelled.

        Args:
            last: Makes a coroutine that is awaited before.
        """
        if self._pid != os.getpid():  # before the lock, which another thread may have held when the process was forked
            return
        with self._lock:
            loop, thread, stopped = self._loop, self._thread, self._stopped
            if loop is None or thread is None or stopped is None:
                return
        try:
            if last is not None:
                self.call(last)
        finally:
            with self._lock:
                if self._loop is loop:
                    self._loop = self._thread = None
                    loop.call_soon_threadsafe(stopped.set)
            thread.join()

    def stop_soon(self) -> None:
        """Ends the thread without waiting for it."""
        loop, stopped = self._loop, self._stopped
        if loop is not None and stopped is not None and self._pid == os.getpid():
            self._loop = None
            loop.call_soon_threadsafe(stopped.set)

    def _submit(self, call: _Call[T]) -> None:
        if self._loop is not None and self._pid != os.getpid():  # before the lock, which another thread may have held
            raise ConfigurationError(
                "This client was used before the process was forked, and its thread is not in the child.",
                advice="Make a client in each process: after the fork (gunicorn: in post_fork, or without --preload), "
                'or start processes with multiprocessing.get_context("spawn").',
            )
        with self._lock:
            loop = self._loop if self._loop is not None else self._start()
            call.submit(loop)  # under the lock: `stop` comes after it in the queue of the loop

    def _start(self) -> asyncio.AbstractEventLoop:
        started: Future[asyncio.AbstractEventLoop] = Future()

        async def serve() -> None:
            # Set here, because Ctrl-C may end the wait for it.
            self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
            started.set_result(self._loop)
            await self._stopped.wait()

        self._pid = os.getpid()
        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), name="onellm-async", daemon=True)
        _portals.add(self)
        self._thread.start()
        return started.result()


_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Closes the connections while there is an interpreter."""
    for portal in list(_portals):
        portal.stop()


class OneLLM:
    """A synchronous client: `AsyncOneLLM` for threads, scripts and notebooks.

    All threads of a process share one client, and with it the rate limit of its key. Its event loop runs in a thread of
    its own, in which hooks and ``on_progress`` are called. Interrupting a call with Ctrl-C cancels it; a request in
    flight may then be billed.

    Args:
        api_key: As in `AsyncOneLLM`.
        **options: The other arguments of `AsyncOneLLM`.

    Raises:
        ConfigurationError: As from `AsyncOneLLM`. Also from each method, if the process was forked after the first
            call, or if it is called in the thread of the client.

    Example:
        ::

            with OneLLM() as client:
                reply = client.chat("What is the capital of France?", model="GPT-5-Mini")
                print(reply.content, reply.cost)
    """

    def __init__(self, api_key: str | ApiKey | ApiKeyFunction | None = None, **options: Unpack[ClientOptions]) -> None:
        if "session" in options:
            raise ConfigurationError(
                "session belongs to an event loop, and OneLLM has one of its own.",
                advice="Leave it out, or use AsyncOneLLM.",
            )
        self._client = AsyncOneLLM(api_key, **options)
        self._portal = Portal()
        self._closed = False
        weakref.finalize(self, self._portal.stop_soon).atexit = False

    def __repr__(self) -> str:
        return f"OneLLM(limits={self.limits!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A client is not pickled, as its key would be: make one in each process.")

    def __enter__(self) -> Self:
        if self._closed:
            self._closed = False
            self._call(self._client.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self, function: Callable[[], Coroutine[Any, Any, T]], *, interrupt: Callable[[], object] | None = None
    ) -> T:
        if self._closed:
            raise ClientClosedError("The client is closed.", advice="Enter it again with `with`.")
        return self._portal.call(function, interrupt=interrupt)

    def close(self) -> None:
        """Ends queued calls with `ClientClosedError`, waits for requests in flight, and closes the connections.

        A second call does nothing. Entering the client again with ``with`` reopens it.
        """

        async def drain_and_close() -> None:
            await self._client.drain()
            await self._client.aclose()

        self._portal.check_thread()
        if not self._closed:
            self._closed = True
            self._portal.stop(drain_and_close)

    def chat(
        self,
        prompt: str | Messages,
        *,
        model: Model,
        lane: Lane = "default",
        deadline: float | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> ChatResponse[Parsed]:
        """Sends one prompt and returns the answer. See `AsyncOneLLM.chat`."""
        return self._call(
            lambda: self._client.chat(
                prompt,
                model=model,
                lane=lane,
                deadline=deadline,
                response_model=response_model,
                corrections=corrections,
                **options,
            )
        )

    def send(
        self,
        request: ChatRequest,
        *,
        lane: Lane = "default",
        deadline: float | None = None,
        group: RequestGroup | None = None,
    ) -> ChatResponse:
        """Sends a complete request; otherwise like `chat`."""
        return self._call(lambda: self._client.send(request, lane=lane, deadline=deadline, group=group))

    async def achat(
        self,
        prompt: str | Messages,
        *,
        model: Model,
        lane: Lane = "default",
        deadline: float | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> ChatResponse[Parsed]:
        """Sends one prompt from any event loop, so that it shares the limits with all threads.

        Safe to cancel, like `AsyncOneLLM.chat`.
        """
        return await self._acall(
            lambda: self._client.chat(
                prompt,
                model=model,
                lane=lane,
                deadline=deadline,
                response_model=response_model,
                corrections=corrections,
                **options,
            )
        )

    async def asend(
        self,
        request: ChatRequest,
        *,
        lane: Lane = "default",
        deadline: float | None = None,
        group: RequestGroup | None = None,
    ) -> ChatResponse:
        """Sends a complete request from any event loop, so that it shares the limits with all threads.

        Safe to cancel, like `AsyncOneLLM.send`.
        """
        return await self._acall(lambda: self._client.send(request, lane=lane, deadline=deadline, group=group))

    async def _acall(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._closed:
            raise ClientClosedError("The client is closed.", advice="Enter it again with `with`.")
        return await self._portal.acall(function)

    @overload
    def gather_chats(
        self,
        prompts: Iterable[Prompt],
        *,
        model: Model | None = None,
        lane: Lane = "batch",
        deadline: float | None = None,
        return_exceptions: Literal[False] = False,
        on_progress: Callable[[FanoutProgress], None] | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> list[ChatResponse[Parsed]]: ...

    @overload
    def gather_chats(
        self,
        prompts: Iterable[Prompt],
        *,
        model: Model | None = None,
        lane: Lane = "batch",
        deadline: float | None = None,
        return_exceptions: bool,
        on_progress: Callable[[FanoutProgress], None] | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> list[ChatResponse[Parsed] | OneLLMError]: ...

    def gather_chats(
        self,
        prompts: Iterable[Prompt],
        *,
        model: Model | None = None,
        lane: Lane = "batch",
        deadline: float | None = None,
        return_exceptions: bool = False,
        on_progress: Callable[[FanoutProgress], None] | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> list[ChatResponse[Parsed]] | list[ChatResponse[Parsed] | OneLLMError]:
        """Sends all prompts and returns the answers in input order. See `AsyncOneLLM.gather_chats`."""
        return self._call(
            lambda: self._client.gather_chats(
                prompts,
                model=model,
                lane=lane,
                deadline=deadline,
                return_exceptions=return_exceptions,
                on_progress=on_progress,
                response_model=response_model,
                corrections=corrections,
                **options,
            )
        )

    def iter_chats(
        self,
        source: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        model: Model | None = None,
        lane: Lane = "batch",
        deadline: float | None = None,
        on_progress: Callable[[FanoutProgress], None] | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> Generator[ChatOutcome[Parsed], None, None]:
        """Yields the outcome of each prompt on completion, in constant memory. See `AsyncOneLLM.iter_chats`.

        The source is read in the thread of the client. Leaving the loop early cancels requests in flight.
        """
        outcomes = self._client.iter_chats(
            source,
            model=model,
            lane=lane,
            deadline=deadline,
            on_progress=on_progress,
            response_model=response_model,
            corrections=corrections,
            **options,
        )
        try:
            while (outcome := self._call(lambda: _next(outcomes))) is not None:
                yield outcome
        finally:
            if self._portal.running and not self._portal.is_own_thread():
                self._portal.call(lambda: _close(outcomes))

    def run(
        self,
        source: "Prompts",
        output: "str | PathLike[str] | LineSink",
        *,
        model: Model | None = None,
        on_progress: "Callable[[RunProgress], None] | None" = None,
        on_bad_line: "Callable[[LineError], None] | None" = None,
        on_message: "Callable[[str], None] | None" = None,
        **options: "Unpack[RunOptions]",
    ) -> "RunReport":
        """Sends every prompt of a source and writes the answers to a file. See `AsyncOneLLM.run`.

        Ctrl-C ends the run gracefully: requests in flight finish, then `KeyboardInterrupt` is raised. A second one
        cancels them. The same call resumes the run. There is no ``stop``: another thread or terminal ends the run with
        ``onellm-async stop``.
        """
        stop = asyncio.Event()
        return self._call(
            lambda: self._client.run(
                source,
                output,
                model=model,
                on_progress=on_progress,
                on_bad_line=on_bad_line,
                on_message=on_message,
                stop=stop,
                **options,
            ),
            interrupt=stop.set,
        )

    @property
    def limits(self) -> Limits:
        """The limits in force. `retune` changes them."""
        return self._client.limits

    @property
    def rate_state(self) -> RateState | None:
        """The discovered rate, to pass to another client; None if nothing is known yet."""
        return self._at_once(lambda: self._client.rate_state)

    def snapshot(self) -> Snapshot:
        """Returns the state of the client. See `AsyncOneLLM.snapshot`."""
        return self._at_once(self._client.snapshot)

    def pause(self) -> None:
        """Stops sending until `resume`. See `AsyncOneLLM.pause`."""
        self._at_once(self._client.pause)

    def resume(self) -> None:
        """Ends a pause."""
        self._at_once(self._client.resume)

    def retune(self, limits: Limits) -> None:
        """Changes the limits. See `AsyncOneLLM.retune`."""
        self._at_once(lambda: self._client.retune(limits))

    def _at_once(self, action: Callable[[], T]) -> T:
        """Runs `action` in the loop of the client, or here if none is running."""

        async def act() -> T:
            return action()

        return self._portal.call(act) if self._portal.running else action()


async def _next(outcomes: AsyncGenerator[ChatOutcome[Parsed], None]) -> ChatOutcome[Parsed] | None:
    return await anext(outcomes, None)


async def _close(outcomes: AsyncGenerator[ChatOutcome[Parsed], None]) -> None:
    await outcomes.aclose()
