"""Admission under random requests, endings, faults and retunes, with limits of every kind at once."""

from random import Random

import pytest

from onellm_async.errors import OneLLMError
from onellm_async.limits.admission import Admission
from onellm_async.limits.advertised import AdvertisedReply
from onellm_async.limits.policy import Limits, Rate
from onellm_async.limits.queue import Ticket
from onellm_async.limits.rate_control import control_for, count_earlier, reconfigured, window_wait
from onellm_async.limits.rate_state import RateState
from tests.limits.test_declared_window import busiest

SEEDS, STEPS = 12, 250
WINDOW = Rate(15, 30, window=True)


def random_limits(random: Random) -> Limits:
    rates = random.choice([[], [], [WINDOW], [Rate(3, 1), Rate(90, 86_400)], [Rate(2, 1, burst=4), WINDOW]])
    rate = random.choice(["auto", None, 20.0, 600.0])
    adaptive = random.choice(["auto", "off"]) if isinstance(rate, float) else "auto"
    return Limits(
        max_concurrency=random.choice(["auto", 1, 5, 48]),
        requests_per_minute=rate,
        tokens_per_minute=random.choice([None, None, 6000]),
        max_pending=random.choice([None, 3]),
        rates=rates,
        adaptive=adaptive,  # type: ignore[arg-type]
    )


class Run:
    """One random run. Whatever happens, nothing is lost or taken twice."""

    def __init__(self, seed: int) -> None:
        self.random, self.now = Random(seed), 1000.0
        limits = random_limits(self.random)
        state = self.random.choice([None, RateState(2.0, 5.0)])
        self.core = Admission(limits, control_for(limits, self.now, Random(seed + 1), state), self.now)
        count_earlier(self.core.rate, [self.now - 5, self.now - 500], self.now)
        self.queued: list[Ticket] = []
        self.out: list[Ticket] = []

    def enter(self, ticket: Ticket) -> None:
        try:
            if self.core.try_enter(ticket, self.now):
                self.out.append(ticket)
            else:
                self.core.enqueue(ticket, self.now)
                self.queued.append(ticket)
        except OneLLMError:
            pass  # shed

    def end(self) -> None:
        core, random, now = self.core, self.random, self.now
        ticket = self.out.pop(random.randrange(len(self.out)))
        match random.choice(["answered", "answered", "answered", "429", "release", "give_back", "overloaded"]):
            case "answered":
                core.answered(ticket, now, random.choice([None, 0.0, 500.0]))
            case "429":
                reset = random.choice([None, 3.0, 90.0])
                said = AdvertisedReply(sent_at=ticket.since, is_accepted=False, limit=9.0, remaining=0.0, reset=reset)
                core.rate.advise(now, said)
                core.rate_limited(ticket, now, random.choice([None, None, 0.5, 2.0]))
                self.enter(Ticket(ticket.lane, ticket.tokens, ticket.deadline, ticket.order, ticket.model))
            case "release":
                core.release(ticket, now)
            case "give_back":
                core.give_back(ticket, now)
            case "overloaded":
                core.overloaded(ticket, now)

    def step(self) -> None:
        core, random = self.core, self.random
        self.now += random.choice([0.0, 0.01, 0.3, 1.5, random.expovariate(0.1)])
        chosen = random.random()
        if chosen < 0.4:
            for _ in range(random.choice([1, 3, 10])):
                deadline = random.choice([None, None, self.now + 20])
                lane = random.choice(["interactive", "default", "batch"])
                self.enter(Ticket(lane, random.choice([0.0, 100.0]), deadline, model=random.choice(["a", None])))
        elif chosen < 0.8 and self.out:
            self.end()
        elif chosen < 0.84 and self.queued:
            core.cancel(self.queued.pop(random.randrange(len(self.queued))), self.now)
        elif chosen < 0.87:
            limits = random_limits(random)
            core.retune(limits, reconfigured(core.rate, core.limits, limits, self.now, Random(1)), self.now)
        elif chosen < 0.88:
            core.rate.move_clock(self.now)
        self.dispatch()

    def dispatch(self) -> None:
        core, now = self.core, self.now
        for ticket in (*core.expire(now), *core.expire_unreachable(now)):
            assert str(core.deadline_error(ticket, now))
            self.queued.remove(ticket)
        for ticket in core.dispatch(now):
            self.queued.remove(ticket)
            self.out.append(ticket)
        wake = core.next_wake(now)
        assert wake is None or wake >= now
        assert window_wait(core.rate, now) >= 0
        assert core.in_flight == len(self.out)
        assert core.waiting == len(self.queued)
        assert core.concurrency >= 1


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_is_lost_or_taken_twice_whatever_happens(seed: int) -> None:
    run = Run(seed)
    for _ in range(STEPS):
        run.step()
    while run.out:
        run.core.answered(run.out.pop(), run.now, None)
        run.dispatch()
    for ticket in run.core.drain():
        run.queued.remove(ticket)
    assert (run.core.in_flight, run.core.waiting, run.queued) == (0, 0, [])


@pytest.mark.parametrize("seed", range(4))
def test_a_window_is_kept_whatever_else_is_declared(seed: int) -> None:
    random, now, sent = Random(seed), 0.0, []
    limits = Limits(max_concurrency=100, rates=[WINDOW, Rate(5, 1)], requests_per_minute=random.choice([None, "auto"]))
    control = control_for(limits, now, random)
    for _ in range(600):
        now += random.expovariate(2)
        while control.time_until(1, now) <= 0:
            control.take(now)
            if random.random() < 0.1:
                control.rate_limited(now, now + 0.02)
            else:
                control.answered(now, now + 0.02)
                sent.append(now)
    assert busiest(sent, 30) <= 15
    assert len(sent) > 40
