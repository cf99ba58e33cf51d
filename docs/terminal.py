"""Records the picture of the command line: ``python docs/terminal.py`` writes ``docs/_static/terminal.svg``.

A real ``onellm-async run`` answers the example prompts on the local server, in a pseudo-terminal. It is stopped by
Ctrl-C, and resumed by the same command. rich draws what the terminal then shows, without its fonts from elsewhere,
because a picture in a README loads nothing. Times differ from machine to machine, so no test compares the picture.
"""

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 100
PICTURE = Path(__file__).with_name("_static") / "terminal.svg"
EXAMPLES = Path(__file__).parents[1] / "examples"
COMMAND = "onellm-async run prompts.txt -o answers.jsonl --local --rpm 600 --max-tokens 300 --max-cost 0.01"
INTERRUPTED = 130
"""Number of answers at which Ctrl-C is pressed."""


class Screen:
    """The lines of a terminal that knows what a live display of rich writes."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = 0

    def feed(self, output: str) -> None:
        """Shows what a program wrote."""
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r?\n|\r|[^\x1b\r\n]+", output):
            if part.endswith("\n"):
                self._row += 1
                if self._row == len(self.lines):
                    self.lines.append("")
            elif found := re.fullmatch(r"\x1b\[(\d+)A", part):
                self._row -= int(found[1])
            elif part == "\x1b[2K":
                self.lines[self._row] = ""
            elif part.endswith("m") or part[0] not in "\x1b\r":
                self.lines[self._row] += part


def played(folder: Path, interrupted: int | None) -> list[str]:
    """Runs the command; returns what the screen shows when it has ended, and before that the last live display."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update(TERM="xterm-256color", COLUMNS=str(COLUMNS), LINES="30")
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.execvp("sh", ["sh", "-c", f"exec {COMMAND}"])  # noqa: S606, S607
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, COLUMNS, 0, 0))
    screen, live, output = Screen(), [], ""
    while True:
        select.select([terminal], [], [], 60)
        try:
            output = os.read(terminal, 1 << 16).decode()
        except OSError:  # the end, on Linux
            break
        screen.feed(output)
        done = re.search(r"(\d+)/\d+", "".join(screen.lines))
        if interrupted is not None and done is not None and int(done[1]) >= interrupted:
            live = [line for line in screen.lines if line]
            os.write(terminal, b"\x03")
            interrupted = None
    os.waitpid(pid, 0)
    ended = [line.replace("^C", "") for line in screen.lines if line.replace("^C", "")]
    return [*live, "^C", *ended] if live else ended


def main() -> None:
    """Records, and writes the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(EXAMPLES / "prompts.txt", folder)
        first = played(folder, INTERRUPTED)
        second = played(folder, None)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for lines in (first, second):
            console.print(Text.from_markup(f"[bold green]$[/] {COMMAND}"))
            for line in lines:
                console.print(Text.from_ansi(line))
    svg = console.export_svg(title="onellm-async", unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg)
    svg = svg.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono")
    PICTURE.write_text(svg, "utf-8")
    print(time.strftime("%F"), len(svg), "bytes")


if __name__ == "__main__":
    main()
