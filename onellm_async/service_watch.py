"""What the requests of a client show about the service, and what follows for all of them.

The circuit breaker and the clock of an outage are pure. Here they meet the event loop: an open circuit holds the
limiter back, and an outage that lasts too long ends every group that waits.
"""

import asyncio
import copy
import logging
from collections.abc import Callable
from weakref import WeakSet

from onellm_async.circuit_breaker import CircuitBreaker, OutageClock
from onellm_async.errors import APIError, CircuitOpenError, OneLLMError
from onellm_async.failure_kinds import RULES, in_context
from onellm_async.limits.limiter import Limiter
from onellm_async.limits.permit import RequestGroup
from onellm_async.retry import RetryPolicy

_log = logging.getLogger("onellm_async")
_KEY_FAILURES_IN_A_ROW = 3
"""Requests in a row that end with 401 before a key that was accepted counts as revoked."""


class ServiceWatch:
    """The circuit, the outage, and what is known of service and key.

    Args:
        policy: Thresholds of the circuit breaker, and `RetryPolicy.max_outage`.
        limiter: Held back while the circuit is open.
        on_open: Called when the circuit opens: ends the waits of the requests that fail fast.

    Attributes:
        breaker: The circuit breaker.
        groups: Groups of this client, as long as anything else refers to them.
        last_failure: How the last attempt failed; None after an answer.
        answered: Whether the service has answered this client with anything that shows that it is up.
        key_accepted: Whether it has accepted the key.
        answer_is_news: Whether the next answer is the first one, or the first after a failure.
    """

    def __init__(self, policy: RetryPolicy, limiter: Limiter, on_open: Callable[[], None]) -> None:
        self.breaker: CircuitBreaker = CircuitBreaker(policy.breaker_failures, policy.breaker_wait)
        self.groups: WeakSet[RequestGroup] = WeakSet()
        self.last_failure: OneLLMError | None = None
        self.answered: bool = False
        self.key_accepted: bool = False
        self.answer_is_news: bool = True
        self._limiter = limiter
        self._on_open = on_open
        self._outage = OutageClock(policy.max_outage)
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._key_failures = 0
        self._closed = False

    # What happened.

    def record_failure(self, failure: OneLLMError) -> None:
        """Records that an attempt was not accepted, 429s included.

        Args:
            failure: How it ended.
        """
        self.last_failure, self._loop, self.answer_is_news = failure, asyncio.get_running_loop(), True
        rate = self._limiter.limits.declared_rate
        interval = max(60 / rate if rate else 0.0, self._limiter.window_wait)
        self._outage.record_failure(self._limiter.time(), interval)
        if self._timer is None:
            self._set_timer()

    def record_down(self, failure: APIError, request: int) -> None:
        """Records a failure that opens the circuit if there are enough of them.

        Args:
            failure: How the attempt ended.
            request: The number of its request.
        """
        was_open = self.breaker.trial_at is not None
        trial_at = self.breaker.record_failure(request, self._limiter.time())
        if trial_at is None:
            return
        self._limiter.open_circuit(trial_at)
        self._on_open()
        if was_open:
            return
        _log.warning(
            "Circuit open after %d failures in a row. Next attempt in %.0f s. Last error: %s",
            self.breaker.failures, trial_at - self._limiter.time(), failure.message,
        )  # fmt: skip
        if failure.affects_every_prompt:
            self._end_groups(failure, "because the service has never answered")

    def record_up(self) -> None:
        """Records a reply that shows that the service is up, whatever it says."""
        self.answered = True
        if self.breaker.record_answer():
            _log.info("Circuit closed: the service answers again.")
            self._limiter.close_circuit()

    def record_answer(self) -> None:
        """Records an answer that is news: the service is up, the key is good, an outage is over."""
        self.answer_is_news, self.key_accepted, self._key_failures = False, True, 0
        self.record_up()
        if self.last_failure is not None:
            self.last_failure = None
            self._outage.record_answer()
            self._set_timer()

    def record_end(self, error: OneLLMError) -> None:
        """Records how a request failed in the end, and decides whether it concerns every prompt.

        Args:
            error: Of the request.
        """
        if RULES[error.kind].every_prompt == "third in a row":
            self._key_failures += 1
            error.affects_every_prompt = self._key_failures >= _KEY_FAILURES_IN_A_ROW

    def classify(self, failure: APIError) -> None:
        """Sets the kind of `failure`, and whether it affects every prompt, by what this client knows.

        Args:
            failure: As transport or wire raised it.
        """
        failure.kind = in_context(failure.kind, answered=self.answered, key_accepted=self.key_accepted)
        every_prompt = RULES[failure.kind].every_prompt
        failure.affects_every_prompt = every_prompt == "yes" or (
            every_prompt == "unless answered" and not self.answered
        )

    # What the caller does.

    def pause(self) -> None:
        """The caller sends nothing for now, so no outage is measured."""
        if self._outage.running:
            self._outage.pause(self._limiter.time())
            self._set_timer()

    def resume(self) -> None:
        """The caller sends again."""
        if self._outage.running:
            self._outage.resume(self._limiter.time())
            self._set_timer()

    def open(self) -> None:
        """The client is open."""
        self._closed = False

    def close(self) -> None:
        """The client is closed: nothing waits for the service any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The outage.

    def _set_timer(self) -> None:
        """Sets the timer that ends all groups after `RetryPolicy.max_outage`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        remaining = self._outage.remaining(self._limiter.time())
        loop = self._loop
        patient = any(group.wait_for_ready for group in self.groups)
        if remaining is not None and patient and not self._closed and loop is not None and not loop.is_closed():
            self._timer = loop.call_later(remaining, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        failure, remaining = self.last_failure, self._outage.remaining(self._limiter.time())
        if remaining is None or failure is None:
            return
        if remaining > 0:
            self._set_timer()
            return
        minutes = self._outage.elapsed(self._limiter.time()) / 60
        self._outage.record_answer()  # a group that is made later has an outage of its own to wait for
        self._end_groups(failure, f"because nothing was accepted for {minutes:.0f} min (RetryPolicy.max_outage)")

    def _end_groups(self, failure: OneLLMError, reason: str) -> None:
        """Ends all groups that wait for the service: each of their waiting requests gets a copy of `failure`."""

        def error() -> OneLLMError:
            twin = copy.copy(failure)
            twin.affects_every_prompt = True
            if isinstance(twin, APIError):
                twin.stop_reason = reason
            return twin

        _log.warning("Fan-outs end %s. Last error: %s", reason, failure.message)
        for group in list(self.groups):
            if group.wait_for_ready and group.ended is None:
                group.end(error)

    # The circuit, as a request sees it that fails fast.

    def is_trial_due(self) -> bool:
        """Whether a request may be sent although the circuit is open: the time has come, and no trial is in flight."""
        self._limiter.bind(asyncio.get_running_loop())
        trial_at = self.breaker.trial_at
        return trial_at is None or (self._limiter.time() >= trial_at and self._limiter.core.gate.trial is None)

    def circuit_open_error(self) -> CircuitOpenError:
        """The error of a request that is not sent because the circuit is open."""
        wait = max(0.0, (self.breaker.trial_at or 0.0) - self._limiter.time())
        last = f" Last error: {self.last_failure.message}" if self.last_failure is not None else ""
        trial = f"Next attempt in {wait:.1f} s." if wait else "A trial request is in flight."
        return CircuitOpenError(
            f"Circuit open after {self.breaker.failures} failures in a row.{last} {trial}",
            retry_after=wait,
            advice="Try again then, or use gather_chats or iter_chats, which wait by themselves.",
        )
