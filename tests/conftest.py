# ruff: noqa: E402  # first it is said that compiled imports are kept
import asyncio
import gc
import inspect
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator

# Hundreds of processes are started. What was compiled once is kept, even where the environment asks for the contrary:
# else each of them compiles all that it imports, which takes longer than the rest of its life.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell starts what it puts into the background with Ctrl-C ignored, and nohup starts a command with hangups ignored.
# Every process inherits that.
for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # Windows has no hangups
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from onellm_async.server import LocalServer
from onellm_async.simulation.clock import VirtualClockLoop
from tests.forks import close_forks

# After a test without a loop pytest-asyncio asks for "the current loop", and before Python 3.14 that makes one which
# nobody closes. Saying that there is none prevents it.
asyncio.set_event_loop(None)

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("tests", UNTIMED, max_examples=40)
settings.register_profile("thorough", UNTIMED, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tests"))


def pytest_collection_finish() -> None:
    # A full collection goes through everything: thousands of tests and what they import, which all stay anyway.
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time") is not None:
        return {"virtual": VirtualClockLoop}
    return {"real": asyncio.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def _forks_end_with_the_tests() -> Iterator[None]:
    yield
    close_forks()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONELLM_API_KEY", "ONELLM_BASE_URL", "ONELLM_DIALECT", "ONELLM_PROXY", "ONELLM_CA_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest_asyncio.fixture
async def _tasks_end_with_the_test() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()}
    assert not left, f"tasks outlived the test: {left}"


@pytest.fixture(autouse=True)
def _no_leaked_tasks(request: pytest.FixtureRequest) -> None:
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_tasks_end_with_the_test")


@pytest_asyncio.fixture
async def local_server() -> AsyncIterator[LocalServer]:
    async with LocalServer() as server:
        yield server
