"""The fixtures serve tests of every kind, and loading them costs a test run nothing."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.plugins import WITHOUT_OTHER_PLUGINS

ROOT = Path(__file__).parents[2]
MODULE = "onellm_async.testing.pytest_plugin"
INSTALLED = any(each.value == MODULE for each in entry_points(group="pytest11"))

ANY_KIND = """
import asyncio
import os
import subprocess
import sys

import pytest

import onellm_async


@pytest.mark.asyncio
async def test_pytest_asyncio(onellm_server, onellm_client):
    reply = await onellm_client.chat("Hello?", model="GPT-5-Nano")
    assert (reply.content, onellm_server.ledger.billed) == ("Hello?", 1)


@pytest.mark.anyio
async def test_anyio(onellm_server, onellm_client):
    reply = await onellm_client.chat("Hello?", model="GPT-5-Nano")
    assert (reply.content, onellm_server.ledger.billed) == ("Hello?", 1)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_synchronous(onellm_server, onellm_client):
    for prompt in ("one", "two"):
        assert asyncio.run(onellm_client.chat(prompt, model="GPT-5-Nano")).content == prompt
    assert onellm_server.ledger.billed == 2


def test_code_that_makes_its_own_client(onellm_server):
    async def service():
        async with onellm_async.AsyncOneLLM() as client:
            return (await client.chat("Hello?", model="GPT-5-Nano")).content

    assert asyncio.run(service()) == "Hello?"
    assert onellm_server.ledger.billed == 1


@pytest.mark.onellm(requests_per_minute=1, burst=1)
def test_marker(onellm_server):
    async def twice():
        limits = onellm_async.Limits(requests_per_minute=1, burst=1, max_pending=0)
        async with onellm_async.AsyncOneLLM(limits=limits) as client:
            await client.chat("one", model="GPT-5-Nano")
            await client.chat("two", model="GPT-5-Nano")

    with pytest.raises(onellm_async.QueueFullError):
        asyncio.run(twice())


def test_another_program(onellm_server):
    source = "import asyncio, onellm_async as o\\nasync def main():\\n    async with o.AsyncOneLLM() as client:\\n"
    source += "        await client.chat('Hello?', model='GPT-5')\\nasyncio.run(main())"
    subprocess.run([sys.executable, "-c", source], check=True)
    assert [row.prompt for row in onellm_server.ledger.rows] == ["Hello?"]
"""

ANSWERS = """
import pytest

import onellm_async


@pytest.fixture
def onellm_answers():
    return {"2 + 2?": "4"}


@pytest.mark.asyncio
async def test_answers(onellm_client):
    assert (await onellm_client.chat("2 + 2?", model="GPT-5-Nano")).content == "4"
    assert (await onellm_client.chat("Hello?", model="GPT-5-Nano")).content == "Hello?"


@pytest.mark.asyncio
@pytest.mark.onellm(keys={"poor": 0.0, "rich": 1.0})
async def test_the_first_key_is_used(onellm_client):
    with pytest.raises(onellm_async.InsufficientBalanceError):
        await onellm_client.chat("Hello?", model="GPT-5-Nano")
    async with onellm_async.AsyncOneLLM() as client:
        with pytest.raises(onellm_async.InsufficientBalanceError):
            await client.chat("Hello?", model="GPT-5-Nano")


@pytest.mark.asyncio
@pytest.mark.onellm(keys={})
async def test_a_server_may_know_no_key(onellm_client):
    with pytest.raises(onellm_async.AuthenticationError):
        await onellm_client.chat("Hello?", model="GPT-5-Nano")


@pytest.mark.onellm(keys={"another": 1.0})
class TestMarkers:
    @pytest.mark.asyncio
    @pytest.mark.onellm(keys={"test-key": 1.0}, burst=3)
    async def test_the_closest_marker_wins(self, onellm_server, onellm_client):
        await onellm_client.chat("Hello?", model="GPT-5-Nano")
        assert onellm_server.ledger.billed == 1
"""


SCRIPTS_AND_VIRTUAL_TIME = """
import asyncio

import pytest

