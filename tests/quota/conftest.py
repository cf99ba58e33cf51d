from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def quota_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``quota="host"`` keeps the boards of a test."""
    directory = tmp_path_factory.mktemp("quota", numbered=True)
    directory.chmod(0o700)
    monkeypatch.setenv("ONELLM_QUOTA_DIR", str(directory))
    return directory
