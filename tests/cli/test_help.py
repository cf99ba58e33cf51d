"""Every help: its examples work, its sentences are short, and each flag has a text."""

import re
import shlex
from pathlib import Path

import pytest

from onellm_async.cli import main
from onellm_async.cli.app import app
from onellm_async.testing import ThreadedServer

COMMANDS = [
    *((name,) for name in app if not name.startswith("-")),
    *(("shard", name) for name in ("run", "status", "merge")),
    *(("gateway", "keys", name) for name in ("add", "list", "remove")),
    ("quota", "status"),
    ("--install-completion",),
]
ROOT = Path(__file__).parents[2]
LONGEST = 24
"""Words of a sentence in a help text."""


@pytest.fixture(scope="module")
def shown():
    """Each help that was asked for: several tests read it."""
    return {}


@pytest.fixture(scope="module")
def documents():
    return "\n".join(path.read_text("utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


@pytest.fixture
def help_of(capsys, monkeypatch, shown):
    monkeypatch.setenv("COLUMNS", "80")

    def help_of(*command):
        if command not in shown:
            assert main([*command, "--help"]) == 0
            shown[command] = capsys.readouterr().out
        return shown[command]

    return help_of


def examples_in(text):
    found = text.partition("Examples:\n")[2].partition("\n\n")[0]
    return [line.strip() for line in found.splitlines()]


def arguments_of(example):
    """The arguments of the command in a line; None where it needs a program that is not ours."""
    words = shlex.split(example, comments=True)
    if "onellm-async" not in words:
        return None
    words = words[words.index("onellm-async") + 1 :]
    ends = [words.index(mark) for mark in ("|", ">", "<") if mark in words]
    return words[: min(ends, default=len(words))]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_flags_in_the_examples_exist(help_of, command):
    examples = examples_in(help_of(*command))
    assert examples
    for example in examples:
        arguments = arguments_of(example)
        if arguments and "COMMAND" not in arguments:
            words = ["\0-" if word == "-" else word for word in arguments]  # as `run_app` does it
            app.parse_args(words, exit_on_error=False)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_flag_has_a_text_of_short_sentences(help_of, command):
    texts = []
    for row in re.findall(r"^│ (.{2,76}) │$", help_of(*command).partition("Examples:")[0], re.MULTILINE):
        if found := re.match(r"(?:\* +)?(?:-\S+|[A-Z]+)(?: \S+)*? {2,}(\S.*)", row):
            texts.append(found[1].strip())
        elif texts:
            texts[-1] += " " + row.strip()
    for text in texts:
        sentences = re.split(r"[.;:] ", re.sub(r"\[[^\]]*\]", "", text))
        assert max(len(sentence.split()) for sentence in sentences) <= LONGEST, text
        assert text[0] in "`'*" or text[0].isupper() or text.startswith("max_tokens"), text


FILES = {
    "prompts.txt": "one\ntwo\n",
    "questions.jsonl": '{"question": "one"}\n{"question": "two"}\n',
    "people.csv": "name\nAnn\nBob\n",
    "reviews.csv": "prompt\nGood.\n",
    "rating.json": '{"type": "object", "properties": {"stars": {"type": "integer"}}, "required": ["stars"]}',
    "openai-batch.jsonl": '{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "x"}]}}\n',
}


@pytest.fixture(scope="module")
def service():
    with ThreadedServer() as server:
        yield server


@pytest.mark.parametrize("command", ["run", "plan", "status", "export", "report", "models"])
def test_the_examples_work(command, help_of, service, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONELLM_API_KEY", "any")
    monkeypatch.setenv("ONELLM_BASE_URL", service.url)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    if command not in {"run", "plan", "models"}:
        assert main(["run", "prompts.txt", "-o", "answers.jsonl"]) == 0
        assert main(["shard", "prompts.txt", "-d", "shards"]) == 0
    for example in examples_in(help_of(command)):
        arguments = arguments_of(example)
        if arguments is None or arguments[1:2] == ["-"] or example.startswith("watch"):
            continue
        if command == "run":  # each example is a run of its own
            for left in tmp_path.glob("*.jsonl.journal*"):
                left.unlink()
            for made in ("answers.jsonl", "letters.csv", "ratings.jsonl", "results.jsonl"):
                (tmp_path / made).unlink(missing_ok=True)
        assert main(arguments) in ({0, 1} if "--failed" in arguments else {0}), (example, capsys.readouterr().err)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_variables_of_a_help_are_those_of_the_documents(command, help_of, documents):
    text = " ".join(re.sub("[│\n]", " ", help_of(*command)).split())
    for name in re.findall(r"\[env: (\w+)\]", text):
        assert f"{name}" in documents, name
