import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import ChatRequest, Message
from onellm_async.batch.budget import Account, Budget, Charge, most_input_tokens
from onellm_async.errors import ConfigurationError, InvalidRequestError


def test_the_worst_case_counts_every_byte_as_a_token_and_all_the_answer_that_is_allowed():
    request = ChatRequest("GPT-5", "x" * 968, max_tokens=1000)
    assert most_input_tokens(request) == 1000
    worst = Budget(max_cost=1.0).worst_case(request)
    assert worst == Charge(cost=pytest.approx((1000 * 1.28 + 1000 * 10.20) / 1e6, rel=0.2), tokens=2000)


def test_everything_that_is_sent_counts_as_input():
    plain = most_input_tokens(ChatRequest("GPT-5", "Hi"))
    assert most_input_tokens(ChatRequest("GPT-5", "Hi", system="Be kind")) == plain + 7 + 16
    assert most_input_tokens(ChatRequest("GPT-5", [Message("user", "H"), Message("assistant", "i")])) == plain + 16
    assert most_input_tokens(ChatRequest("GPT-5", "Hi", extra={"tools": ["x" * 100]})) > plain + 100
    assert most_input_tokens(ChatRequest("GPT-5", "é")) == plain


def test_a_budget_refuses_what_has_no_highest_price():
    with pytest.raises(InvalidRequestError, match="Without max_tokens"):
        Budget(max_cost=1.0).worst_case(ChatRequest("GPT-5", "Hi"))
    with pytest.raises(InvalidRequestError, match="Without max_tokens"):
        Budget(max_tokens=1000).worst_case(ChatRequest("GPT-5", "Hi"))
    with pytest.raises(InvalidRequestError, match="The price of 'my-model' is not known"):
        Budget(max_cost=1.0).worst_case(ChatRequest("my-model", "Hi", max_tokens=5))


def test_tokens_of_an_unpriced_model_can_be_capped():
    assert Budget(max_tokens=1000).worst_case(ChatRequest("my-model", "Hi", max_tokens=5)) == Charge(0.0, 39)


def test_without_a_cap_nothing_is_refused():
    assert Budget().worst_case(ChatRequest("my-model", "Hi")) is None
    assert Budget().worst_case(ChatRequest("my-model", "Hi", max_tokens=5)) is None
    assert Budget().worst_case(ChatRequest("GPT-5", "Hi", max_tokens=5)).tokens == 39
    assert not Budget().capped


@pytest.mark.parametrize("value", [0, -1, float("nan"), "5"])
def test_a_cap_that_is_no_amount_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"Budget\.max_cost is"):
        Budget(max_cost=value)


def test_earlier_sittings_count():
    account = Account(Budget(max_tokens=100), spent=Charge(tokens=60))
    assert not account.reserve(Charge(tokens=41))
    assert account.reserve(Charge(tokens=40))


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 50), st.integers(0, 50)),
        max_size=100,
    )
)
def test_the_cap_is_never_passed_and_a_settled_account_holds_nothing_back(steps):
    account = Account(Budget(max_tokens=200))
    held, gone = [], 0
    for kind, most, used in steps:
        if kind == 0 and held:
            reserved, actual = held.pop(0)
            account.settle(reserved, actual)
            gone += actual.tokens
        elif account.reserve(Charge(tokens=most)):
            held.append((Charge(tokens=most), Charge(tokens=min(used, most))))
        assert account.spent.tokens + account.reserved.tokens <= 200
        assert account.spent.tokens == gone
    for reserved, actual in held:
        account.settle(reserved, actual)
    assert account.reserved == Charge()
    assert account.under_way == 0
