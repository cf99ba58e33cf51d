"""Recorded exchanges with pytest-recording, as the guide shows them. Run by ``nox -s integrations``."""

import os
import subprocess
import sys
from pathlib import Path

from onellm_async.testing import ThreadedServer

GUIDE = Path(__file__).parents[2] / "docs/how-to/testing.md"
CAPITALS = {"Capital of Peru?": "Lima", "Capital of France?": "Paris"}


def run(folder: Path, url: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "asyncio_mode=strict", "--rootdir", folder, *options, folder],
        env={**os.environ, "ONELLM_API_KEY": "secret-key", "ONELLM_BASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_exchanges_are_replayed_without_a_service_and_the_file_has_no_key(tmp_path: Path) -> None:
    blocks = GUIDE.read_text("utf-8").split("```python\n")
    source = next(block for block in blocks if "def vcr_config" in block).partition("```")[0]
    (tmp_path / "test_guide.py").write_text(f"from onellm_async import AsyncOneLLM\n{source}")
    with ThreadedServer(answers=CAPITALS) as server:
        assert "1 passed" in run(tmp_path, server.url, "--record-mode=once")
        assert server.ledger.received == 2
        url = server.url
    (cassette,) = tmp_path.rglob("*.yaml")
    assert "secret-key" not in cassette.read_text()
    assert "1 passed" in run(tmp_path, url)
    cassette.unlink()
    assert "1 failed" in run(tmp_path, url)
