"""Forwards chats to an OpenAI-compatible endpoint and translates its answers and errors."""

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
from onellm_async.settings import ApiKey, check_url
from onellm_async.validation import Checks
from onellm_async.wire import Dialect, decode_reply, dump_json, parse_json, request_to_body
from onellm_async.wire.error_replies import error_text

_MAX_REPLY_BYTES = 32 * 1024 * 1024
"""A longer reply, counted after decompression, is an error: no chat answer is that long."""
_KEEP_ALIVE = 4.0
"""Seconds that an idle connection is kept. Common servers close theirs after 5 s, which can cut off a new request."""
_CONNECT_TIMEOUT = 10.0
"""Seconds for name resolution, connection and TLS handshake together."""
_MAX_TEXT = 500
"""Characters of an upstream's error that the client receives."""
_MIN_SECRET = 20
"""Characters from which a key is hidden in answers, too. A shorter one may be a word of an answer, like ``ollama``."""

_check = Checks(ConfigurationError, "upstream ")
_COUNTS = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_GEMINI_FIELDS = ("contents", "safety_settings", "generation_config")
_OPERATOR_STATUSES = frozenset({401, 403, 405, 407})
"""Statuses about the upstream's URL or key, which the operator of this server sets, not its client."""
_MODEL_WORDS = re.compile(r"\b(model|deployment)\b", re.IGNORECASE)


class UpstreamBackend:
    """Forwards chats to an OpenAI-compatible endpoint such as Ollama, vLLM, llama.cpp or OpenAI.

    Every field of a request is forwarded under its OpenAI name, or rejected with a 422 that names it. Each request is
    sent once. An error reply contains the upstream's text:

    ==========================================  =============================
    the upstream                                the client of the server gets
    ==========================================  =============================
    400, 422, 429 and other 4xx                 the same, with ``Retry-After``
    404 for a model                             422
    401, 403, 404, 405, 407, a redirect         502
    529, an overload, a full connection pool    500
    5xx, no connection, no chat reply           502
    no answer within `timeout`                  504
    ==========================================  =============================

    Args:
        url: Base URL, for example ``http://127.0.0.1:11434/v1``, or the complete URL of the chat completions. A URL
            without a path gets ``/v1``.
        api_key: Bearer token of the upstream; None sends none. No error message contains it.
        model: Model to request from the upstream; None requests the model that the client asked for.
        timeout: Seconds that the upstream may take for one answer.

    Attributes:
        forwards: True, so that the server cancels a request whose client has disconnected; see `Backend`.

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
        """Sends the chat to the upstream.

        Raises:
            BackendError: If the upstream cannot be reached, fails, or returns no chat reply.
        """
        sent = dump_json(self._build_body(job))
        status, headers, body = await self._post(sent)
        if self._secrets and len(self._secrets[0]) >= _MIN_SECRET:  # some upstreams return the request headers
            body = self._redact(body)
        try:
            return _build_completion(self._decode(status, headers, body, job, sent), job, self._model_name(job))
        except ResponseDecodeError as error:
            problem = error.message.replace("The service", "The upstream", 1)
            raise self._error(problem, 502, FailureKind.NOT_A_CHAT_REPLY) from None
        except APIStatusError as error:
            raise self._translate_error(error, status, self._redact(body), job) from None
        except TypeError:  # of Completion: nested too deeply for JSON
            problem = f"The upstream answered {status} with JSON that is nested too deeply."
            raise self._error(problem, 502, FailureKind.NOT_A_CHAT_REPLY) from None

    def _decode(self, status: int, headers: Mapping[str, str], body: bytes, job: Job, sent: bytes) -> ChatResponse:
        model, now = job.request.model, time.time()
        try:
            return decode_reply(status, headers, body, model=model, now=now, asked=sent)
        except APIError:
            if not self._secrets:
                raise
        # Endpoints often repeat an invalid key. Redact it before the text is cut, or half of the key could remain.
        headers = {name: self._redact(value.encode("utf-8", "replace")).decode() for name, value in headers.items()}
        return decode_reply(status, headers, self._redact(body), model=model, now=now, asked=sent)

    async def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        status: int = 0
        headers: Mapping[str, str] = {}
        try:
            async with self._open_session().post(self._url, data=body, allow_redirects=False) as reply:
                status, headers = reply.status, reply.headers
                return status, headers, await _read(reply)
        except (aiohttp.ClientError, OSError) as error:
            if status >= 300:  # the status of an error is known without its complete text
                return status, headers, b""
            # From None: the frames of aiohttp contain the request headers, which contain the key.
            raise self._connection_error(error) from None

    def _connection_error(self, error: Exception) -> BackendError:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            text = f"The upstream cannot be reached: no connection within {_CONNECT_TIMEOUT:g} s."
            return BackendError(text, status=502)
        if isinstance(error, TimeoutError):
            text = f"The upstream did not answer within {self._seconds:g} s."
            return BackendError(text, status=504, billing=Billing.POSSIBLY_BILLED)
        if isinstance(error, aiohttp.ClientConnectorError):
            return BackendError(f"The upstream cannot be reached: {_one_line(str(error))}", status=502)
        text = f"The connection to the upstream broke: {_one_line(str(error) or type(error).__name__)}"
        return BackendError(text, status=502, billing=Billing.POSSIBLY_BILLED)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self._key is not None:
                headers["Authorization"] = self._key.authorization()
            connect = _CONNECT_TIMEOUT
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
                cookie_jar=aiohttp.DummyCookieJar(),  # a cookie of one client must not reach another
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._seconds, connect=connect, sock_connect=connect),
            )
        return self._session

    def _translate_error(self, error: APIStatusError, http_status: int, body: bytes, job: Job) -> BackendError:
        status = error.status_code
        text = error.message.removeprefix(str(status)).strip()
        if http_status == status >= 400 and not _error_text(body):  # not JSON of a known shape: use all of it
            text = _one_line(body.decode("utf-8", "replace")) or text
        ours, words = status, text.casefold()
        if status == 404:  # a 404 would tell the client that its own URL is wrong
            ours = 422 if _is_about_model(text, self._model_name(job)) else 502
        elif error.kind is FailureKind.OVERLOADED:  # a client reads a 500 with these words as OVERLOADED
            ours = 500
            text = text if "overloaded" in words or "database" in words or "pool" in words else f"overloaded. {text}"
        elif status in _OPERATOR_STATUSES or not 400 <= status < 500:
            ours = 502
        if error.kind is FailureKind.BALANCE_TOO_LOW and "insufficient" not in words:
            text = f"{text} (insufficient quota)"  # the upstream may have said so in another field
        return self._error(f"The upstream answered {status}: {text}", ours, error.kind, error.retry_after)

    def _error(self, text: str, status: int, kind: FailureKind, retry_after: float | None = None) -> BackendError:
        for secret in self._secrets:
            text = text.replace(secret.decode(), "***")
        return BackendError(text, status=status, retry_after=retry_after, billing=RULES[kind].billing)

    def _model_name(self, job: Job) -> str:
        return self._model or job.request.model

    def _redact(self, body: bytes) -> bytes:
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        return body

    def _build_body(self, job: Job) -> dict[str, JSON]:
        request = job.request
        body = {name: value for name, value in request_to_body(request).items() if value is not None}
        for name in _GEMINI_FIELDS:
            if name in body:
                text = f"{name} is a field of Gemini; the upstream of this server has the OpenAI API. Omit it."
                raise BackendError(text, status=422)
        if "endpoint" in body and job.dialect is not Dialect.BACKEND:  # in which it is required
            raise BackendError("endpoint cannot be chosen: this server has one upstream. Omit it.", status=422)
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
        return body | {"model": self._model_name(job), "messages": messages}

    async def aclose(self) -> None:
        """Closes the connections to the upstream."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _completions_url(url: str) -> str:
    try:
        check_url("upstream", url)
        base = url.rstrip("/")
    except ConfigurationError:
        base = ""
    if not base or "?" in base or "#" in base:
        shown = f"…@{url.rpartition('@')[2]}" if "@" in url else url  # the first part may be a password
        raise ConfigurationError(
            f"upstream {shown!r} is not an http or https URL that a path can be added to.",
            advice="Use a URL such as http://127.0.0.1:11434/v1, and api_key for the key.",
        )
    if base.endswith("/chat/completions"):
        return base
    return f"{base}/chat/completions" if urlsplit(base).path.strip("/") else f"{base}/v1/chat/completions"


