"""``onellm-async gateway`` and the keys of its users."""

import json
import re
import signal
import socket

import aiohttp
import pytest

from onellm_async.cli import main


async def serving(start, *flags, **environment):
    command = await start("gateway", "--port", "0", *flags, **environment)
    line = (await command.process.stdout.readline()).decode()
    assert line, (await command.ended()).err
    return command, re.search(r"http://\S+/v1", line)[0]


async def ask(url, **headers):
    question = {"model": "GPT-5-Nano", "messages": [{"role": "user", "content": "Hello"}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/chat/completions", json=question, headers=headers) as reply,
    ):
        return reply.status, await reply.json()


async def test_a_key_is_made_used_and_its_spending_listed(start, onellm, tmp_path, at):
    made = await onellm("gateway", "keys", "add", "alice", "--keys", "keys.toml", "--max-cost", "0.5")
    key = made.out.strip()
    assert (made.code, key[:10]) == (0, "sk-onellm-")
    command, url = await serving(start, "--keys", "keys.toml", "--max-tokens", "10", **at)
    assert (await ask(url))[0] == 401
    status, body = await ask(url, Authorization=f"Bearer {key}")
    assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello")
    command.interrupt(signal.SIGTERM)
    ended = await command.ended()
    assert (ended.code, "Unclosed" in ended.err, "Traceback" in ended.err) == (0, False, False)
    listed = await onellm("gateway", "keys", "list", ONELLM_GATEWAY_KEYS="keys.toml")
    assert re.search(r"^alice +default +\$0\.50 +\$0\.0000\d+ +\$0\.00 +\$0\.00 +1$", listed.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["keys", "list"], "--keys FILE or set ONELLM_GATEWAY_KEYS"),
        (["keys", "list", "--keys", "none.toml"], "does not exist"),
        (["keys", "add", "a b", "--keys", "keys.toml"], "letters, digits"),
        (["keys", "add", "alice", "--keys", "keys.toml", "--max-cost", "0"], "above 0"),
        (["keys", "remove", "alice", "--keys", "none.toml"], "does not exist"),
        (["--local", "--host", "0.0.0.0"], "without keys"),
        (["--local", "--max-cost", "5"], "--ledger FILE"),
        (["--local", "--port", "65536"], "--port is 65536; it must be an integer from 0 to 65535"),
        (["--local", "--max-wait", "0"], "--max-wait is 0.0"),
        (["--local", "--keys", "none.toml"], "does not exist"),
        ([], "ONELLM_API_KEY"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONELLM_GATEWAY_KEYS", raising=False)
    assert main(["gateway", *flags]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in " ".join(shown.err.split())
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["gateway", "--local", "--port", str(port)]) == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


async def test_no_key_is_made_that_cannot_be_shown(start, tmp_path):
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123
        command = await start("gateway", "keys", "add", "alice", "--keys", "keys.toml", stdout=full)
        ended = await command.ended()
    assert ended.code != 0
    assert not (tmp_path / "keys.toml").exists()


def test_other_machines_are_served_with_a_word_about_plain_http(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONELLM_GATEWAY_KEYS", str(tmp_path / "keys.toml"))
    assert main(["gateway", "keys", "add", "alice"]) == 0
    with socket.create_server(("0.0.0.0", 0)) as taken:
        assert main(["gateway", "--local", "--host", "0.0.0.0", "--port", str(taken.getsockname()[1])]) == 2
    assert "put a TLS proxy before it" in capsys.readouterr().err


def test_the_keys_are_made_listed_and_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONELLM_GATEWAY_KEYS", str(tmp_path / "keys.toml"))
    keys = []
    for name in ("alice", "bob"):
        assert main(["gateway", "keys", "add", name, "--lane", "batch"]) == 0
        shown = capsys.readouterr()
        keys.append(shown.out.strip())
        assert keys[-1] not in shown.err + (tmp_path / "keys.toml").read_text()
    assert len(set(keys)) == 2
    assert main(["gateway", "keys", "remove", "alice"]) == 0
    assert main(["gateway", "keys", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["lane"], row["removed"], row["billed"]) == ("bob", "batch", False, 0.0)
    assert main(["gateway", "keys", "remove", "bob"]) == 0
    capsys.readouterr()
    assert main(["gateway", "keys", "list"]) == 0
    assert capsys.readouterr().out == "There are no keys.\n"
