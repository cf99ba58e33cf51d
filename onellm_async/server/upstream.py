"""Forwarding to an OpenAI-compatible endpoint: requests in its words, its answers and its errors in ours."""

import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from onellm_async.chat import JSON, Usage
from onellm_async.errors import ConfigurationError
from onellm_async.failure_kinds import RULES, Billing, kind_of_status
from onellm_async.server.backends import BackendError
from onellm_async.server.echo import input_tokens_of, tokens_of
from onellm_async.server.jobs import MOST_TOKENS, Completion, Job
from onellm_async.settings import ApiKey, Timeout, checked_url
from onellm_async.wire import Dialect, dump_json, parse_json, request_to_body
from onellm_async.wire.failures import error_text

__all__ = ["UpstreamBackend"]

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

_GEMINI_SHAPES = ("contents", "safety_settings", "generation_config")
_OF_ITS_OWNER = frozenset({401, 403, 405, 407})
"""Statuses that concern the address or the key of the upstream, of which the client of this server has neither."""
_A_MODEL = re.compile(r"\b(model|deployment)\b", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9}", re.ASCII)


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
        self._seconds = Timeout(total=timeout).total
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
        status, headers, body = await self._posted(dump_json(self._body(job)))
        if not 200 <= status < 300:
            raise self._failure(status, headers, self._shown(body), job)
        if self._secrets and len(self._secrets[0]) >= _MIN_SECRET:
            body = self._redacted(body)
        try:
            reply = parse_json(body)
        except ValueError:
            reply = None
        try:
            completion = _completion(reply, job, self._asked(job))
        except (TypeError, ValueError):  # for example nested too deeply to be passed on
            completion = None
        if completion is None:
            raise self._no_answer(status, headers, reply, body, job)
        return completion

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

    def _failure(self, status: int, headers: Mapping[str, str], text: str, job: Job) -> BackendError:
        ours = status
        if 300 <= status < 400:
            where = self._redacted(headers.get("Location", "somewhere else").encode("utf-8", "replace")).decode()
            text = f"a redirect to {where[:_MAX_TEXT]}. Give its final address."
        if status == 404:  # it says that an address is wrong, and the one that the client knows is right
            ours = 422 if _concerns_model(text, self._asked(job)) else 502
        elif status in _OF_ITS_OWNER or not 400 <= status < 500:
            ours = 502
        return BackendError(
            f"The upstream answered {status}: {text}",
            status=ours,
            retry_after=retry_after_of(headers, time.time()),
            billing=RULES[kind_of_status(status)].billing,
        )

    def _no_answer(self, status: int, headers: Mapping[str, str], reply: JSON, body: bytes, job: Job) -> BackendError:
        """What a 2xx without a chat reply means; around an error with a status it is that error."""
        text = self._shown(body)
        error = reply.get("error") if isinstance(reply, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(code, int) and 400 <= code <= 599:
            return self._failure(code, headers, text, job)
        text = f"The upstream answered {status} without a chat reply: {text}"
        return BackendError(text, status=502, billing=Billing.POSSIBLY_BILLED)

    def _asked(self, job: Job) -> str:
        return self._model or job.request.model

    def _redacted(self, body: bytes) -> bytes:
        """`body` without the key: endpoints like to repeat one that they refuse, and some all headers."""
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        return body

    def _shown(self, body: bytes) -> str:
        """What the upstream says in a reply that is no answer."""
        body = self._redacted(body)  # before it is cut, or half of the key could stay
        try:
            text = error_text(parse_json(body), b"")
        except ValueError:
            text = error_text(None, body)
        return text or _one_line(body[: 4 * _MAX_TEXT].decode("utf-8", "replace")) or "an empty body"

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


def retry_after_of(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``Retry-After``, as a number or a date; None where neither says.

    Args:
        headers: Of the reply, case-insensitive.
        now: Wall-clock seconds since 1970, for a date in a reply that does not tell its own time.
    """
    milliseconds, value = headers.get("retry-after-ms", "").strip(), headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    if _SECONDS.fullmatch(value):
        return float(value)
    until = _moment(value)
    if until is None:
        return None
    here = _moment(headers.get("Date", ""))
    return max(0.0, until - (now if here is None else here))


def _moment(value: str) -> float | None:
    if "," not in value and "GMT" not in value:
        return None
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _completion(reply: JSON, job: Job, asked: str) -> Completion | None:
    """The answer in a chat completion, with everything that came beside it; None where there is none."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list):
        return None
    choices = [choice for choice in choices if isinstance(choice, dict) and isinstance(choice.get("message"), dict)]
    if not choices:
        return None
    choice = next((choice for choice in choices if choice.get("index") == 0), choices[0])
    message = choice["message"]
    extra = {
        **_beside(reply, "choices", "usage", "model", "provider"),
        **_beside(choice, "index", "message", "finish_reason"),
        **_beside(message, "role", "content"),
    }
    content, whole = _joined(message.get("content"))
    if not whole:
        extra["content_parts"] = message["content"]
    if len(choices) > 1:  # all are paid for
        extra["choices"] = choices
    usage, details = _usage(reply.get("usage"), job, [_joined(each["message"].get("content"))[0] for each in choices])
    return Completion(
        content,
        usage,
        _text(choice.get("finish_reason")),
        _text(reply.get("model")) or asked,
        role=_text(message.get("role")) or "assistant",
        provider=_text(reply.get("provider")),
        extra=extra,
        usage_details=details,
    )


def _beside(value: dict[str, JSON], *known: str) -> dict[str, JSON]:
    return {name: item for name, item in value.items() if name not in known and item is not None}


def _joined(content: JSON) -> tuple[str, bool]:
    """The text of a content, and whether that is all there is to it."""
    if content is None or isinstance(content, str):
        return content or "", True
    parts = content if isinstance(content, list) else [content]
    texts = [part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None for part in parts]
    plain = all(isinstance(part, str) or (isinstance(part, dict) and part.keys() <= {"type", "text"}) for part in parts)
    return "".join(text for text in texts if isinstance(text, str)), plain and all(isinstance(t, str) for t in texts)


def _usage(counted: JSON, job: Job, contents: list[str]) -> tuple[Usage, dict[str, JSON]]:
    counted = counted if isinstance(counted, dict) else {}
    details = _beside(counted, "prompt_tokens", "completion_tokens", "total_tokens")
    read, written = _count(counted.get("prompt_tokens")), _count(counted.get("completion_tokens"))
    total = _count(counted.get("total_tokens"))
    if read is None or written is None:  # some servers do not count
        read, written, total = input_tokens_of(job.request), sum(map(tokens_of, contents)), None
    return Usage(read, written, min(read + written, MOST_TOKENS) if total is None else total), details


def _count(value: JSON) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None


def _text(value: JSON) -> str | None:
    return value if isinstance(value, str) else None