def _spellings(secret: str) -> tuple[bytes, ...]:
    """Returns the spellings of a key in texts and JSON documents, the plain form first."""
    escaped = dump_json(secret)[1:-1]
    return tuple(dict.fromkeys([secret.encode(), escaped, escaped.replace(b"/", b"\\/")]))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_TEXT]


def _is_about_model(text: str, model: str) -> bool:
    named = re.search(rf"(?<!\w){re.escape(model)}(?!\w)", text, re.IGNORECASE)
    return named is not None or _MODEL_WORDS.search(text) is not None


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    while chunk := await reply.content.readany():
        body += chunk
        if len(body) > _MAX_REPLY_BYTES:
            reply.close()
            raise aiohttp.ClientPayloadError(f"its reply is longer than {_MAX_REPLY_BYTES // 2**20} MiB")
    return bytes(body)


def _error_text(body: bytes) -> str:
    try:
        return error_text(parse_json(body), b"")
    except ValueError:
        return error_text(None, body)


def _build_completion(response: ChatResponse, job: Job, model: str) -> Completion:
    """Returns the upstream's answer as a completion. Keeps all other fields of the reply."""
    extra = {name: value for name, value in response.extra.items() if value is not None}
    if "content" in extra:
        extra["content_parts"] = extra.pop("content")  # the field itself contains the text
    details = extra.pop("usage", None)
    details = details if isinstance(details, dict) else {}
    used = response.usage or Usage()
    read, written, total = used.input_tokens, used.output_tokens, used.total_tokens
    if read is None or written is None:  # some servers count no tokens
        choices = extra.get("choices")
        answers = len(choices) if isinstance(choices, list) else 1
        read, written, total = count_input_tokens(job.request), answers * count_tokens(response.content), None
    return Completion(
        response.content,
        Usage(read, written, min(read + written, MAX_TOKEN_COUNT) if total is None else total),
        response.finish_reason,
        response.model or model,
        role=response.role or "assistant",
        provider=response.provider,
        extra=extra,
        usage_details={name: value for name, value in details.items() if name not in _COUNTS and value is not None},
    )
