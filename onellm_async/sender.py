"""The path of one request, from top to bottom, one concern per method.

::

    send            encodes once; notifies hooks of the end, adds context to errors
     _in_time       applies the caller's deadline
      _retrying     retries failed attempts by the policy
       _keyed       after a 401 gets another key from a key function, and tries once more
       _admitted    gets a permit for each attempt; requeues it after a 429
        _once       sends one POST, decodes one reply

What follows from a failure is read from the table in ``failure_kinds.py``, in `_apply_failure` and nowhere else.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING

from attrs import asdict, evolve

from onellm_async.call import Attempt, AttemptHooks, Call
from onellm_async.catalog import LIST_PRICES, PriceList
from onellm_async.chat import ChatRequest, ChatResponse
from onellm_async.errors import (
    APIError,
    Billing,
    CircuitOpenError,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    OneLLMError,
    RateLimitError,
)
from onellm_async.events import (
    Failed,
    Granted,
    Hook,
    Queued,
    RateLimited,
    Retrying,
    Sent,
    Telemetry,
    notify,
    trace_headers,
)
from onellm_async.failure_kinds import RULES
from onellm_async.key_source import KeySource
from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.permit import Permit, RequestGroup
from onellm_async.limits.policy import Limits
from onellm_async.limits.rate_state import RateState
from onellm_async.limits.snapshot import Retries, Snapshot
from onellm_async.limits.token_estimator import TokenEstimator
from onellm_async.retry import RetryBudget, RetryDecision, RetryPolicy, decide, import_tenacity, retrying
from onellm_async.service_watch import ServiceWatch
from onellm_async.transport import RawReply, Transport
from onellm_async.validation import Checks
from onellm_async.wire import (
    Dialect,
    Notices,
    RateHeaderReader,
    decode_reply,
    encode_request,
    fields_without_effect,
    parse_rate_headers,
)

if TYPE_CHECKING:
    from onellm_async.limits.quota import Quota

_request = Checks(InvalidRequestError)
_log = logging.getLogger("onellm_async")
_CIRCUIT_OPEN = "because the circuit is open: the service has failed several times in a row"


def _closed() -> ClientClosedError:
    return ClientClosedError("The client is closed.", advice="Enter it again with `async with`.")


def _closed_while_waiting() -> ClientClosedError:
    return ClientClosedError("The client was closed while this request waited.")


class Sender:
    """Shared state of all requests of a client: limiter, retry budget, circuit breaker and transport.

    Args:
        transport: Carries the bytes.
        keys: Supplies the key, and another one after a 401; None if the transport has the key.
        limits: For the limiter.
        rate_state: What an earlier limiter learned about the rate.
        retry: When failed attempts are repeated.
        dialect: How requests are written.
        endpoints: Where a published backend is to forward to, by provider; see `encode_request`.
        hooks: Hear of every event.
        random: Where jitter comes from.
        quota: What the rate is shared through, and the name of its board; None to share nothing.
        prices: What tokens cost.

    Attributes:
        limits: The limits that it keeps to now.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        keys: KeySource | None = None,
        limits: Limits,
        rate_state: RateState | None = None,
        retry: RetryPolicy,
        dialect: Dialect,
        endpoints: Mapping[str, str],
        hooks: Iterable[Hook],
        random: Random,
        quota: "tuple[Quota, str] | None" = None,
        telemetry: Telemetry | None = None,
        prices: PriceList = LIST_PRICES,
    ) -> None:
        import_tenacity()
        self.prices: PriceList = prices
        self._telemetry = telemetry
        self._transport = transport
        self._keys = keys
        self._dialect = dialect
        self._endpoints = endpoints
        self._notices = Notices()
        self._retry = retry
        self._hooks = tuple(hooks) if telemetry is None else (telemetry, *hooks)
        self._random = random
        self.limits: Limits = limits
        self._limiter = _limiter(limits, rate_state, random, quota)
        self._rate_headers = RateHeaderReader()
        self._estimator = TokenEstimator() if limits.tokens_per_minute is not None else None
        self._budget = RetryBudget(retry)
        self._watch = ServiceWatch(retry, self._limiter, self._on_circuit_open)
        self._breaker = self._watch.breaker
        self._never_ambiguous = evolve(retry, ambiguous="never")
        self._fail_fast = RequestGroup(wait_for_ready=False)
        self._backing_off: dict[Call, asyncio.Future[None]] = {}
        self._requests = 0
        self._repeated = 0
        self._closed = False

    def open(self) -> None:
        """Accepts requests again after `aclose`."""
        self._closed = False
        self._watch.open()

    def add_hook(self, hook: Hook) -> None:
        """Calls `hook` with each event from now on."""
        self._hooks = (*self._hooks, hook)

    def remove_hook(self, hook: Hook) -> None:
        """Stops calling `hook`."""
        # Compared by value: a bound method is another object each time.
        self._hooks = tuple(other for other in self._hooks if other != hook)

    def join(self, group: RequestGroup) -> None:
        """Makes `group` one of this client's, before its first request.

        Raises:
            ConfigurationError: If it belongs to another client.
        """
        if group.owner is not None:
            raise ConfigurationError("group belongs to another client.", advice="Make one RequestGroup per client.")
        group.owner = self
        self._watch.answered = self._watch.answered or group.answered
        self._watch.groups.add(group)

    def end_waits(self, group: RequestGroup, error: Callable[[], OneLLMError]) -> None:
        """Ends the queued requests of a group, also those in backoff; its requests in flight continue.

        Args:
            group: The group.
            error: Makes the error that each of them ends with.
        """
        self._limiter.cancel_group(group, error)
        self._end_backoff(error, lambda call: call.group is group)

    def snapshot(self) -> Snapshot:
        """Returns a snapshot of this moment."""
        failure = self._watch.last_failure
        last_error = None if failure is None else failure.message
        return self._limiter.snapshot(Retries(self._repeated, len(self._backing_off), last_error))

    def count_earlier(self, ages: Sequence[float]) -> None:
        """Counts requests of an earlier process in the declared windows.

        Args:
            ages: Seconds since each was sent.
        """
        self._limiter.count_earlier(ages)

    @property
    def slots(self) -> int:
        """Requests that may be in flight: `Limits.max_concurrency`, or as many as were found out if it is "auto"."""
        return self._limiter.slots

    @property
    def rate_state(self) -> RateState | None:
        """The discovered rate; see `AsyncOneLLM.rate_state`."""
        return self._limiter.state

    def restore_rate(self, state: RateState) -> None:
        """Starts from the rate that an earlier client had discovered, unless this one knows something itself."""
        self._limiter.restore(state)

    def pause(self) -> None:
        """Stops sending until `resume`."""
        self._limiter.pause()
        self._watch.pause()

    def resume(self) -> None:
        """Ends a pause."""
        self._limiter.resume()
        self._watch.resume()

    def retune(self, limits: Limits) -> None:
        """Changes the limits."""
        if limits.tokens_per_minute is None:
            self._estimator = None
        elif self._estimator is None:
            self._estimator = TokenEstimator()
        self._limiter.retune(limits)
        self.limits = limits

    async def drain(self) -> None:
        """Ends the waiting requests with `ClientClosedError` and returns when those in flight have ended."""
        self._end_waits()
        await self._limiter.idle()

    async def aclose(self) -> None:
        """Ends the waiting requests with `ClientClosedError` and closes the transport."""
        self._end_waits()
        await self._limiter.aclose()
        await self._transport.aclose()

    def _end_waits(self) -> None:
        self._closed = True
        self._watch.close()
        if self._keys is not None:
            self._keys.close()
        self._limiter.close()
        self._end_backoff(_closed_while_waiting)

    async def send(
        self,
        request: ChatRequest,
        *,
        lane: str,
        deadline: float | None,
        group: RequestGroup | None = None,
        attempt_hooks: AttemptHooks | None = None,
    ) -> ChatResponse:
        """Sends one request; see `AsyncOneLLM.chat` for what it raises.

        Args:
            request: What to ask.
            lane: Where to wait.
            deadline: Seconds from now for everything together; None for no end.
            group: Requests that are cancelled together with it; None for a single request, which fails fast.
            attempt_hooks: Takes part in each attempt.
        """
        if deadline is not None:
            _request.check_number("deadline", deadline, 0, above=True)
        loop = asyncio.get_running_loop()
        call = self._new_call(request, lane, loop.time(), group, attempt_hooks)
        try:
            if deadline is None:
                response = await self._retrying(call)
            else:
                call.deadline = call.started + deadline
                response = await self._in_time(call)
        except OneLLMError as error:
            self._add_context(error, call, loop.time())
            raise
        except BaseException:  # cancelled, or a transport of the caller's raised an error of its own
            if self._hooks:
                notify(self._hooks, call.cancelled_event(loop.time()))
            raise
        if self._hooks:
            notify(self._hooks, call.answered_event(response, loop.time()))
        return response

    def _new_call(
        self,
        request: ChatRequest,
        lane: str,
        now: float,
        group: RequestGroup | None,
        attempt_hooks: AttemptHooks | None,
    ) -> Call:
        body = encode_request(request, self._dialect, self._endpoints)
        if self._dialect is Dialect.BACKEND:
            for notice in fields_without_effect(request, self._endpoints):
                self._notices.warn_once(notice)
        self._requests += 1
        if group is None:
            group = self._fail_fast
        elif group.owner is not self:
            self.join(group)
        call = Call(self._requests, request, body, lane, now, group)
        call.hooks = attempt_hooks
        if self._estimator is not None:
            call.tokens = self._estimator.estimate(call.model, len(body), request.max_tokens)
        return call

    async def _in_time(self, call: Call) -> ChatResponse:
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self._retrying(call)
        except OneLLMError:
            raise
        except TimeoutError:
            call.possibly_billed += call.in_flight
            raise DeadlineExceededError("The deadline passed before an answer was there.") from None

    async def _retrying(self, call: Call) -> ChatResponse:
        try:
            response = await (self._admitted(call) if self._keys is None else self._keyed(call, self._keys))
        except APIError as first_failure:
            response = await retrying(
                lambda: self._admitted(call) if self._keys is None else self._keyed(call, self._keys),
                first_failure,
                lambda failure: self._decide(failure, call),
                lambda seconds: self._back_off(call, seconds),
            )
        else:
            self._budget.earn()
        return response

    async def _keyed(self, call: Call, keys: KeySource) -> ChatResponse:
        await keys.ensure()
        try:
            return await self._admitted(call)
        except APIError as failure:
            if not RULES[failure.kind].new_key or not await self._has_new_key(failure, call, keys):
                raise
            self._announce_retry(failure, call, 0.0)
        return await self._admitted(call)

    async def _has_new_key(self, failure: APIError, call: Call, keys: KeySource) -> bool:
        try:
            renewed = await keys.renew(call.key_generation)
        except ConfigurationError as problem:
            failure.stop_reason = f"because there is no other key: {problem.message.rstrip('.')}"
            return False
        first, call.key_renewed = not call.key_renewed, True
        return renewed and first and self._end_of_retries(call, failure) is None

    def _announce_retry(self, failure: APIError, call: Call, wait: float) -> None:
        self._repeated += 1
        _log.debug(
            "Request %d (%s): attempt %d failed, retry in %.1f s: %s",
            call.number, call.model, call.attempts, wait, failure.message,
        )  # fmt: skip
        if self._hooks:
            now = asyncio.get_running_loop().time()
            notify(self._hooks, Retrying(call.number, call.model, now, call.attempts, wait, failure))

    def _decide(self, failure: APIError, call: Call) -> RetryDecision:
        now = asyncio.get_running_loop().time()
        if (reason := self._end_of_retries(call, failure)) is not None:
            decision = RetryDecision(retry=False, wait=0.0, reason=reason)
        else:
            decision = decide(
                failure,
                call.counts(),
                self._retry if call.group.retry_ambiguous else self._never_ambiguous,
                budget_remaining=self._budget.remaining,
                time_left=None if call.deadline is None else call.deadline - now,
                wait_for_ready=call.group.wait_for_ready,
                random=self._random,
            )
        if not decision.retry:
            failure.stop_reason = failure.stop_reason or (decision.reason if failure.retryable else "")
            return decision
        if RULES[failure.kind].budgeted:
            self._budget.spend()
        self._announce_retry(failure, call, decision.wait)
        return decision

    def _end_of_retries(self, call: Call, failure: APIError) -> str | None:
        """Why a request is not retried whatever the policy says; None if the policy decides."""
        if self._closed:
            return "because the client was closed"
        if (ended := call.group.ended) is not None:
            return getattr(ended(), "stop_reason", "") or "because the fan-out was stopped"
        if not call.group.wait_for_ready and self._breaker.trial_at is not None:
            was_refused = failure.stop_reason == _CIRCUIT_OPEN  # by `_own_failure`: the next try would be, too
            if was_refused or RULES[failure.kind].breaker == "opens":
                return _CIRCUIT_OPEN
        return None

    async def _back_off(self, call: Call, seconds: float) -> None:
        """Waits before a retry. Ends at once when the client is closed, its group ends or the circuit opens."""
        loop = asyncio.get_running_loop()
        waker: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, waker)
        self._backing_off[call] = waker
        try:
            await waker
        finally:
            timer.cancel()
            del self._backing_off[call]

    def _end_backoff(
        self, error: Callable[[], OneLLMError] | None, concerned: Callable[[Call], bool] = lambda call: True
    ) -> None:
        """Ends backoff: with `error`, or if that is None, with what the request itself failed with."""
        for call, waker in list(self._backing_off.items()):
            if concerned(call) and not waker.done() and not waker.get_loop().is_closed():
                waker.set_exception((self._own_failure(call) if error is None else error()) or _closed_while_waiting())

    async def _admitted(self, call: Call) -> ChatResponse:
        while True:
            permit = await self._admission(call)
            try:
                response = await self._once(call, permit)
                usage = response.usage
                permit.answered(usage.total_tokens if usage is not None else None)
            except RateLimitError as rate_limit:
                self._apply_rate_limit(rate_limit, call, permit)
            except APIError as failure:
                self._apply_failure(failure, call, permit)
                raise
            except OneLLMError:  # unusable URL, HTTP session closed: nothing was sent
                call.attempts, call.in_flight = call.attempts - 1, False
                permit.give_back()
                raise
            else:
                if self._watch.answer_is_news:
                    self._watch.record_answer()
                if usage is not None and self._estimator is not None:
                    self._estimator.learn(call.model, len(call.body), usage.input_tokens, usage.output_tokens)
                return response if call.attempts == 1 and not call.rate_limited else call.with_counts(response)
            finally:
                permit.release()

    async def _admission(self, call: Call) -> Permit:
        if self._closed or self._breaker.trial_at is not None:
            self._raise_if_not_admitted(call)
        asked = 0.0
        if self._hooks:
            asked = asyncio.get_running_loop().time()
            notify(self._hooks, Queued(call.number, call.model, asked, call.lane))
        group = call.group
        permit = Permit(call.lane, call.tokens, call.deadline, call.order, call.model, not group.wait_for_ready)
        try:
            if not self._limiter.enter(permit, group):
                await self._limiter.wait_for(permit, group)
        except CircuitOpenError:
            if (failure := self._own_failure(call)) is not None:
                raise failure from None
            raise
        if self._closed:  # granted in the very moment of closing
            permit.give_back()
            raise _closed()
        if self._breaker.trial_at is not None:
            self._fail_queued()  # only this trial request is sent for now
        if call.hooks is not None:
            await self._run_before_sending(call, permit, call.hooks)
        if self._hooks:
            self._notify_sent(call, asked)
        return permit

    def _raise_if_not_admitted(self, call: Call) -> None:
        if self._closed:
            raise _closed()
        if not call.group.wait_for_ready and not self._watch.is_trial_due():
            raise self._own_failure(call) or self._watch.circuit_open_error()

    def _notify_sent(self, call: Call, asked: float) -> None:
        now = self._limiter.time()
        notify(self._hooks, Granted(call.number, call.model, now, now - asked))
        notify(self._hooks, Sent(call.number, call.model, now, call.attempts + 1))

    def _raise_if_ended(self, group: RequestGroup) -> None:
        if group.ended is not None:
            raise group.ended()
        if self._closed:
            raise _closed()

    async def _run_before_sending(self, call: Call, permit: Permit, hooks: AttemptHooks) -> None:
        """Runs `before_sending` while the permit is held. An exception cancels the attempt and returns the permit."""
        try:
            await hooks.before_sending(Attempt(call.attempts + 1, call.possibly_billed))
            self._raise_if_ended(call.group)
        except BaseException:
            permit.give_back()
            raise

    async def _once(self, call: Call, permit: Permit) -> ChatResponse:
        call.attempts += 1
        call.in_flight = True
        if self._keys is not None:
            call.key_generation = self._keys.generation
        if self._telemetry is None:
            reply = await self._transport.post(call.body)
        else:
            reply = await self._transport.post(call.body, trace_headers(self._telemetry, call.number))
        call.in_flight = False
        now = permit.home.wall_time()
        if reply.headers:
            self._read_rate_headers(reply, permit, now)
        response = decode_reply(
            reply.status,
            reply.headers,
            reply.body,
            model=call.model,
            now=now,
            asked=call.body,
            warn=self._notices.warn_once,
        )
        if not self.prices.own:
            return response
        return evolve(response, cost=self.prices.cost(call.model, response.usage))

    def _read_rate_headers(self, reply: RawReply, permit: Permit, now: float) -> None:
        is_429 = reply.status == HTTPStatus.TOO_MANY_REQUESTS
        found = (parse_rate_headers if is_429 else self._rate_headers.read)(reply.headers, now)
        if found is not None:
            permit.advertised(AdvertisedReply(sent_at=permit.since, is_accepted=not is_429, **asdict(found)))

    # What follows from how an attempt ended.

    def _apply_rate_limit(self, rate_limit: RateLimitError, call: Call, permit: Permit) -> None:
        self._watch.record_up()
        self._watch.record_failure(rate_limit)
        call.in_flight = False
        call.attempts -= 1
        call.rate_limited += 1
        call.order = permit.order
        permit.rate_limited(rate_limit.retry_after)
        if call.hooks is not None:
            call.hooks.after_failing(call.possibly_billed)
        _log.debug("Request %d (%s): 429, queued again: %s", call.number, call.model, rate_limit.message)
        if self._hooks:
            notify(self._hooks, RateLimited(call.number, call.model, self._limiter.time(), rate_limit.retry_after))

    def _apply_failure(self, failure: APIError, call: Call, permit: Permit) -> None:
        self._watch.classify(failure)
        rule = RULES[failure.kind]
        call.failure, call.order, call.in_flight = failure, permit.order, False
        if rule.attempt == "never":
            call.attempts -= 1
        if failure.billing is Billing.POSSIBLY_BILLED:
            call.possibly_billed += 1
        call.server_errors += rule.retry == "server errors"
        if call.hooks is not None:
            call.hooks.after_failing(call.possibly_billed)
        self._watch.record_failure(failure)
        if rule.breaker == "opens":
            self._watch.record_down(failure, call.number)
        elif rule.breaker == "closes":
            self._watch.record_up()
        if rule.attempt == "after the last cut":
            call.uncounted += not permit.overloaded()
        elif rule.gives_back == "everything":
            permit.give_back()
        elif rule.gives_back == "tokens":
            permit.answered(0)
        elif getattr(failure, "status_code", None) is not None:
            permit.answered()

    # The circuit, as a fail-fast request sees it.

    def _fail_queued(self) -> None:
        """Fails the queued requests that do not wait for the service to be ready."""
        for group in (self._fail_fast, *self._watch.groups):
            if not group.wait_for_ready:
                self._limiter.cancel_group(group, self._watch.circuit_open_error)

    def _on_circuit_open(self) -> None:
        self._fail_queued()
        self._end_backoff(None, lambda call: not call.group.wait_for_ready)

    @staticmethod
    def _own_failure(call: Call) -> APIError | None:
        """A request that was sent ends with its own error, not with that of the circuit; None if it was not sent."""
        if call.failure is not None:
            call.failure.stop_reason = _CIRCUIT_OPEN
        return call.failure

    def _add_context(self, error: OneLLMError, call: Call, now: float) -> None:
        error.request = f"request {call.number} ({call.model})"
        error.attempts = call.attempts
        error.rate_limited = call.rate_limited
        error.elapsed = now - call.started
        error.possibly_billed = call.possibly_billed
        if isinstance(error, DeadlineExceededError) and call.possibly_billed:
            error.billing = Billing.POSSIBLY_BILLED
        self._watch.record_end(error)
        if self._hooks:
            notify(self._hooks, Failed(call.number, call.model, now, call.attempts, error.elapsed, error, call.lane))


def _limiter(limits: Limits, state: RateState | None, random: Random, quota: "tuple[Quota, str] | None") -> Limiter:
    if quota is None:
        return Limiter(limits, random=random, state=state)
    from onellm_async.limits.shared_limiter import SharedLimiter  # noqa: PLC0415  # only those who share pay for it

    return SharedLimiter(limits, random=random, state=state, quota=quota[0], name=quota[1])


def _wake(waker: "asyncio.Future[None]") -> None:
    if not waker.done():
        waker.set_result(None)
