"""Flags of all commands that connect: environment, headers, how much is said, completion."""

import json
import logging
import os

import pytest

from onellm_async import ConfigurationError
from onellm_async.cli import main
from onellm_async.cli.env_file import read_env_file
from onellm_async.cli.general import GeneralFlags
from onellm_async.cli.options import ConnectionFlags, seconds_from
from onellm_async.server import LocalServer, ServerSettings


@pytest.fixture
def env_file(tmp_path):
    def write(text):
        path = tmp_path / "settings.env"
        path.write_text(text, "utf-8")
        return str(path)

    return write


def test_a_file_of_variables_is_read_as_shells_and_dotenv_write_it(env_file):
    text = """\ufeff
# a comment
ONE=1
 export TWO = two words # a comment
THREE='single # "quoted" $HOME \\n'
FOUR="double \\"quoted\\"\\nline" # a comment
FIVE=
SIX=a#b=c
"""
    assert read_env_file(env_file(text)) == {
        "ONE": "1",
        "TWO": "two words",
        "THREE": 'single # "quoted" $HOME \\n',
        "FOUR": 'double "quoted"\nline',
        "FIVE": "",
        "SIX": "a#b=c",
    }


@pytest.mark.parametrize("line", ["secret", "1A=secret", "A='secret", 'A="secret" more', "=secret"])
def test_a_line_that_is_none_is_named_without_its_value(env_file, line):
    with pytest.raises(ConfigurationError, match=r"settings\.env:2") as raised:
        read_env_file(env_file(f"A=1\n{line}\n"))
    assert "secret" not in str(raised.value)


def test_a_file_that_is_not_there_is_told():
    with pytest.raises(ConfigurationError, match=r"--env-file nowhere\.env cannot be read: No such file"):
        read_env_file("nowhere.env")


def test_what_is_in_the_environment_wins_over_the_file_which_is_forgotten_at_the_end(env_file, monkeypatch):
    monkeypatch.setenv("ONELLM_MODEL", "GPT-5")
    monkeypatch.setenv("ONELLM_API_KEY", "")
    monkeypatch.delenv("ONELLM_DIALECT", raising=False)
    path = env_file("ONELLM_MODEL=GPT-5-Mini\nONELLM_API_KEY=key\nONELLM_DIALECT=backend\n")
    with GeneralFlags(env_file=path).applied():
        found = [os.environ[f"ONELLM_{name}"] for name in ("MODEL", "API_KEY", "DIALECT")]
    assert found == ["GPT-5", "key", "backend"]
    assert (os.environ["ONELLM_API_KEY"], "ONELLM_DIALECT" in os.environ) == ("", False)


def test_a_header_is_given_in_either_form_and_never_shown():
    flags = ConnectionFlags(header=("X-One=a:b", "X-Two: c=d", "X-Three:"))
    assert flags.headers == {"X-One": "a:b", "X-Two": "c=d", "X-Three": ""}
    for given in (("secret",), ("=secret",), ("A=secret", "a: secret")):
        with pytest.raises(ConfigurationError, match="--header") as raised:
            _ = ConnectionFlags(header=given).headers
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2 h", 7200), ("1d", 86400)]
)
def test_a_time_is_seconds_or_has_a_unit(text, seconds):
    assert seconds_from("--max-time", text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "ten", "10 minutes", "inf"])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError, match="--max-time"):
        seconds_from("--max-time", text)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, with a local server; returns code, output and messages."""
    monkeypatch.chdir(tmp_path)
    for name in ("API_KEY", "BASE_URL", "MODEL", "DIALECT", "QUOTA"):
        monkeypatch.delenv(f"ONELLM_{name}", raising=False)

    def command(*arguments):
        code = main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


async def test_headers_and_variables_reach_the_service(tmp_path, onellm, env_file):
    async with LocalServer(ServerSettings(keys={"from-the-file": 5.0})) as server:
        path = env_file(f"export ONELLM_API_KEY='from-the-file'\nONELLM_BASE_URL={server.url}\n")
        ended = await onellm("chat", "Hi", "--env-file", path, "--header", "X-Team: blue", "--verbose")
    assert (ended.code, ended.out) == (0, "Hi\n")
    assert "Request 1 (GPT-5-Nano): attempt 1 sent" in ended.err
    assert "Request 1 (GPT-5-Nano): answered after" in ended.err
    assert "from-the-file" not in ended.err
    assert "blue" not in ended.err


def test_a_quiet_run_says_nothing_but_errors(command, tmp_path):
    (tmp_path / "in.txt").write_text("a\nb\n")
    code, out, err = command("run", "in.txt", "-o", "out.jsonl", "--local", "--quiet")
    assert (code, out, err) == (0, "", "")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    code, out, err = command("run", "missing.txt", "-o", "other.jsonl", "--local", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("onellm-async: ")


def test_a_quiet_plan_prints_its_result(command, tmp_path):
    (tmp_path / "in.txt").write_text("a\nb\n")
    code, out, err = command("plan", "in.txt", "--json", "--quiet")
    assert (code, json.loads(out)["prompts"], err) == (0, 2, "")


def test_logging_is_as_before_after_a_command(command, tmp_path):
    log = logging.getLogger("onellm_async")
    before = (log.level, list(log.handlers))
    code, _, err = command("chat", "Hi", "--local", "--verbose")
    assert (code, (log.level, log.handlers)) == (0, before)
    assert "attempt 1 sent" in err


def test_quiet_and_verbose_exclude_each_other(command):
    code, _, err = command("chat", "Hi", "--local", "--quiet", "--verbose")
    assert (code, "--quiet and --verbose exclude each other" in err) == (2, True)


@pytest.mark.parametrize(("shell", "place"), [("bash", ".bashrc"), ("zsh", ".zshrc"), ("fish", ".config/fish")])
def test_completion_is_installed_for_a_shell(command, tmp_path, monkeypatch, shell, place):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = command("--install-completion", "--shell", shell)
    assert (code, str(tmp_path) in out) == (0, True)
    assert (tmp_path / place).exists()
    (script,) = [path for path in tmp_path.rglob("*onellm*") if path.is_file()]
    assert "--max-cost" in script.read_text()
