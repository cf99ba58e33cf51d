import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onellm_async.errors import ConfigurationError
from onellm_async.failure_kinds import Billing
from onellm_async.server import Fault, Faults, Outcome, ServerSettings, Service, echo
from onellm_async.server.accounts import MAX_UNLISTED_KEYS
from onellm_async.server.replies import BALANCE_RESERVED
from onellm_async.transport import RawReply

ROOMY = {"requests_per_minute": 1e9, "burst": 1e9}
BILLED = {Outcome.ANSWERED, Outcome.LOST}


def always(fault):
    switches = {
        Fault.RESET_BEFORE: {"reset_before_rate": 1},
        Fault.SERVER_ERROR: {"server_error_rate": 1},
        Fault.GATEWAY_ERROR: {"html_502_rate": 1},
        Fault.RESET_AFTER: {"reset_after_rate": 1},
        Fault.TRUNCATED: {"truncate_rate": 1},
    }
    return ServerSettings(faults=Faults(**switches[fault]), **ROOMY)


@pytest.mark.parametrize(
    ("fault", "outcome", "status", "truncated"),
    [
        (Fault.RESET_BEFORE, Outcome.DROPPED, None, False),
        (Fault.SERVER_ERROR, Outcome.FAILED, 500, False),
        (Fault.GATEWAY_ERROR, Outcome.FAILED, 502, False),
        (Fault.RESET_AFTER, Outcome.LOST, None, False),
        (Fault.TRUNCATED, Outcome.LOST, 200, True),
    ],
)
def test_each_fault_ends_as_it_says_and_is_billed_only_after_processing(asking, fault, outcome, status, truncated):
    asker = asking(always(fault))
    delivery = asker.delivery()
    assert (delivery.reply.status if delivery.reply else None, delivery.truncated) == (status, truncated)
    (row,) = asker.ledger.rows
    assert row.outcome is outcome
    assert (row.cost > 0) is (outcome in BILLED)
    assert asker.balance() == pytest.approx(100 - row.cost, abs=1e-12)
    assert asker.ledger.in_flight == 0


def test_gateway_error_is_a_page(asking):
    reply = asking(always(Fault.GATEWAY_ERROR)).reply()
    assert reply.headers["Content-Type"] == "text/html"
    assert b"<title>502 Bad Gateway</title>" in reply.body


@pytest.mark.parametrize("model", ["GPT-5-Mini", "GPT-5-mini"])
@pytest.mark.parametrize("dialect", ["documented", "backend"])
def test_model_can_fail_for_good_while_the_others_are_well(asking, dialect, model):
    text = "missing field `safetyRatings` at line 1 column 117"
    asker = asking(ServerSettings(dialect=dialect, faults=Faults(failing_models={model: text}), **ROOMY))
    for _ in range(3):
        reply = asker.reply()
        told = json.loads(reply.body)
        assert (told["error"] if dialect == "documented" else told["output"]["output"]) == text
        assert asker.reply(model="GPT-5").status == 200
    assert asker.ledger.outcomes == {Outcome.FAILED: 3, Outcome.ANSWERED: 3}


def test_model_beyond_the_catalog_can_fail_for_good(asking):
    asker = asking(ServerSettings(any_model=True, faults=Faults(failing_models={"llama": "no"})))
    assert asker.reply(model="llama").status == 500
    assert asker.reply(model="llama2").status == 200


def test_failing_model_does_not_shift_what_happens_to_other_requests():
    switches = {"latency": 1, "latency_sigma": 1, "server_error_rate": 0.5}
    first, second = Random(5), Random(5)
    with_it, without = Faults(failing_models={"GPT-5": "x"}, **switches), Faults(**switches)
    plans = [(with_it.plan(first, model), without.plan(second, model)) for model in ["GPT-5", "GPT-4o"] * 20]
    assert all(mine.latency == other.latency for mine, other in plans)
    assert [mine for mine, _ in plans[1::2]] == [other for _, other in plans[1::2]]


