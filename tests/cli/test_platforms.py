"""The package where parts of Python's standard library are missing, as on Windows and on systems without file locks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ELSEWHERE = """
import os, select, signal, socket, sys

sys.modules["fcntl"] = None
for module, name in (
    (signal, "SIGHUP"), (signal, "SIGUSR1"), (os, "O_NOFOLLOW"), (os, "link"), (os, "set_blocking"),
    (socket, "TCP_KEEPIDLE"), (socket, "TCP_KEEPINTVL"), (socket, "TCP_KEEPCNT"), (socket, "TCP_USER_TIMEOUT"),
    (select, "poll"),
):
    if hasattr(module, name):
        delattr(module, name)
from onellm_async.cli import main

sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def elsewhere(tmp_path):
    def elsewhere(*arguments):
        return subprocess.run(
            [sys.executable, "-c", ELSEWHERE, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        )

    return elsewhere


def test_a_run_works_without_the_modules_and_names_that_only_some_systems_have(elsewhere, tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"p{number}\n" for number in range(20)))
    run = ("run", "in.txt", "-o", "out.jsonl", "--local", "--rpm", "60000", "--burst", "1000")
    ended = elsewhere(*run)

    assert ended.returncode == 0, ended.stderr
    assert [json.loads(line)["index"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == list(range(20))
    assert "This system has no file locks. Let no other run write out.jsonl.journal at the same time." in ended.stderr
    assert "Nothing is left to do: 20 prompts answered" in elsewhere(*run).stderr
    assert elsewhere("status", "out.jsonl").stdout.startswith("in.txt: complete, 20 of 20 ")
    assert len(elsewhere("export", "out.jsonl").stdout.splitlines()) == 20
    assert elsewhere("report", "out.jsonl").returncode == 0


def test_a_chat_works_there_too(elsewhere):
    ended = elsewhere("chat", "Hello", "--local")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Hello\n", "")


def test_every_module_can_be_imported_there(elsewhere, tmp_path):
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "onellm_async").rglob("*.py"))
        if path.name not in {"__init__.py", "__main__.py"}
        and "integrations" not in path.parts  # these need their tools
    ]
    script = ELSEWHERE.partition("from onellm_async.cli")[0] + "import importlib\n"
    script += f"for name in {names}: importlib.import_module(name)\n"
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, check=True)
