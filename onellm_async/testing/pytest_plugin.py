"""Fixtures for tests of code that uses OneLLM. pytest loads this module in every run, so it imports nothing else.

``onellm_server`` is a local OneLLM in a thread of its own, so that tests of every kind can use it: synchronous ones,
asyncio's under pytest-asyncio or anyio, and those that start other programs. The environment points to it.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from onellm_async import AsyncOneLLM
    from onellm_async.server import ServerSettings
    from onellm_async.testing import FakeReply, FakeTransport, ThreadedServer

_KEY = "test-key"
_VIRTUAL_TIME = "onellm_virtual_time: the coroutine runs in an event loop whose clock jumps over all waiting"
_MARKER = (
    "onellm(**settings): settings of the fixture onellm_server, as onellm_async.server.ServerSettings takes them; "
    "without requests_per_minute there is no rate limit"
)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers ``onellm`` and ``onellm_virtual_time``."""
    config.addinivalue_line("markers", _MARKER)
    config.addinivalue_line("markers", _VIRTUAL_TIME)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Lets tests that are marked with ``onellm_virtual_time`` run in virtual time, whatever plugin runs coroutines."""
    if not isinstance(item, pytest.Function) or item.get_closest_marker("onellm_virtual_time") is None:
        return
    test = item.obj
    if not inspect.iscoroutinefunction(test):
        return

    def runtest() -> None:
        from onellm_async.testing import run_in_virtual_time

        names = inspect.signature(test).parameters
        run_in_virtual_time(test(**{name: item.funcargs[name] for name in names}))

    item.runtest = runtest  # type: ignore[method-assign]


@pytest.fixture
def onellm_answers() -> "Mapping[str, str] | Callable[[str], str] | Sequence[str | int | FakeReply] | None":
    """Answers of ``onellm_server``: a mapping or a function from the last user message to the text of the answer.

    Override it in a test module or ``conftest.py``. Prompts that a mapping does not contain are echoed. A list is a
    script of texts and statuses, of which the last one repeats.
    """
    return None


@pytest.fixture
def onellm_server(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    onellm_answers: "Mapping[str, str] | Callable[[str], str] | Sequence[str | int | FakeReply] | None",
) -> "Iterator[ThreadedServer]":
    """A local OneLLM, to which ``ONELLM_API_KEY`` and ``ONELLM_BASE_URL`` point; see `ThreadedServer`.

    It echoes the last user message, or answers as ``onellm_answers`` says. The marker ``onellm`` sets its settings. The
    key is ``test-key``, or the first one of ``keys`` if that does not contain it.
    """
    from onellm_async.testing import ThreadedServer

    settings = _settings(request)
    with ThreadedServer(settings, answers=onellm_answers) as server:
        monkeypatch.setenv("ONELLM_API_KEY", _key(settings))
        monkeypatch.setenv("ONELLM_BASE_URL", server.url)
        yield server


@pytest.fixture
def onellm_client(request: pytest.FixtureRequest, onellm_server: "ThreadedServer") -> "AsyncOneLLM":
    """An `AsyncOneLLM` for ``onellm_server`` with its key, without limits.

    It may be used in one event loop or in several in turn. Its connections are closed with the event loop of the test.
    """
    from onellm_async import AsyncOneLLM, Limits

    return AsyncOneLLM(_key(_settings(request)), base_url=onellm_server.url, limits=Limits.unlimited())


@pytest.fixture
def onellm_transport() -> "FakeTransport":
    """A `FakeTransport`, which echoes prompts. ``set_replies`` gives it a script of answers and failures.

    Pass it to the client that is tested: ``AsyncOneLLM(transport=onellm_transport)``. It fits virtual time.
    """
    from onellm_async.testing import FakeTransport

    return FakeTransport()


def _settings(request: pytest.FixtureRequest) -> "ServerSettings":
    from onellm_async.server import ServerSettings

    settings: dict[str, object] = {"requests_per_minute": None}
    for marker in reversed(list(request.node.iter_markers("onellm"))):  # the closest one last
        settings |= marker.kwargs
    return ServerSettings(**settings)  # type: ignore[arg-type]


def _key(settings: "ServerSettings") -> str:
    keys = settings.keys
    return _KEY if keys is None or _KEY in keys else next(iter(keys), _KEY)