@pytest.mark.parametrize(
    "text", ["error sending request", "An Unexpected error occurred", "invalid type: null, expected a string"]
)
def test_text_of_a_server_error_is_the_one_that_was_set(asking, text):
    settings = ServerSettings(dialect="backend", faults=Faults(server_error_rate=1, server_error_text=text))
    assert json.loads(asking(settings).reply().body) == {"code": 500, "output": {"output": text}}


@pytest.mark.parametrize("keys", [None, {"good": 5.0}])
@pytest.mark.parametrize("dialect", ["documented", "backend"])
def test_revoked_key_is_unknown_from_then_on(asking, dialect, keys):
    asker = asking(ServerSettings(dialect=dialect, keys=keys, **ROOMY))
    held = asker.receive()
    asker.service.revoke("good")
    asker.service.revoke("never seen")
    assert asker.service.complete(held, echo(held)).reply.status == 200
    for key in ("good", "never seen"):
        reply = asker.receive(key)
        told = json.loads(reply.body)
        if dialect == "backend":
            assert told == {"code": 401, "output": {"error": "Custom error: No such user was found"}}
        else:
            assert (reply.status, told) == (401, {"error": "Invalid API key."})
    if keys is None:
        assert asker.reply("other").status == 200


def test_shares_come_out_as_set():
    faults = Faults(
        reset_before_rate=0.1, server_error_rate=0.2, html_502_rate=0.05, reset_after_rate=0.15, truncate_rate=0.1
    )
    random = Random(1)
    drawn = Counter(faults.plan(random).fault for _ in range(20_000))
    expected = {
        Fault.RESET_BEFORE: 0.1,
        Fault.SERVER_ERROR: 0.2,
        Fault.GATEWAY_ERROR: 0.05,
        Fault.RESET_AFTER: 0.15,
        Fault.TRUNCATED: 0.1,
        None: 0.4,
    }
    assert {fault: drawn[fault] / 20_000 for fault in expected} == pytest.approx(expected, abs=0.012)


def test_latency_is_log_normal_around_its_median():
    faults, random = Faults(latency=2.0, latency_sigma=0.5), Random(3)
    drawn = sorted(faults.plan(random).latency for _ in range(10_001))
    assert drawn[5000] == pytest.approx(2.0, rel=0.03)
    assert drawn[9500] == pytest.approx(2.0 * 2.28, rel=0.05)


def test_latency_without_spread_is_constant():
    random = Random(0)
    assert {Faults(latency=1.5).plan(random).latency for _ in range(50)} == {1.5}


def story(seed):
    faults = Faults(seed=seed, latency=1, latency_sigma=1, reset_after_rate=0.3, server_error_rate=0.3)
    service = Service(ServerSettings(faults=faults, **ROOMY))
    body = json.dumps({"model": "GPT-5", "messages": [{"role": "user", "content": "x"}]}).encode()
    headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    return [service.receive("POST", "/api", headers, body, 0.0).plan for _ in range(100)]


def test_same_seed_tells_the_same_story_and_another_seed_another():
    assert story(7) == story(7)
    assert story(7) != story(8)


def test_kind_of_fault_does_not_shift_what_happens_to_later_requests():
    first, second = Random(5), Random(5)
    with_faults, without = Faults(latency=1, latency_sigma=1, reset_before_rate=0.5), Faults(latency=1, latency_sigma=1)
    assert [with_faults.plan(first).latency for _ in range(50)] == [without.plan(second).latency for _ in range(50)]


