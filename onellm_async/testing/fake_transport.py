"""A transport without a service: scripted replies and failures, in real or virtual time.

`AsyncOneLLM(transport=FakeTransport(…))` exercises all of the client but HTTP: encoding, limits, retries, circuit
breaker, decoding.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from http import HTTPStatus
from math import ceil
from typing import TypeAlias

from attrs import asdict, field, frozen

from onellm_async import catalog
from onellm_async.chat import JSON, ChatResponse, Usage
from onellm_async.transport import RawReply
from onellm_async.wire import dump_json, parse_json

_BYTES_PER_TOKEN = 4
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


@frozen
class FakeRequest:
    """One POST that a `FakeTransport` got.

    Attributes:
        number: Its number, from 1.
        at: When it was sent, on the event loop's clock.
        body: The encoded body.
        fields: The decoded body.
        headers: Headers of this request alone.
    """

    number: int
    at: float
    body: bytes = field(repr=False)
    fields: Mapping[str, JSON]
    headers: Mapping[str, str]

    @property
    def model(self) -> str:
        """The model, as it was sent."""
        return str(self.fields.get("model", ""))

    @property
    def messages(self) -> Sequence[Mapping[str, JSON]]:
        """The messages of the chat."""
        messages = self.fields.get("messages")
        return [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []

    @property
    def prompt(self) -> str:
        """Content of the last message."""
        messages = self.messages
        return str(messages[-1].get("content", "")) if messages else ""


@frozen
class FakeReply:
    """What becomes of one request: an answer, an HTTP reply, an error or nothing; see `answer`, `failure`, `hang`.

    Attributes:
        content: Text of an answer. The reply has all the fields of a real one.
        usage: Tokens of the answer; None for an estimate of four bytes per token.
        raw: The HTTP reply as it is.
        error: Raised instead of a reply.
        delay: Seconds until then; None for the delay of the transport.
        finish_reason: Why the answer ended; None leaves it out.
        model: Model of the answer; None for the requested one.
        provider: Its provider; None for that of the model in the catalog.
    """

    content: str | None = None
    usage: Usage | None = None
    raw: RawReply | None = None
    error: BaseException | type[BaseException] | None = None
    delay: float | None = None
    finish_reason: str | None = "stop"
    model: str | None = None
    provider: str | None = None


Reply: TypeAlias = (
    str | int | Mapping[str, JSON] | ChatResponse | BaseException | type[BaseException] | RawReply | FakeReply
)
"""What a handler returns and a script lists:

