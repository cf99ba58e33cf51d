import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async import ChatRequest, Message, Usage
from onellm_async.batch.budget import Account, Bound, Budget, Cost, billed_tokens, most_input_tokens
from onellm_async.errors import ConfigurationError, InvalidRequestError


def test_the_worst_case_counts_every_byte_as_a_token_and_all_the_answer_that_is_allowed():
    request = ChatRequest("GPT-5", "x" * 968, max_tokens=1000)
    assert most_input_tokens(request) == 1000
    worst = Budget(max_cost=1.0).worst_case(request)
    assert worst == Cost(cost=pytest.approx((1000 * 1.28 + 1000 * 10.20) / 1e6, rel=0.2), tokens=2000)


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
    assert Budget(max_tokens=1000).worst_case(ChatRequest("my-model", "Hi", max_tokens=5)) == Cost(0.0, 39)


def test_without_a_cap_nothing_is_refused():
    assert Budget().worst_case(ChatRequest("my-model", "Hi")) is None
    assert Budget().worst_case(ChatRequest("my-model", "Hi", max_tokens=5)) is None
    assert Budget().worst_case(ChatRequest("GPT-5", "Hi", max_tokens=5)).tokens == 39
    assert not Budget().capped


@pytest.mark.parametrize("value", [0, -1, float("nan"), "5"])
def test_a_cap_that_is_no_amount_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"Budget\.max_cost is"):
        Budget(max_cost=value)


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("n", [1, 2, 10])
def test_each_of_several_answers_is_in_the_bound(n):
    one = Budget(max_cost=1.0).worst_case(ChatRequest("GPT-5", "Hi", max_tokens=1000))
    assert Budget(max_cost=1.0).worst_case(ChatRequest("GPT-5", "Hi", max_tokens=1000, n=n)) == Cost(
        pytest.approx(n * one.cost), n * one.tokens
    )


def test_tools_and_schemas_are_input_and_so_is_what_a_provider_adds_to_tools():
    plain = most_input_tokens(ChatRequest("GPT-5", "Hi"))
    assert most_input_tokens(ChatRequest("GPT-5", "Hi", tools=[TOOL])) > plain + 1000
    schema = {"type": "json_schema", "json_schema": {"name": "x" * 500}}
    assert most_input_tokens(ChatRequest("GPT-5", "Hi", response_format=schema)) > plain + 500


@pytest.mark.parametrize(
    ("extra", "output"),
    [
        ({"max_tokens": 100_000}, 100_000),
        ({"max_tokens": 5}, 5),
        ({"n": 3}, 30),
        ({"n": 2, "max_tokens": 7}, 14),
        ({"best_of": 4}, 40),
        ({"max_completion_tokens": 50}, 50),
        ({"max_output_tokens": 50, "n": None}, 50),
        ({"generation_config": {"max_output_tokens": 80, "candidate_count": 2}}, 160),
        ({"generationConfig": {"maxOutputTokens": 80}}, 80),
        ({"top_a": 0.5}, 10),
    ],
)
def test_what_extra_overrides_is_in_the_bound(extra, output):
    bound = Budget(max_cost=1.0).bound(ChatRequest("GPT-5", "Hi", max_tokens=10, extra=extra))
    assert bound.output_tokens == output


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"model": "GPT-5"}, "extra sets model to 'GPT-5'"),
        ({"max_tokens": "100"}, "extra sets max_tokens to '100'"),
        ({"max_tokens": None}, "Without max_tokens"),
        ({"max_tokens": True}, "extra sets max_tokens to True"),
        ({"max_completion_tokens": 1.5}, "extra sets max_completion_tokens to 1.5"),
        ({"n": 0}, "extra sets n to 0"),
        ({"n": [5]}, r"extra sets n to \[5\]"),
        ({"generation_config": {"candidate_count": -1}}, "extra sets candidate_count to -1"),
        ({"messages": "Hi"}, "extra sets messages to 'Hi'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "extra sets messages to"),
        ({"contents": [{"parts": [{"file_data": {"uri": "gs://film"}}]}]}, "extra sets contents to"),
        ({"max_tokens": 10**300}, "may have 1000.* tokens"),
        ({"n": 2**60}, "may have 1152.* tokens"),
    ],
)
def test_what_no_bound_holds_for_is_refused_under_a_cap_by_its_name(extra, named):
    request = ChatRequest("GPT-5-Nano", "Hi", max_tokens=10, extra=extra)
    with pytest.raises(InvalidRequestError, match=named):
        Budget(max_cost=1.0).bound(request)
    Budget().bound(request)


def test_text_in_extra_counts_as_input():
    turns = [{"role": "user", "content": "x" * 300}, {"role": "user", "content": [{"type": "text", "text": "y" * 300}]}]
    contents = [{"role": "user", "parts": [{"text": "x" * 600}]}]
    for extra in ({"messages": turns}, {"contents": contents}):
        bound = Budget(max_cost=1.0).bound(ChatRequest("GPT-5", "Hi", max_tokens=10, extra=extra))
        assert 600 < bound.input_tokens < 1000


