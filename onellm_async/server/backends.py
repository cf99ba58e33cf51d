"""Who answers behind the local server: an echo, or any OpenAI-compatible endpoint."""

from math import ceil
from typing import Protocol, Self
from urllib.parse import urlsplit

import aiohttp

from onellm_async.chat import JSON, Usage
from onellm_async.errors import ConfigurationError
from onellm_async.server.service import Completion, Job
from onellm_async.wire import dump_json, parse_json, request_to_body

__all__ = ["Backend", "BackendError", "EchoBackend", "UpstreamBackend", "echo"]

_CHARACTERS_PER_TOKEN = 4
_SAME_NAME = (
    "temperature",
    "top_p",
    "tools",
    "tool_choice",
    "response_format",
    "seed",
    "n",
    "user",
    "frequency_penalty",
    "presence_penalty",
    "logprobs",
    "top_logprobs",
)


class BackendError(Exception):
    """The backend could not answer; the text becomes the body of a 500."""


class Backend(Protocol):
    """Turns an accepted job into a completion."""

    async def complete(self, job: Job) -> Completion:
        """Answers `job`.

        Raises:
            BackendError: If it cannot.
        """
        ...

    async def aclose(self) -> None:
        """Frees what it holds."""
        ...


def tokens_of(text: str) -> int:
    """The length of a text in the echo's tokens: four characters each, the last one possibly shorter."""
    return ceil(len(text) / _CHARACTERS_PER_TOKEN)


def echo(job: Job) -> Completion:
    """Says the last user message again, cut at the first stop sequence and at the token limit."""
    request = job.request
    asked = (message.content for message in reversed(request.messages) if message.role == "user")
    content = next(asked, request.messages[-1].content)
    cuts = [content.find(stop) for stop in request.stop_sequences or () if stop]
    content = content[: min((cut for cut in cuts if cut >= 0), default=len(content))]
    finish_reason = "stop"
    if job.max_tokens is not None and tokens_of(content) > job.max_tokens:
        content = content[: job.max_tokens * _CHARACTERS_PER_TOKEN]
        finish_reason = "length"
    read = sum(tokens_of(message.content) for message in request.messages) + tokens_of(request.system or "")
    written = tokens_of(content)
    return Completion(content, Usage(read, written, read + written), finish_reason)


class EchoBackend:
    """Answers every chat with its own last user message: no model, no cost, and every answer can be checked."""

    async def complete(self, job: Job) -> Completion:
        """Says the last user message again."""
        return echo(job)

    async def aclose(self) -> None:
        """Holds nothing."""


class UpstreamBackend:
    """Forwards chats to an OpenAI-compatible endpoint such as Ollama, vLLM, llama.cpp or OpenAI.

    Args:
        url: With or without ``/v1`` and ``/chat/completions`` at the end.
        api_key: Sent as a bearer token where the endpoint wants one.
        model: The upstream's name for the model; None sends the name that was asked.
        timeout: Seconds for one answer.

    Raises:
        ConfigurationError: If `url` is not an http(s) URL.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, model: str | None = None, timeout: float = 600.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"upstream {url!r} is not an http or https URL.")
        base = url.rstrip("/").removesuffix("/chat/completions")
        if not urlsplit(base).path:
            base += "/v1"
        self._url = f"{base}/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._model = model
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=10)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def complete(self, job: Job) -> Completion:
        """Asks the upstream.

        Raises:
            BackendError: If it cannot be reached, fails, or answers without a text.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=self._timeout)
        try:
            async with self._session.post(self._url, data=dump_json(self._body(job)), headers=self._headers) as reply:
                status, body = reply.status, await reply.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise BackendError(f"The upstream cannot be reached: {str(error) or type(error).__name__}") from error
        if status != 200:
            raise BackendError(f"The upstream answered {status}: {body[:300].decode('utf-8', 'replace')}")
        return _completion(body, job)

    def _body(self, job: Job) -> dict[str, JSON]:
        request = job.request
        asked = request_to_body(request)
        body = {name: asked[name] for name in _SAME_NAME if name in asked}
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": request.system})
        body |= {"model": self._model or request.model, "messages": messages}
        if job.max_tokens is not None:
            body["max_tokens"] = job.max_tokens
        if request.stop_sequences:
            body["stop"] = list(request.stop_sequences)
        return body

    async def aclose(self) -> None:
        """Closes the connections to the upstream."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _completion(body: bytes, job: Job) -> Completion:
    try:
        reply = parse_json(body)
        choice = reply["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content = choice = reply = None
    if not isinstance(content, str):
        raise BackendError(f"The upstream answered without a text: {body[:300].decode('utf-8', 'replace')}")
    counted = reply.get("usage") or {}
    read, written = counted.get("prompt_tokens"), counted.get("completion_tokens")
    if not isinstance(read, int) or not isinstance(written, int):  # some servers do not count
        read = sum(tokens_of(message.content) for message in job.request.messages)
        written = tokens_of(content)
    return Completion(content, Usage(read, written, read + written), choice.get("finish_reason"), reply.get("model"))
