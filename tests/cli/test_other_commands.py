import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from onellm_async import cli
from onellm_async.cli import main
from onellm_async.cli.app import app

MEANINGS = {
    "run": "everything was answered\n  1    some prompts failed or some lines were bad",
    "shard": "the shards were written; each subcommand has its own codes\n  2    ",
    "chat": "the prompt was answered\n  1    the prompt was not answered",
    "plan": "the plan was made\n  1    the plan was made, without lines of the input that were bad",
    "status": "complete, and everything was answered\n  1    not complete, or some prompts failed, or",
    **dict.fromkeys(("pause", "resume", "retune", "stop"), "the run has the command\n  2    "),
    "export": "the outcomes so far were written, failures included\n  2    ",
    "report": "the report was written, however the run went\n  2    ",
    "quota": "the board was shown\n  1    no client",
    "gateway": "stopped by Ctrl-C or SIGTERM\n  2    ",
    "serve": "stopped by Ctrl-C, SIGTERM or SIGHUP\n  2    ",
    "doctor": "no check failed\n  1    a check failed",
    "models": "the models were listed\n  2    ",
}
"""What the first codes of each command mean."""


@pytest.mark.parametrize("command", [name for name in app if not name.startswith("-")])
async def test_the_help_of_each_command_has_examples_and_exit_codes(onellm, command):
    ended = await onellm(command, "--help", COLUMNS=80)

    assert ended.code == 0
    assert f"Examples:\n  onellm-async {command}" in ended.out
    assert f"Exit codes:\n  0    {MEANINGS[command]}" in ended.out
    assert ("next prompt could pass the budget" in ended.out) == (command == "run")
    assert "ONELLM_API_KEY" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


@pytest.mark.parametrize("flag", ["--help", "--version"])
async def test_the_program_tells_about_itself(onellm, flag):
    ended = await onellm(flag)

    assert ended.code == 0
    assert ended.out.strip()


LIBRARIES = {"aiohttp", "asyncio", "cattrs", "orjson", "sqlite3", "ssl", "tenacity", "rich.live", "importlib.metadata"}
ROOMS = {"batch", "client", "limits", "report", "server", "settings", "simulation", "transport", "wire"}
IMPORTED = """
import sys
from onellm_async.cli import main
code = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""


def imported_by(*arguments):
    ended = subprocess.run([sys.executable, "-c", IMPORTED, *arguments], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(("Usage: onellm-async", "0."))
    return set(ended.stderr.split())


def commands_in(loaded):
    files = Path(cli.__file__).parent.glob("*.py")
    return {path.stem for path in files if "_command: App = command(" in path.read_text("utf-8")} & {
        name.removeprefix("onellm_async.cli.") for name in loaded
    }


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["--help"], None),
        (["--version"], None),
        (["run", "--help"], "run"),
        (["plan", "--help"], "plan"),
        (["serve", "--help"], "serve"),
        (["resume", "--help"], "control"),
    ],
)
def test_help_needs_neither_the_client_nor_its_libraries_nor_another_command(arguments, command):
    loaded = imported_by(*arguments)

    assert "cyclopts" in loaded
    assert not (LIBRARIES | {f"onellm_async.{room}" for room in ROOMS}) & loaded
    assert commands_in(loaded) == (set() if command is None else {command})


def test_the_list_of_commands_needs_no_flags():
    assert not {"onellm_async.cli.options", "onellm_async.cli.command", "json"} & imported_by("--help")


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_without_the_extra_a_message_tells_how_to_install_it(missing):
    script = (
        f"import sys; sys.modules[{missing!r}] = None; from onellm_async.cli import main; sys.exit(main(['--help']))"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)

    assert ended.returncode == 2
    assert f"needs {missing}" in ended.stderr
    assert "pip install 'onellm-async[cli]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_module_of_another_kind_is_not_hidden(monkeypatch):
    monkeypatch.setitem(sys.modules, "onellm_async.cli.app", None)

    with pytest.raises(ModuleNotFoundError):
        main(["--help"])


async def test_chat_prints_the_answer_alone_when_piped(onellm, at):
    ended = await onellm("chat", "Say hello", **at)

    assert (ended.code, ended.out, ended.err) == (0, "Say hello\n", "")


async def test_chat_reads_the_prompt_from_standard_input(onellm, at):
    assert (await onellm("chat", stdin="From a pipe", **at)).out == "From a pipe\n"
    assert (await onellm("chat", "-", stdin="Named", **at)).out == "Named\n"


async def test_chat_json_prints_the_whole_reply(onellm, at, server):
    ended = await onellm("chat", "Hi", "--json", "-m", "GPT-5", "--system", "S", **at)
    reply = json.loads(ended.out)

    assert reply["content"] == "Hi"
    assert reply["usage"]["output_tokens"] > 0
    assert reply["cost"] > 0
    assert server.ledger.rows[0].model == "GPT-5"


async def test_chat_works_without_a_key_against_its_own_local_service(onellm):
    ended = await onellm("chat", "Hi", "--local")

    assert (ended.code, ended.out) == (0, "Hi\n")


@pytest.mark.parametrize(("key", "message"), [("unknown", "401"), ("poor", "balance")])
async def test_chat_ends_with_its_own_code_for_a_wrong_key_or_a_spent_balance(onellm, server, key, message):
    ended = await onellm("chat", "Hi", ONELLM_BASE_URL=server.url, ONELLM_API_KEY=key)

    assert (ended.code, ended.out) == (3, "")
    assert message.lower() in ended.err.lower()
    assert ended.err.startswith("onellm-async: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("Hi", "--max-tokens", "0"), 2, "--max-tokens is 0"),
        ((" ",), 2, "The prompt is empty."),
        (("--jsn",), 2, "Unknown option: --jsn"),
        (("Hi", "--rpm", "-1"), 2, "requests_per_minute is -1"),
        (("Hi", "--base-url", "http://127.0.0.1:9/"), 1, "127.0.0.1"),
    ],
)
def test_chat_says_what_went_wrong(monkeypatch, capfd, arguments, code, message):
    monkeypatch.setenv("ONELLM_API_KEY", "good")

    assert main(["chat", *arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err


def test_chat_without_a_key_says_where_it_is_taken_from(capfd):
    assert main(["chat", "Hi"]) == 2
    assert "ONELLM_API_KEY" in capfd.readouterr().err


async def test_ctrl_c_ends_a_chat_without_a_traceback(start, at, backend):
    backend.held = {"held"}
    command = await start("chat", "held", **at)
    await backend.until_asked(1)
    command.interrupt()
    ended = await command.ended()

    assert (ended.code, ended.out, ended.err) == (130, "", "")


def terminal(*arguments, until, stdin=None, **environment):
    """What a command shows on a terminal that is its input and output."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "onellm_async", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "ONELLM_API_KEY": ""} | environment,
    )
    os.close(theirs)
    shown = ""
    with process:
        while True:
            try:
                shown += os.read(ours, 4096).decode(errors="replace")
            except OSError:  # the other side is closed
                break
            if stdin is not None and until in shown:
                os.write(ours, stdin)
                stdin = None
    os.close(ours)
    return process.returncode, shown


