import os
import pty
import select
import subprocess
import sys
import time

import pytest

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

    def type(self, line):
        os.write(self.master, f"{line}\n".encode())

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


def test_a_terminal_holds_a_conversation_with_its_history(chat, tmp_path):
    talk = chat("--system", "Be brief.")
    talk.until("/help lists the commands.")
    talk.type("What is a prime?")
    talk.until("\nWhat is a prime?")
    talk.type("Is 51 one?")
    talk.until("\nIs 51 one?")
    talk.type("/undo")
    talk.until("Forgotten: Is 51 one?")
    talk.type("/save talk.json")
    talk.until("Saved: talk.json")
    talk.type("/nonsense")
    talk.until("/help lists them")
    talk.type("/save talk.json")
    talk.until("File exists")
    talk.type("\x04")
    talk.until("2 answers, $")
    assert talk.process.wait(20) == 0
    assert chat.server.ledger.received == 2

    again = chat()
    again.until("/help lists the commands.")
    again.type("/load talk.json")
    again.until("Loaded: talk.json, 2 messages")
    again.type("/retry")
    again.until("\nWhat is a prime?")
    again.type("/quit")
    assert again.process.wait(20) == 0
    assert "Be brief." in (tmp_path / "talk.json").read_text()


def test_an_image_is_refused_in_words(chat):
    talk = chat("--image", "cat.png", "What is this?")
    talk.until("--image cat.png cannot be sent: OneLLM takes text only.")
    assert talk.process.wait(20) == 2
    assert chat.server.ledger.received == 0
