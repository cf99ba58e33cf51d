"""A visit that another participant computes: what arrives there is what was posted."""

from random import Random

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand, Grant, RateLimitReport
from onellm_async.limits.rate_state import RateState
from onellm_async.quota.board import Board, decode_limits, encode_limits
from onellm_async.quota.visit_message import PostedVisit, dump_grant, load_grant
from onellm_async.wire import dump_json
from tests.quota.visits import random_visits

DISCOVERED = Declaration(decode_limits(encode_limits(Limits(requests_per_minute="auto"))), explicit=True)
seconds = st.floats(0, 1e6)
amounts = st.integers(0, 10**6)
lanes = st.tuples(amounts, amounts, amounts)
demands = st.builds(
    Demand,
    waiting=lanes,
    ages=st.tuples(seconds, seconds, seconds),
    tokens=st.tuples(seconds, seconds, seconds),
    given_back=amounts,
    settled_tokens=st.floats(-1e6, 1e6),
    answered=st.lists(st.tuples(seconds, seconds), max_size=3),
    rate_limited=st.lists(st.builds(RateLimitReport, seconds, seconds, st.none() | seconds), max_size=3),
    sent_alone=amounts,
    alone_for=seconds,
    leaving=st.booleans(),
)


@given(demands, st.text(), seconds)
def test_a_visit_arrives_as_it_was_posted(demand, name, age):
    visit = PostedVisit(name, demand, DISCOVERED, age)
    assert PostedVisit.load(visit.dump()) == visit


def test_every_declaration_arrives_as_far_as_a_board_holds_it():
    state = RateState(2.5, 40, low=2.0, high=None, windows=((40, 60.0),))
    for visit in random_visits(5, 200, grants=[Grant(0, None, 0, 1.0, 1.0, 0.0, 0.0, 1, None, False, None)] * 200):
        declaration = evolve(visit.declaration, state=state)
        posted = PostedVisit(visit.name, visit.demand, declaration, visit.declared_age)
        arrived = PostedVisit.load(posted.dump())
        assert arrived is not None
        assert PostedVisit.dump(arrived) == posted.dump()
        assert arrived.declaration.state == state


def test_a_grant_arrives_as_it_was_computed():
    board = Board(DISCOVERED, 0.0, Random(0))
    for number in range(40):
        grant = board.visit(f"client-{number % 3}", Demand(waiting=(0, 5, 1)), number / 10, DISCOVERED, 0.0)
        assert load_grant(dump_grant(grant)) == grant
    whole = Grant(2, 0.25, 3, 1.5, 40.0, 1.1, 0.5, 4, 0.75, True, 7.5, 12.0, 3.1, 1.2, 2.2, False)
    assert load_grant(dump_grant(whole)) == whole


def test_a_visit_that_waited_counts_from_when_it_was_posted():
    demand = Demand(waiting=(0, 1, 0), rate_limited=[RateLimitReport(0.1, 0.05, 3.0)])
    at_once, later = Board(DISCOVERED, 0.0, Random(0)), Board(DISCOVERED, 0.0, Random(0))
    at_once.visit("one", demand.aged(0.5), 10.0, DISCOVERED, 1.5)
    PostedVisit("one", demand, DISCOVERED, 1.0).compute(later, 10.0, 0.5)
    assert at_once.dump() == later.dump()


def test_a_visit_of_another_version_is_left_to_it():
    assert PostedVisit.load(dump_json([2, {"name": "from the future"}])) is None


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'[1,"name",[],[]]', b'["1"]', b"null"])
def test_what_is_no_visit_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        PostedVisit.load(text)