from onellm_async import AsyncOneLLM, Limits
from onellm_async.testing import answer


@pytest.fixture
def onellm_answers():
    return [500, "second"]


@pytest.mark.asyncio
async def test_a_scripted_failure_is_retried(onellm_server, onellm_client):
    assert (await onellm_client.chat("Hello?", model="GPT-5-Nano")).attempts == 2
    onellm_server.set_answers({"Hello?": "third"})
    assert (await onellm_client.chat("Hello?", model="GPT-5-Nano")).content == "third"


@pytest.mark.onellm_virtual_time
async def test_hours_pass_at_once(onellm_transport):
    onellm_transport.set_replies([429, answer("done", delay=3600)])
    async with AsyncOneLLM(transport=onellm_transport, limits=Limits()) as client:
        assert (await client.chat("Hello?", model="GPT-5-Nano", deadline=7200)).content == "done"
    assert asyncio.get_running_loop().time() >= 3600


@pytest.mark.onellm_virtual_time
@pytest.mark.parametrize("number", [1, 2])
class TestClasses:
    async def test_in_classes_too(self, number, onellm_transport):
        await asyncio.sleep(86400 * number)
        assert onellm_transport.requests == []


@pytest.mark.onellm_virtual_time
async def test_a_failure_is_one():
    await asyncio.sleep(86400)
    assert False


@pytest.mark.onellm_virtual_time
def test_synchronous_tests_are_left_alone():
    assert True
"""


def pytest_of(source: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_user.py").write_text(source)
    plugin = () if INSTALLED else ("-p", MODULE)
    command = (sys.executable, "-X", "dev", "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin)
    options = ("-o", "asyncio_default_fixture_loop_scope=function", "--strict-markers", "--rootdir", str(folder))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ONELLM_", "PYTEST_"))}
    return subprocess.run(
        [*command, *WITHOUT_OTHER_PLUGINS, *options, *arguments, str(folder)],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_tests_of_every_kind_pass_with_all_warnings_as_errors(mode: str, tmp_path: Path) -> None:
    run = pytest_of(ANY_KIND, tmp_path, "-W", "error", "-o", f"asyncio_mode={mode}")
    assert "6 passed" in run.stdout, run.stdout + run.stderr
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Warning" not in run.stdout + run.stderr


def test_answers_and_settings_are_chosen_by_the_test(tmp_path: Path) -> None:
    run = pytest_of(ANSWERS, tmp_path, "-W", "error")
    assert "4 passed" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("mode", ["auto", "without pytest-asyncio"])
def test_failures_are_scripted_and_time_passes_at_once_under_any_plugin(mode: str, tmp_path: Path) -> None:
    without = mode.startswith("without")
    source = SCRIPTS_AND_VIRTUAL_TIME.replace("@pytest.mark.asyncio", "@pytest.mark.skip") if without else None
    options = ("-p", "no:asyncio") if without else ("-o", f"asyncio_mode={mode}")
    run = pytest_of(source or SCRIPTS_AND_VIRTUAL_TIME, tmp_path, *options, "--durations=1")
    expected = "1 failed, 4 passed, 1 skipped" if without else "1 failed, 5 passed"
    assert expected in run.stdout, run.stdout + run.stderr
    assert "assert False" in run.stdout
    assert "RuntimeWarning" not in run.stdout + run.stderr


def test_the_marker_is_described(tmp_path: Path) -> None:
    run = pytest_of("", tmp_path, "--markers")
    assert "@pytest.mark.onellm(**settings): settings of the fixture onellm_server" in run.stdout


def test_a_run_that_uses_no_fixture_loads_nothing_of_the_package_but_the_plugin(tmp_path: Path) -> None:
    source = "import sys\ndef test_nothing():\n    found = {n for n in sys.modules if n.startswith('onellm_async')}\n"
    source += (
        "    assert found == {f'onellm_async{n}' for n in ('', '.version', '.testing', '.testing.pytest_plugin')}\n"
    )
    run = pytest_of(source, tmp_path)
    assert "1 passed" in run.stdout, run.stdout + run.stderr


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"onellm": MODULE}
