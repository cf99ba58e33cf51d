import socket

import pytest

from onellm_async.cli.doctor import clock_finding, descriptors_finding
from onellm_async.server import LocalServer, ServerSettings


def outcomes(text):
    return {line.split()[1]: line.split()[0] for line in text.splitlines()}


async def test_all_is_well_where_a_chat_is_answered(onellm):
    async with LocalServer(ServerSettings(requests_per_minute=60_000, burst=1000)) as server:
        at = {"ONELLM_BASE_URL": server.url, "ONELLM_API_KEY": "local-key"}
        ended = await onellm("doctor", **at)
        free = await onellm("doctor", "--no-call", **at)
        assert server.ledger.billed == 1
    assert (ended.code, ended.err) == (0, "")
    assert set(outcomes(ended.out).values()) == {"ok"}
    assert {"key", "url", "dns", "connect", "clock", "call", "rate"} <= outcomes(ended.out).keys()
    assert "local-key" not in ended.out
    assert "call" not in outcomes(free.out)


async def test_the_first_thing_that_is_wrong_is_the_last_line_with_its_cure(onellm):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    dead = {"ONELLM_BASE_URL": f"http://127.0.0.1:{port}/api", "ONELLM_API_KEY": "k"}
    ended = await onellm("doctor", **dead)
    assert ended.code == 1
    assert ended.out.splitlines()[-1].startswith("failed   connect")
    assert "Check --base-url" in ended.out
    ended = await onellm("doctor", **{**dead, "ONELLM_API_KEY": ""})
    assert ended.code == 1
    assert "Set ONELLM_API_KEY" in ended.out.splitlines()[-1]


async def test_a_wrong_key_is_told_as_such(onellm):
    async with LocalServer(ServerSettings(keys={"right": 1.0})) as server:
        ended = await onellm("doctor", ONELLM_BASE_URL=server.url, ONELLM_API_KEY="wrong")
    assert ended.code == 1
    assert outcomes(ended.out)["call"] == "failed"
    assert "401" in ended.out


@pytest.mark.parametrize(
    ("limit", "concurrency", "outcome"),
    [(None, 48, "ok"), (-1, 48, "ok"), (112, 48, "ok"), (111, 48, "failed"), (500, "auto", "failed")],
)
def test_each_request_in_flight_needs_a_file(limit, concurrency, outcome):
    assert descriptors_finding(limit, concurrency).outcome == outcome


@pytest.mark.parametrize(
    ("date", "outcome"),
    [
        ("Thu, 01 Jan 1970 00:00:10 GMT", "ok"),
        ("Thu, 01 Jan 1970 01:00:00 GMT", "warning"),
        (None, "ok"),
        ("yesterday", "ok"),
    ],
)
def test_a_clock_that_is_far_off_is_told(date, outcome):
    assert clock_finding(date, 0.0).outcome == outcome