def test_chat_on_a_terminal_tells_tokens_cost_and_time_and_obeys_no_control_characters():
    code, shown = terminal("chat", "-", "--local", until="Type the prompt", stdin=b"a\x16\x1b[31mb\n\x04\x04")

    assert code == 0
    assert "a�[31mb" in shown
    assert re.search(r"gpt-5-nano, \d+ \+ \d+ tokens, \$0\.0{6}\d\d, \d+\.\d s", shown)


async def test_models_are_tab_separated_when_piped(onellm):
    ended = await onellm("models")
    rows = [line.split("\t") for line in ended.out.splitlines()]

    assert ended.code == 0
    assert ["GPT-5-Mini", "openai", "0.26", "2.08", "GPT-5-mini"] in rows
    assert ["Mistral-7B", "mistral", "", "", ""] in rows


def test_models_can_be_chosen_by_provider_and_printed_as_json(capfd):
    assert main(["models", "--provider", "Anthropic", "--json"]) == 0
    models = json.loads(capfd.readouterr().out)

    assert {model["provider"] for model in models} == {"anthropic"}
    assert all(model["output_usd_per_million_tokens"] > 0 for model in models)


def test_an_unknown_provider_is_refused_with_the_known_ones(capfd):
    assert main(["models", "--provider", "acme"]) == 2
    assert "provider is 'acme'; it must be one of anthropic, deepseek, google, mistral, openai." in (
        capfd.readouterr().err
    )


def test_models_are_a_table_on_a_terminal():
    code, shown = terminal("models", until="")

    assert code == 0
    assert "USD per million tokens" in shown
    assert re.search(r"GPT-5-Mini\s+openai\s+0\.26\s+2\.08\s+GPT-5-mini", shown)
    assert re.search(r"Mistral-7B\s+mistral\s+-\s+-\s+-", shown)


async def test_models_bear_a_reader_that_goes(start):
    command = await start("models")
    command.process._transport.get_pipe_transport(1).close()
    err = await command.process.stderr.read()

    assert (await command.process.wait(), err) == (141, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serve_says_where_it_is_answers_and_ends_in_good_order(start, onellm, number):
    command = await start("serve", "--port", 0, "--key", "alice=1.5", "--key", "bob", "--rpm", 600, "--burst", 9)
    ready = (await command.process.stdout.readline()).decode()
    example = (await command.process.stdout.readline()).decode()
    url = re.search(r"http://127\.0\.0\.1:\d+/\S*", ready)[0]

    assert f"ONELLM_API_KEY=alice ONELLM_BASE_URL={url} onellm-async chat 'Say hello' --rpm 600 --burst 9" in example
    chat = await onellm("chat", "Hi", ONELLM_BASE_URL=url, ONELLM_API_KEY="bob")
    assert (chat.code, chat.out) == (0, "Hi\n")
    command.interrupt(number)
    ended = await command.ended()
    assert (ended.code, ended.err) == (0, "")


async def test_serve_makes_the_faults_it_is_told_to(start):
    command = await start(
        "serve", "--port", 0, "--server-error-rate", 1, "--latency", 0.001, "--dialect", "backend",
        "--server-error-text", "error sending request", "--database-places", 1, "--database-wait", 5,
    )  # fmt: skip
    welcome = (await command.process.stdout.readline()).decode()
    example = (await command.process.stdout.readline()).decode()
    body = {
        "model": "GPT-5",
        "messages": [{"role": "user", "content": "Hi"}],
        "endpoint": "https://api.openai.com/v1/chat/completions",
        "max_tokens": 9,
        "top_p": 1,
    }
    url = re.search(r"http://\S+", welcome)[0]
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer any"}) as session,
        session.post(url, json=body) as reply,
    ):
        assert reply.status == 200
        assert await reply.json() == {"code": 500, "output": {"output": "error sending request"}}
    assert example.endswith("chat 'Say hello' --dialect backend\n")


