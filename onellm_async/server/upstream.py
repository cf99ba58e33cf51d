"""Forwarding to an OpenAI-compatible endpoint: requests in its words, its answers and its errors in ours."""

import re
import time
from collections.abc import Mapping
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from onellm_async.chat import JSON, ChatResponse, Usage
from onellm_async.errors import APIError, APIStatusError, ConfigurationError, ResponseDecodeError
from onellm_async.failure_kinds import RULES, Billing, FailureKind
from onellm_async.server.backends import BackendError, count_input_tokens, count_tokens
from onellm_async.server.jobs import MAX_TOKEN_COUNT, Completion, Job
from onellm_async.settings import ApiKey, checked_url
from onellm_async.validation import Checks
from onellm_async.wire import Dialect, decode_reply, dump_json, parse_json, request_to_body
from onellm_async.wire.failures import error_text

_MAX_REPLY_BYTES = 32 * 1024 * 1024
"""A longer reply, counted after decompression, is refused: no chat answer is that long."""
_KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept: common servers close theirs after 5, and a request may cross that."""
_CONNECT = 10.0
"""Seconds to resolve the name and open the connection."""
_MAX_TEXT = 500
"""Characters of an error of the upstream that are passed on."""
_MIN_SECRET = 20
"""Keys of services are longer. A shorter one is a word such as ``ollama``, and answers may hold that word."""

_check = Checks(ConfigurationError, "upstream ")
_COUNTS = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_GEMINI_SHAPES = ("contents", "safety_settings", "generation_config")
_OF_ITS_OWNER = frozenset({401, 403, 405, 407})
"""Statuses that concern the address or the key of the upstream, of which the client of this server has neither."""
_A_MODEL = re.compile(r"\b(model|deployment)\b", re.IGNORECASE)


class UpstreamBackend:
    """Forwards chats to an OpenAI-compatible endpoint such as Ollama, vLLM, llama.cpp or OpenAI.

    Every field of a request is forwarded, under its OpenAI name, or refused by name with 422. Each request is sent
    once. The errors of the upstream are passed on with its text:

    ==========================================  =============================
    the upstream                                the client of the server gets
    ==========================================  =============================
    400, 422, 429 and other 4xx                 the same, with ``Retry-After``
    404 for a model                             422
    401, 403, 404, 405, 407, a redirect         502
    529, an overload or a database in need      500
    5xx, no connection, no chat reply           502
    no answer within `timeout`                  504
    ==========================================  =============================

    Args:
        url: Its base, for example ``http://127.0.0.1:11434/v1``, or the whole address of its chat completions.
            ``/v1`` is added to a bare host.
        api_key: Sent as a bearer token where the endpoint wants one. It never shows in errors.
        model: The upstream's name for the model; None sends the name that was asked.
        timeout: Seconds for one answer.

    Attributes:
        forwards: Tells the server to end the upstream's work when the client hangs up; see `Backend`.

    Raises:
        ConfigurationError: If `url` is not an http(s) URL, or the key or the timeout cannot be used.
    """

    forwards: bool = True

    def __init__(
        self, url: str, *, api_key: str | None = None, model: str | None = None, timeout: float = 600.0
    ) -> None:
        self._url = _completions_url(url)
        self._key = ApiKey(api_key) if api_key else None
        self._secrets = _spellings(api_key) if api_key else ()
        self._model = model
        _check.check_number("timeout", timeout, 0, above=True)
        self._seconds = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def complete(self, job: Job) -> Completion:
        """Asks the upstream.

        Raises:
            BackendError: If it cannot be reached, fails, or answers without a chat reply.
        """
        asked = dump_json(self._body(job))
        status, headers, body = await self._posted(asked)
        if self._secrets and len(self._secrets[0]) >= _MIN_SECRET:  # some repeat the headers that they were sent
            body = self._redacted(body)
        try:
            return _completion(self._decoded(status, headers, body, job, asked), job, self._asked(job))
        except ResponseDecodeError as error:
            problem = error.message.replace("The service", "The upstream", 1)
            raise self._failure(problem, 502, FailureKind.NOT_A_CHAT_REPLY) from None
        except APIStatusError as error:
            raise self._passed_on(error, status, self._redacted(body), job) from None
        except TypeError:  # of the completion: nested too deeply to be passed on
            problem = f"The upstream answered {status} with JSON that is nested too deeply."
            raise self._failure(problem, 502, FailureKind.NOT_A_CHAT_REPLY) from None

    def _decoded(self, status: int, headers: Mapping[str, str], body: bytes, job: Job, asked: bytes) -> ChatResponse:
        model, now = job.request.model, time.time()
        try:
            return decode_reply(status, headers, body, model=model, now=now, asked=asked)
        except APIError:
            if not self._secrets:
                raise
        # Endpoints like to repeat a key that they refuse. It goes before the text is cut, or half of it could stay.
        headers = {name: self._redacted(value.encode("utf-8", "replace")).decode() for name, value in headers.items()}
        return decode_reply(status, headers, self._redacted(body), model=model, now=now, asked=asked)

    async def _posted(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        status: int = 0
        headers: Mapping[str, str] = {}
        try:
            async with self._opened().post(self._url, data=body, allow_redirects=False) as reply:
                status, headers = reply.status, reply.headers
                return status, headers, await _read(reply)
        except (aiohttp.ClientError, OSError) as error:
            if status >= 300:  # an error whose text broke off is that error all the same
                return status, headers, b""
            # From None: the frames of aiohttp hold the headers of the request, and with them the key.
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> BackendError:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return BackendError(f"The upstream cannot be reached: no connection within {_CONNECT:g} s.", status=502)
        if isinstance(error, TimeoutError):
            text = f"The upstream did not answer within {self._seconds:g} s."
            return BackendError(text, status=504, billing=Billing.POSSIBLY_BILLED)
        if isinstance(error, aiohttp.ClientConnectorError):
            return BackendError(f"The upstream cannot be reached: {_one_line(str(error))}", status=502)
        text = f"The connection to the upstream broke: {_one_line(str(error) or type(error).__name__)}"
        return BackendError(text, status=502, billing=Billing.POSSIBLY_BILLED)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self._key is not None:
                headers["Authorization"] = self._key.authorization()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
                cookie_jar=aiohttp.DummyCookieJar(),  # what it sets for one client is not sent for another
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._seconds, connect=_CONNECT, sock_connect=_CONNECT),
            )
        return self._session

    def _passed_on(self, error: APIStatusError, http_status: int, body: bytes, job: Job) -> BackendError:
        status = error.status_code
        text = error.message.removeprefix(str(status)).strip()
        if http_status == status >= 400 and not _text_of(body):  # whatever it is, it is all that there is
            text = _one_line(body.decode("utf-8", "replace")) or text
        ours, words = status, text.casefold()
        if status == 404:  # it says that an address is wrong, and the one that the client knows is right
            ours = 422 if _concerns_model(text, self._asked(job)) else 502
        elif error.kind is FailureKind.OVERLOADED:  # a 500 with these words tells clients: not billed, ask less at once
            ours = 500
            text = text if "overloaded" in words or "database" in words or "pool" in words else f"overloaded. {text}"
        elif status in _OF_ITS_OWNER or not 400 <= status < 500:
            ours = 502
        if error.kind is FailureKind.BALANCE_TOO_LOW and "insufficient" not in words:
            text = f"{text} (insufficient quota)"  # services may say it in a field beside the text
        return self._failure(f"The upstream answered {status}: {text}", ours, error.kind, error.retry_after)

    def _failure(self, text: str, status: int, kind: FailureKind, retry_after: float | None = None) -> BackendError:
        for secret in self._secrets:
            text = text.replace(secret.decode(), "***")
        return BackendError(text, status=status, retry_after=retry_after, billing=RULES[kind].billing)

    def _asked(self, job: Job) -> str:
        return self._model or job.request.model

    def _redacted(self, body: bytes) -> bytes:
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        return body

    def _body(self, job: Job) -> dict[str, JSON]:
        request = job.request
        body = {name: value for name, value in request_to_body(request).items() if value is not None}
        for name in _GEMINI_SHAPES:
            if name in body:
                text = f"{name} is a field of Gemini; the upstream of this server speaks the OpenAI API. Leave it out."
                raise BackendError(text, status=422)
        if "endpoint" in body and job.dialect is not Dialect.BACKEND:  # where it is compulsory
            raise BackendError("endpoint is not for you to choose: this server has one upstream.", status=422)
        body.pop("endpoint", None)
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        if body.pop("system", None) is not None:
            messages.insert(0, {"role": "system", "content": request.system or ""})
        stops = body.pop("stop_sequences", None)
        if stops:
            if "stop" in body:
                raise BackendError("stop and stop_sequences are the same field. Send one of them.", status=422)
            body["stop"] = list(stops)
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int) and job.affordable_tokens is not None:
                body[name] = min(body[name], job.affordable_tokens)
        return body | {"model": self._asked(job), "messages": messages}

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


def _spellings(secret: str) -> tuple[bytes, ...]:
    """The key as texts and JSON documents show it, the plain form first."""
    escaped = dump_json(secret)[1:-1]
    return tuple(dict.fromkeys([secret.encode(), escaped, escaped.replace(b"/", b"\\/")]))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_TEXT]


def _concerns_model(text: str, asked: str) -> bool:
    named = re.search(rf"(?<!\w){re.escape(asked)}(?!\w)", text, re.IGNORECASE)
    return named is not None or _A_MODEL.search(text) is not None


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    while chunk := await reply.content.readany():
        body += chunk
        if len(body) > _MAX_REPLY_BYTES:
            reply.close()
            raise aiohttp.ClientPayloadError(f"its reply is longer than {_MAX_REPLY_BYTES // 2**20} MiB")
    return bytes(body)


def _text_of(body: bytes) -> str:
    try:
        return error_text(parse_json(body), b"")
    except ValueError:
        return error_text(None, body)


def _completion(response: ChatResponse, job: Job, asked: str) -> Completion:
    """The answer as the backend of a server returns it. What the reply holds beside it is kept."""
    extra = {name: value for name, value in response.extra.items() if value is not None}
    if "content" in extra:
        extra["content_parts"] = extra.pop("content")  # the field itself holds the text
    details = extra.pop("usage", None)
    details = details if isinstance(details, dict) else {}
    used = response.usage or Usage()
    read, written, total = used.input_tokens, used.output_tokens, used.total_tokens
    if read is None or written is None:  # some servers do not count
        choices = extra.get("choices")
        answers = len(choices) if isinstance(choices, list) else 1
        read, written, total = count_input_tokens(job.request), answers * count_tokens(response.content), None
    return Completion(
        response.content,
        Usage(read, written, min(read + written, MAX_TOKEN_COUNT) if total is None else total),
        response.finish_reason,
        response.model or asked,
        role=response.role or "assistant",
        provider=response.provider,
        extra=extra,
        usage_details={name: value for name, value in details.items() if name not in _COUNTS and value is not None},
    )
