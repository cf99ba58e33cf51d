import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_the_public_types_say_what_users_need(tmp_path: Path) -> None:
    cache = Path(os.environ.get("MYPY_CACHE_DIR", tmp_path.parent / "mypy-cache"))
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\nstrict = true\nwarn_unused_ignores = true\n", encoding="utf-8")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(settings), "--cache-dir", str(cache)),
            *(str(HERE / name) for name in ("right.py", "wrong.py")),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=tmp_path,  # so that the package is the installed one, as for its users
    )
    assert run.returncode == 0, run.stdout + run.stderr
