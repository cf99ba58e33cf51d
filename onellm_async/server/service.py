"""A OneLLM without sockets and clocks: what it makes of each request, as values. Pure.

::

    receive(request, now) ─→ RawReply: the request ended at once, or
                          ─→ Job, which the host takes through these steps:
        acquire_connection(job)         only with Faults.database_places; fail_without_connection(job) ends the job
        (wait job.plan.latency)
        apply_fault(job)                ends the job if its plan says so
        complete(job, completion)       after the backend answered
        fail(job, text, …)              after the backend failed
        abandon(job)                    if the host cannot continue

The host only waits, calls the backend and writes bytes; so the same service runs over HTTP and in simulations.
"""

from collections.abc import Callable, Mapping
from random import Random

from attrs import frozen

from onellm_async import catalog
from onellm_async.chat import ChatRequest
from onellm_async.failure_kinds import Billing
from onellm_async.server import replies
from onellm_async.server.accounts import DEFAULT_ANSWER_TOKENS, EMPTY_BALANCE, MIN_BALANCE, Account, Accounts
from onellm_async.server.backends import count_input_tokens, last_user_message
from onellm_async.server.connection_pool import POOL_TIMED_OUT, ConnectionPool
from onellm_async.server.jobs import MAX_TOKEN_COUNT, Completion, Job, ServerReply
from onellm_async.server.ledger import MAX_PROMPT_CHARACTERS, Ledger, LedgerRow, Outcome
from onellm_async.server.request_validation import (
    MAX_BODY_BYTES,
    ValidatedRequest,
    ValidationError,
    decompress,
    validate_request,
)
from onellm_async.server.settings import Fault, FaultPlan, ServerSettings
from onellm_async.transport import RawReply
from onellm_async.wire import Dialect, parse_json

PATH = "/api"
"""The one address of the API; everything else is not found."""


