import ast
import asyncio
import doctest
import importlib
import inspect
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any

import aiohttp
import pytest
import uvicorn
from aiohttp.test_utils import TestClient, TestServer
from fastapi import FastAPI
from sybil import Sybil
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser

from onellm_async import AsyncOneLLM, Limits
from onellm_async.cli import main
from onellm_async.cli.app import app
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.stream import STREAM
from onellm_async.server import ServerSettings
from onellm_async.testing import FakeTransport, ThreadedServer
from tests.plugins import WITHOUT_OTHER_PLUGINS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GENERATED = "command-line.md"  # from the flags, when the documents are built
BUILT = ROOT / "docs/_build"
DOCUMENTS = [
    README,
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name != GENERATED and BUILT not in p.parents),
]
SNIPPETS = [path for path in DOCUMENTS if "```python" in path.read_text("utf-8")]
PLUGIN = () if entry_points(group="pytest11", name="onellm") else ("-p", "onellm_async.testing.pytest_plugin")
# What the recipes use beside the package: their snippets run where it is installed, and are compiled elsewhere.
OPTIONAL = ("pandas", "vcr", "tqdm", "slack_bolt", "telegram", "nio", "pytest_recording")
MISSING = [name for name in OPTIONAL if find_spec(name) is None]
FAST = {"requests_per_minute": 60_000, "burst": 1000}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Runner]:
    """An event loop that stays for all snippets of a document, and beside it a local OneLLM, which none can block."""
    with ThreadedServer(ServerSettings(**FAST)) as server, asyncio.Runner() as runner:
        monkeypatch.setenv("ONELLM_API_KEY", "local")
        monkeypatch.setenv("ONELLM_BASE_URL", server.url)
        yield runner


async def run_as_program(source: str, folder: Path = ROOT) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        source,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
    )
    output, _ = await process.communicate(b"What is a prime?\n\n")
    assert process.returncode == 0, output.decode()
    return output.decode()


async def run_tests_of(sources: list[str], folder: Path) -> str:
    for number, source in enumerate(sources):
        (folder / f"test_snippet_{number}.py").write_text(source)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", *PLUGIN, *WITHOUT_OTHER_PLUGINS, "-o", "asyncio_mode=strict"),
        *("--rootdir", folder, folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
    )
    output, _ = await process.communicate()
    return output.decode()


def evaluator(runner: asyncio.Runner, folder: Path) -> Callable[[Example], None]:
    def evaluate(example: Example) -> None:
        source = str(example.parsed)
        if "asyncio.run(" in source:
            runner.run(run_as_program(source, folder))
            return
        lines = "\n" * (example.line + example.parsed.line_offset)
        code = compile(lines + source, example.path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if not any(re.search(rf"\b{name}\b", source) for name in MISSING):
            runner.run(executed(code, example.namespace))

    return evaluate


async def executed(code: CodeType, namespace: dict[str, object]) -> None:
    result = eval(code, namespace)  # noqa: S307  # our own documentation
    if inspect.isawaitable(result):
        await result


@pytest.mark.parametrize("path", SNIPPETS, ids=named)
def test_every_snippet_of_the_documentation_runs(
    path: Path, runner: asyncio.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "examples")
    document = Sybil([CodeBlockParser("python", evaluator(runner, tmp_path))]).parse(path)

    async def open_client() -> AsyncOneLLM:
        return await AsyncOneLLM(limits=Limits(**FAST)).__aenter__()

    client = runner.run(open_client())
    document.namespace.update(client=client, folder=tmp_path)
    examples = list(document.examples())
    assert examples
    for example in examples:
        example.evaluate()
    runner.run(settled(client))


async def settled(client: AsyncOneLLM) -> None:
    await client.aclose()
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)


def function_of_the_bot_guide(name: str) -> Any:
    source = next(block for block in blocks(ROOT / "docs/how-to/bot.md", "python") if f"def {name}(" in block)
    namespace: dict[str, object] = {}
    exec(compile(source, name, "exec"), namespace)  # noqa: S102  # our own documentation
    return namespace[name]