- a text: the content of an answer
- an HTTP status: an error
- a mapping: the JSON body of a reply with status 200
- a `ChatResponse`: an answer with exactly these fields
- an exception: it is raised, as a transport raises `onellm_async.APIConnectionError`
- a `RawReply`: status, headers and bytes as they are
- a `FakeReply`: `answer`, `failure` or `hang`, which also take a delay
"""

Handler: TypeAlias = Callable[[FakeRequest], Reply | Awaitable[Reply]]
"""Decides on the reply to one request; may be a coroutine function."""


def answer(
    content: str,
    *,
    usage: Usage | None = None,
    finish_reason: str | None = "stop",
    model: str | None = None,
    provider: str | None = None,
    delay: float | None = None,
) -> FakeReply:
    """A successful reply.

    Args:
        content: Text of the answer; "" for an answer without text.
        usage: Its tokens; None for an estimate.
        finish_reason: Why it ended, such as ``"length"`` or ``"content_filter"``; None leaves it out.
        model: Model that answered; None for the requested one.
        provider: Its provider; None for that of the model in the catalog.
        delay: Seconds until the reply.

    Raises:
        TypeError: If one of the texts is no string.

    Example:
        >>> answer("The first ten pri", finish_reason="length").finish_reason
        'length'
    """
    if not isinstance(content, str):
        raise TypeError(f'The content of an answer is {content!r}; it must be a string, "" for an answer without text.')
    for name, value in (("finish_reason", finish_reason), ("model", model), ("provider", provider)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} of an answer is {value!r}; it must be a string or None.")
    return FakeReply(content, usage, delay=delay, finish_reason=finish_reason, model=model, provider=provider)


def failure(
    status: int, text: str | None = None, *, headers: Mapping[str, str] | None = None, delay: float | None = None
) -> FakeReply:
    """An error reply.

    Args:
        status: HTTP status.
        text: Text of the error; None for the name of the status.
        headers: Headers of the reply, such as ``{"Retry-After": "3"}``.
        delay: Seconds until the reply.

    Raises:
        ValueError: If `status` is no integer from 100 to 999.
    """
    if not _is_status(status):
        raise ValueError(f"status is {status!r}; it must be an HTTP status, an integer from 100 to 999.")
    if text is None:
        text = _PHRASES.get(status, f"Status {status}")
    return FakeReply(raw=RawReply(status, headers or {}, dump_json({"error": text})), delay=delay)


def _is_status(status: object) -> bool:
    return isinstance(status, int) and not isinstance(status, bool) and 100 <= status <= 999


def hang() -> FakeReply:
    """No reply at all: the request waits until it is cancelled or times out."""
    return FakeReply()


class FakeTransport:
    """Replies to each request as a script or a function says, and records the requests.

    Args:
        replies: A function from `FakeRequest` to a reply; a list of replies, of which the last one repeats; or one
            reply for all. None echoes the prompt.
        delay: Seconds until each reply that has no delay of its own.

    Example:
        A 429, an error, then an answer::

            transport = FakeTransport([429, 500, "Paris."])
            async with AsyncOneLLM(transport=transport) as client:
                reply = await client.chat("Capital of France?", model="GPT-5-Nano")
            assert (reply.content, len(transport.requests)) == ("Paris.", 3)
    """

    def __init__(self, replies: Handler | Sequence[Reply] | Reply | None = None, *, delay: float = 0.0) -> None:
        self._handler = _handler(replies)
        self._delay = delay
        self.requests: list[FakeRequest] = []
        """All requests, in the order in which they were sent."""
        self.in_flight: int = 0
        """Number of requests without a reply."""
        self.max_in_flight: int = 0
        """Maximum of `in_flight` so far."""
        self.closed: bool = False
        """Whether the client closed the transport."""

    def set_replies(self, replies: Handler | Sequence[Reply] | Reply | None) -> None:
        """Replies differently from now on. Requests in flight get the reply that they were sent for.

        Args:
            replies: As for `FakeTransport`; a list starts at its first reply.
        """
        self._handler = _handler(replies)

    @property
    def prompts(self) -> list[str]:
        """Content of the last message of each request."""
        return [request.prompt for request in self.requests]

    async def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> RawReply:
        """Records the request and returns or raises the reply."""
        now = asyncio.get_running_loop().time()
        request = FakeRequest(len(self.requests) + 1, now, body, parse_json(body), headers or {})
        self.requests.append(request)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            given = self._handler(request)
            return await self._reply(request, fake_reply(await given if inspect.isawaitable(given) else given))
        finally:
            self.in_flight -= 1

    async def _reply(self, request: FakeRequest, reply: FakeReply) -> RawReply:
        delay = self._delay if reply.delay is None else reply.delay
        await asyncio.sleep(delay)  # without a delay, other tasks get their turn as with a network
        if isinstance(reply.error, BaseException):
            raise copy(reply.error)  # the client adds to an error what happened to its request
        if reply.error is not None:
            raise reply.error
        if reply.content is not None:
            return _answered(_complete_response(request, reply, reply.content))
        if reply.raw is not None:
            return reply.raw
        await asyncio.get_running_loop().create_future()
        raise AssertionError("This line is never reached.")

    async def aclose(self) -> None:
        """Records that the transport was closed. It may be used again."""
        self.closed = True


def _handler(replies: Handler | Sequence[Reply] | Reply | None) -> Handler:
    if replies is None:
        return _echo
    if callable(replies) and not isinstance(replies, type):
        return replies
    script = list(replies) if isinstance(replies, list | tuple) else [replies]
    if not script:
        raise ValueError("The script is empty; give at least one reply.")
    steps = [fake_reply(each) for each in script]  # checked before anything is sent
    return lambda request: steps.pop(0) if len(steps) > 1 else steps[0]


def _echo(request: FakeRequest) -> Reply:
    return request.prompt


def fake_reply(reply: object) -> FakeReply:
    """`reply` as a value that says everything.

    Raises:
        TypeError: If it is none.
    """
    match reply:
        case FakeReply():
            return reply
        case str():
            return answer(reply)
        case bool():
            pass
        case int():
            return failure(reply)
        case RawReply():
            return FakeReply(raw=reply)
        case ChatResponse():
            return FakeReply(raw=_answered(reply))
        case Mapping():
            return FakeReply(raw=RawReply(200, {}, dump_json(dict(reply))))
        case BaseException():
            return FakeReply(error=reply)
        case type() if issubclass(reply, BaseException):
            return FakeReply(error=reply)
    raise TypeError(
        f"A fake reply is {reply!r}; it must be a text, a status, a mapping, a ChatResponse, an exception, a RawReply, "
        "or made by answer, failure or hang."
    )


def provider_of(model: str) -> str | None:
    """The provider of a model in the catalog; None for another model."""
    entry = catalog.lookup(model)
    return None if entry is None else catalog.PROVIDERS[entry.provider]


def _complete_response(request: FakeRequest, reply: FakeReply, content: str) -> ChatResponse:
    """An answer with all the fields that the service sends."""
    usage, model = reply.usage, reply.model or request.model
    if usage is None:
        read, written = (
            ceil(len(text) / _BYTES_PER_TOKEN) for text in (request.body, content.encode(errors="replace"))
        )
        usage = Usage(read, written, read + written)
    return ChatResponse(
        content,
        model=model or None,
        provider=reply.provider or provider_of(model),
        role="assistant",
        usage=usage,
        finish_reason=reply.finish_reason,
    )


def _answered(response: ChatResponse) -> RawReply:
    body: dict[str, JSON] = {"content": response.content, **response.extra}
    for name in ("model", "provider", "role", "finish_reason"):
        value = getattr(response, name)
        if value is not None:
            body[name] = value
    if response.usage is not None:
        body["usage"] = {name: value for name, value in asdict(response.usage).items() if value is not None}
    return RawReply(200, {}, dump_json(body))
