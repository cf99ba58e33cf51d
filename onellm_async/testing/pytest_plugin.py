"""Fixtures for tests of code that uses OneLLM. pytest loads this module in every run, so it imports nothing else.

``onellm_server`` is a local OneLLM in a thread of its own, so that tests of every kind can use it: synchronous ones,
asyncio's under pytest-asyncio or anyio, and those that start other programs. The environment points to it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from onellm_async import AsyncOneLLM
    from onellm_async.testing import ThreadedServer

_KEY = "test-key"
_MARKER = (
    "onellm(**settings): settings of the fixture onellm_server, as onellm_async.server.ServerSettings takes them; "
    "without requests_per_minute there is no rate limit"
)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker ``onellm``."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def onellm_answers() -> Mapping[str, str] | Callable[[str], str] | None:
    """Answers of ``onellm_server``: a mapping or a function from the last user message to the text of the answer.

    Override it in a test module or ``conftest.py``. Prompts that a mapping does not contain are echoed.
    """
    return None


@pytest.fixture
def onellm_server(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    onellm_answers: Mapping[str, str] | Callable[[str], str] | None,
) -> "Iterator[ThreadedServer]":
    """A local OneLLM, to which ``ONELLM_API_KEY`` and ``ONELLM_BASE_URL`` point; see `ThreadedServer`.

    It echoes the last user message, or answers as ``onellm_answers`` says. The marker ``onellm`` sets its settings.
    """
    from onellm_async.server import ServerSettings
    from onellm_async.testing import ThreadedServer

    settings: dict[str, object] = {"requests_per_minute": None}
    for marker in reversed(list(request.node.iter_markers("onellm"))):  # the closest one last
        settings |= marker.kwargs
    with ThreadedServer(ServerSettings(**settings), answers=onellm_answers) as server:  # type: ignore[arg-type]
        monkeypatch.setenv("ONELLM_API_KEY", _KEY)
        monkeypatch.setenv("ONELLM_BASE_URL", server.url)
        yield server


@pytest.fixture
def onellm_client(onellm_server: "ThreadedServer") -> "AsyncOneLLM":
    """An `AsyncOneLLM` for ``onellm_server``, without limits. It may be used in one event loop or in several in turn.

    Its connections are closed with the event loop of the test.
    """
    from onellm_async import AsyncOneLLM, Limits

    return AsyncOneLLM(_KEY, base_url=onellm_server.url, limits=Limits.unlimited())
