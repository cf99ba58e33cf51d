import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["right.py", "wrong.py"])
def test_the_public_types_say_what_users_need(name: str, tmp_path: Path) -> None:
    cache = Path(os.environ.get("MYPY_CACHE_DIR", tmp_path.parent / "mypy-cache"))
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\nstrict = true\nwarn_unused_ignores = true\n", encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(settings), "--cache-dir", str(cache), str(HERE / name)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=HERE.parents[1],
    )
    assert run.returncode == 0, run.stdout + run.stderr