async def test_serve_keeps_several_limits_at_once_and_says_what_is_left(start):
    command = await start(
        "serve", "--port", 0, "--window", "3/60s", "--window", "sliding:2/1h", "--max-concurrent", 8,
        "--rate-headers", "--retry-after", "seconds",
    )  # fmt: skip
    url = re.search(r"http://\S+", (await command.process.stdout.readline()).decode())[0]
    example = (await command.process.stdout.readline()).decode()
    body = {"model": "GPT-5", "messages": [{"role": "user", "content": "Hi"}]}
    found = []
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer any"}) as session:
        for _ in range(3):
            async with session.post(url, json=body) as reply:
                left = reply.headers["x-ratelimit-remaining-requests"]
                found.append((reply.status, left, reply.headers.get("Retry-After")))
    assert found[:2] == [(200, "1", None), (200, "0", None)]
    assert found[2][:2] == (429, "0")
    assert 3500 < int(found[2][2]) <= 3600
    assert example.endswith("chat 'Say hello' --rpm auto\n")


async def test_serve_puts_a_real_model_behind_the_api(start, onellm):
    async def complete(request):
        body = await request.json()
        reply = f"{body['model']} with {request.headers['Authorization']} says hello"
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": reply}}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    async with TestServer(app) as upstream:
        command = await start(
            "serve", "--port", 0, "--upstream", upstream.make_url("/v1"), "--upstream-model", "other",
            ONELLM_UPSTREAM_API_KEY="secret",
        )  # fmt: skip
        url = re.search(r"http://\S+", (await command.process.stdout.readline()).decode())[0]
        example = (await command.process.stdout.readline()).decode()
        chat = await onellm("chat", "Hi", ONELLM_BASE_URL=url, ONELLM_API_KEY="any")
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer any"}) as session:
            body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
            statuses = [(await session.post(url, json=body)).status for _ in range(60)]

    assert example.endswith("chat 'Say hello' --rpm auto\n")
    assert statuses == [200] * 60
    assert (chat.code, chat.out) == (0, "other with Bearer secret says hello\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--key", "a=much"), "The balance of --key is 'much'"),
        (("--key", "=5"), "--key needs a key"),
        (("--key", "a=nan"), "--key needs a key, and a finite balance"),
        (("--truncate-rate", "2"), "--truncate-rate is 2.0"),
        (("--database-places", "0"), "--database-places is 0"),
        (("--window", "40"), "A window is '40'; it must be COUNT/DURATION, for example 40/60s"),
        (("--window", "40/0s"), "the DURATION of --window is 0.0"),
        (("--window", "sliding:0/1m"), "the COUNT of --window is 0"),
        (("--max-concurrent", "0"), "--max-concurrent is 0"),
        (("--rpm", "-1"), "--rpm is -1.0"),
        (("--background-rate", "-1"), "--background-rate is -1.0"),
        (("--retry-after", "-1"), "--retry-after is -1.0"),
        (("--upstream", "nowhere"), "'nowhere' is not an http or https URL"),
        (("--host", "203.0.113.1"), "Cannot listen on 203.0.113.1:"),
        (("--host", "0.0.0.0", "--upstream", "http://127.0.0.1:9"), "command line: --key KEY"),
        (("--host", "::", "--upstream", "http://127.0.0.1:9"), "without keys lets any machine"),
        (("--host", "", "--upstream", "http://127.0.0.1:9"), "without keys lets any machine"),
        (("--upstream", "http://127.0.0.1:9", "--upstream-timeout", "0"), "upstream timeout is 0"),
    ],
)
def test_serve_refuses_what_cannot_be(capfd, arguments, message):
    assert main(["serve", "--port", "0", *arguments]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("port", [99_999_999, -1])
def test_a_port_that_cannot_be_is_named(capfd, port):
    assert main(["serve", "--port", str(port)]) == 2
    assert f"--port is {port}; it must be an integer from 0 to 65535" in capfd.readouterr().err


async def test_a_port_that_is_taken_is_named(onellm, server):
    port = server.origin.rpartition(":")[2]
    ended = await onellm("serve", "--port", port)

    assert ended.code == 2
    assert f"Cannot listen on 127.0.0.1:{port}: " in ended.err