@pytest.mark.parametrize(
    "switches",
    [
        {"latency": -1},
        {"latency": float("nan")},
        {"latency": float("inf")},
        {"latency_sigma": 6},
        {"truncate_rate": 1.1},
        {"unfit_rate": 1.1},
        {"reset_before_rate": -0.1},
        {"server_error_rate": "often"},
        {"reset_after_rate": 0.6, "truncate_rate": 0.6},
        {"retry_after": "soon"},
        {"retry_after": -1},
        {"server_error_text": 5},
        {"failing_models": "GPT-5"},
        {"failing_models": {"GPT-5": 500}},
        {"failing_models": {5: "x"}},
        {"database_places": 0},
        {"database_places": 1.5},
        {"database_wait": -1},
        {"database_wait": float("inf")},
        {"seed": "x"},
    ],
)
def test_impossible_fault_switch_is_refused_by_name(switches):
    with pytest.raises(ConfigurationError) as refused:
        Faults(**switches)
    assert "Faults." in str(refused.value) or "shares" in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"dialect": "klingon"}, "klingon"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"burst": 0}, "burst"),
        ({"initial_level": -1}, "initial_level"),
        ({"keys": ["a"]}, "keys"),
        ({"keys": {5: 1.0}}, "keys"),
        ({"keys": {"secret-key": "much"}}, "balance"),
        ({"keys": {"secret-key": float("nan")}}, "balance"),
        ({"blocked": [1]}, "blocked"),
        ({"balance": -1}, "balance"),
        ({"any_model": 1}, "any_model"),
        ({"faults": 0.5}, "faults"),
        ({"keep_rows": -1}, "keep_rows"),
    ],
)
def test_impossible_setting_is_refused_by_name_and_without_the_key(settings, name):
    with pytest.raises(ConfigurationError) as refused:
        ServerSettings(**settings)
    assert name in str(refused.value)
    assert "secret-key" not in str(refused.value)


def test_settings_keep_their_own_keys_and_do_not_show_them():
    keys = {"secret-key": 1.0}
    settings = ServerSettings(keys=keys, blocked={"other-secret"})
    keys.clear()
    assert settings.keys == {"secret-key": 1.0}
    assert "secret" not in repr(settings)


def test_ledger_names_accounts_without_showing_keys(asking):
    asker = asking(ServerSettings())
    asker.reply("secret-key")
    asker.reply("secret-key-2")
    asker.raw(b"{}", key=None)
    labels = [row.account for row in asker.ledger.rows]
    assert len(set(labels)) == 3
    assert labels[2] == ""
    assert "secret" not in repr(asker.ledger.rows) + json.dumps(asker.ledger.summary())


def test_rows_tell_what_was_asked_and_when(asking):
    asker = asking(ServerSettings())
    asker.now = 12.5
    asker.reply(messages=[{"role": "user", "content": "What?" + "x" * 500}])
    (row,) = asker.ledger.rows
    assert (row.number, row.received_at, row.model) == (1, 12.5, "GPT-5-Mini")
    assert row.prompt == "What?" + "x" * 195
    assert (row.input_tokens, row.output_tokens) == (127, 127)
    assert row.cost == pytest.approx(127 * (0.26 + 2.08) / 1e6)


@pytest.mark.parametrize("keep", [0, 3])
def test_rows_are_bounded_and_counters_are_not(asking, keep):
    asker = asking(ServerSettings(keep_rows=keep, **ROOMY))
    for _ in range(10):
        asker.reply()
    assert [row.number for row in asker.ledger.rows] == [8, 9, 10][:keep]
    assert (asker.ledger.received, asker.ledger.billed) == (10, 10)


def test_most_requests_in_flight_at_once_are_remembered(asking):
    asker = asking(ServerSettings())
    jobs = [asker.receive() for _ in range(3)]
    for job in jobs:
        asker.service.complete(job, echo(job))
    asker.reply()
    assert (asker.ledger.in_flight, asker.ledger.max_in_flight) == (0, 3)


def test_reply_to_a_reader_who_has_gone_is_billed_and_lost(asking):
    asker = asking(ServerSettings())
    job = asker.receive()
    asker.service.complete(job, echo(job), disconnected=True)
    assert asker.ledger.outcomes == {Outcome.LOST: 1}
    assert asker.balance() < 100


