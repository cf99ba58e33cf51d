"""Who answers behind the local server: an echo, or any OpenAI-compatible endpoint."""

from typing import Protocol, Self
from urllib.parse import urlsplit

import aiohttp

from onellm_async.chat import JSON, Usage
from onellm_async.errors import ConfigurationError
from onellm_async.server.echo import echo, input_tokens_of, tokens_of
from onellm_async.server.jobs import MOST_TOKENS, Completion, Job
from onellm_async.settings import ApiKey, Timeout, checked_url
from onellm_async.wire import dump_json, parse_json, request_to_body

__all__ = ["Backend", "BackendError", "EchoBackend", "UpstreamBackend", "echo"]

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
        url: Its base, for example ``http://127.0.0.1:11434/v1``, or the whole address of its chat completions.
            ``/v1`` is added to a bare host.
        api_key: Sent as a bearer token where the endpoint wants one. It never shows in errors.
        model: The upstream's name for the model; None sends the name that was asked.
        timeout: Seconds for one answer.

    Raises:
        ConfigurationError: If `url` is not an http(s) URL, or the key or the timeout cannot be used.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, model: str | None = None, timeout: float = 600.0
    ) -> None:
        self._url = _completions_url(url)
        self._headers = {"Content-Type": "application/json"}
        self._secret = (api_key or "").encode()
        if api_key:
            self._headers["Authorization"] = ApiKey(api_key).authorization()
        self._model = model
        self._timeout = aiohttp.ClientTimeout(total=Timeout(total=timeout).total, sock_connect=10)
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
        posting = self._session.post(
            self._url, data=dump_json(self._body(job)), headers=self._headers, allow_redirects=False
        )
        try:
            async with posting as reply:
                status, body = reply.status, await reply.read()
        except TimeoutError as error:
            raise BackendError(f"The upstream did not answer within {self._timeout.total:g} s.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise BackendError(f"The upstream cannot be reached: {str(error) or type(error).__name__}") from error
        if status != 200:
            raise BackendError(f"The upstream answered {status}: {self._quoted(body)}")
        completion = _completion(body, job)
        if completion is None:
            raise BackendError(f"The upstream answered without a text: {self._quoted(body)}")
        return completion

    def _quoted(self, body: bytes) -> str:
        if self._secret:  # endpoints like to repeat a key that they refuse
            body = body.replace(self._secret, b"***")
        return body[:300].decode("utf-8", "replace") or "an empty body"

    def _body(self, job: Job) -> dict[str, JSON]:
        request = job.request
        asked = request_to_body(request)
        body = {name: asked[name] for name in _SAME_NAME if name in asked}
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": request.system})
        body |= {"model": self._model or request.model, "messages": messages}
        if request.max_tokens is not None:  # what the balance alone affords is more than any endpoint accepts
            body["max_tokens"] = job.max_tokens
        if request.stop_sequences:
            body["stop"] = list(request.stop_sequences)
        return body

    async def aclose(self) -> None:
        """Closes the connections to the upstream."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _completions_url(url: str) -> str:
    try:
        checked_url("upstream", url)
        base = url.rstrip("/")
    except ConfigurationError:
        base = ""
    if not base or "?" in base or "#" in base:
        shown = f"…@{url.rpartition('@')[2]}" if "@" in url else url  # what may be a password is not echoed
        raise ConfigurationError(
            f"upstream {shown!r} is not an http or https URL that paths can be added to.",
            advice="Give an address such as http://127.0.0.1:11434/v1; its key goes in api_key.",
        )
    if base.endswith("/chat/completions"):
        return base
    return f"{base}/chat/completions" if urlsplit(base).path.strip("/") else f"{base}/v1/chat/completions"


def _completion(body: bytes, job: Job) -> Completion | None:
    try:
        reply = parse_json(body)
        choice = reply["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content = choice = reply = None
    if not isinstance(content, str):
        return None
    counted = reply.get("usage")
    counted = counted if isinstance(counted, dict) else {}
    read, written = _count(counted.get("prompt_tokens")), _count(counted.get("completion_tokens"))
    if read is None or written is None:  # some servers do not count
        read, written = input_tokens_of(job.request), tokens_of(content)
    usage = Usage(read, written, min(read + written, MOST_TOKENS))
    return Completion(content, usage, _text(choice.get("finish_reason")), _text(reply.get("model")))


def _count(value: JSON) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None


def _text(value: JSON) -> str | None:
    return value if isinstance(value, str) else None
