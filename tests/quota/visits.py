"""Random visits to a board, the same for each holder."""

from collections.abc import Iterator
from random import Random

from attrs import frozen

from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand, Grant, RateLimitReport


@frozen
class Visit:
    """One visit, with everything that it depends on."""

    at: float
    name: str
    demand: Demand
    declaration: Declaration
    declared_age: float
    draw: float


class FixedRandom(Random):
    """Says what it was told to say."""

    value = 0.5

    def random(self) -> float:
        return self.value


def random_limits(random: Random) -> Limits:
    return Limits(
        requests_per_minute=random.choice([6, 40, 1200, 12000]),
        burst=random.choice([1, 2, 40, 600]),
        tokens_per_minute=random.choice([None, None, 1000, 60_000]),
        adaptive=random.choice(["correct", "off"]),
    )


def random_visits(seed: int, number: int, *, grants: list[Grant]) -> Iterator[Visit]:
    """Visits of a few participants, some late, some dead, some alone for a while, under changing declarations.

    Args:
        seed: Decides on everything.
        number: How many.
        grants: What the visits so far have returned; the next ones react to it, as a client does.
    """
    random = Random(seed)
    now = random.choice([0.0, 1000.0, 1.7e9])
    declarations = {}
    declared_at = {}
    owed: dict[str, float] = {}
    held: dict[str, int] = {}
    names = [f"client-{index}" for index in range(random.choice([1, 2, 5, 16, 80]))]
    due: dict[str, float] = {}
    for _ in range(number):
        step = random.random()
        if step < 0.02:
            now -= random.choice([0.3, 20.0, 5000.0])
        elif step < 0.05:
            now += random.choice([1.0, 7.0, 100.0])
        name = min(due, key=lambda name: due[name]) if due and random.random() < 0.7 else random.choice(names)
        now = max(now, due.pop(name, now)) if random.random() < 0.7 else now + random.random() * 0.2
        if name not in declarations or random.random() < 0.01:
            limits = random_limits(random) if random.random() < 0.5 else Limits()
            declarations[name] = Declaration.of(limits, retuned=random.random() < 0.2)
            declared_at[name] = now
        yield Visit(
            now,
            name,
            random_demand(random, held.pop(name, 0), owed.pop(name, 0.0)),
            declarations[name],
            now - declared_at[name],
            random.random(),
        )
        grant = grants[-1]
        if grant.again_in is not None:
            due[name] = now + grant.again_in
        if random.random() < 0.1:
            held[name] = grant.permits
        owed[name] = grant.charged_tokens * random.uniform(-0.5, 1)


def random_demand(random: Random, held: int, owed: float) -> Demand:
    def some(most: int) -> int:
        return random.choice([0, 0, 1, random.randrange(most)])

    alone = random.random() < 0.03
    return Demand(
        waiting=(some(3), some(10), some(48)),
        ages=(random.random(), random.random() * 10, random.random() * 100),
        tokens=(random.uniform(1, 50), random.uniform(1, 500), random.uniform(1, 2000)),
        given_back=held,
        settled_tokens=owed,
        answered=[(random.uniform(0.1, 9), random.uniform(0, 0.1)) for _ in range(some(4))],
        rate_limited=[
            RateLimitReport(random.uniform(0, 1), 0.0, random.choice([None, None, 0.0, 1.5, 400.0]))
            for _ in range(some(3) if random.random() < 0.1 else 0)
        ],
        sent_alone=random.randrange(1, 40) if alone else 0,
        alone_for=random.uniform(0, 20) if alone else 0.0,
        leaving=random.random() < 0.01,
    )
