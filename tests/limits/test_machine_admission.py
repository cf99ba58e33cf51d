"""Any sequence of requests, refusals, failures, pauses and withdrawals, held against lists that are easy to believe."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from onellm_async.errors import DeadlineExceededError
from onellm_async.limits.admission import Admission
from onellm_async.limits.bucket import TokenBucket
from onellm_async.limits.declared import DeclaredRate
from onellm_async.limits.policy import LANES, Limits
from onellm_async.limits.queue import CANCELLED, GRANTED, QUEUED, RELEASED, Ticket

SLACK = 1e-6


class AdmissionMachine(RuleBasedStateMachine):
    """The model: lists of who waits in each lane, who is out, and when whoever was sent has left."""

    PER_SECOND, BURST, SLOTS, TOKENS_PER_MINUTE = 2.0, 5, 3, None

    def __init__(self):
        super().__init__()
        self.now = 0.0
        limits = Limits(
            max_concurrency=self.SLOTS,
            requests_per_minute=self.PER_SECOND * 60,
            burst=self.BURST,
            tokens_per_minute=self.TOKENS_PER_MINUTE,
        )
        self.core = Admission(limits, DeclaredRate(self.PER_SECOND, self.BURST, 0.0), 0.0)
        self.waiting = {lane: [] for lane in LANES}
        self.out = []
        self.sent_at = {}
        self.granted = self.given_back = self.settled = 0
        self.gate = float("-inf")
        self.held_until = None
        self.probe = None
        self.paused = False
        self.token_level = float(self.TOKENS_PER_MINUTE or 0)
        self.tokens_at = 0.0

    # What the model knows.

    def everybody(self):
        return [ticket for lane in self.waiting.values() for ticket in lane]

    def shut(self):
        held = self.held_until is not None and (self.now < self.held_until or self.probe is not None)
        return self.paused or self.now < self.gate or held

    def note_grant(self, ticket):
        assert not self.shut(), "(7) nothing passes the gate"
        assert len(self.out) < self.SLOTS, "(2)"
        assert ticket.deadline is None or self.now < ticket.deadline + SLACK, "(7) nothing leaves after its deadline"
        assert ticket.state == GRANTED
        if ticket in self.waiting[ticket.lane]:
            ahead = [other for other in self.waiting[ticket.lane] if other.order < ticket.order]
            assert not ahead, "(4) first in, first out within a lane"
            self.waiting[ticket.lane].remove(ticket)
        else:
            assert not self.everybody(), "(4) no newcomer overtakes the queue"
        self.granted += 1
        self.out.append(ticket)
        self.sent_at[ticket] = self.now
        if self.held_until is not None:
            self.probe = ticket

    def note_expired(self, ticket, earliest):
        assert ticket.deadline <= earliest + SLACK, "(7) it might have been sent in time"
        assert ticket.state == CANCELLED
        assert str(self.core.deadline_error(ticket, self.now))
        self.waiting[ticket.lane].remove(ticket)

    def earliest(self, ticket):
        """When `ticket` may be sent if it is the next of all, and nothing is out."""
        wait = self.core.rate.time_until(1, self.now)
        if self.core.tokens is not None:
            tokens = min(ticket.tokens, self.core.tokens.capacity)
            wait = max(wait, self.core.tokens.time_until(tokens, self.now))
        return max(self.now + wait, self.gate, self.held_until or 0.0)

    def pump(self, *, timer=False):
        for ticket in self.core.expire_unreachable(self.now) if timer else []:
            assert not self.out
            assert not self.paused
            self.note_expired(ticket, self.earliest(ticket))
        for ticket in self.core.expire(self.now):
            self.note_expired(ticket, max(self.now, self.gate))
        for ticket in self.core.dispatch(self.now):
            self.note_grant(ticket)
        for ticket in self.everybody():
            assert ticket.deadline is None or ticket.deadline > self.now, "an expired ticket was left waiting"

    def leave(self, ticket):
        self.out.remove(ticket)
        if ticket is self.probe:
            self.probe = None
        self.settled += 1

    # What can happen.

    @rule(
        lane=st.sampled_from(list(LANES)),
        tokens=st.sampled_from([0, 1, 50, 400, 5000]),
        patience=st.none() | st.floats(0.01, 30),
    )
    def arrive(self, lane, tokens, patience):
        ticket = Ticket(lane, tokens, None if patience is None else self.now + patience)
        if self.core.try_enter(ticket, self.now):
            self.note_grant(ticket)
            return
        try:
            self.core.enqueue(ticket, self.now)
        except DeadlineExceededError:
            assert patience is not None
            return
        self.waiting[lane].append(ticket)
        self.pump()

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds):
        until = self.now + seconds
        while (wake := self.core.next_wake(self.now)) is not None and wake <= until:
            self.now = max(wake, self.now + 1e-9)
            self.pump(timer=True)
        self.now = until
        self.pump()

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 99), tokens=st.none() | st.integers(0, 2000))
    def answer(self, which, tokens):
        ticket = self.out[which % len(self.out)]
        self.leave(ticket)
        self.core.answered(ticket, self.now, tokens)
        self.pump()

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 99), retry_after=st.none() | st.sampled_from([0.0, 1.0, 12.0]))
    def refuse(self, which, retry_after):
        ticket = self.out[which % len(self.out)]
        self.leave(ticket)
        self.core.rate_limited(ticket, self.now, retry_after)
        if retry_after is not None:
            self.gate = max(self.gate, self.now + retry_after)
        self.pump()
        self.come_back(ticket, None)

    def come_back(self, ticket, patience):
        deadline = None if patience is None else self.now + patience
        again = Ticket(ticket.lane, ticket.tokens, deadline, ticket.order)
        if self.core.try_enter(again, self.now):
            self.note_grant(again)
            return
        try:
            self.core.enqueue(again, self.now)
        except DeadlineExceededError:
            assert deadline is not None
            return
        self.waiting[again.lane].append(again)
        self.pump()

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 99), patience=st.none() | st.floats(0.01, 30))
    def fail(self, which, patience):
        ticket = self.out[which % len(self.out)]
        self.leave(ticket)
        self.core.release(ticket, self.now)
        self.pump()
        self.come_back(ticket, patience)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 99))
    def cancelled_before_it_left(self, which):
        ticket = self.out[which % len(self.out)]
        self.leave(ticket)
        self.given_back += 1
        del self.sent_at[ticket]
        self.core.cancel(ticket, self.now)
        self.pump()

    @precondition(lambda self: self.everybody())
    @rule(which=st.integers(0, 99))
    def cancelled_while_waiting(self, which):
        waiting = self.everybody()
        ticket = waiting[which % len(waiting)]
        self.waiting[ticket.lane].remove(ticket)
        looks = self.core.cancel(ticket, self.now)
        assert ticket.state == CANCELLED
        if looks:
            self.pump()

    @rule()
    def pause(self):
        self.paused = True
        self.core.gate.pause()

    @precondition(lambda self: self.paused)
    @rule()
    def resume(self):
        self.paused = False
        self.core.gate.resume()
        self.pump()

    @rule(seconds=st.sampled_from([1.0, 15.0]))
    def service_goes_down(self, seconds):
        self.held_until = self.now + seconds
        self.core.gate.open_circuit(self.held_until)

    @precondition(lambda self: self.held_until is not None)
    @rule()
    def service_is_back(self):
        self.held_until = self.probe = None
        self.core.gate.close_circuit()
        self.pump()

    # What is always true.

    @invariant()
    def counts_agree_with_the_lists(self):
        assert self.core.in_flight == len(self.out)
        assert 0 <= self.core.in_flight <= self.SLOTS
        assert self.core.waiting == len(self.core.queue) == len(self.everybody())
        assert self.core.queue.lengths() == {lane: len(tickets) for lane, tickets in self.waiting.items()}
        assert self.granted == len(self.out) + self.settled
        assert self.granted == len(self.sent_at) + self.given_back
        assert all(ticket.state == QUEUED for ticket in self.everybody())
        assert all(ticket.state == GRANTED for ticket in self.out)

    @invariant()
    def no_window_sees_more_than_the_bucket(self):
        level, last = 0.0, 0.0
        for at in sorted(self.sent_at.values()):
            level = max(0.0, level - (at - last) * self.PER_SECOND) + 1
            last = at
            assert level <= self.BURST + 1 + SLACK

    @invariant()
    def nobody_waits_for_nothing(self):
        """Whoever waits does so for a reason that the model knows, or for a moment that is certain."""
        if not self.everybody() or len(self.out) >= self.core.concurrency or self.paused or self.probe is not None:
            return
        wake = self.core.next_wake(self.now)
        assert wake is not None, "(5) somebody waits, and nothing will ever wake the limiter"
        assert wake > self.now or self.core.dispatch(self.now) == [], "(5) a slot, a token and a waiter, but no grant"

    @invariant()
    def no_deadline_is_waited_for_in_vain(self):
        """Who certainly cannot be sent before its deadline has been told, or is at the next turn of the timer."""
        for ticket in self.everybody():
            if ticket.deadline is None:
                continue
            assert ticket.deadline > self.gate - SLACK, "(7) the service asked to wait for longer"
            if not self.out and not self.paused and ticket in self.core.queue.heads().values():
                hopeless = ticket.deadline < self.earliest(ticket) - SLACK
                assert not hopeless or self.core.next_wake(self.now) == self.now

    def teardown(self):
        self.paused, self.held_until, self.probe = False, None, None
        self.core.gate.resume()
        self.core.gate.close_circuit()
        for ticket in list(self.out):
            self.leave(ticket)
            self.core.answered(ticket, self.now)
        for _ in range(200):
            self.time_passes(60.0)
            for ticket in list(self.out):
                self.leave(ticket)
                self.core.answered(ticket, self.now)
            if not self.everybody():
                break
        assert not self.everybody(), "(10) faults have ceased, and somebody still waits"
        assert self.core.in_flight == self.core.waiting == 0
        assert self.core.next_wake(self.now) is None


class TokensMachine(AdmissionMachine):
    PER_SECOND, BURST, SLOTS, TOKENS_PER_MINUTE = 5.0, 20, 8, 600


class NarrowMachine(AdmissionMachine):
    PER_SECOND, BURST, SLOTS, TOKENS_PER_MINUTE = 0.5, 1, 1, None


SOME = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = SOME
TestTokens = TokensMachine.TestCase
TestTokens.settings = SOME
TestNarrow = NarrowMachine.TestCase
TestNarrow.settings = SOME


@pytest.mark.parametrize("state", [QUEUED, GRANTED, RELEASED, CANCELLED])
def test_withdrawing_in_any_state_twice_takes_nothing_from_anybody(state):
    core = Admission(
        Limits(max_concurrency=2, requests_per_minute=60, burst=5, tokens_per_minute=600),
        DeclaredRate(1.0, 5, 0.0),
        0.0,
    )
    other, ticket = Ticket("batch", 10), Ticket("batch", 10)
    assert core.try_enter(other, 0.0)
    if state in {GRANTED, RELEASED}:
        assert core.try_enter(ticket, 1.0)
        if state == RELEASED:
            core.answered(ticket, 1.0)
    else:
        core.gate.pause()
        core.enqueue(ticket, 1.0)
        if state == CANCELLED:
            core.cancel(ticket, 1.0)
    assert ticket.state == state
    if state != CANCELLED:
        core.cancel(ticket, 1.0)
    core.give_back(ticket, 1.0)
    core.release(ticket, 1.0)
    assert (core.in_flight, core.waiting, len(core.queue)) == (1, 0, 0)
    assert isinstance(core.tokens, TokenBucket)
    assert core.tokens.level_at(1.0) == pytest.approx(600 if state != RELEASED else 590)
