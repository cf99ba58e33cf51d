"""What CONTRIBUTING.md tells a newcomer to run, runs."""

import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzzing.__main__ import main

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
    place, *chosen = arguments
    assert chosen[:1] in ([], ["-k"])
    where = ROOT / place
    texts = [path.read_text("utf-8") for path in ([where] if where.suffix else where.glob("test_*.py"))]
    tests = [name for text in texts for name in re.findall(r"def (test_\w+)", text)]
    assert any("".join(chosen[1:]) in name for name in tests)


def test_the_nox_sessions_are_there() -> None:
    sessions = re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)
    named = [args[args.index("-s") + 1] for args in commands("nox") if "-s" in args]
    assert named
    assert set(named) <= set(sessions)


@pytest.mark.parametrize("arguments", commands("python"), ids=" ".join)
def test_each_program_runs(arguments: list[str]) -> None:
    module = arguments[arguments.index("-m") + 1]
    if module == "tests.fuzzing":
        assert main(arguments[2:]) == 0
    else:  # it takes longer than a test may
        assert find_spec(module) is not None
