"""What CONTRIBUTING.md tells a newcomer to run, runs."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
COMMANDS = [shlex.split(command) for command in re.findall(r"`\.venv/bin/([^`]+)`", TEXT)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def commands(program: str) -> list[list[str]]:
    return [command[1:] for command in COMMANDS if command[0] == program]


def test_the_set_up_installs_what_there_is() -> None:
    extras, group = re.findall(r"-e '\.\[(.*?)\]' --group (\w+)", TEXT)[0]
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert group in PROJECT["dependency-groups"]


@pytest.mark.parametrize("arguments", [args for args in commands("pytest") if "auto" not in args], ids=" ".join)
def test_each_command_for_tests_finds_some(arguments: list[str]) -> None:
    collecting = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    found = subprocess.run(collecting, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "::" in found.stdout


def test_the_nox_sessions_are_there() -> None:
    sessions = re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)
    named = [args[args.index("-s") + 1] for args in commands("nox") if "-s" in args]
    assert named
    assert set(named) <= set(sessions)


@pytest.mark.parametrize("arguments", commands("python"), ids=" ".join)
def test_each_program_runs(arguments: list[str]) -> None:
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
