"""No service can make a client storm: 429s are bounded by time and by accepted requests, whatever it answers."""

import heapq
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from onellm_async.limits.adaptive import AdaptiveRate
from onellm_async.limits.advertised import AdvertisedReply

PER_SECOND = 2.5
"""429s in a second, in the long run, where nothing is accepted."""
PER_ACCEPTED = 3
"""429s for an accepted request."""
AT_ONCE = AdaptiveRate.MAX_UNCONFIRMED + 16
"""429s at once: the unconfirmed requests while a service closes, and the first knocks."""
SHARE_AT_ONCE = AdaptiveRate.UNCONFIRMED_SHARE
"""Likewise: so many of the accepted requests may be unconfirmed, if that is more."""


class Adversary:
    """A service that answers whatever its next decision says, and counts."""

    def __init__(self, round_trip, latency, concurrency=64):
        self.control = AdaptiveRate(0.0, random=Random(1))
        self.round_trip, self.latency, self.concurrency = round_trip, latency, concurrency
        self.now, self.number, self.excess, self.excess_at = 0.0, 0, 0.0, 0.0
        self.accepted = 0
        self.events = []
        self.says = self.window = None

    @property
    def is_stormed(self):
        return self.excess > max(AT_ONCE, 16 + SHARE_AT_ONCE * self.accepted)

    def send(self, *, accept):
        """Sends the next request as early as it may be sent, after all that arrives before."""
        while True:
            free = len(self.events) < min(self.concurrency, self.control.max_in_flight)
            at = self.now + self.control.time_until(1, self.now) if free else float("inf")
            if not self.events or at < self.events[0][0]:
                break
            self.deliver()
        self.now = max(self.now, at)
        self.control.take(self.now)
        self.count(-PER_ACCEPTED if accept else 1)
        self.accepted += accept
        self.number += 1
        takes = self.round_trip + (self.latency if accept else 0.0)
        heapq.heappush(self.events, (self.now + takes, self.number, self.now, accept))

    def count(self, amount):
        self.excess = max(0.0, self.excess - PER_SECOND * (self.now - self.excess_at))
        self.excess, self.excess_at = max(0.0, self.excess + amount), self.now

    def deliver(self):
        """Lets the next answer or 429 arrive, and the headers before it."""
        at, _, sent_at, accept = heapq.heappop(self.events)
        self.now = max(self.now, at)
        if self.says is not None:
            limit, remaining, reset = self.says(sent_at)
            said = AdvertisedReply(
                sent_at=sent_at, is_accepted=accept, limit=limit, remaining=remaining, reset=reset, window=self.window
            )
            self.control.advise(self.now, said)
        (self.control.answered if accept else self.control.rate_limited)(sent_at, self.now)


class Storm(RuleBasedStateMachine):
    @initialize(round_trip=st.sampled_from([0.002, 0.02, 0.1]), latency=st.sampled_from([0.0, 0.1, 0.5, 5.0]))
    def start(self, round_trip, latency):
        self.service = Adversary(round_trip, latency)

    @rule(count=st.integers(1, 150))
    def accepts(self, count):
        for _ in range(count):
            self.service.send(accept=True)

    @rule(count=st.integers(1, 60))
    def refuses(self, count):
        for _ in range(count):
            self.service.send(accept=False)

    @rule(pattern=st.lists(st.booleans(), min_size=1, max_size=40))
    def answers(self, pattern):
        for accept in pattern:
            self.service.send(accept=accept)

    @rule(
        count=st.integers(1, 60),
        seconds=st.sampled_from([1, 4, 10, 60]),
        requests=st.integers(1, 200),
        pace=st.floats(0, 2),
    )
    def counts_in_a_window(self, count, seconds, requests, pace):
        accepted = []
        for _ in range(requests):
            now = self.service.now
            accepted = [at for at in accepted if at > now - seconds]
            accept = len(accepted) < count
            self.service.send(accept=accept)
            if accept:
                accepted.append(self.service.now)
            self.has_nothing_to_do(pace)

    @rule(
        limit=st.sampled_from([1, 3, 40, 1000, 10**6]),
        seconds=st.sampled_from([0.001, 0.1, 1, 4, 60]),
        kind=st.sampled_from(["bucket", "sliding", "fixed", "policy", "nothing left", "silent"]),
        requests=st.integers(0, 1),
    )
    def says_what_it_likes(self, limit, seconds, kind, requests):
        """Its headers follow from its requests as those of a true limit do."""
        self.service.window = seconds if kind == "policy" else None
        missing = [0]

        def says(sent_at):
            missing[0] = missing[0] % limit + requests
            reset = {"bucket": seconds * missing[0] / limit, "fixed": seconds - sent_at % seconds}.get(kind, seconds)
            return limit, 0 if kind == "nothing left" else limit - missing[0], reset

        self.service.says = None if kind == "silent" else says

    @rule(seconds=st.floats(0.01, 100))
    def has_nothing_to_do(self, seconds):
        service = self.service
        until = service.now + seconds
        while service.events and service.events[0][0] <= until:
            service.deliver()
        service.now = until

    @invariant()
    def no_storm(self):
        assert not hasattr(self, "service") or not self.service.is_stormed


Storm.TestCase.settings = settings(max_examples=60, stateful_step_count=12)
TestNoServiceMakesTheClientStorm = Storm.TestCase


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_a_service_that_answers_at_random_gets_no_storm(share):
    dice, service = Random(1), Adversary(0.02, 0.3)
    for _ in range(1500):
        service.send(accept=dice.random() < share)
        assert not service.is_stormed


def test_a_fast_service_that_closes_gets_no_more_429s_at_once_than_a_sixteenth_of_what_it_accepted():
    service = Adversary(0.18, 0.3, concurrency=1000)
    for _ in range(4000):
        service.send(accept=True)
    most = 0.0
    for _ in range(300):
        service.send(accept=False)
        assert not service.is_stormed
        most = max(most, service.excess)
    assert most > AT_ONCE, "a fast service needs as many in flight"


def test_an_outage_is_met_by_single_knocks():
    service = Adversary(0.02, 0.3)
    for _ in range(2000):
        service.send(accept=True)
    closed_at = service.now
    for _ in range(60):
        service.send(accept=False)
    assert service.now - closed_at > 120, "after the first ten seconds there are less than two in a second"
