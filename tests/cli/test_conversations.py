import os
import pty
import select
import subprocess
import sys
import time

import pytest

from onellm_async.cli.converse import converse
from onellm_async.cli.options import ConnectionFlags, RequestFlags
from onellm_async.server import ServerSettings
from onellm_async.testing import ThreadedServer

FAST = ServerSettings(requests_per_minute=60_000, burst=1000)


class Terminal:
    """A command with a terminal of its own."""

    def __init__(self, environment, cwd, *arguments):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "onellm_async", *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=cwd, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def until(self, text):
        """Reads until `text` has appeared behind what was found before."""
        end = time.monotonic() + 30
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, self.seen
            try:
                self.seen += os.read(self.master, 4096).decode()
            except OSError:  # it has ended
                raise AssertionError(self.seen) from None
        self.seen = self.seen.partition(text)[2]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def chat(tmp_path):
    terminals = []
    with ThreadedServer(FAST) as server:

        def start(*arguments):
            environment = {
                **os.environ,
                "ONELLM_API_KEY": "local",
                "ONELLM_BASE_URL": server.url,
                "TERM": "dumb",
                "PYTHONPATH": os.getcwd(),  # noqa: PTH109
            }
            terminals.append(Terminal(environment, tmp_path, "chat", *arguments))
            return terminals[-1]

        start.server = server
        yield start
        for terminal in terminals:
            terminal.close()


def test_a_terminal_without_a_prompt_holds_a_conversation(chat):
    talk = chat()
    talk.until("GPT-5-Nano. /help lists the commands.")
    end = time.monotonic() + 20
    while talk.process.poll() is None and time.monotonic() < end:
        os.write(talk.master, b"\x04")  # again: what is typed before the line can be edited is lost
        time.sleep(0.2)
    assert talk.process.poll() == 0
    assert chat.server.ledger.received == 0


def test_lines_are_questions_with_a_history_or_commands(chat, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONELLM_API_KEY", "local")
    monkeypatch.setenv("ONELLM_BASE_URL", chat.server.url)

    def talk(*lines, **asking):
        left = iter(lines)

        def ask(prompt):
            line = next(left, None)
            if line is None:
                raise EOFError
            if isinstance(line, type):
                raise line
            return line

        flags = ConnectionFlags(rpm=60_000, burst=1000)
        assert converse(RequestFlags(**asking), flags, ask) == 0
        return capsys.readouterr()

    first = talk("What is a prime?", "", "Is 51 one?", "/undo", "/save talk.json", system="Be brief.")
    assert first.out.splitlines() == ["What is a prime?", "Is 51 one?"]
    assert "Forgotten: Is 51 one?\nSaved: talk.json\n2 answers, $" in first.err
    again = talk("/load talk.json", "/retry", KeyboardInterrupt, "/forget", "/retry", "/quit", "never asked")
    assert again.out.splitlines() == ["What is a prime?"]
    assert "Loaded: talk.json, 2 messages" in again.err
    assert "There is no turn to retry" in again.err
    wrong = talk("/nonsense", "/save talk.json", "/load nowhere.json", "/help")
    assert "/help lists them" in wrong.err
    assert "talk.json: File exists." in wrong.err
    assert "nowhere.json: No such file or directory." in wrong.err
    assert "/undo         forget the last question" in wrong.err
    assert "Be brief." in (tmp_path / "talk.json").read_text()
    assert chat.server.ledger.received == 3


def test_an_image_is_refused_in_words(chat):
    talk = chat("--image", "cat.png", "What is this?")
    talk.until("--image cat.png cannot be sent: OneLLM takes text only.")
    assert talk.process.wait(20) == 2
    assert chat.server.ledger.received == 0
