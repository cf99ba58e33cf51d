"""One request on its way, from top to bottom, one concern a method.

::

    send            encoded once; hooks hear of the end, errors get their context
     _in_time       the caller's deadline
      _retrying     failed attempts are repeated as the policy says
       _admitted    each attempt asks the limiter for leave; a refusal by rate limit goes back into the queue
        _once       one POST, one reply
"""

import asyncio
import time
from collections.abc import Coroutine, Iterable
from random import Random

from attrs import evolve

from onellm_async.call import AfterFailing, Attempt, BeforeSending, Call
from onellm_async.chat import ChatRequest, ChatResponse
from onellm_async.errors import (
    APIError,
    APIStatusError,
    Billing,
    CircuitOpenError,
    ClientClosedError,
    DeadlineExceededError,
    InvalidRequestError,
    OneLLMError,
    RateLimitError,
    RequestCancelledError,
    ResponseDecodeError,
)
from onellm_async.events import Failed, Granted, Hook, Queued, Refused, Retrying, Sent, notify
from onellm_async.limits.adaptive import RateState
from onellm_async.limits.estimate import TokenEstimator
from onellm_async.limits.limiter import Group, Limiter, Permit
from onellm_async.limits.policy import Limits
from onellm_async.limits.snapshot import Snapshot
from onellm_async.retry import CircuitBreaker, History, RetryBudget, RetryPolicy, Verdict, judge, run_attempts
from onellm_async.transport import Transport
from onellm_async.validation import Checks
from onellm_async.wire import Dialect, Notices, decode_reply, encode_request

__all__ = ["Sender"]

_request = Checks(InvalidRequestError)


def _refuse_if_ended(group: Group) -> None:
    if group.ended is not None:
        raise group.ended()


def _withdrawn() -> RequestCancelledError:
    return RequestCancelledError("The fan-out was stopped while this chat waited.")