def test_invented_keys_neither_fill_the_memory_nor_push_out_a_real_account(asking):
    asker = asking(ServerSettings(keys={"good": 1.0}, dialect="backend", burst=1, requests_per_minute=0))
    asker.reply()
    spent = asker.balance()
    assert spent < 1.0
    asker.receive("first")
    for number in range(MAX_UNLISTED_KEYS):
        asker.service.account(str(number), 0.0)
        asker.service.account("first", 0.0)  # in use, so that others are forgotten before it
    assert asker.balance() == spent
    assert json.loads(asker.receive("first").body)["code"] == 429
    assert asker.service.account("0", 0.0).limits.quotas(0.0)[0].remaining == 1


def test_full_table_of_strangers_forgets_nobody_until_a_newcomer_comes(asking):
    asker = asking(ServerSettings(burst=1, requests_per_minute=0))
    asker.reply("oldest")
    for number in range(MAX_UNLISTED_KEYS - 1):
        asker.service.account(str(number), 0.0)
    asker.service.account("0", 0.0)
    assert asker.reply("oldest").status == 429
    asker.service.account("newcomer", 0.0)  # pushes out "1", unused for longest by now
    assert asker.reply("oldest").status == 429
    assert len(asker.service._accounts._unlisted) == MAX_UNLISTED_KEYS


@pytest.mark.parametrize("dialect", ["documented", "backend"])
def test_requests_in_flight_together_cannot_spend_more_than_the_balance(asking, dialect):
    asker = asking(ServerSettings(dialect=dialect, keys={"good": 0.11}, **ROOMY))
    message = {"role": "user", "content": "x" * 100_000}  # 25,000 tokens, $0.032 to read and $0.26 to echo
    held = [asker.receive(model="GPT-5", messages=[message], max_tokens=2**32 - 1) for _ in range(300)]
    jobs = [job for job in held if not isinstance(job, RawReply)]
    assert len(jobs) == 1
    refused = json.loads(held[-1].body)
    assert (
        (held[-1].status, refused["error"]) == (429, BALANCE_RESERVED)
        if dialect == "documented"
        else (refused == {"code": 429, "output": {"error": BALANCE_RESERVED}})
    )
    asker.service.complete(jobs[0], echo(jobs[0]))
    assert 0 <= asker.balance() < 0.10
    assert "Insufficient balance" in asker.receive(model="GPT-5").body.decode()
    assert asker.ledger.billed_usd <= 0.11


def test_reserved_balance_is_free_again_whatever_became_of_the_request(asking):
    asker = asking(ServerSettings(keys={"good": 0.11}, **ROOMY))
    job = asker.receive(model="GPT-5", max_tokens=10**6)
    for end in (
        lambda job: asker.service.fail(job, "x"),
        asker.service.abandon,
        lambda job: asker.service.fail(job, "x", billing=Billing.POSSIBLY_BILLED),
        lambda job: asker.service.complete(job, echo(job)),
    ):
        assert asker.receive(model="GPT-5").status == 429
        end(job)
        job = asker.receive(model="GPT-5", max_tokens=10**6)
    assert asker.service.account("good", 0.0).reserved == pytest.approx(asker.balance(), abs=2e-5)


def test_refusal_for_a_reserved_balance_costs_no_token(asking):
    asker = asking(ServerSettings(keys={"good": 0.11}, burst=2, requests_per_minute=0))
    job = asker.receive(model="GPT-5", max_tokens=10**6)
    assert [asker.receive(model="GPT-5").status for _ in range(5)] == [429] * 5
    asker.service.abandon(job)
    assert asker.reply(model="GPT-5").status == 200


