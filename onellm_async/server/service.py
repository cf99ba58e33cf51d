"""A OneLLM without sockets and clocks: requests in, replies and jobs out, as values. Pure.

::

    receive(request, now) ─→ RawReply: the request ended at once, or
                          ─→ Job, which the host takes through these steps:
        acquire_connection(job)         only with Faults.database_places; fail_without_connection(job) ends the job
        (wait job.plan.latency)
        apply_fault(job)                ends the job if its plan says so
        complete(job, completion)       after the backend answered
        fail(job, text, …)              after the backend failed
        abandon(job)                    if the host cannot continue

The host only waits, calls the backend and writes bytes. So the same service runs over HTTP and in simulations.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from attrs import evolve, frozen

from onellm_async import catalog
from onellm_async.chat import ChatRequest
from onellm_async.failure_kinds import Billing
from onellm_async.server import replies
from onellm_async.server.accounts import DEFAULT_ANSWER_TOKENS, EMPTY_BALANCE, MIN_BALANCE, Account, Accounts
from onellm_async.server.backends import count_input_tokens, last_user_message
from onellm_async.server.connection_pool import POOL_TIMED_OUT, ConnectionPool
from onellm_async.server.jobs import MAX_TOKEN_COUNT, Completion, Job, ServerReply
from onellm_async.server.json_answers import unfit_text
from onellm_async.server.ledger import MAX_PROMPT_CHARACTERS, Ledger, LedgerRow, Outcome
from onellm_async.server.request_validation import (
    MAX_BODY_BYTES,
    ValidatedRequest,
    ValidationError,
    decompress,
    validate_request,
)
from onellm_async.server.service_limits import BucketLimit, ServiceLimit, WindowLimit
from onellm_async.server.settings import Fault, FaultPlan, ServerSettings
from onellm_async.structured_output import schema_in
from onellm_async.transport import RawReply
from onellm_async.wire import Dialect, parse_json

PATH = "/api"
"""The only path of the API. Every other path is answered 404."""


class Service:
    """The state of a local OneLLM: accounts, ledger, connection pool and random faults.

    Args:
        settings: Limits, keys and faults.
        epoch: Unix time at second 0 of the server's clock. Headers with dates need it.
    """

    def __init__(self, settings: ServerSettings, *, epoch: float = 0.0) -> None:
        self.settings: ServerSettings = settings
        self._epoch = epoch
        self.ledger: Ledger = Ledger(settings.keep_rows)
        self._priced = settings.list_prices is not False
        self._accounts = Accounts(settings)
        self._counts_tokens = _counts_tokens(settings.all_limits)
        self._random = Random(settings.faults.seed)
        size = settings.faults.database_places
        self._pool = ConnectionPool(size) if size is not None else None
        self._arrived = 0

    def retune(self, requests_per_minute: float | None, now: float) -> None:
        """Replaces the limits of every key by one bucket from `now` on. None means no limit.

        The bucket keeps its level.
        """
        limits = () if requests_per_minute is None else (BucketLimit(requests_per_minute, self.settings.burst),)
        self.change_limits(limits, now)

    def change_limits(self, limits: Sequence[ServiceLimit], now: float) -> None:
        """Replaces the limits of every key from `now` on. Limits of the same kind keep what they have counted."""
        self._accounts.change_limits(limits, now)
        self._counts_tokens = _counts_tokens(limits)

    def account(self, key: str, now: float) -> Account:
        """Returns the account of `key`, for tests and simulations that read or change it."""
        return self._accounts.find_or_open(key, now)

    def revoke(self, key: str) -> None:
        """Makes `key` unknown from now on. Requests in flight are answered."""
        self._accounts.revoke(key)

    def receive(self, method: str, path: str, headers: Mapping[str, str], body: bytes, now: float) -> RawReply | Job:
        """Validates, authenticates and admits a request.

        Args:
            method: HTTP method.
            path: Path without the query.
            headers: Case-insensitive, or with the usual capitals.
            body: The complete body, as it was sent: possibly compressed.
            now: Seconds on the server's clock.

        Returns:
            The reply if the request ended at once, else the job that the host has to end.
        """
        if len(body) > MAX_BODY_BYTES:
            return self.reject_too_long(now)
        self._arrived += 1
        backend = self.settings.dialect is Dialect.BACKEND
        if backend and path == "/" and method not in {"GET", "HEAD"}:  # the published backend has a page there
            return self._reject_route(405, "", now, {"Allow": "GET, HEAD"})
        if path != PATH:
            return self._reject_route(404, "No such endpoint.", now)
        if method != "POST":
            return self._reject_route(405, "Only POST is allowed.", now, {"Allow": "POST"})
        return self._receive_backend(headers, body, now) if backend else self._receive_documented(headers, body, now)

    def reject_too_long(self, now: float) -> RawReply:
        """Rejects a body longer than `MAX_BODY_BYTES`. The host need not have read it to its end."""
        self._arrived += 1
        self._record(Outcome.REJECTED, now, None)
        text = "Failed to buffer the request body: length limit exceeded"
        return replies.framework_error(self.settings.dialect, 413, text)

    def acquire_connection(self, job: Job, on_granted: Callable[[], None]) -> bool:
        """Takes a database connection for `job`, which holds it until it ends. Returns whether it has one.

        Args:
            job: The job.
            on_granted: Called when a job that had to wait gets its connection. The host waits at most
                `Faults.database_wait` seconds.
        """
        return self._pool is None or self._pool.acquire(job.number, on_granted)

    def fail_without_connection(self, job: Job) -> ServerReply:
        """Ends a job that got no database connection in time; not billed."""
        self._end(job, Outcome.FAILED)
        status = self.settings.faults.overload_status
        text = POOL_TIMED_OUT if status == 401 else replies.OVERLOADED
        return ServerReply(replies.error_reply(self.settings.dialect, status, text))

    def apply_fault(self, job: Job) -> ServerReply | None:
        """Ends `job` if its plan has it fail before it is processed; otherwise returns None."""
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
        """Ends a job whose backend failed. The account is not charged.

        Args:
            job: The job.
            text: Error text for the client.
            status: HTTP status, 400 to 599.
            retry_after: Seconds after which a retry makes sense; None sends no ``Retry-After``.
            billing: What became of the backend's own bill.
        """
        if billing is Billing.POSSIBLY_BILLED:
            outcome = Outcome.POSSIBLY_BILLED
        elif status == 429:
            outcome = Outcome.RATE_LIMITED
            job.account.limits.give_back(job.received_at, job.tokens)  # a 429 costs no token
        else:
            outcome = Outcome.FAILED
        self._end(job, outcome)
        headers = replies.retry_headers(retry_after, exact=True)
        return ServerReply(replies.error_reply(self.settings.dialect, status, text, headers))

    def abandon(self, job: Job, *, billing: Billing = Billing.NOT_BILLED) -> None:
        """Ends a job that the host cannot finish, for example because it is being stopped. Charges nothing.

        Args:
            job: The job.
            billing: What became of the backend's own bill.
        """
        possibly = billing is Billing.POSSIBLY_BILLED
        self._end(job, Outcome.POSSIBLY_BILLED if possibly else Outcome.DROPPED)

    def complete(self, job: Job, completion: Completion, *, disconnected: bool = False) -> ServerReply:
        """Ends and bills an answered job.

        Args:
            job: The job.
            completion: The backend's answer.
            disconnected: Whether the client has disconnected. The reply is lost, and billed all the same.
        """
        if job.plan.fault is Fault.UNFIT and schema_in(job.request) is not None:
            completion = evolve(completion, content=unfit_text(completion.content, job.number))
        lost = disconnected or job.plan.fault not in (None, Fault.UNFIT)
        self._end(job, Outcome.LOST if lost else Outcome.ANSWERED, completion)
        if job.plan.fault is Fault.RESET_AFTER:
            return ServerReply(None)
        reply = replies.success_reply(self.settings.dialect, job, completion)
        reply = evolve(reply, headers={**reply.headers, **job.rate_headers}) if job.rate_headers else reply
        return ServerReply(reply, truncated=job.plan.fault is Fault.TRUNCATED)

    def _receive_documented(self, headers: Mapping[str, str], body: bytes, now: float) -> RawReply | Job:
        key = _bearer_key(headers)
        if not isinstance(key, str):
            return self._reject(401, key.text, now)
        account = self._accounts.find_or_open(key, now)
        if not account.known:
            return self._reject(401, "Invalid API key.", now, account)
        if account.blocked:
            return self._reject(403, "This key has no access.", now, account)
        validated = self._validate(headers, body, now, account)
        if isinstance(validated, RawReply):
            return validated
        return self._check_rate(account, validated.request, now) or self._accept(account, validated, now)

    def _receive_backend(self, headers: Mapping[str, str], body: bytes, now: float) -> RawReply | Job:
        validated = self._validate(headers, body, now, None)
        if isinstance(validated, RawReply):
            return validated
        key = _bearer_key(headers)
        if not isinstance(key, str):
            return self._reject(401, key.text, now)
        account = self._accounts.find_or_open(key, now)
        rate_limited = self._check_rate(account, validated.request, now)  # before it looks the key up
        if rate_limited is not None:
            return rate_limited
        if not account.known or account.blocked:
            account.limits.end()
            return self._reject(401, replies.UNKNOWN_KEY, now, account)
        return self._accept(account, validated, now)

    def _validate(
        self, headers: Mapping[str, str], body: bytes, now: float, account: Account | None
    ) -> RawReply | ValidatedRequest:
        dialect = self.settings.dialect
        content_type = headers.get("Content-Type", "").partition(";")[0].strip().casefold()
        if content_type != "application/json" and not content_type.endswith("+json"):
            status, text = 415, "Expected request with `Content-Type: application/json`"
        else:
            try:
                body = decompress(body, headers.get("Content-Encoding", ""))
                body.decode()  # parse_json accepts invalid UTF-8 in replies; a request with it is an error
                return validate_request(dialect, parse_json(body), len(body), any_model=self.settings.any_model)
            except ValidationError as problem:
                status, text = problem.status, str(problem)
            except ValueError as problem:
                status, text = 400, f"Failed to parse the request body as JSON: {problem}"
        self._record(Outcome.REJECTED, now, account)
        return replies.framework_error(dialect, status, text)

    def _check_rate(self, account: Account, request: ChatRequest, now: float) -> RawReply | None:
        rejection = account.limits.admit(now, self._tokens_of(request))
        if rejection is None:
            return None
        return self._rate_limit(account, request, now, replies.RATE_LIMITED, rejection.wait)

    def _rate_limit(
        self, account: Account, request: ChatRequest, now: float, text: str, wait: float | None = None
    ) -> RawReply:
        self._record(Outcome.RATE_LIMITED, now, account, request)
        given = self.settings.faults.retry_after
        if isinstance(given, str):
            headers = replies.retry_headers_in_form(given, wait, self._epoch + now)
        else:
            headers = replies.retry_headers(given)
        headers |= self._rate_headers(account, now)
        return replies.error_reply(self.settings.dialect, 429, text, headers)

    def _tokens_of(self, request: ChatRequest) -> int:
        """What a request counts in a limit of tokens: its prompt and its token limit; 0 if no limit counts tokens."""
        if not self._counts_tokens:
            return 0
        return count_input_tokens(request) + (_max_answer_tokens(request) or 0)

    def _rate_headers(self, account: Account, now: float) -> dict[str, str]:
        dialect = self.settings.rate_headers
        return {} if dialect is None else replies.rate_headers(dialect, account.limits.quotas(now), self._epoch + now)

    def _accept(self, account: Account, validated: ValidatedRequest, now: float) -> RawReply | Job:
        request, documented = validated.request, self.settings.dialect is Dialect.DOCUMENTED
        price = self._price(request)
        affordable = price.affordable_tokens(account.balance)
        enough = account.balance >= MIN_BALANCE if documented else account.balance > EMPTY_BALANCE
        if not enough or (affordable is not None and affordable < 1):
            # The documentation has no status for an empty balance. 403 is its "no access".
            status = 403 if documented else 500
            account.limits.end()
            return self._reject(status, replies.NO_BALANCE, now, account, request)
        wanted = request.max_tokens if request.max_tokens is not None else price.max_answer_tokens
        bounds = [bound for bound in (wanted, affordable) if bound is not None]
        reserved = price.worst_case(affordable)
        if not account.reserve(reserved):
            account.limits.give_back(now, self._tokens_of(request))
            account.limits.end()
            return self._rate_limit(account, request, now, replies.BALANCE_RESERVED)
        plan = self.settings.faults.plan(self._random, request.model)
        if validated.provider_error is not None:
            plan = FaultPlan(plan.latency, Fault.SERVER_ERROR, validated.provider_error)
        self.ledger.start()
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
            self._tokens_of(request),
            self._rate_headers(account, now),
        )

    def _price(self, request: ChatRequest) -> "_Price":
        entry = catalog.lookup(request.model) if self._priced else None
        if entry is None:
            return _Price(0.0, 0.0, 0, _max_answer_tokens(request))
        tokens, answers = count_input_tokens(request), min(request.n or 1, MAX_TOKEN_COUNT)
        input_cost = tokens * (entry.input_price or 0.0) / 1_000_000
        token_cost = answers * (entry.output_price or 0.0) / 1_000_000
        return _Price(input_cost, token_cost, tokens, _max_answer_tokens(request))

    def _reject(
        self, status: int, text: str, now: float, account: Account | None = None, request: ChatRequest | None = None
    ) -> RawReply:
        self._record(Outcome.REJECTED, now, account, request)
        return replies.error_reply(self.settings.dialect, status, text)

    def _reject_route(self, status: int, text: str, now: float, headers: dict[str, str] | None = None) -> RawReply:
        self._record(Outcome.REJECTED, now, None)
        dialect = self.settings.dialect
        text = text if dialect is Dialect.DOCUMENTED else ""  # the backend's framework sends no text here
        return replies.framework_error(dialect, status, text, headers)

    def _record(
        self, outcome: Outcome, now: float, account: Account | None, request: ChatRequest | None = None
    ) -> None:
        label = account.label if account is not None else ""
        model, prompt = (request.model, _prompt_excerpt(request)) if request is not None else ("", "")
        self.ledger.record(LedgerRow(self._arrived, label, now, model, prompt, outcome))

    def _end(self, job: Job, outcome: Outcome, completion: Completion | None = None) -> None:
        if self._pool is not None:
            self._pool.release(job.number)
        request, cost, read, written = job.request, 0.0, 0, 0
        if completion is not None:
            cost = (catalog.cost(request.model, completion.usage) if self._priced else None) or 0.0
            read, written = completion.usage.input_tokens or 0, completion.usage.output_tokens or 0
        job.account.settle(job.reserved, cost)
        job.account.limits.end()
        label, at, prompt = job.account.label, job.received_at, _prompt_excerpt(request)
        self.ledger.complete(LedgerRow(job.number, label, at, request.model, prompt, outcome, cost, read, written))


def _counts_tokens(limits: Sequence[ServiceLimit]) -> bool:
    return any(isinstance(limit, BucketLimit | WindowLimit) and limit.unit == "tokens" for limit in limits)


@frozen
class _NoKey:
    text: str


def _bearer_key(headers: Mapping[str, str]) -> str | _NoKey:
    value = headers.get("Authorization")
    if value is None:
        return _NoKey(replies.NO_KEY)
    scheme, _, key = value.partition(" ")
    if scheme.casefold() != "bearer" or not key.strip():
        return _NoKey(replies.NO_BEARER)
    return key.strip()


def _prompt_excerpt(request: ChatRequest) -> str:
    return last_user_message(request)[:MAX_PROMPT_CHARACTERS]


def _max_answer_tokens(request: ChatRequest) -> int | None:
    """Returns the token limit of an answer, under either of its names; None if the request sets none."""
    other = (request.extra or {}).get("max_completion_tokens")
    limits = [request.max_tokens, other if isinstance(other, int) and other >= 1 else None]
    return max((limit for limit in limits if limit is not None), default=None)


@frozen
class _Price:
    """What a request can cost.

    Attributes:
        input_cost: USD for the request itself.
        token_cost: USD for one token of each of its answers.
        input_tokens: Tokens of the request.
        max_answer_tokens: Token limit of an answer; None if the request sets none.
    """

    input_cost: float
    token_cost: float
    input_tokens: int
    max_answer_tokens: int | None

    def affordable_tokens(self, balance: float) -> int | None:
        """Returns the maximum number of tokens of an answer that `balance` pays for; None if answers are free."""
        if not self.token_cost:
            return None
        return int(min((balance - self.input_cost) / self.token_cost, MAX_TOKEN_COUNT))

    def worst_case(self, affordable: int | None) -> float:
        """Returns the USD to reserve."""
        if affordable is None:
            return self.input_cost
        expected = self.max_answer_tokens
        if expected is None:
            expected = max(DEFAULT_ANSWER_TOKENS, self.input_tokens)
        return self.input_cost + min(expected, affordable) * self.token_cost
