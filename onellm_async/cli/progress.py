"""How a run shows itself on standard error: live on a terminal, as plain lines elsewhere."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onellm_async.batch.progress import RunProgress
from onellm_async.cli.terminal import printable

__all__ = ["Display", "clock_time", "counted", "live_view", "note", "plain_line", "summary"]

_FIRST_LINE = 1.0
_LINE_EVERY = 5.0
_REFRESH = 0.125
"""Seconds: the first plain line, the next ones, a terminal's frames."""


def clock_time(seconds: float) -> str:
    """Seconds as ``9 s``, ``2:05 min`` or ``3:07:09 h``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if not minutes:
        return f"{whole} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}:{minutes_left:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def counted(number: int, noun: str) -> str:
    """``1 prompt``, ``1,200 prompts``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _money(progress: RunProgress) -> str:
    more = f" + {progress.unpriced:,} of unknown price" if progress.unpriced else ""
    return f"${progress.cost:.4f}{more}"


def _out_of(progress: RunProgress) -> str:
    return f"{progress.done:,}" if progress.total is None else f"{progress.done:,}/{progress.total:,}"


def _eta(progress: RunProgress) -> str:
    return "ETA unknown" if progress.eta is None else f"ETA {clock_time(progress.eta)}"


def plain_line(progress: RunProgress) -> str:
    """A run at one moment, in one line."""
    tokens = progress.input_tokens + progress.output_tokens
    parts = [
        f"{_out_of(progress)} done",
        f"{progress.rate:.1f} requests/s",
        f"{progress.in_flight} in flight",
        f"{tokens:,} tokens",
        _money(progress),
        f"{progress.refusals:,} refused",
        f"{progress.retries:,} retried",
        f"{progress.failed:,} failed",
    ]
    if progress.bad_lines:
        parts.append(counted(progress.bad_lines, "bad line"))
    return ", ".join([*parts, _eta(progress)])


def live_view(progress: RunProgress) -> Group:
    """A run at one moment, for a terminal."""
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, justify="right")
    total = None if progress.total is None else max(1, progress.total)
    moved = progress.done + progress.bad_lines
    bar.add_row(
        ProgressBar(total=total, completed=moved, pulse=total is None, animation_time=progress.elapsed),
        f"{_out_of(progress)}  {clock_time(progress.elapsed)}  {_eta(progress)}",
    )
    numbers = Text(no_wrap=True, overflow="ellipsis")
    numbers.append(f"{progress.rate:.1f} requests/s", "bold")
    numbers.append(f"  {progress.in_flight} in flight  {progress.refusals:,} refused  {progress.retries:,} retried  ")
    numbers.append(f"{progress.failed:,} failed", "red" if progress.failed else "")
    if progress.bad_lines:
        numbers.append(f"  {counted(progress.bad_lines, 'bad line')}", "red")
    money = Text(
        f"{progress.input_tokens:,} input + {progress.output_tokens:,} output tokens  {_money(progress)}",
        no_wrap=True,
        overflow="ellipsis",
    )
    return Group(bar, numbers, money)


def summary(progress: RunProgress) -> str:
    """A run when it is over, in one line."""
    rate = progress.done / progress.elapsed if progress.elapsed > 0 else 0.0
    bad = f", {counted(progress.bad_lines, 'bad line')}" if progress.bad_lines else ""
    return (
        f"{progress.answered:,} answered, {progress.failed:,} failed{bad} "
        f"in {progress.elapsed:.1f} s ({rate:.1f} requests/s); "
        f"{progress.input_tokens:,} input + {progress.output_tokens:,} output tokens, {_money(progress)}; "
        f"{progress.refusals:,} refused, {progress.retries:,} retried."
    )


def note(console: Console, text: str) -> None:
    """Prints a line that stays; it goes above a live view on the same console."""
    console.print(escape(printable(text)), highlight=False, soft_wrap=True)


class Display:
    """Shows a run while its block lasts; one task of its own draws.

    Args:
        console: Where; whether it is a terminal decides how.
        snapshot: The run as it stands now.
        live: Draw on a terminal; plain lines otherwise.
    """

    def __init__(self, console: Console, snapshot: Callable[[], RunProgress], *, live: bool) -> None:
        self._console = console
        self._snapshot = snapshot
        self._live = Live(console=console, auto_refresh=False, transient=True) if live else None
        self._drawing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self._drawing = asyncio.create_task(self._draw())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawing is not None:
            self._drawing.cancel()
            await asyncio.wait({self._drawing})
        if self._live is not None:
            self._live.stop()

    async def _draw(self) -> None:
        if self._live is None:
            wait = _FIRST_LINE
            while True:
                await asyncio.sleep(wait)
                note(self._console, plain_line(self._snapshot()))
                wait = _LINE_EVERY
        while True:
            self._live.update(live_view(self._snapshot()), refresh=True)
            await asyncio.sleep(_REFRESH)
