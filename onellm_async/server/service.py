"""A OneLLM without sockets and clocks: what it makes of each request, as values. Pure.

::

    receive(request, now) ─→ a reply at once (refused, rejected), or
                          ─→ a Job: wait job.plan.latency, then
                               doomed(job)  ─→ a Delivery where the plan has it fail before processing, or
                               complete(job, completion) / fail(job, text) ─→ a Delivery

The host only waits, calls the backend and writes bytes; so the same service runs over HTTP and in simulations.
"""

from collections.abc import Mapping
from random import Random

from attrs import frozen

from onellm_async import catalog
from onellm_async.chat import ChatRequest, Usage
from onellm_async.server import rejections
from onellm_async.server.accounts import MINIMUM_BALANCE, Account, Accounts
from onellm_async.server.checking import Malformed, checked
from onellm_async.server.ledger import Ledger, LedgerRow, Outcome
from onellm_async.server.settings import Fault, FaultPlan, ServerSettings
from onellm_async.transport import RawReply
from onellm_async.wire import Dialect, parse_json

__all__ = ["PATH", "Completion", "Delivery", "Job", "Service"]

PATH = "/api"
"""The one address of the API; everything else is not found."""

_PROVIDERS = {
    "openai": "OpenAI",
    "anthropic": "Claude",
    "google": "Gemini",
    "deepseek": "DeepSeek",
    "mistral": "Mistral",
}
_BYTES_PER_TOKEN = 4


@frozen
class Job:
    """An accepted request that still has to be processed.

    Attributes:
        number: In order of arrival, from 1.
        request: What was asked.
        max_tokens: Most tokens to generate, lowered to what the balance affords; None: no bound.
        plan: What will happen to it.
        received_at: Seconds on the server's clock.
        account: Whose it is.
    """

    number: int
    request: ChatRequest
    max_tokens: int | None
    plan: FaultPlan
    received_at: float
    account: Account


@frozen
class Completion:
    """What a backend made of a job."""

    content: str
    usage: Usage
    finish_reason: str | None = "stop"
    model: str | None = None


@frozen
class Delivery:
    """What is written to the connection.

    Attributes:
        reply: The whole reply; None when the connection is reset instead.
        truncated: Write only the first half of the body.
    """

    reply: RawReply | None
    truncated: bool = False