async def test_the_bot_of_the_guide_answers_over_irc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    serve_irc, chats = function_of_the_bot_guide("serve_irc"), importlib.import_module("chats")
    received = asyncio.Queue[bytes]()

    async def network(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b":ada!a@host PRIVMSG bot :One\r\nPING :beat\r\n:bob!b@host PRIVMSG bot :Two\r\n")
        for _ in range(4):
            received.put_nowait(await reader.readline())
        writer.close()

    transport = FakeTransport(lambda request: f"{request.prompt}\n\nâ" if request.prompt == "One" else "2")
    async with (
        await asyncio.start_server(network, "127.0.0.1", 0) as server,
        AsyncOneLLM(transport=transport, limits=Limits(**FAST)) as client,
    ):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await serve_irc(reader, writer, chats.Chats(client, longest=120))
        writer.close()
    lines = {received.get_nowait().decode() for _ in range(4)}
    assert lines == {"PRIVMSG ada :One\r\n", "PRIVMSG ada :â\r\n", "PONG :beat\r\n", "PRIVMSG bob :2\r\n"}


async def test_the_bot_of_the_guide_answers_a_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    make_webhook, chats = function_of_the_bot_guide("make_webhook"), importlib.import_module("chats")
    async with (
        AsyncOneLLM(transport=FakeTransport("x" * 15), limits=Limits(**FAST)) as client,
        TestClient(TestServer(make_webhook(chats.Chats(client, longest=10)))) as platform,
    ):
        response = await platform.post("/message", json={"chat": "ada", "text": "Hello"})
        assert await response.json() == {"texts": ["x" * 10, "x" * 5]}