class Service:
    """The state of a local OneLLM: accounts, ledger and the dice for faults.

    Args:
        settings: What it pretends to be.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings: ServerSettings = settings
        self.ledger: Ledger = Ledger(settings.keep_rows)
        self._priced = settings.list_prices is not False
        self._accounts = Accounts(settings)
        self._random = Random(settings.faults.seed)
        places = settings.faults.database_places
        self._pool = ConnectionPool(places) if places is not None else None
        self._arrived = 0

    def retune(self, requests_per_minute: float | None, now: float) -> None:
        """Changes the rate limit of every key from `now` on; None: there is none."""
        self._accounts.retune(requests_per_minute, now)

    def account(self, key: str, now: float) -> Account:
        """The standing of `key`, for tests and simulations that look at it or change it."""
        return self._accounts.of(key, now)

    def revoke(self, key: str) -> None:
        """Makes `key` unknown from now on; requests in flight are answered."""
        self._accounts.revoke(key)

    def receive(self, method: str, path: str, headers: Mapping[str, str], body: bytes, now: float) -> RawReply | Job:
        """What to do about a request that arrives `now`.

        Args:
            method: HTTP method.
            path: Without the query.
            headers: Case-insensitive, or with the usual capitals.
            body: The whole body, compressed if it came so.
            now: Seconds on the server's clock.
        """
        if len(body) > MAX_BODY_BYTES:
            return self.reject_too_long(now)
        self._arrived += 1
        backend = self.settings.dialect is Dialect.BACKEND
        if backend and path == "/" and method not in {"GET", "HEAD"}:  # the published one has a page there
            return self._reject_route(405, "", now, {"Allow": "GET, HEAD"})
        if path != PATH:
            return self._reject_route(404, "No such endpoint.", now)
        if method != "POST":
            return self._reject_route(405, "Only POST is allowed.", now, {"Allow": "POST"})
        return self._backend(headers, body, now) if backend else self._documented(headers, body, now)

    def reject_too_long(self, now: float) -> RawReply:
        """What to say to a body beyond `MAX_BODY_BYTES`, which the host need not have read to its end."""
        self._arrived += 1
        self._enter(Outcome.REJECTED, now, None)
        text = "Failed to buffer the request body: length limit exceeded"
        return replies.framework_error(self.settings.dialect, 413, text)

    def _reject_route(self, status: int, text: str, now: float, headers: dict[str, str] | None = None) -> RawReply:
        self._enter(Outcome.REJECTED, now, None)
        dialect = self.settings.dialect
        text = text if dialect is Dialect.DOCUMENTED else ""  # the backend's framework says nothing here
        return replies.framework_error(dialect, status, text, headers)

    def _documented(self, headers: Mapping[str, str], body: bytes, now: float) -> RawReply | Job:
        key = _bearer(headers)
        if not isinstance(key, str):
            return self._rejected(401, key.text, now)
        account = self._accounts.of(key, now)
        if not account.known:
            return self._rejected(401, "Invalid API key.", now, account)
        if account.blocked:
            return self._rejected(403, "This key has no access.", now, account)
        asked = self._parsed(headers, body, now, account)
        if isinstance(asked, RawReply):
            return asked
        return self._limited(account, asked.request, now) or self._accepted(account, asked, now)

    def _backend(self, headers: Mapping[str, str], body: bytes, now: float) -> RawReply | Job:
        asked = self._parsed(headers, body, now, None)
        if isinstance(asked, RawReply):
            return asked
        key = _bearer(headers)
        if not isinstance(key, str):
            return self._rejected(401, key.text, now)
        account = self._accounts.of(key, now)
        refusal = self._limited(account, asked.request, now)  # the bucket is asked before the key is looked up
        if refusal is not None:
            return refusal
        if not account.known or account.blocked:
            return self._rejected(401, replies.UNKNOWN_KEY, now, account)
        return self._accepted(account, asked, now)

    def _parsed(
        self, headers: Mapping[str, str], body: bytes, now: float, account: Account | None
    ) -> RawReply | ValidatedRequest:
        dialect = self.settings.dialect
        content_type = headers.get("Content-Type", "").partition(";")[0].strip().casefold()
        if content_type != "application/json" and not content_type.endswith("+json"):
            status, text = 415, "Expected request with `Content-Type: application/json`"
        else:
            try:
                body = decompress(body, headers.get("Content-Encoding", ""))
                body.decode()  # parse_json forgives broken text in replies; who sends it should hear of it
                return validate_request(dialect, parse_json(body), len(body), any_model=self.settings.any_model)
            except ValidationError as problem:
                status, text = problem.status, str(problem)
            except ValueError as problem:
                status, text = 400, f"Failed to parse the request body as JSON: {problem}"
        self._enter(Outcome.REJECTED, now, account)
        return replies.framework_error(dialect, status, text)

    def _limited(self, account: Account, request: ChatRequest, now: float) -> RawReply | None:
        if account.bucket.try_take(1, now):
            return None
        return self._refused(account, request, now, replies.RATE_LIMITED)

    def _refused(self, account: Account, request: ChatRequest, now: float, text: str) -> RawReply:
        self._enter(Outcome.RATE_LIMITED, now, account, request)
        headers = replies.retry_headers(self.settings.faults.retry_after)
        return replies.handler_error(self.settings.dialect, 429, text, headers)

    def _accepted(self, account: Account, asked: ValidatedRequest, now: float) -> RawReply | Job:
        request, documented = asked.request, self.settings.dialect is Dialect.DOCUMENTED
        price = self._price(request)
        affordable = price.affordable_tokens(account.balance)
        enough = account.balance >= MIN_BALANCE if documented else account.balance > EMPTY_BALANCE
        if not enough or (affordable is not None and affordable < 1):
            # The documentation has no status of its own for this; 403 is its "no access".
            status = 403 if documented else 500
            return self._rejected(status, replies.NO_BALANCE, now, account, request)
        wanted = request.max_tokens if request.max_tokens is not None else price.asked
        bounds = [bound for bound in (wanted, affordable) if bound is not None]
        reserved = price.worst_case(affordable)
        if not account.reserve(reserved):
            account.bucket.give_back(1, now)
            return self._refused(account, request, now, replies.BALANCE_RESERVED)
        plan = self.settings.faults.plan(self._random, request.model)
        if asked.refusal is not None:
            plan = FaultPlan(plan.latency, Fault.SERVER_ERROR, asked.refusal)
        self.ledger.accept()
        return Job(
            self._arrived,
            request,
            min(bounds, default=None),
            plan,
            now,
            account,
            self.settings.dialect,
            reserved,
            affordable,
        )

    def _price(self, request: ChatRequest) -> "_Price":
        entry = catalog.lookup(request.model) if self._priced else None
        if entry is None:
            return _Price(0.0, 0.0, 0, _asked_tokens(request))
        answers, incoming, outgoing = (
            min(request.n or 1, MAX_TOKEN_COUNT),
            entry.input_price or 0.0,
            entry.output_price or 0.0,
        )
        read = count_input_tokens(request)
        return _Price(read * incoming / 1_000_000, answers * outgoing / 1_000_000, read, _asked_tokens(request))

    def acquire_connection(self, job: Job, granted: Callable[[], None]) -> bool:
        """Takes a place in the database for `job`, which it holds until it ends; returns whether it has one.

        Args:
            job: The job.
            granted: Otherwise called when it gets one. The host waits for it `Faults.database_wait` seconds.
        """
        return self._pool is None or self._pool.acquire(job.number, granted)

    def fail_without_connection(self, job: Job) -> ServerReply:
        """What is written when `job` got no place in the database in time; nothing is billed."""
        self._end(job, Outcome.FAILED)
        return ServerReply(replies.handler_error(self.settings.dialect, 401, POOL_TIMED_OUT))

    def apply_fault(self, job: Job) -> ServerReply | None:
        """What is written when the plan has `job` fail before it is processed; None when it is to be processed."""
        match job.plan.fault:
            case Fault.RESET_BEFORE:
                self._end(job, Outcome.DROPPED)
                return ServerReply(None)
            case Fault.SERVER_ERROR:
                return self.fail(job, job.plan.text)
            case Fault.GATEWAY_ERROR:
                self._end(job, Outcome.FAILED)
                return ServerReply(replies.gateway_error())
            case _:
                return None

    def fail(
        self,
        job: Job,
        text: str,
        *,
        status: int = 500,
        retry_after: float | None = None,
        billing: Billing = Billing.NOT_BILLED,
    ) -> ServerReply:
        """What is written when the backend failed; the account of the key is not charged.

        Args:
            job: The job.
            text: What the client is told.
            status: 400 to 599.
            retry_after: Seconds after which a retry makes sense; None says nothing about it.
            billing: What became of the bill of the backend's own attempt.
        """
        if billing is Billing.POSSIBLY_BILLED:
            outcome = Outcome.POSSIBLY_BILLED
        elif status == 429:
            outcome = Outcome.RATE_LIMITED
            job.account.bucket.give_back(1, job.received_at)  # a refused request costs no token
        else:
            outcome = Outcome.FAILED
        self._end(job, outcome)
        headers = replies.retry_headers(retry_after, exact=True)
        return ServerReply(replies.handler_error(self.settings.dialect, status, text, headers))

    def abandon(self, job: Job, *, billing: Billing = Billing.NOT_BILLED) -> None:
        """Ends a job that the host cannot finish, for example because it is being stopped; nothing is charged.

        Args:
            job: The job.
            billing: What became of the bill of the backend's own attempt.
        """
        possibly = billing is Billing.POSSIBLY_BILLED
        self._end(job, Outcome.POSSIBLY_BILLED if possibly else Outcome.DROPPED)

    def complete(self, job: Job, completion: Completion, *, disconnected: bool = False) -> ServerReply:
        """Bills `job`, and what is then written.

        Args:
            job: The job.
            completion: What the backend made of it.
            disconnected: The connection is closed already, so that the reply is lost; it is billed all the same.
        """
        lost = disconnected or job.plan.fault is not None
        self._end(job, Outcome.LOST if lost else Outcome.ANSWERED, completion)
        if job.plan.fault is Fault.RESET_AFTER:
            return ServerReply(None)
        reply = replies.answer(self.settings.dialect, job, completion)
        return ServerReply(reply, truncated=job.plan.fault is Fault.TRUNCATED)

    def _rejected(
        self, status: int, text: str, now: float, account: Account | None = None, request: ChatRequest | None = None
    ) -> RawReply:
        self._enter(Outcome.REJECTED, now, account, request)
        return replies.handler_error(self.settings.dialect, status, text)

    def _enter(self, outcome: Outcome, now: float, account: Account | None, request: ChatRequest | None = None) -> None:
        label = account.label if account is not None else ""
        model, prompt = (request.model, _excerpt(request)) if request is not None else ("", "")
        self.ledger.enter(LedgerRow(self._arrived, label, now, model, prompt, outcome))

    def _end(self, job: Job, outcome: Outcome, completion: Completion | None = None) -> None:
        if self._pool is not None:
            self._pool.release(job.number)
        request, cost, read, written = job.request, 0.0, 0, 0
        if completion is not None:
            cost = (catalog.cost(request.model, completion.usage) if self._priced else None) or 0.0
            read, written = completion.usage.input_tokens or 0, completion.usage.output_tokens or 0
        job.account.settle(job.reserved, cost)
        label, at, model = job.account.label, job.received_at, request.model
        self.ledger.settle(LedgerRow(job.number, label, at, model, _excerpt(request), outcome, cost, read, written))


@frozen
class _NoKey:
    text: str


def _bearer(headers: Mapping[str, str]) -> str | _NoKey:
    value = headers.get("Authorization")
    if value is None:
        return _NoKey(replies.NO_KEY)
    scheme, _, key = value.partition(" ")
    if scheme.casefold() != "bearer" or not key.strip():
        return _NoKey(replies.NO_BEARER)
    return key.strip()


def _excerpt(request: ChatRequest) -> str:
    return last_user_message(request)[:MAX_PROMPT_CHARACTERS]


def _asked_tokens(request: ChatRequest) -> int | None:
    """Most tokens of an answer that the request allows, under either name; None: it does not say."""
    other = (request.extra or {}).get("max_completion_tokens")
    asked = [request.max_tokens, other if isinstance(other, int) and other >= 1 else None]
    return max((tokens for tokens in asked if tokens is not None), default=None)


@frozen
class _Price:
    """What a request can cost.

    Attributes:
        input_cost: USD for what it holds.
        token_cost: USD for one token of each of its answers.
        read: Its tokens.
        asked: Most tokens of an answer; None: it does not say.
    """

    input_cost: float
    token_cost: float
    read: int
    asked: int | None

    def affordable_tokens(self, balance: float) -> int | None:
        """Most tokens of an answer that `balance` pays for; None: any number."""
        if not self.token_cost:
            return None
        return int(min((balance - self.input_cost) / self.token_cost, MAX_TOKEN_COUNT))

    def worst_case(self, affordable: int | None) -> float:
        """USD to set aside for it."""
        if affordable is None:
            return self.input_cost
        expected = self.asked if self.asked is not None else max(DEFAULT_ANSWER_TOKENS, self.read)
        return self.input_cost + min(expected, affordable) * self.token_cost
