import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import LANES
from onellm_async.limits.queue import QUEUED, Queue, Ticket


def numbered(lane="default", deadline=None, orders=itertools.count()):  # noqa: B008
    return Ticket(lane, deadline=deadline, order=next(orders))


def served(queue, count):
    tickets = []
    for _ in range(count):
        head = queue.head()
        queue.pop(head)
        tickets.append(head)
    return tickets


def filled(**lanes):
    queue = Queue(LANES)
    for lane, count in lanes.items():
        for _ in range(count):
            queue.push(numbered(lane))
    return queue


def test_lane_is_first_in_first_out():
    queue = filled(default=50)
    orders = [ticket.order for ticket in served(queue, 50)]
    assert orders == sorted(orders)
    assert queue.head() is None


def test_waiting_lanes_share_by_weight():
    queue = filled(interactive=400, default=400, batch=400)
    shares = Counter(ticket.lane for ticket in served(queue, 210))
    assert shares == {"interactive": 160, "default": 40, "batch": 10}


def test_no_lane_waits_longer_than_one_round():
    queue = filled(interactive=400, default=400, batch=400)
    order = [ticket.lane for ticket in served(queue, 105)]
    gaps = [i for i, lane in enumerate(order) if lane == "batch"]
    assert len(gaps) == 5
    assert max(b - a for a, b in itertools.pairwise(gaps)) <= 21


def test_interactive_newcomer_is_next_while_a_long_batch_waits():
    queue = filled(batch=10_000)
    served(queue, 500)
    newcomer = numbered("interactive")
    queue.push(newcomer)
    assert queue.head() is newcomer


def test_idle_lane_cannot_hoard_its_share():
    queue = filled(batch=1000)
    served(queue, 900)
    for _ in range(100):
        queue.push(numbered())
    lanes = [ticket.lane for ticket in served(queue, 20)]
    assert lanes.count("batch") >= 3


def test_returned_ticket_goes_before_all_that_came_later():
    queue = filled(default=5)
    first, second = served(queue, 2)
    queue.push(second, requeued=True)
    queue.push(first, requeued=True)
    assert [ticket.order - first.order for ticket in served(queue, 5)] == [0, 1, 2, 3, 4]


# Flows


def flowing(queue, flows, lane="default"):
    for flow in flows:
        ticket = numbered(lane)
        ticket.flow = flow
        queue.push(ticket)


def test_flows_of_a_lane_take_turns_and_each_is_first_in_first_out():
    queue = Queue(LANES)
    flowing(queue, "aaaaabbc")
    tickets = served(queue, 8)
    assert "".join(ticket.flow for ticket in tickets) == "abcabaaa"
    for flow in "abc":
        orders = [ticket.order for ticket in tickets if ticket.flow == flow]
        assert orders == sorted(orders)


def test_a_flow_that_comes_again_and_again_gets_no_more_than_its_share():
    queue, counts = Queue(LANES), Counter()
    flowing(queue, ["flood"] * 100 + ["single"])
    for _ in range(40):
        (ticket,) = served(queue, 1)
        counts[ticket.flow] += 1
        if ticket.flow == "single":
            flowing(queue, ["single"])
    assert counts == {"flood": 20, "single": 20}


def test_tickets_without_a_flow_take_turns_as_one_with_the_flows():
    queue = Queue(LANES)
    flowing(queue, [None, None, None, "a", "a"])
    assert [ticket.flow for ticket in served(queue, 5)] == [None, "a", None, "a", None]


def test_upcoming_tickets_are_listed_in_the_order_in_which_they_are_sent():
    queue = Queue(LANES)
    flowing(queue, "aaabbc")
    queue.cancel(queue.upcoming("default", 2)[1])
    expected = queue.upcoming("default", 9)
    assert served(queue, 5) == expected


def test_a_newcomer_of_an_idle_flow_is_behind_one_ticket_of_each_other():
    queue = Queue(LANES)
    flowing(queue, ["a"] * 50 + ["b"] * 3)
    assert [queue.ahead_of_newcomer("default", flow) for flow in ("c", "b", "a")] == [2, 7, 53]


def test_the_longest_wait_is_that_of_any_flow():
    queue = Queue(LANES)
    flowing(queue, "aabb")
    for ticket, since in zip(queue.upcoming("default", 4), (3.0, 1.0, 4.0, 2.0), strict=True):
        ticket.since = since
    queue.cancel(queue.upcoming("default", 2)[1])
    assert queue.waiting_since() == {"default": 2.0}


@given(st.lists(st.sampled_from(["push", "pop", "withdraw", "return"]), max_size=200), st.randoms())
def test_length_counts_exactly_the_queued_tickets_whatever_happens(acts, random):
    queue, waiting, out = Queue(LANES), [], []
    for act in acts:
        if act == "push":
            ticket = numbered(random.choice(list(LANES)), random.choice([None, 1.0]))
            ticket.flow = random.choice([None, None, "a", "b"])
            queue.push(ticket)
            waiting.append(ticket)
        elif act == "pop" and waiting:
            head = queue.head()
            queue.pop(head)
            head.state = 1
            waiting.remove(head)
            out.append(head)
        elif act == "withdraw" and waiting:
            ticket = waiting.pop(random.randrange(len(waiting)))
            queue.cancel(ticket)
        elif act == "return" and out:
            ticket = out.pop()
            queue.push(ticket, requeued=True)
            waiting.append(ticket)
        assert len(queue) == len(waiting) == sum(queue.lengths().values())
        assert (queue.head() is None) == (not waiting)
        for lane in LANES:
            in_lane = sorted(ticket.order for ticket in waiting if ticket.lane == lane)
            assert queue.lengths()[lane] == len(in_lane)
    assert {t.order for t in queue.drain()} == {t.order for t in waiting}


def test_withdrawing_thousands_in_any_order_keeps_the_queue_small():
    queue = Queue(LANES)
    tickets = [numbered("batch", 5.0) for _ in range(5000)]
    for ticket in tickets:
        queue.push(ticket)
    for ticket in tickets[::-1][:4900]:
        queue.cancel(ticket)
    assert queue._lanes["batch"].entries <= 250
    assert sum(map(len, queue._lanes["batch"].flows.values())) <= 250
    assert len(queue._deadlines) <= 250
    assert queue.head() is tickets[0]


def test_expired_tickets_come_out_in_the_order_of_their_deadlines():
    queue = Queue(LANES)
    for deadline in (3.0, 1.0, 2.0, 9.0):
        queue.push(numbered(deadline=deadline))
    assert [ticket.deadline for ticket in queue.expire(3.0)] == [1.0, 2.0, 3.0]
    assert queue.next_deadline() == 9.0
    assert len(queue) == 1


def test_unknown_lane_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"'urgent'.*interactive, default, batch"):
        Queue(LANES).check_lane("urgent")


def test_newcomer_in_a_heavy_lane_overtakes_most_of_a_light_one():
    queue = filled(batch=1000)
    assert queue.ahead_of_newcomer("interactive") == 0
    assert queue.ahead_of_newcomer("batch") == 1000
    mixed = filled(interactive=10, batch=1000)
    assert mixed.ahead_of_newcomer("interactive") == pytest.approx(10 * 17 / 16)


def test_new_ticket_is_queued():
    assert Ticket("default").state == QUEUED
