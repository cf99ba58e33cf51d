"""``onellm-async quota status``, and ``--quota`` of the commands that send."""

import json
from random import Random

import pytest

from onellm_async.cli.app import run_app
from onellm_async.limits.policy import Limits
from onellm_async.limits.quota import Declaration, Demand
from onellm_async.quota import HostQuota, board_name

KEY = "canary-key"


@pytest.fixture
def board(monkeypatch, tmp_path):
    """A member of the board of a key and URL."""
    monkeypatch.setenv("ONELLM_QUOTA_DIR", str(tmp_path))
    monkeypatch.setenv("ONELLM_API_KEY", KEY)
    monkeypatch.setenv("ONELLM_BASE_URL", "http://127.0.0.1:9/api")
    name = board_name("http://127.0.0.1:9/api", f"Bearer {KEY}")
    limits = Limits(requests_per_minute=600, burst=40, tokens_per_minute=90_000)
    member = HostQuota().join(name, Declaration(limits, explicit=True), Random(0))
    yield member
    member.abandon()


def test_status_shows_participants_demand_shares_and_rate(board, capsys):
    board.transact(Demand(waiting=(1, 0, 60), ages=(0.5, 0, 9)))
    assert run_app(["quota", "status"]) == 0
    shown = capsys.readouterr().out
    assert "rate             600.0 requests per minute (declared)" in shown
    assert "participants     1 client" in shown
    assert "tokens           90,000 could be used at once" in shown
    assert "100%" in shown
    assert KEY not in shown


def test_status_as_json(board, capsys):
    board.transact(Demand(waiting=(0, 0, 60)))
    assert run_app(["quota", "status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (participant,) = found["participants"]
    assert participant["waiting"]["batch"] > 0
    assert participant["share"] == 1
    assert found["rate"] == pytest.approx(600)
    assert found["quota"] == "host"


def test_status_tells_who_is_late_and_who_is_idle(board, capsys, monkeypatch):
    board.transact(Demand(waiting=(0, 0, 60)))
    real = HostQuota.read
    monkeypatch.setattr(HostQuota, "read", lambda self, name: {**real(self, name), "now": real(self, name)["now"] + 3})
    run_app(["quota", "status"])
    assert "late by " in capsys.readouterr().out
    board.transact(Demand())
    run_app(["quota", "status"])
    assert "idle for 3 s" in capsys.readouterr().out


def test_status_tells_a_lowered_rate_and_a_retry_after(board, capsys):
    from onellm_async.limits.quota import RateLimitReport

    for _ in range(3):
        board.transact(Demand(rate_limited=[RateLimitReport(0.0)]))
    board.transact(Demand(rate_limited=[RateLimitReport(0.0, 0.0, 90)]))
    run_app(["quota", "status"])
    shown = capsys.readouterr().out
    assert "lowered by 429s" in shown
    assert "accepts requests again in" in shown


def test_without_a_board_status_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ONELLM_QUOTA_DIR", str(tmp_path))
    monkeypatch.setenv("ONELLM_API_KEY", KEY)
    assert run_app(["quota", "status", "--base-url", "https://example.org/api"]) == 1
    assert "No client has used this key and URL" in capsys.readouterr().err


def test_without_a_key_status_says_so(capsys):
    assert run_app(["quota", "status"]) == 2
    assert "ONELLM_API_KEY" in capsys.readouterr().err


@pytest.mark.parametrize("quota", ["off", "hots"])
def test_no_quota_has_no_status(quota, capsys):
    assert run_app(["quota", "status", "--quota", quota]) == 2
    assert "quota" in capsys.readouterr().err.lower()


def test_a_redis_that_does_not_answer_is_named_without_its_password(monkeypatch, capsys):
    pytest.importorskip("redis")
    monkeypatch.setenv("ONELLM_API_KEY", KEY)
    assert run_app(["quota", "status", "--quota", "redis://user:canary-password@127.0.0.1:1"]) == 2
    shown = capsys.readouterr().err
    assert "redis://127.0.0.1:1 could not be read" in shown
    assert "canary" not in shown


def test_chat_shares_the_rate(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ONELLM_QUOTA_DIR", str(tmp_path))
    assert run_app(["chat", "hello", "--local", "--quota", "host"]) == 0
    assert len(list(tmp_path.glob("*.board"))) == 1


def test_a_local_server_is_not_shared_because_of_the_variable(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ONELLM_QUOTA_DIR", str(tmp_path))
    monkeypatch.setenv("ONELLM_QUOTA", "host")
    assert run_app(["chat", "hello", "--local"]) == 0
    assert not list(tmp_path.glob("*.board"))


def test_a_rate_flag_is_a_declaration_and_a_default_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("ONELLM_QUOTA_DIR", str(tmp_path))
    declared = []
    real = HostQuota.join

    def join(self, name, declaration, random):
        declared.append(declaration.explicit)
        return real(self, name, declaration, random)

    monkeypatch.setattr(HostQuota, "join", join)
    for flags in ([], ["--rpm", "40"], ["--rpm", "600"]):
        monkeypatch.setattr(
            "onellm_async.cli.options.ConnectionFlags.requests_per_minute", 40.0 if "600" not in flags else 600.0
        )
        assert run_app(["chat", "hello", "--local", "--quota", "host", *flags]) == 0
    assert declared == [False, True, True]


def test_an_unknown_quota_is_refused_before_anything_is_sent(capsys):
    assert run_app(["chat", "hello", "--local", "--quota", "hots"]) == 2
    assert "'hots'" in capsys.readouterr().err