class Sender:
    """What all requests of a client share: the limiter, the retry budget, the circuit breaker and the way out.

    Args:
        transport: Carries the bytes.
        limits: For the limiter.
        rate_state: What an earlier limiter learned about the rate.
        retry: When failed attempts are repeated.
        dialect: How requests are written.
        hooks: Hear of every event.
        random: Where jitter comes from.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        limits: Limits,
        rate_state: RateState | None = None,
        retry: RetryPolicy,
        dialect: Dialect,
        hooks: Iterable[Hook],
        random: Random,
    ) -> None:
        self._transport = transport
        self._dialect = dialect
        self._notices = Notices()
        self._retry = retry
        self._hooks = tuple(hooks)
        self._random = random
        self._limiter = Limiter(limits, random=random, state=rate_state)
        self._estimator = TokenEstimator() if limits.tokens_per_minute is not None else None
        self._budget = RetryBudget(retry)
        self._breaker = CircuitBreaker(retry)
        self._impatient = Group()
        self._requests = 0
        self._repeated = 0
        self._backing_off: set[Call] = set()
        self._closed = False

    def open(self) -> None:
        """Accepts requests again after `aclose`."""
        self._closed = False

    def withdraw(self, group: Group) -> None:
        """Ends the waits of a fan-out for good; its requests under way go on."""
        group.ended = _withdrawn
        self._limiter.end(group, _withdrawn)

    def snapshot(self) -> Snapshot:
        """What is going on now."""
        return evolve(self._limiter.snapshot(), repeated=self._repeated, backing_off=len(self._backing_off))

    @property
    def rate_state(self) -> RateState | None:
        """What has been learned about the rate."""
        return self._limiter.state

    def pause(self) -> None:
        """Lets nothing leave until `resume`."""
        self._limiter.pause()

    def resume(self) -> None:
        """Lets requests leave again."""
        self._limiter.resume()

    def retune(self, limits: Limits) -> None:
        """Goes on with other limits."""
        if limits.tokens_per_minute is None:
            self._estimator = None
        elif self._estimator is None:
            self._estimator = TokenEstimator()
        self._limiter.retune(limits)

    async def drain(self) -> None:
        """Ends the waiting requests with `ClientClosedError` and returns when those under way have ended."""
        self._closed = True
        self._limiter.close()
        await self._limiter.idle()

    async def aclose(self) -> None:
        """Ends the waiting requests with `ClientClosedError` and closes the transport."""
        self._closed = True
        self._limiter.close()
        await self._transport.aclose()

    async def send(
        self,
        request: ChatRequest,
        *,
        lane: str,
        deadline: float | None,
        group: Group | None = None,
        before_sending: BeforeSending | None = None,
        after_failing: AfterFailing | None = None,
    ) -> ChatResponse:
        """Sends one request; see `AsyncOneLLM.chat` for what it raises.

        Args:
            request: What to ask.
            lane: Where to wait.
            deadline: Seconds from now for everything together; None for no end.
            group: The fan-out it belongs to. It then waits while the circuit is open; a single request fails at once.
            before_sending: Awaited before each attempt leaves.
            after_failing: Told of each attempt that brought no answer.
        """
        if deadline is not None:
            _request.check_number("deadline", deadline, 0, above=True)
        body = encode_request(request, self._dialect)
        loop = asyncio.get_running_loop()
        self._requests += 1
        call = Call(self._requests, request, body, lane, loop.time(), group or self._impatient)
        call.before_sending, call.after_failing = before_sending, after_failing
        if self._estimator is not None:
            call.tokens = self._estimator.estimate(call.model, len(body), request.max_tokens)
        try:
            if deadline is None:
                response = await self._retrying(call)
            else:
                call.deadline = call.started + deadline
                response = await self._in_time(call)
        except OneLLMError as error:
            self._explain(error, call, loop.time())
            raise
        if self._hooks:
            notify(self._hooks, call.answered_event(response, loop.time()))
        return response

    async def _in_time(self, call: Call) -> ChatResponse:
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self._retrying(call)
        except OneLLMError:
            raise
        except TimeoutError:
            call.possibly_billed += call.under_way
            raise DeadlineExceededError("The deadline passed before an answer was there.") from None

    async def _retrying(self, call: Call) -> ChatResponse:
        try:
            response = await self._admitted(call)
        except APIError as first_failure:
            try:
                response = await run_attempts(
                    lambda: self._repeat(call), first_failure, lambda failure: self._verdict(failure, call)
                )
            finally:
                self._backing_off.discard(call)
        else:
            self._budget.earn()
        return response

    def _repeat(self, call: Call) -> Coroutine[None, None, ChatResponse]:
        self._backing_off.discard(call)
        self._repeated += 1
        return self._admitted(call)

    def _verdict(self, failure: APIError, call: Call) -> Verdict:
        now = asyncio.get_running_loop().time()
        history, patient = call.history(), call.group is not self._impatient
        if patient and self._breaker.reopens_at is not None and failure.billing is not Billing.POSSIBLY_BILLED:
            # The service is down, and a fan-out waits until it is back: what was surely not billed costs no attempt.
            history = History(1, 0, history.possibly_billed)
        verdict = judge(
            failure,
            history,
            self._retry,
            budget_left=self._budget.left,
            time_left=None if call.deadline is None else call.deadline - now,
            patient=patient,
            random=self._random,
        )
        if verdict.retry and self._breaker.reopens_at is not None and not patient:
            verdict = Verdict(retry=False, wait=0.0, reason="the service fails again and again")
        if not verdict.retry:
            failure.given_up = verdict.reason if failure.retryable else ""
        else:
            self._budget.spend()
            self._backing_off.add(call)
            if self._hooks:
                notify(self._hooks, Retrying(call.number, call.model, now, call.attempts, verdict.wait, failure))
        return verdict

    async def _admitted(self, call: Call) -> ChatResponse:
        while True:
            permit = await self._admission(call)
            try:
                response = await self._once(call)
                usage = response.usage
                permit.answered(usage.total_tokens if usage is not None else None)
            except RateLimitError as refusal:
                self._account_for_refusal(refusal, call, permit)
            except APIError as failure:
                self._account_for(failure, call, permit)
                raise
            else:
                self._service_answered()
                if usage is not None and self._estimator is not None:
                    self._estimator.learn(call.model, len(call.body), usage.input_tokens, usage.output_tokens)
                return response if call.attempts == 1 and not call.refusals else call.with_history(response)
            finally:
                permit.settle()

    async def _admission(self, call: Call) -> Permit:
        self._refuse_if_closed()
        if self._breaker.reopens_at is not None and call.group is self._impatient:
            self._refuse_while_down()
        asked = 0.0
        if self._hooks:
            asked = asyncio.get_running_loop().time()
            notify(self._hooks, Queued(call.number, call.model, asked, call.lane))
        permit = await self._acquire(call)
        if self._closed:  # granted in the very moment of closing
            permit.give_back()
            self._refuse_if_closed()
        if call.before_sending is not None:
            await self._announce(call, permit, call.before_sending)
        if self._hooks:
            now = self._limiter.time()
            notify(self._hooks, Granted(call.number, call.model, now, now - asked))
            notify(self._hooks, Sent(call.number, call.model, now, call.attempts + 1))
        return permit

    async def _announce(self, call: Call, permit: Permit, before_sending: BeforeSending) -> None:
        """Lets the owner of the request take note of the attempt, and perhaps forbid it, while it holds its leave."""
        try:
            await before_sending(Attempt(call.attempts + 1, call.possibly_billed))
            _refuse_if_ended(call.group)
            self._refuse_if_closed()
        except BaseException:
            permit.give_back()
            raise

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ClientClosedError("The client is closed.", advice="Enter it again with `async with`.")

    def _acquire(self, call: Call) -> Coroutine[None, None, Permit]:
        return self._limiter.acquire(
            tokens=call.tokens,
            lane=call.lane,
            deadline=call.deadline,
            order=call.order,
            group=call.group,
            model=call.model,
        )

    async def _once(self, call: Call) -> ChatResponse:
        call.attempts += 1
        call.under_way = True
        reply = await self._transport.post(call.body)
        call.under_way = False
        return decode_reply(
            reply.status,
            reply.headers,
            reply.body,
            model=call.model,
            now=time.time(),
            asked=call.body,
            tell=self._notices.tell,
        )

    # What follows from how an attempt ended.

    def _account_for_refusal(self, refusal: RateLimitError, call: Call, permit: Permit) -> None:
        self._service_answered()
        call.attempts -= 1
        call.refusals += 1
        call.order = permit.order
        permit.refused(refusal.retry_after)
        if call.after_failing is not None:
            call.after_failing(call.possibly_billed)
        if self._hooks:
            notify(self._hooks, Refused(call.number, call.model, self._limiter.time(), refusal.retry_after))

    def _account_for(self, failure: APIError, call: Call, permit: Permit) -> None:
        call.under_way = False
        if failure.billing is Billing.POSSIBLY_BILLED:
            call.possibly_billed += 1
        elif failure.billing is Billing.NOT_BILLED:
            call.server_errors += 1
        if call.after_failing is not None:
            call.after_failing(call.possibly_billed)
        if failure.retryable:
            reopens_at = self._breaker.failed(call.number, self._limiter.time())
            if reopens_at is not None:
                self._limiter.hold(reopens_at)
                self._limiter.end(self._impatient, self._circuit_open)
        else:
            self._service_answered()
        if failure.billing is Billing.NOT_PROCESSED:
            permit.give_back()
        elif isinstance(failure, APIStatusError | ResponseDecodeError):
            permit.answered()

    def _service_answered(self) -> None:
        if self._breaker.answered():
            self._limiter.release()

    def _refuse_while_down(self) -> None:
        self._limiter.bind(asyncio.get_running_loop())
        reopens_at = self._breaker.reopens_at
        if reopens_at is not None and self._limiter.time() < reopens_at:
            raise self._circuit_open()

    def _circuit_open(self) -> CircuitOpenError:
        wait = max(0.0, (self._breaker.reopens_at or 0.0) - self._limiter.time())
        return CircuitOpenError(
            f"The service has failed several times in a row; the next attempt is in {wait:.1f} s.",
            retry_after=wait,
            advice="Try again then, or use gather_chats or iter_chats, which wait by themselves.",
        )

    def _explain(self, error: OneLLMError, call: Call, now: float) -> None:
        error.request = f"request {call.number} ({call.model})"
        error.attempts = call.attempts
        error.elapsed = now - call.started
        error.possibly_billed = call.possibly_billed
        if isinstance(error, DeadlineExceededError) and call.possibly_billed:
            error.billing = Billing.POSSIBLY_BILLED
        if self._hooks:
            notify(self._hooks, Failed(call.number, call.model, now, call.attempts, error.elapsed, error))