DOCTESTS = [path for path in (ROOT / "onellm_async").rglob("*.py") if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("path", DOCTESTS, ids=named)
def test_every_docstring_example_gives_what_it_says(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def blocks(path: Path, language: str) -> list[str]:
    return [str(example.parsed) for example in Sybil([CodeBlockParser(language, print)]).parse(path).examples()]


def test_the_first_example_of_the_readme_prints_an_answer_and_its_price(runner: asyncio.Runner) -> None:
    output = runner.run(run_as_program(blocks(README, "python")[0]))
    assert re.fullmatch(r"What is the capital of France\? [\d.e-]+\n[\d.e-]+ USD\n", output), output


def test_the_service_of_the_readme_answers_and_sheds_load(runner: asyncio.Runner) -> None:
    source = next(block for block in blocks(README, "python") if "FastAPI" in block)
    namespace: dict[str, object] = {}
    source = source.replace("max_pending=10", "max_pending=0, burst=1")
    runner.run(executed(compile(source, str(README), "exec"), namespace))
    app = namespace["app"]
    assert isinstance(app, FastAPI)

    async def ask_twice() -> list[tuple[int, str]]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/chat?prompt=Hello"
            async with aiohttp.ClientSession() as user:
                while not server.started:  # noqa: ASYNC110  # it sets no event
                    await asyncio.sleep(0.01)
                replies = [await answered(user, url) for _ in range(2)]
            server.should_exit = True
            await serving
            return replies

    async def answered(user: aiohttp.ClientSession, url: str) -> tuple[int, str]:
        async with user.post(url) as response:
            return response.status, (await response.text()) + response.headers.get("Retry-After", "")

    first, second = runner.run(ask_twice())
    assert first == (200, '{"answer":"Hello"}')
    assert second[0] == 503


def test_the_functions_of_the_readme_give_answers(runner: asyncio.Runner) -> None:
    namespace: dict[str, object] = {}
    for block in blocks(README, "python")[1:]:
        if "asyncio.run(" not in block:
            runner.run(executed(compile(block, str(README), "exec"), namespace))
    answer_all = namespace["answer_all"]
    assert callable(answer_all)

    async def ask() -> object:
        async with AsyncOneLLM(limits=Limits(**FAST)) as client:
            return await answer_all(client, ["a", "b", "c"])

    assert runner.run(ask()) == {0: "a", 1: "b", 2: "c"}


def test_the_bot_of_the_readme_answers(runner: asyncio.Runner) -> None:
    bot = next(block for block in blocks(README, "python") if "Conversation" in block)
    assert runner.run(run_as_program(bot)) == "you: bot: What is a prime?\nyou: "


def test_the_test_of_the_readme_passes(runner: asyncio.Runner, tmp_path: Path) -> None:
    test = next(block for block in blocks(README, "python") if "def test_" in block)
    output = runner.run(run_tests_of([test], tmp_path))
    assert "1 passed" in output, output


def test_the_picture_of_a_terminal_loads_nothing_from_elsewhere() -> None:
    picture = (ROOT / "docs/_static/terminal.svg").read_text("utf-8")
    assert set(re.findall(r"https?://[^\s\"')]+", picture)) == {"http://www.w3.org/2000/svg"}
    assert len(picture) < 16_000
    assert "run the same command" in picture.replace("&#160;", " ").lower()


def test_the_tests_in_the_testing_guide_pass(runner: asyncio.Runner, tmp_path: Path) -> None:
    first, answers, script, time_travel, batch = blocks(ROOT / "docs/how-to/testing.md", "python")[:5]
    output = runner.run(run_tests_of([f"{first}\n\n{answers}", script, f"{time_travel}\n\n{batch}"], tmp_path))
    assert "8 passed" in output, output


def test_the_figures_in_the_readme_are_those_of_the_benchmarks() -> None:
    quoted = README.read_text("utf-8").partition("<!-- benchmarks: begin")[2].partition("benchmarks: end")[0]
    results = (ROOT / "benchmarks/RESULTS.md").read_text("utf-8")

    def table(title: str) -> dict[str, list[str]]:
        section = results.partition(f"## {title}\n")[2].partition("\n## ")[0]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
        return {row[0]: [cell.partition(" ")[0] for cell in row[1:]] for row in rows[2:]}

    shares = {name: f"{float(cells[-1]):.1f}" for name, cells in table("Overhead").items()}
    goodput, memory = table("Goodput under a rate limit"), table("Memory of a long run")
    own, blind = (goodput[f"onellm-async, limit {known}"] for known in ("declared", "not known"))
    patient, usual = (goodput[f"openai-python, {retries}"] for retries in ("10 retries", "2 retries (default)"))
    assert re.search(r"Measured on (\S+)", results).group(1) in quoted  # type: ignore[union-attr]
    assert own[1:] == ["0", "0"]
    quoted = " ".join(quoted.split())
    assert f"{own[0]} of the best possible speed" in quoted
    assert f"discovered, {blind[0]}, and {blind[2]} requests got a 429" in quoted
    assert f"{patient[0]}, {patient[2]} 429s" in quoted
    assert f"{usual[0]}, and {usual[1]} prompts failed" in quoted
    assert f"is {shares['onellm-async, chat']} times that of plain aiohttp" in quoted
    assert f"openai-python's is {shares['openai-python over httpx']} times" in quoted
    assert f"litellm's {shares['litellm']}" in quoted
    assert f"took {memory['onellm-async, iter_chats'][2]} MB" in quoted


def test_the_figures_beside_other_clients_are_those_of_the_benchmarks() -> None:
    results = (ROOT / "benchmarks/RESULTS.md").read_text("utf-8")
    measured = set(re.findall(r"[\d,]*\d(?:\.\d+)?", results))
    for path in (ROOT / "docs/comparison.md", *(ROOT / "docs/how-to").glob("from-*.md")):
        quoted = re.findall(r"(?<![\d.])(?:0\.\d\d+|\d{1,3},\d{3}|\d+(?= µs))(?![\d.]\d)", path.read_text("utf-8"))
        assert [figure for figure in quoted if figure not in measured] == [], path.name


def test_the_picture_of_the_goodput_is_drawn_from_the_benchmarks() -> None:
    drawing = runpy.run_path(str(ROOT / "docs/goodput.py"))
    results = (ROOT / "benchmarks/RESULTS.md").read_text("utf-8")
    shown = (ROOT / "docs/_static/goodput.svg").read_text("utf-8")
    assert shown == drawing["picture"](results), "python docs/goodput.py draws it anew"


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if "```py\n" in path.read_text("utf-8")], ids=named)
def test_code_for_other_clients_is_valid_python(path: Path) -> None:
    for source in blocks(path, "py"):
        compile(source, str(path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main([*command, "--help"]) == 0
    return capsys.readouterr().out


def test_the_commands_in_the_readme_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(re.sub("[│─╭╮╰╯]", " ", help_of(capsys)).split())
    quoted = dict(re.findall(r"^\| `onellm-async (\w+)` \| (.+?) \|$", README.read_text("utf-8"), re.MULTILINE))
    assert set(quoted) == {name for name in app if not name.startswith("-")}
    for name, description in quoted.items():
        assert f"{name} {description}" in text


def test_the_exit_codes_in_the_readme_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    quoted = next(block for block in blocks(README, "text") if block.startswith("Exit codes:"))
    assert quoted.strip() in help_of(capsys)
    assert {int(code) for code in re.findall(r"\b\d+\b", quoted)} == {code.value for code in ExitCode}


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if "onellm-async " in path.read_text("utf-8")], ids=named)
def test_every_command_in_the_documentation_has_flags_that_exist(path: Path) -> None:
    quoted = "\n".join(blocks(path, "console"))
    quoted += "\n" + "\n".join(re.findall(r"`(onellm-async [^`\n]+)`", path.read_text("utf-8")))
    commands = re.findall(r"onellm-async ([a-z]+\b[^|&\n]*)", quoted)
    for command in commands:
        arguments = [STREAM[1] if argument == "-" else argument for argument in shlex.split(command)]
        if len(arguments) > 1:
            app.parse_args(arguments, exit_on_error=False, print_error=False)


