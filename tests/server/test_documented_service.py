import json

import pytest

from onellm_async.server import BucketLimit, Faults, Outcome, ServerSettings
from onellm_async.server.jobs import Job

SETTINGS = ServerSettings(keys={"good": 10.0, "poor": 0.09, "closed": 5.0}, blocked={"closed"})


@pytest.fixture
def asker(asking):
    return asking(SETTINGS)


def error_of(reply):
    value = json.loads(reply.body)
    assert list(value) == ["error"]
    return value["error"]


def test_answer_is_flat_and_echoes_the_last_user_message(asker):
    reply = asker.reply(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "First"},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "Second one"},
        ]
    )
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/json"
    assert json.loads(reply.body) == {
        "provider": "OpenAI",
        "model": "gpt-5-mini",
        "role": "assistant",
        "content": "Second one",
        "usage": {"input_tokens": 3 + 2 + 1 + 3, "output_tokens": 3, "total_tokens": 12},
        "finish_reason": "stop",
    }


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("GPT-5", "OpenAI"),
        ("Opus-4", "Claude"),
        ("2.0-Flash", "Gemini"),
        ("DeepSeek-Chat", "DeepSeek"),
        ("Codestral", "Mistral"),
    ],
)
def test_provider_is_named_as_in_real_replies(asker, model, provider):
    assert json.loads(asker.reply(model=model).body)["provider"] == provider


@pytest.mark.parametrize("text", ["", "naïve 日本 🎉", "\ud800 alone", '"quoted"\n\t\x00', "a" * 100_000])
def test_any_text_comes_back_unchanged(asker, text):
    reply = asker.reply(messages=[{"role": "user", "content": text}])
    assert json.loads(reply.body)["content"] == text


def test_without_a_user_message_the_last_one_is_echoed(asker):
    reply = asker.reply(messages=[{"role": "system", "content": "one"}, {"role": "assistant", "content": "two"}])
    assert json.loads(reply.body)["content"] == "two"


def test_answer_longer_than_max_tokens_is_cut_and_says_so(asker):
    reply = json.loads(asker.reply(messages=[{"role": "user", "content": "abcdefghij"}], max_tokens=2).body)
    assert (reply["content"], reply["finish_reason"]) == ("abcdefgh", "length")
    assert reply["usage"] == {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


def test_answer_of_exactly_max_tokens_is_not_cut(asker):
    reply = json.loads(asker.reply(messages=[{"role": "user", "content": "abcdefgh"}], max_tokens=2).body)
    assert (reply["content"], reply["finish_reason"]) == ("abcdefgh", "stop")


def test_answer_ends_at_the_first_stop_sequence(asker):
    message = {"role": "user", "content": "one. two! three."}
    reply = json.loads(asker.reply(messages=[message], stop_sequences=["!", ".", "", "?"]).body)
    assert (reply["content"], reply["finish_reason"]) == ("one", "stop")


def test_answer_that_begins_with_a_stop_sequence_is_empty(asker):
    reply = json.loads(asker.reply(messages=[{"role": "user", "content": "END of it"}], stop_sequences=["END"]).body)
    assert (reply["content"], reply["finish_reason"], reply["usage"]["output_tokens"]) == ("", "stop", 0)


def test_system_text_is_read_and_billed_with_the_messages(asker):
    usage = json.loads(asker.reply(system="Be brief, please.").body)["usage"]
    assert usage == {"input_tokens": 5 + 3, "output_tokens": 3, "total_tokens": 11}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": ...}, "no model"),
        ({"messages": ...}, "no messages"),
        ({"model": 7}, "model is 7"),
        ({"model": "GPT-5-mini"}, "Did you mean 'GPT-5-Mini'?"),
        ({"model": "zzzzzz"}, "Unknown model 'zzzzzz'."),
        ({"messages": []}, "at least one message"),
        ({"messages": "Hello"}, "must be an array"),
        ({"messages": None}, "must be an array"),
        ({"messages": ["Hello"]}, "'Hello'"),
        ({"messages": [{"role": "judge", "content": ""}]}, "'judge'"),
        ({"messages": [{"role": "user", "content": 5}]}, "content is 5"),
        ({"messages": [{"role": "user", "content": "", "name": "x"}]}, "name"),
        ({"temperature": 2.1}, "temperature is 2.1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"stop_sequences": "."}, "stop_sequences is '.'"),
        ({"stop_sequences": [1]}, "must be strings"),
        ({"stream": True}, "stream is not supported"),
        ({"stream": []}, "stream is not supported"),
        ({"stream": 0}, "stream is not supported"),
    ],
)
def test_bad_field_is_refused_with_422_that_names_it(asker, changes, words):
    reply = asker.receive(**changes)
    assert reply.status == 422
    assert words in error_of(reply)
    assert asker.ledger.outcomes == {Outcome.REJECTED: 1}