@pytest.mark.parametrize("most", [2**53, 10**30, 10**1000])
def test_a_length_beyond_all_reason_is_refused_under_a_cap_and_no_obstacle_without(most):
    request = ChatRequest("GPT-5", "Hi", max_tokens=most)
    with pytest.raises(InvalidRequestError, match="Set a smaller max_tokens or n"):
        Budget(max_tokens=5).worst_case(request)
    assert Budget().worst_case(request) is None


@pytest.mark.parametrize(
    ("usage", "billed"),
    [
        (None, (None, None)),
        (Usage(), (None, None)),
        (Usage(10, 5, 15), (10, 5)),
        (Usage(10, 5), (10, 5)),
        (Usage(10, 5, 800), (10, 790)),
        (Usage(10, None, 800), (10, 790)),
        (Usage(None, None, 800), (None, 800)),
        (Usage(10, 5, 3), (10, 5)),
    ],
)
def test_what_the_total_has_beyond_input_and_output_is_billed_as_output(usage, billed):
    assert billed_tokens(usage) == billed


def of(tokens, model="m"):
    return Bound(model, 0, tokens)


def known(account, model="m"):
    account.learn(of(1, model), Usage(0, 1))
    return account


def test_earlier_sessions_count():
    account = known(Account(Budget(max_tokens=100), spent=Cost(tokens=60)))
    assert not account.reserve(of(41))
    assert account.reserve(of(40)) == Cost(tokens=40)


def test_until_a_model_has_replied_ten_times_what_is_under_way_must_fit():
    account = Account(Budget(max_tokens=100))
    assert account.reserve(of(90))  # one alone may always leave
    account.settle(Cost(tokens=90), Cost())
    assert account.reserve(of(6))
    assert account.reserve(of(4))
    assert account.reserve(of(1)) is None
    account.learn(of(6), Usage(0, 3))
    assert account.reserve(of(80))
    assert account.reserve(of(5, "another")) is None


def test_a_model_that_has_not_replied_is_expected_to_bill_as_the_worst_of_the_others():
    account = known(Account(Budget(max_tokens=10_000)), "modest")
    account.learn(of(100, "thinker"), Usage(0, 300))
    assert account.expected(of(10, "modest")).tokens == 10
    assert account.expected(of(10, "new")).tokens == 30


def test_what_lost_attempts_may_have_billed_grows_with_what_replies_bill():
    account = known(Account(Budget(max_tokens=10_000)))
    account.lose(of(100), account.reserve(of(100)))
    assert account.spent.tokens == 100
    account.learn(of(100), Usage(0, 400))
    account.learn(of(100), Usage(0, 300))
    assert account.spent.tokens == 400


def test_a_reply_that_bills_more_than_was_asked_scales_what_is_reserved_for_its_model():
    account = known(Account(Budget(max_tokens=10_000)), "other")
    account.learn(Bound("m", 30, 100), Usage(10, 340))
    assert account.overshoot == "replies bill up to 3.4 × max_tokens"
    assert account.expected(Bound("m", 30, 100)).tokens == 30 + 340
    assert account.expected(Bound("m", 30, 10)).tokens == 30 + 34  # by its share
    assert account.expected(Bound("m", 30, 1000)).tokens == 30 + 1240  # by what it had too much
    assert account.expected(Bound("other", 30, 100)).tokens == 130
    account.learn(Bound("m", 30, 100), Usage(75, 200))
    assert account.expected(Bound("m", 30, 100)).tokens == 75 + 340


def test_input_that_nobody_sent_is_learned_as_well():
    account = Account(Budget(max_tokens=10_000))
    account.learn(Bound("m", 40, 100), Usage(500, 1))
    assert account.overshoot == "replies bill up to 12.5 × the input that their text can have"
    assert account.expected(Bound("m", 40, 100)).tokens == 600


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 5000)), min_size=1))
def test_what_was_learned_would_have_covered_every_reply(replies):
    account = Account(Budget(max_tokens=10_000))
    for expected, billed in replies:
        account.learn(of(expected), Usage(0, billed))
    for expected, billed in replies:
        assert account.expected(of(expected)).tokens >= billed


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
            account.learn(of(reserved.tokens), Usage(0, actual.tokens))
            account.settle(reserved, actual)
            gone += actual.tokens
        elif (reserved := account.reserve(of(most))) is not None:
            held.append((reserved, Cost(tokens=min(used, most))))
        assert account.spent.tokens + account.reserved.tokens <= 200
        assert account.spent.tokens == gone
    for reserved, actual in held:
        account.settle(reserved, actual)
    assert account.reserved == Cost()
    assert account.under_way == 0
