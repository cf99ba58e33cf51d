"""`AsyncOneLLM`. The path of one request is in ``sender.py``, that of many in ``fanout.py``."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from inspect import iscoroutinefunction
from os import PathLike
from random import Random
from ssl import SSLContext
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, Self, TypedDict, Unpack, overload

import aiohttp

from onellm_async import catalog
from onellm_async.call import AttemptHooks
from onellm_async.catalog import Model, PriceList, Prices
from onellm_async.chat import (
    ChatOutcome,
    ChatRequest,
    ChatResponse,
    Messages,
    Parsed,
    Prompt,
    RequestOptions,
    build_request,
)
from onellm_async.errors import ConfigurationError, DeadlineExceededError, InvalidRequestError, OneLLMError
from onellm_async.events import Hook, Telemetry
from onellm_async.fanout import FanOut, Progress, Source, check_source
from onellm_async.formatting import pluralize
from onellm_async.key_source import ApiKeyFunction, KeySource
from onellm_async.limits.permit import RequestGroup
from onellm_async.limits.policy import Lane, Limits
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import Snapshot
from onellm_async.retry import RetryPolicy
from onellm_async.sender import Sender
from onellm_async.settings import (
    ApiKey,
    Timeout,
    check_headers,
    resolve_api_key,
    resolve_base_url,
    resolve_proxy,
    resolve_ssl_context,
)
from onellm_async.transport import AiohttpTransport, Transport
from onellm_async.validation import truncated_repr
from onellm_async.wire import JSON_HEADERS, Dialect, encode_request, resolve_endpoints

if TYPE_CHECKING:
    from onellm_async.batch.config import RunOptions
    from onellm_async.batch.inputs.entry import LineError
    from onellm_async.batch.outputs.ordered_writer import LineSink
    from onellm_async.batch.progress import RunProgress
    from onellm_async.batch.run import Prompts
    from onellm_async.batch.run_report import RunReport
    from onellm_async.limits.quota import Quota


class ClientOptions(TypedDict, total=False):
    """The optional arguments of `AsyncOneLLM` that fit any event loop, for clients that are made of one."""

    base_url: str | None
    limits: Limits | None
    rate_state: RateState | None
    retry: RetryPolicy | None
    timeout: float | Timeout | None
    dialect: Dialect | str
    endpoints: Mapping[str, str] | None
    proxy: str | None
    ssl: SSLContext | None
    trust_env: bool
    headers: Mapping[str, str] | None
    hooks: Iterable[Hook]
    telemetry: Telemetry | None
    allow_insecure: bool
    transport: Transport | None
    random: Random | None
    quota: "str | Quota | None"
    prices: Prices | None


class AsyncOneLLM:
    """An asyncio client for the OneLLM chat API that keeps to the rate limit by itself.

    Make one for each key and share it: the rate limit is that of the key, and the client counts only its own requests.
    It may be made before an event loop runs, and used in several loops one after the other.

    Args:
        api_key: The key; default ``ONELLM_API_KEY``. It never shows in reprs, logs, errors or events. Or a function,
            ``async`` or not, that returns it: it is called before the first request and again after a 401. If it then
            returns another key, the request is sent once more.
        base_url: The exact address to post to; default ``ONELLM_BASE_URL``, else the documented one.
        limits: What is known of the service's limits; default the published ones.
        rate_state: What an earlier client learned about the rate, from its `rate_state`; None starts without.
        retry: When failed attempts are repeated.
        timeout: For one attempt; a number of seconds is `Timeout.total`, and bounds `Timeout.connect`.
        dialect: ``"documented"`` or, for the self-hosted backend, ``"backend"``.
        endpoints: With dialect ``"backend"``, the URLs that the backend forwards to instead of the providers' own, such
            as ``{"OpenAI": "http://10.0.0.7/v1/chat/completions"}``. ``{model}`` in a URL stands for the provider's
            name of the model. ``extra={"endpoint": …}`` of a request takes precedence.
        session: An `aiohttp.ClientSession` to use; it stays yours to close.
        proxy: URL of an HTTP proxy, such as ``http://user:password@proxy.example:3128``; default ``ONELLM_PROXY``.
            ``""`` uses none.
        headers: Further HTTP headers of each request, for example for a gateway in between. Their values are not shown.
        ssl: How to verify certificates; default the authorities in ``ONELLM_CA_FILE``, else the system's.
        trust_env: Without a proxy of its own, use ``HTTPS_PROXY`` and ``NO_PROXY`` of the environment.
        hooks: Called with each event of `onellm_async.events`.
        telemetry: A hook that also adds headers to attempts, such as `onellm_async.integrations.otel.Telemetry`.
        allow_insecure: Accept plain http to hosts other than this machine.
        transport: What carries the requests instead of aiohttp, for tests and simulations; then neither a key nor an
            address is needed.
        random: Where jitter comes from; seed it to repeat a run exactly.
        quota: Shares the rate limit with all other processes that use the same key: ``"host"`` for those of this host,
            ``"redis://HOST:PORT"`` for those of several hosts, ``"off"``, or a value of `onellm_async.quota`. Default
            ``ONELLM_QUOTA``, else off.
        prices: USD per million input and output tokens by model, such as ``{"my-model": (0.0, 0.0)}``, or a CSV file
            with the columns ``model``, ``input_usd_per_million_tokens`` and ``output_usd_per_million_tokens``. Model
            ``"*"`` is any other one; without it others have the list prices.

    Raises:
        ConfigurationError: If the key, the address or another setting is missing or unusable.

    Example:
        ::

            async with AsyncOneLLM() as client:
                reply = await client.chat("What is the capital of France?", model="GPT-5-Mini")
                print(reply.content, reply.cost)
    """

    def __init__(
        self,
        api_key: str | ApiKey | ApiKeyFunction | None = None,
        *,
        base_url: str | None = None,
        limits: Limits | None = None,
        rate_state: RateState | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | Timeout | None = None,
        dialect: Dialect | str = Dialect.DOCUMENTED,
        endpoints: Mapping[str, str] | None = None,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: SSLContext | None = None,
        trust_env: bool = False,
        headers: Mapping[str, str] | None = None,
        hooks: Iterable[Hook] = (),
        telemetry: Telemetry | None = None,
        allow_insecure: bool = False,
        transport: Transport | None = None,
        random: Random | None = None,
        quota: "str | Quota | None" = None,
        prices: Prices | None = None,
    ) -> None:
        _check_policies(limits=limits, rate_state=rate_state, retry=retry)
        attempt_timeout = _timeout_from(timeout)
        limits = limits if limits is not None else Limits()
        shared = _shared_quota(quota, limits, base_url, api_key, own_transport=transport is not None)
        catalog.entries()  # reads its file now: later, all descriptors may be in use by paid requests
        self._base_url: str | None = None
        keys: KeySource | None = None
        if transport is None:
            url = self._base_url = resolve_base_url(base_url, allow_insecure=allow_insecure)
            transport = by_aiohttp = AiohttpTransport(
                url,
                None if callable(api_key) else resolve_api_key(api_key),
                attempt_timeout,
                session,
                JSON_HEADERS,
                secret_headers=check_headers(headers),
                proxy=resolve_proxy(proxy, url, trust_env=trust_env),
                ssl=resolve_ssl_context(ssl),
                ssl_is_default=ssl is None,
            )
            if callable(api_key):
                keys = KeySource(api_key, by_aiohttp.use_key)
        self._dialect = Dialect(dialect)
        self._endpoints = resolve_endpoints(endpoints)
        if self._endpoints and self._dialect is not Dialect.BACKEND:
            raise ConfigurationError(
                "endpoints have no effect in the documented dialect, which names no endpoint.",
                advice='Set dialect="backend" (on the command line --dialect backend), or leave them out.',
            )
        self._sender = Sender(
            transport,
            keys=keys,
            limits=limits,
            rate_state=rate_state,
            retry=retry if retry is not None else RetryPolicy(),
            dialect=self._dialect,
            endpoints=self._endpoints,
            hooks=_hooks_from(hooks),
            telemetry=telemetry,
            random=random if random is not None else Random(),
            quota=shared,
            prices=PriceList.of(prices),
        )

    def __repr__(self) -> str:
        return f"AsyncOneLLM(limits={self.limits!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A client is not pickled, as its key would be: make one in each process.")

    async def __aenter__(self) -> Self:
        self._sender.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def add_hook(self, hook: Hook) -> None:
        """Calls `hook` with each event from now on, as those given to the client."""
        (checked,) = _hooks_from((hook,))
        self._sender.add_hook(checked)

    def remove_hook(self, hook: Hook) -> None:
        """Calls `hook` no more; one that is not there is ignored."""
        self._sender.remove_hook(hook)

    @property
    def limits(self) -> Limits:
        """The limits in force. `retune` changes them."""
        return self._sender.limits

    @property
    def prices(self) -> PriceList:
        """The prices by which answers are billed."""
        return self._sender.prices

    def snapshot(self) -> Snapshot:
        """Returns the state of the client: queued requests, their bottlenecks, and the current rate.

        It takes less than 0.1 ms, however many requests are queued.
        `onellm_async.analyze_bottlenecks` draws conclusions from a series of them.
        """
        return self._sender.snapshot()

    @property
    def rate_state(self) -> RateState | None:
        """The discovered rate, to pass to another client; None if nothing is known yet.

        Example:
            A program that starts where the last run left off::

                path = Path("rate.json")
                state = RateState.from_dict(json.loads(path.read_text())) if path.exists() else None
                async with AsyncOneLLM(limits=Limits(requests_per_minute="auto"), rate_state=state) as client:
                    ...
                    if (learned := client.rate_state) is not None:
                        path.write_text(json.dumps(learned.to_dict()))
        """
        return self._sender.rate_state

    def pause(self) -> None:
        """Stops sending until `resume`, first attempts and retries alike.

        Requests in flight continue, queued chats keep their places, and their deadlines still apply. New chats are
        queued, up to `Limits.max_pending`.

        Example:
            ::

                loop.add_signal_handler(signal.SIGUSR1, client.pause)
                loop.add_signal_handler(signal.SIGUSR2, client.resume)
        """
        self._sender.pause()

    def resume(self) -> None:
        """Ends a pause. Other waits, such as for a `Retry-After`, remain."""
        self._sender.resume()

    def retune(self, limits: Limits) -> None:
        """Changes the limits: rate, burst, concurrency, tokens per minute, `max_pending` and mode.

        Queued requests keep their places and requests in flight continue. Tokens in the bucket remain, as far as the
        new limits allow. If more requests are in flight than the new `max_concurrency`, nothing is sent until enough
        have finished. A discovered rate is kept if rate, burst and mode stay the same. An active fan-out adjusts its
        window with its next outcome.

        Args:
            limits: All of them, not only those that change.

        Raises:
            ConfigurationError: If that is no `Limits`.

        Example:
            ::

                client.retune(attrs.evolve(client.limits, requests_per_minute=600, burst=100))
        """
        _check_policy("limits", limits)
        self._sender.retune(limits)

    async def drain(self) -> None:
        """Stops gracefully: queued chats end with `ClientClosedError`, unsent; requests in flight finish.

        Returns when the last request has finished; the callers get these answers, which are paid for. New chats are
        rejected at once. Call it before `aclose` if there is time, as a service does on SIGTERM. Safe to cancel.

        Example:
            ::

                async with asyncio.timeout(30):
                    await client.drain()
        """
        await self._sender.drain()

    async def aclose(self) -> None:
        """Closes the client at once: queued chats end with `ClientClosedError`, connections are closed.

        A chat in flight ends with `APIConnectionError` and may be billed; call `drain` first to let it finish. Entering
        the client again with ``async with`` reopens it. A second call does nothing.
        """
        await self._sender.aclose()

    async def chat(
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
        """Sends one prompt and returns the answer.

        Safe to cancel at any time. A request that was in flight may still be billed.

        Args:
            prompt: What the user says, or a history of messages.
            model: Any model id.
            lane: ``"interactive"``, ``"default"`` or ``"batch"``: which requests are sent first when many are queued.
            deadline: Seconds from now, queue included, in which the answer must be there; None waits as long as it
                takes. A chat that cannot make it is refused unsent.
            response_model: A class that the answer has to conform to: an attrs class, a dataclass, a TypedDict, a
                ``msgspec.Struct``, a list of these, or a pydantic model. Its schema goes into the request, and
                `ChatResponse.parsed` is the value. It needs the extra ``structured``.
            corrections: How many times an answer that does not fit is sent back with its faults. Each is one more
                paid request.
            **options: Fields of `ChatRequest`: ``system``, ``max_tokens``, ``temperature``, ``top_p``,
                ``stop_sequences``, …

        Raises:
            InvalidRequestError: If a value is refused; nothing was sent.
            ConfigurationError: If there is no schema for `response_model`; nothing was sent.
            StructureError: If the answer does not conform after all corrections. It has the answer.
            DeadlineExceededError: If the deadline passes or cannot be met.
            QueueFullError: If `Limits.max_pending` chats wait already.
            CircuitOpenError: If the service has failed again and again.
            ClientClosedError: If the client is or becomes closed.
            APIError: If the service, or the way to it, failed in spite of retries.
        """
        request = build_request(prompt, model, options)
        if response_model is not None:
            return await self._answer_as(response_model, corrections, request, lane, deadline)
        return await self._sender.send(request, lane=lane, deadline=deadline)  # type: ignore[return-value]  # it is None then

    async def _answer_as(
        self,
        response_model: type[Parsed],
        corrections: int,
        request: ChatRequest,
        lane: Lane,
        deadline: float | None,
        group: RequestGroup | None = None,
    ) -> ChatResponse[Parsed]:
        """Sends `request` until its answer conforms. The deadline covers all turns."""
        from onellm_async.structured_output import answer_as, check_corrections  # noqa: PLC0415  # only who uses it

        check_corrections(corrections)
        clock = asyncio.get_running_loop().time
        end = None if deadline is None else clock() + deadline

        async def send(request: ChatRequest) -> ChatResponse:
            left = None if end is None else end - clock()
            if left is not None and left <= 0 and request.messages[-1] is not first:
                raise DeadlineExceededError("The deadline passed before the correction was sent.")
            return await self._sender.send(request, lane=lane, deadline=left, group=group)

        first = request.messages[-1]
        return await answer_as(send, request, response_model, corrections)

    async def send(
        self,
        request: ChatRequest,
        *,
        lane: Lane = "default",
        deadline: float | None = None,
        group: RequestGroup | None = None,
        attempt_hooks: AttemptHooks | None = None,
    ) -> ChatResponse:
        """Sends a complete request; otherwise like `chat`.

        Args:
            request: The request.
            lane: As in `chat`.
            deadline: As in `chat`.
            group: Requests that are cancelled together with this one. It waits while the circuit is open if
                `RequestGroup.wait_for_ready` says so.
            attempt_hooks: Takes part in each attempt, to record it durably or to forbid it.

        Raises:
            RequestCancelledError: If the group was cancelled before the request was sent.
            OneLLMError: As `chat`, and whatever `attempt_hooks` raises.
        """
        return await self._sender.send(request, lane=lane, deadline=deadline, group=group, attempt_hooks=attempt_hooks)

    @overload
    async def gather_chats(
        self,
        prompts: Iterable[Prompt],
        *,
        model: Model | None = None,
        lane: Lane = "batch",
        deadline: float | None = None,
        return_exceptions: Literal[False] = False,
        on_progress: Progress | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> list[ChatResponse[Parsed]]: ...

    @overload
    async def gather_chats(
        self,
        prompts: Iterable[Prompt],
        *,
        model: Model | None = None,
        lane: Lane = "batch",
        deadline: float | None = None,
        return_exceptions: bool,
        on_progress: Progress | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> list[ChatResponse[Parsed] | OneLLMError]: ...

    async def gather_chats(
        self,
        prompts: Iterable[Prompt],
        *,
        model: Model | None = None,
        lane: Lane = "batch",
        deadline: float | None = None,
        return_exceptions: bool = False,
        on_progress: Progress | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> list[ChatResponse[Parsed]] | list[ChatResponse[Parsed] | OneLLMError]:
        """Sends all prompts and returns the answers in input order.

        The number of tasks is bounded by the window, not by the prompts. Cancelling stops everything; requests in
        flight may then be billed without an answer. To get each answer as soon as it is complete, use `iter_chats`.

        Args:
            prompts: Texts, histories or complete requests. All are checked before the first is sent.
            model: Needed unless all prompts are complete requests.
            lane: Their lane; default ``"batch"``, behind more urgent requests.
            deadline: Seconds for each prompt, counted from when it enters the window.
            return_exceptions: Put a failed prompt's error in its place instead of raising the first.
            on_progress: Called after each outcome with a `FanoutProgress`.
            response_model: As in `chat`; an answer that does not conform is a failed prompt.
            corrections: As in `chat`.
            **options: Fields of `ChatRequest` for the prompts that are not complete requests.

        Raises:
            InvalidRequestError: If a prompt is invalid; nothing was sent.
            OneLLMError: Without `return_exceptions`, the first failure. With it, only a failure that affects every
                prompt, such as a wrong key or an empty balance. In both cases nothing more is sent and requests in
                flight are awaited. The error has the outcomes so far as ``partial_results``.

        Example:
            ::

                replies = await client.gather_chats(["1 + 1?", "2 + 2?"], model="GPT-5-Nano", max_tokens=5)
        """
        check_source(prompts)
        listed = list(prompts)
        self._check_options(model, options, response_model, corrections)
        checked_text = False
        for index, prompt in enumerate(listed):
            if type(prompt) is str:
                if checked_text and prompt and not prompt.isspace():
                    continue  # strings only differ in a text, and every other text is valid
                checked_text = True
            _check_prompt(index, prompt, model, options)
        outcomes: list[ChatOutcome[Parsed] | None] = [None] * len(listed)
        group = RequestGroup()
        ask = self._asker(group, model, options, lane, deadline, response_model, corrections)
        fan_out = self._fan_out(listed, ask, group, on_progress, stop_on_error=not return_exceptions)
        async with fan_out as run:
            async for outcome in run:
                outcomes[outcome.index] = outcome
        there = [outcome for outcome in outcomes if outcome is not None]
        error = run.stopped_by
        if error is None and len(there) < len(outcomes):
            error = OneLLMError(
                f"{len(outcomes) - len(there)} of {pluralize(len(outcomes), 'prompt')} have no outcome."
            )
        if error is not None:
            with suppress(AttributeError):  # an error of other code may have no place for it
                error.partial_results = tuple(there)  # type: ignore[attr-defined]
            raise error
        return [outcome.response or outcome.error or outcome.unwrap() for outcome in there]

    async def iter_chats(
        self,
        source: Source,
        *,
        model: Model | None = None,
        lane: Lane = "batch",
        deadline: float | None = None,
        on_progress: Progress | None = None,
        response_model: type[Parsed] | None = None,
        corrections: int = 1,
        **options: Unpack[RequestOptions],
    ) -> AsyncGenerator[ChatOutcome[Parsed], None]:
        """Yields the outcome of each prompt on completion, from a source of any length, in constant memory.

        The next prompt is read only when the window has room, and a slow consumer slows the sending. Leaving the loop
        early cancels requests in flight; wrap the iterator in `contextlib.aclosing` to cancel them at once.

        Args:
            source: A sync or async iterable of texts, histories or complete requests.
            model: As in `gather_chats`, like all that follow.
            lane: As in `gather_chats`.
            deadline: As in `gather_chats`.
            on_progress: As in `gather_chats`.
            response_model: As in `gather_chats`.
            corrections: As in `gather_chats`.
            **options: As in `gather_chats`.

        Yields:
            Outcomes in the order of completion; a prompt that failed or was refused has its error in its outcome.

        Raises:
            OneLLMError: A failure that concerns every prompt, after all outcomes that are there have been yielded.

        Example:
            ::

                async for outcome in client.iter_chats(open("prompts.txt"), model="GPT-5-Nano"):
                    print(outcome.index, outcome.response or outcome.error)
        """
        self._check_options(model, options, response_model, corrections)
        group, buffered = RequestGroup(), self._sender.slots
        ask = self._asker(group, model, options, lane, deadline, response_model, corrections)
        fan_out = self._fan_out(source, ask, group, on_progress, buffered=buffered)
        async with fan_out as run:
            async for outcome in run:
                yield outcome
        if run.stopped_by is not None:
            raise run.stopped_by

    async def run(
        self,
        source: "Prompts",
        output: "str | PathLike[str] | LineSink",
        *,
        model: Model | None = None,
        on_progress: "Callable[[RunProgress], None] | None" = None,
        on_bad_line: "Callable[[LineError], None] | None" = None,
        on_message: "Callable[[str], None] | None" = None,
        stop: asyncio.Event | None = None,
        **options: "Unpack[RunOptions]",
    ) -> "RunReport":
        """Sends every prompt of a source and writes the answers to a file in input order. Call it again to resume.

        It does what ``onellm-async run`` does: what was answered is kept in a journal beside the output and never
        asked again, what may have been billed is counted, and the output takes its place when it is complete. The
        policies of this client apply, but `ambiguous="hold"` also keeps it from retrying within this run.

        Safe to cancel: requests in flight are then possibly billed, and the journal knows them.

        Args:
            source: A file of prompts in any input format, a pattern such as ``"data/*.jsonl"``, or a list of paths; a
                table, such as a DataFrame of polars or pandas, a relation of duckdb or a ``datasets.Dataset``; or
                prompts: texts, messages, requests, pairs of a ``custom_id`` and one of these, or mappings, which are
                read like the objects of JSON lines.
            output: File for the answers; its suffix says how they are written. ``"-"`` is standard output, where
                nothing can be resumed. Or an object with an async method ``write``, which takes whole lines of bytes in
                input order, the header of a table first; with ``journal=`` its run can be resumed, and it is given all
                lines again.
            model: Asked of every prompt that is no complete request. It is not read from ``ONELLM_MODEL``, as the
                command does; see ``fallback_model``.
            on_progress: Called several times a second and at the end. The first error it raises is logged.
            on_bad_line: Called for each line that is no prompt. Errors are logged likewise. Without it, `on_message`
                is given ten of each reason and then their number; without both, the logger ``onellm_async`` is.
            on_message: Called with what a user should know while the run is active, in a sentence: that it resumes,
                pauses, or waits, and for what. Errors are logged likewise.
            stop: Set it to end the run gracefully: nothing more is sent, requests in flight finish.
            **options: See `onellm_async.batch.RunOptions`.

        Returns:
            How the run ended. An unfinished run is a report, not an error.

        Raises:
            BatchError: If the input, the output or the journal cannot be used.
            ConfigurationError: If an option is out of range.
            InvalidRequestError: If a value is refused; nothing was sent.

        Example:
            ::

                async with AsyncOneLLM() as client:
                    report = await client.run("prompts.csv", "answers.jsonl", max_cost=5, max_tokens=300)
                    print(report.complete, report.counts.cost)
        """
        from onellm_async.batch.config import RunConfig  # noqa: PLC0415  # importing the client stays cheap
        from onellm_async.batch.run import run  # noqa: PLC0415

        config = RunConfig.from_options(
            output,
            model,
            options,
            limits=self.limits,
            base_url=self._base_url,
            dialect=self._dialect.value,
            endpoints=self._endpoints,
            prices=self.prices,
        )
        return await run(
            self._sender,
            source,
            config,
            options,
            on_progress=on_progress,
            on_bad_line=on_bad_line,
            on_message=on_message,
            stop=stop,
        )

    def _check_options(
        self, model: Model | None, options: RequestOptions, response_model: type | None, corrections: int
    ) -> None:
        """Refuses a model or an option that would fail every prompt, before the first is sent."""
        if response_model is not None:
            from onellm_async.structured_output import check_corrections, schema_for  # noqa: PLC0415

            check_corrections(corrections)
            schema_for(response_model)
        if model is not None:
            encode_request(build_request("any", model, options), self._dialect, self._endpoints)

    def _asker(
        self,
        group: RequestGroup,
        model: Model | None,
        options: RequestOptions,
        lane: Lane,
        deadline: float | None,
        response_model: type[Parsed] | None,
        corrections: int,
    ) -> "Callable[[Prompt], Coroutine[object, object, ChatResponse[Parsed]]]":
        """Returns the function that sends one prompt of a fan-out. It adds no coroutine to each prompt."""
        sender = self._sender

        def ask(prompt: Prompt) -> Coroutine[object, object, ChatResponse]:
            return sender.send(build_request(prompt, model, options), lane=lane, deadline=deadline, group=group)

        def ask_for_value(prompt: Prompt) -> Coroutine[object, object, ChatResponse[Parsed]]:
            assert response_model is not None  # noqa: S101  # see below
            request = build_request(prompt, model, options)
            return self._answer_as(response_model, corrections, request, lane, deadline, group)

        return ask if response_model is None else ask_for_value  # type: ignore[return-value]  # it is None then

    def _fan_out(
        self,
        source: Source,
        ask: "Callable[[Prompt], Awaitable[ChatResponse[Parsed]]]",
        group: RequestGroup,
        on_progress: Progress | None,
        *,
        stop_on_error: bool = False,
        buffered: int | None = None,
    ) -> FanOut[Parsed]:
        sender = self._sender
        return FanOut(
            source,
            ask,
            window=lambda: sender.slots,
            withdraw=group.cancel,
            stop_on_error=stop_on_error,
            buffered=buffered,
            on_progress=on_progress,
        )


def _shared_quota(
    quota: "str | Quota | None",
    limits: Limits,
    base_url: str | None,
    api_key: str | ApiKey | ApiKeyFunction | None,
    *,
    own_transport: bool,
) -> "tuple[Quota, str] | None":
    """The quota and the name of its board; None where nothing is shared, and then nothing is imported."""
    given = quota if quota is not None else os.environ.get("ONELLM_QUOTA") or "off"
    if isinstance(given, str) and given == "off":
        return None
    from onellm_async.quota import board_name, quota_from  # noqa: PLC0415  # only those who share pay for it

    found = quota_from(given, limits, explicit=quota is not None)
    if found is None:
        return None
    if own_transport:
        return found, board_name(base_url or "transport", "")
    if callable(api_key):
        raise ConfigurationError(
            "quota shares the rate limit of one key, and api_key is a function, whose keys are not known yet.",
            advice="Pass the key itself, or quota='off'.",
        )
    return found, board_name(resolve_base_url(base_url, allow_insecure=True), resolve_api_key(api_key).authorization())


_POLICIES = {"limits": Limits, "rate_state": RateState, "retry": RetryPolicy, "timeout": Timeout}
_SHORT_FORMS = {"limits": "requests_per_minute", "retry": "max_attempts"}
"""The field that a bare number was probably meant for."""


def _check_policies(**policies: object) -> None:
    for name, value in policies.items():
        if value is not None:
            _check_policy(name, value)


def _check_policy(name: str, value: object) -> None:
    kind = _POLICIES[name]
    if isinstance(value, kind):
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    advice = f"Use {kind.__name__}({_SHORT_FORMS[name]}={value!r})." if number and name in _SHORT_FORMS else ""
    raise ConfigurationError(f"{name} is {truncated_repr(value)}; it must be a {kind.__name__}.", advice=advice)


def _timeout_from(value: object) -> Timeout:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Timeout(connect=min(Timeout().connect, value), total=value)
    _check_policies(timeout=value)
    return value if isinstance(value, Timeout) else Timeout()


def _hooks_from(hooks: Iterable[Hook]) -> tuple[Hook, ...]:
    listed = tuple(hooks) if hasattr(hooks, "__iter__") else ()
    if not hasattr(hooks, "__iter__") or not all(map(callable, listed)):
        raise ConfigurationError(
            f"hooks is {truncated_repr(hooks)}; it must be a sequence of callables that take an event."
        )
    for hook in listed:
        if iscoroutinefunction(hook) or iscoroutinefunction(getattr(hook, "__call__", None)):  # noqa: B004
            raise ConfigurationError(
                f"The hook {truncated_repr(hook)} is asynchronous, and would never be awaited.",
                advice="Make it a function that puts the event into an asyncio.Queue, or starts a task.",
            )
    return listed


def _check_prompt(index: int, prompt: Prompt, model: Model | None, options: RequestOptions) -> None:
    try:
        build_request(prompt, model, options)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"Prompt {index}: {error.message}", advice=error.advice) from None