@pytest.mark.parametrize(
    "changes", [{"max_tokens": 10.0}, {"stream": False}, {"stream": None}, {"top_p": None}, {"x": 1}]
)
def test_harmless_field_is_accepted(asker, changes):
    assert isinstance(asker.receive(**changes), Job)


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": }', b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused_with_400(asker, body):
    reply = asker.raw(body)
    assert reply.status == 400
    assert "JSON" in error_of(reply)


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"text"', b"1.5", b"true"])
def test_json_that_is_no_object_is_refused_with_422(asker, body):
    reply = asker.raw(body)
    assert reply.status == 422
    assert "invalid type" in error_of(reply)


@pytest.mark.parametrize("content_type", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/jsonx"}])
def test_content_type_other_than_json_is_refused_with_415(asker, content_type):
    reply = asker.raw(b"{}", headers=content_type)
    assert reply.status == 415
    assert "Content-Type" in error_of(reply)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
def test_every_spelling_of_the_json_content_type_is_accepted(asker, content_type):
    body = json.dumps(asker.body).encode()
    assert isinstance(asker.raw(body, headers={"Content-Type": content_type}), Job)


@pytest.mark.parametrize(
    ("authorization", "words"),
    [(None, "No Authorization"), ("Basic good", "Bearer"), ("Bearer", "Bearer"), ("Bearer  ", "Bearer")],
)
def test_missing_key_is_refused_with_401(asker, authorization, words):
    headers = {"Content-Type": "application/json"} | ({"Authorization": authorization} if authorization else {})
    reply = asker.raw(b"not even JSON", key=None, headers=headers)
    assert reply.status == 401
    assert words in error_of(reply)


@pytest.mark.parametrize("authorization", ["bearer good", "BEARER good", "Bearer   good "])
def test_scheme_is_written_in_any_case_and_space_around_the_key_is_no_part_of_it(asker, authorization):
    headers = {"Content-Type": "application/json", "Authorization": authorization}
    job = asker.raw(json.dumps(asker.body).encode(), key=None, headers=headers)
    assert job.account is asker.service.account("good", 0.0)


def test_unknown_key_is_refused_with_401_and_costs_no_token(asker):
    for _ in range(100):
        assert asker.receive("stranger").status == 401


def test_blocked_key_is_refused_with_403(asker):
    assert asker.receive("closed").status == 403


def test_key_blocked_but_not_listed_is_refused_with_403(asking):
    assert asking(ServerSettings(keys={}, blocked="closed")).receive("closed").status == 403


@pytest.mark.parametrize("path", ["/", "/api/", "/api/v1/chat/completions", "/API", ""])
def test_every_other_path_is_not_found(asker, path):
    reply = asker.raw(b"{}", path=path)
    assert reply.status == 404
    assert error_of(reply)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_every_other_method_is_refused_with_405_that_names_post(asker, method):
    reply = asker.raw(b"", method=method)
    assert reply.status == 405
    assert reply.headers["Allow"] == "POST"


def test_body_beyond_the_bound_is_refused_with_413(asker, monkeypatch):
    monkeypatch.setattr("onellm_async.server.service.MAX_BODY_BYTES", 100)
    assert asker.raw(b" " * 100).status == 400
    reply = asker.raw(b" " * 101)
    assert reply.status == 413
    assert asker.ledger.rows[-1].number == 2


def test_bucket_holds_forty_and_refills_forty_a_minute(asker):
    statuses = [asker.reply().status for _ in range(45)]
    assert statuses == [200] * 40 + [429] * 5
    asker.now = 1.49
    assert asker.reply().status == 429
    asker.now = 1.5
    assert [asker.reply().status for _ in range(2)] == [200, 429]
    asker.now = 61.5
    assert [asker.reply().status for _ in range(41)] == [200] * 40 + [429]


def test_refusal_carries_retry_after_only_if_so_configured(asking):
    quiet = asking(ServerSettings(initial_level=0)).reply()
    assert (quiet.status, error_of(quiet)) == (429, "Rate limit exceeded.")
    assert "Retry-After" not in quiet.headers
    for seconds, told in ((7, "7"), (1.5, "1.5"), (0, "0"), (0.05, "0.05"), (3600.0, "3600"), (1e9, "1000000000")):
        loud = asking(ServerSettings(initial_level=0, faults=Faults(retry_after=seconds))).reply()
        assert loud.headers["Retry-After"] == told
        assert "retry-after-ms" not in loud.headers


def test_each_key_has_its_own_bucket(asking):
    asker = asking(ServerSettings(burst=1, requests_per_minute=0))
    assert [asker.reply(key).status for key in ("a", "b", "a", "b")] == [200, 200, 429, 429]


def test_malformed_request_costs_no_token(asking):
    asker = asking(ServerSettings(burst=1, requests_per_minute=0))
    assert asker.receive(model=...).status == 422
    assert asker.reply().status == 200


def test_balance_below_ten_cents_is_refused_with_403_and_its_reason(asker):
    reply = asker.receive("poor")
    assert reply.status == 403
    assert "Insufficient balance" in error_of(reply)


def test_balance_of_exactly_ten_cents_is_enough(asking):
    assert isinstance(asking(ServerSettings(balance=0.10)).receive(), Job)


def test_balance_that_the_prompt_uses_up_to_the_last_token_is_refused(asking):
    # GPT-5 reads 78,125 tokens for 0.10 USD and writes one for 0.0000104.
    message = {"role": "user", "content": "x" * 4 * 78_125}
    assert asking(ServerSettings(balance=0.1000103)).receive(model="GPT-5", messages=[message]).status == 403
    assert asking(ServerSettings(balance=0.1000105)).receive(model="GPT-5", messages=[message]).max_tokens == 1


def test_topping_up_opens_the_account_again(asker):
    assert asker.receive("poor").status == 403
    asker.service.account("poor", asker.now).balance += 1
    assert asker.reply("poor").status == 200


def test_max_tokens_is_lowered_to_what_the_balance_affords(asking):
    asker = asking(ServerSettings(balance=0.104))
    # GPT-5: 10.40 USD per million output tokens, 1.28 per million input tokens, of which "Hello there" has 3.
    job = asker.receive(model="GPT-5", max_tokens=1_000_000)
    assert job.max_tokens == int((0.104 - 3 * 1.28e-6) / 10.40e-6) == 9999
    asker.service.abandon(job)
    assert asker.receive(model="GPT-5", max_tokens=50).max_tokens == 50


def test_prompt_alone_beyond_the_balance_is_refused(asking):
    asker = asking(ServerSettings(balance=0.11))
    text = "x" * 4 * 100_000  # 100,000 tokens at 1.28 USD per million
    assert asker.receive(model="GPT-5", messages=[{"role": "user", "content": text}]).status == 403


def test_model_without_a_price_costs_nothing_and_is_not_bounded(asking):
    asker = asking(ServerSettings(any_model=True))
    job = asker.receive(model="llama3.2:1b")
    assert job.max_tokens is None
    assert json.loads(asker.reply(model="llama3.2:1b").body)["provider"] is None
    assert asker.balance() == 100.0


def test_any_key_has_the_default_balance_unless_keys_are_listed(asking):
    asker = asking(ServerSettings(balance=3.5))
    assert asker.balance("whoever") == 3.5
    assert asker.reply("whoever").status == 200


def test_retuned_limit_holds_for_old_and_new_keys(asking):
    asker = asking(ServerSettings(burst=1, keys={"good": 1.0}, requests_per_minute=60))
    assert [asker.reply().status, asker.reply().status] == [200, 429]
    asker.reply("stranger")
    asker.service.retune(6, asker.now)
    asker.now = 9.9
    assert [asker.reply(key).status for key in ("good", "stranger")] == [429, 401]
    assert asker.service.account("stranger", asker.now).limits.current == (BucketLimit(6, 1),)
    asker.now = 10.0
    assert asker.reply().status == 200
    assert asker.service.account("newcomer", asker.now).limits.current == (BucketLimit(6, 1),)


def test_without_a_rate_there_is_no_limit_until_one_is_set(asking):
    asker = asking(ServerSettings(burst=2, initial_level=0, requests_per_minute=None))
    assert {asker.reply().status for _ in range(200)} == {200}
    asker.service.retune(60, asker.now)
    assert [asker.reply().status for _ in range(3)] == [200, 200, 429]
    asker.service.retune(None, asker.now)
    assert {asker.reply(key).status for key in ("good", "newcomer") for _ in range(50)} == {200}