def test_as_much_is_reserved_as_was_asked_for_in_all_answers(asking):
    def reserved(**changes):
        asker = asking(ServerSettings(keys={"good": 10.0}))
        asker.receive(model="GPT-5", **changes)
        return asker.service.account("good", 0.0).reserved

    read, token = 3 * 1.28e-6, 10.40e-6
    assert reserved(max_tokens=100) == pytest.approx(read + 100 * token)
    assert reserved(max_tokens=100, n=5) == pytest.approx(read + 500 * token)
    assert reserved(max_completion_tokens=7) == pytest.approx(read + 7 * token)
    assert reserved(max_tokens=7, max_completion_tokens=70) == pytest.approx(read + 70 * token)
    assert reserved(max_completion_tokens=-5) == pytest.approx(read + 1024 * token)
    assert reserved() == pytest.approx(read + 1024 * token)
    assert reserved(n=10**400) == 0  # refused: no balance pays for so many
    long = [{"role": "user", "content": "x" * 40_000}]
    assert reserved(messages=long) == pytest.approx(10_000 * (1.28e-6 + token))


def test_all_answers_of_a_request_are_billed(asking):
    asker = asking(ServerSettings())
    assert json.loads(asker.reply(n=3).body)["usage"] == {"input_tokens": 3, "output_tokens": 9, "total_tokens": 12}


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["rich", "poor", "stranger"]),
        st.sampled_from(["GPT-5", "Haiku-3", "no such model"]),
        st.integers(0, 400_000),
        st.one_of(st.none(), st.integers(1, 20_000)),
        st.sampled_from([None, None, 1, 2, 7]),
        st.floats(0, 5),
        st.booleans(),
    ),
    max_size=60,
)


@given(
    requests=REQUESTS,
    dialect=st.sampled_from(["documented", "backend"]),
    seed=st.integers(0, 2**32),
    rates=st.lists(st.floats(0, 0.2), min_size=5, max_size=5),
)
def test_what_is_billed_is_what_the_balances_lost_and_had_and_every_request_is_counted_once(
    requests, dialect, seed, rates
):
    names = ["reset_before_rate", "server_error_rate", "html_502_rate", "reset_after_rate", "truncate_rate"]
    faults = Faults(seed=seed, **dict(zip(names, rates, strict=True)))
    before = {"rich": 50.0, "poor": 0.1005}
    service = Service(ServerSettings(dialect=dialect, keys=before, burst=10, faults=faults))
    ledger, now, held = service.ledger, 0.0, []
    accounts = [service.account(key, now) for key in before]
    for key, model, size, most, answers, pause, finish in requests:
        now += pause
        body = {"model": model, "messages": [{"role": "user", "content": "x" * size}], "max_tokens": most, "n": answers}
        if dialect == "backend":
            body |= {"endpoint": "", "top_p": 1, "max_tokens": most or 9}
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        received = service.receive("POST", "/api", headers, json.dumps(body).encode(), now)
        if not isinstance(received, RawReply):
            held.append(received)
        assert ledger.in_flight == len(held)
        assert all(
            0 <= service.account(key, now).reserved <= service.account(key, now).balance + 1e-9 for key in before
        )
        if finish:
            for job in held:
                assert service.apply_fault(job) or service.complete(job, echo(job))
            held.clear()
    for job in held:
        service.abandon(job)

    assert all(account.balance > -1e-9 and account.reserved == 0 for account in accounts)
    lost = sum(balance - service.account(key, now).balance for key, balance in before.items())
    billed = [row for row in ledger.rows if row.outcome in BILLED]
    assert sum(row.cost for row in ledger.rows) == pytest.approx(lost, abs=1e-9)
    assert ledger.billed_usd == pytest.approx(lost, abs=1e-9)
    assert all(row.cost == 0 for row in ledger.rows if row.outcome not in BILLED)
    assert (ledger.received, ledger.billed, ledger.in_flight) == (len(requests), len(billed), 0)
    assert sorted(row.number for row in ledger.rows) == list(range(1, len(requests) + 1))
    assert ledger.output_tokens == sum(row.output_tokens for row in billed)
    assert service.account("stranger", now).balance == 0