def test_the_readme_gives_the_two_commands_that_set_everything_up() -> None:
    install = "python3 -m venv .venv && .venv/bin/pip install"
    assert [block.strip() for block in blocks(README, "console")] == [
        f"{install} '.[cli]' && .venv/bin/onellm-async run examples/prompts.txt --local -o answers.jsonl",
        f"{install} 'nox[uv]' && .venv/bin/nox",
    ]


def test_the_number_of_example_prompts_is_the_one_that_the_readme_names() -> None:
    number = len((ROOT / "examples/prompts.txt").read_text("utf-8").splitlines())
    assert f"{number} prompts" in README.read_text("utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


def test_the_architecture_names_every_file_of_the_package() -> None:
    picture = (ROOT / "docs/architecture.md").read_text("utf-8")
    package = ROOT / "onellm_async"
    rooms = {path.name for path in package.glob("*.py")} - {"__main__.py"}
    rooms |= {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    rooms |= {
        path.name
        for room in ("limits", "server", "simulation", "testing", "wire")
        for path in (package / room).glob("[!_]*.py")
    }
    assert {room for room in rooms if room not in picture} == set()


def test_the_architecture_answers_where_things_are_with_files_that_exist() -> None:
    answers = (ROOT / "docs/architecture.md").read_text("utf-8").partition("## Where is …?")[2].partition("\n## ")[0]
    files = re.findall(r"`([a-z_/]+\.py)`", answers)
    assert len(files) >= 10
    assert [file for file in files if not (ROOT / "onellm_async" / file).exists()] == []


def test_the_layers_in_the_architecture_are_those_that_are_checked() -> None:
    lines = (ROOT / "pyproject.toml").read_text("utf-8").partition("layers = [")[2].partition("]")[0].split("\n")
    layers = [re.sub(r"[ \",()]+", " ", line).strip().replace(" | ", " · ") for line in lines if line.strip()]
    assert "\n".join(layers) in (ROOT / "docs/architecture.md").read_text("utf-8")


def test_importing_the_documented_package_loads_neither_server_nor_command_line() -> None:
    source = "import sys; from onellm_async import *; print([n for n in sys.modules if n.startswith('onellm_async.')])"
    loaded = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}
    ).stdout
    assert "onellm_async.client" in loaded
    assert not re.search(r"onellm_async\.(server|cli|batch|simulation)\b", loaded)


@pytest.mark.parametrize("room", ["batch", "report"])
def test_every_public_name_of_a_room_is_on_its_reference_page(room: str) -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    names = importlib.import_module(f"onellm_async.{room}").__all__
    assert [name for name in names if not re.search(rf"auto\w+:: onellm_async\.{room}\.{name}\n", pages)] == []


def test_the_description_on_a_package_index_needs_no_checkout() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    shown = settings["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    readme = README.read_text("utf-8")
    text, end, _ = readme.partition(shown["fragments"][0]["end-before"])
    assert end
    for change in shown["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert re.findall(r"!\[|\]\((?!https?:)", text) == []
    fenced = re.compile(r"^```\w+\n.*?^```$", re.MULTILINE | re.DOTALL)
    assert fenced.findall(text) == fenced.findall(readme)