class Service:
    """The state of a local OneLLM: accounts, ledger and the dice for faults.

    Args:
        settings: What it pretends to be.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.keep_rows)
        self._accounts = Accounts(settings)
        self._random = Random(settings.faults.seed)
        self._arrived = 0

    def receive(self, method: str, path: str, headers: Mapping[str, str], body: bytes, now: float) -> RawReply | Job:
        """What to do about a request that arrives `now`.

        Args:
            method: HTTP method.
            path: Without the query.
            headers: Case-insensitive, or with the usual capitals.
            body: The whole body.
            now: Seconds on the server's clock.
        """
        dialect = self.settings.dialect
        if path != PATH:
            return rejections.framework_rejection(dialect, 404)
        if method != "POST":
            return rejections.framework_rejection(dialect, 405, headers={"Allow": "POST"})
        self._arrived += 1
        if dialect is Dialect.DOCUMENTED:
            return self._documented(headers, body, now)
        return self._backend(headers, body, now)

    def _documented(self, headers: Mapping[str, str], body: bytes, now: float) -> RawReply | Job:
        key = _bearer(headers)
        if not isinstance(key, str):
            return self._rejected(401, key.text, now)
        account = self._accounts.of(key, now)
        if not account.known:
            return self._rejected(401, "Invalid API key.", now, account)
        if account.blocked:
            return self._rejected(403, "This key has no access.", now, account)
        request = self._parsed(headers, body, now, account)
        if isinstance(request, RawReply):
            return request
        return self._limited(account, request, now) or self._accepted(account, request, now)

    def _backend(self, headers: Mapping[str, str], body: bytes, now: float) -> RawReply | Job:
        request = self._parsed(headers, body, now, None)
        if isinstance(request, RawReply):
            return request
        key = _bearer(headers)
        if not isinstance(key, str):
            return self._rejected(401, key.text, now)
        account = self._accounts.of(key, now)
        refusal = self._limited(account, request, now)  # the bucket is asked before the key is looked up
        if refusal is not None:
            return refusal
        if not account.known or account.blocked:
            return self._rejected(401, rejections.UNKNOWN_KEY, now, account)
        return self._accepted(account, request, now)

    def _parsed(
        self, headers: Mapping[str, str], body: bytes, now: float, account: Account | None
    ) -> RawReply | ChatRequest:
        dialect = self.settings.dialect
        content_type = headers.get("Content-Type", "").partition(";")[0].strip().casefold()
        if content_type != "application/json" and not content_type.endswith("+json"):
            status, text = 415, "Expected request with `Content-Type: application/json`"
        else:
            try:
                return checked(dialect, parse_json(body), len(body))
            except Malformed as problem:
                status, text = 422, str(problem)
            except ValueError as problem:
                status, text = 400, f"Failed to parse the request body as JSON: {problem}"
        self._enter(Outcome.REJECTED, now, account)
        return rejections.framework_rejection(dialect, status, text)

    def _limited(self, account: Account, request: ChatRequest, now: float) -> RawReply | None:
        if account.bucket.try_take(1, now):
            return None
        self._enter(Outcome.REFUSED, now, account, request)
        seconds = self.settings.faults.retry_after
        headers = {} if seconds is None else {"Retry-After": str(seconds)}
        return rejections.handler_error(self.settings.dialect, 429, rejections.RATE_LIMITED, headers)

    def _accepted(self, account: Account, request: ChatRequest, now: float) -> RawReply | Job:
        dialect = self.settings.dialect
        affordable = _affordable_tokens(account.balance, request)
        if account.balance < MINIMUM_BALANCE or (affordable is not None and affordable < 1):
            # The documentation has no status of its own for this; 403 is its "no access".
            status = 403 if dialect is Dialect.DOCUMENTED else 500
            return self._rejected(status, rejections.NO_BALANCE, now, account, request)
        bounds = [bound for bound in (request.max_tokens, affordable) if bound is not None]
        plan = self.settings.faults.plan(self._random)
        return Job(self._arrived, request, min(bounds, default=None), plan, now, account)

    def doomed(self, job: Job) -> Delivery | None:
        """What is written when the plan has `job` fail before it is processed; None when it is to be processed."""
        match job.plan.fault:
            case Fault.RESET_BEFORE:
                self._end(job, Outcome.DROPPED)
                return Delivery(None)
            case Fault.SERVER_ERROR:
                return self.fail(job, "missing field `id` at line 1 column 42")
            case Fault.GATEWAY_ERROR:
                self._end(job, Outcome.FAILED)
                return Delivery(rejections.gateway_error())
            case _:
                return None

    def fail(self, job: Job, text: str) -> Delivery:
        """What is written when the backend failed; nothing is billed."""
        self._end(job, Outcome.FAILED)
        return Delivery(rejections.handler_error(self.settings.dialect, 500, text))

    def complete(self, job: Job, completion: Completion) -> Delivery:
        """Bills `job`, and what is then written."""
        usage = completion.usage
        cost = catalog.cost(job.request.model, usage) or 0.0
        job.account.balance -= cost
        lost = job.plan.fault is not None
        self._end(job, Outcome.LOST if lost else Outcome.ANSWERED, cost, usage)
        if job.plan.fault is Fault.RESET_AFTER:
            return Delivery(None)
        entry = catalog.lookup(job.request.model)
        flat = {
            "provider": _PROVIDERS[entry.provider] if entry is not None else None,
            "model": completion.model or job.request.model.lower(),
            "role": "assistant",
            "content": completion.content,
            "usage": {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
            },
            "finish_reason": completion.finish_reason,
        }
        reply = rejections.answer(self.settings.dialect, flat)
        return Delivery(reply, truncated=job.plan.fault is Fault.TRUNCATED)

    def _rejected(
        self, status: int, text: str, now: float, account: Account | None = None, request: ChatRequest | None = None
    ) -> RawReply:
        self._enter(Outcome.REJECTED, now, account, request)
        return rejections.handler_error(self.settings.dialect, status, text)

    def _enter(self, outcome: Outcome, now: float, account: Account | None, request: ChatRequest | None = None) -> None:
        label = account.label if account is not None else ""
        model, prompt = (request.model, _prompt(request)) if request is not None else ("", "")
        self.ledger.enter(LedgerRow(self._arrived, label, now, model, prompt, outcome))

    def _end(self, job: Job, outcome: Outcome, cost: float = 0.0, usage: Usage | None = None) -> None:
        request, label = job.request, job.account.label
        row = LedgerRow(job.number, label, job.received_at, request.model, _prompt(request), outcome, cost)
        usage = usage or Usage()
        self.ledger.enter(row, input_tokens=usage.input_tokens or 0, output_tokens=usage.output_tokens or 0)


@frozen
class _NoKey:
    text: str


def _bearer(headers: Mapping[str, str]) -> str | _NoKey:
    value = headers.get("Authorization")
    if value is None:
        return _NoKey(rejections.NO_KEY)
    scheme, _, key = value.partition(" ")
    if scheme.casefold() != "bearer" or not key.strip():
        return _NoKey(rejections.NO_BEARER)
    return key.strip()


def _prompt(request: ChatRequest) -> str:
    asked = (message.content for message in reversed(request.messages) if message.role == "user")
    return next(asked, request.messages[-1].content)


def _affordable_tokens(balance: float, request: ChatRequest) -> int | None:
    entry = catalog.lookup(request.model)
    if entry is None or not entry.output_price:
        return None
    length = sum(len(message.content) for message in request.messages)
    left = balance - (entry.input_price or 0.0) * length / _BYTES_PER_TOKEN / 1_000_000
    return int(left / entry.output_price * 1_000_000)
