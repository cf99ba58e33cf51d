"""How a run shows itself on standard error: live on a terminal, as plain lines elsewhere."""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onellm_async.batch.budget import Budget
from onellm_async.batch.causes import shortened
from onellm_async.batch.progress import RunProgress
from onellm_async.cli.standard_streams import is_behind
from onellm_async.cli.terminal import printable
from onellm_async.formatting import format_usd
from onellm_async.limits.bottleneck import BOTTLENECK_LABELS
from onellm_async.limits.snapshot import Snapshot

__all__ = ["Display", "clock_time", "counted", "live_view", "note", "plain_line", "summary"]

_log = logging.getLogger("onellm_async")
_FIRST_LINE = 1.0
_LINE_EVERY = 5.0
_REFRESH = 0.125
"""Seconds: the first plain line, the next ones, a terminal's frames."""
_LONGEST_CLAUSE = 120
"""Characters of an error within a line of figures."""
_PAUSED, _OPEN = "paused", "circuit open"


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


def _money(progress: RunProgress, budget: Budget | None = None) -> str:
    more = f" + {progress.unpriced:,} of unknown price" if progress.unpriced else ""
    most = "" if budget is None or budget.max_cost is None else f" of {format_usd(budget.max_cost, exact=True)}"
    return f"{format_usd(progress.cost)}{most}{more}"


def _tokens(progress: RunProgress, budget: Budget | None) -> str:
    most = "" if budget is None or budget.max_tokens is None else f" of {budget.max_tokens:,}"
    return f"{progress.input_tokens + progress.output_tokens:,}{most} tokens"


def _rate(progress: RunProgress, limiter: Snapshot) -> str:
    """Achieved against possible."""
    possible = "" if limiter.rate is None else f" of {limiter.rate / 60:.1f}"
    return f"{progress.rate:.1f}{possible} requests/s"


def _state(progress: RunProgress, limiter: Snapshot) -> list[str]:
    """What a user would ask about when nothing seems to move."""
    waiting = [f"{count:,} {lane}" for lane, count in limiter.queued.items() if count]
    parts = [f"waiting: {', '.join(waiting)}"] if waiting else []
    error = _clause(limiter.last_error or "the service fails")
    if limiter.concurrency < limiter.max_concurrency:
        parts.append(f"up to {limiter.concurrency:,} in flight")
    if limiter.backing_off:
        parts.append(f"{limiter.backing_off:,} waiting for a retry")
    if limiter.paused:
        parts.append(_PAUSED)
    elif progress.trouble is not None:
        parts.append(f"{_PAUSED}: {_clause(progress.trouble)}, {_next_attempt(progress.trial_in)}")
    elif limiter.trial_in is not None:
        parts.append(f"{_OPEN}: {error}, {_next_attempt(limiter.trial_in)}")
    elif limiter.bottleneck not in {"idle", "rate"}:
        parts.append(f"bottleneck: {BOTTLENECK_LABELS[limiter.bottleneck]}")
    elif limiter.backing_off and not limiter.in_flight and limiter.last_error is not None:
        parts.append(f"last error: {error}")
    return parts


def _clause(text: str) -> str:
    """A sentence as a part of a line."""
    text = shortened(text).rstrip(".")
    return text if len(text) <= _LONGEST_CLAUSE else f"{text[: _LONGEST_CLAUSE - 1]}…"


def _next_attempt(seconds: float | None) -> str:
    return f"next attempt in {clock_time(seconds)}" if seconds else "a trial request in flight"


def _out_of(progress: RunProgress) -> str:
    return f"{progress.completed:,}" if progress.total is None else f"{progress.completed:,}/{progress.total:,}"


def _eta(progress: RunProgress) -> str:
    if progress.eta is None:
        return "ETA unknown"
    least, most = progress.eta_low, progress.eta_high
    if least is None or most is None or most - least < max(2.0, 0.02 * progress.eta):
        return f"ETA {clock_time(progress.eta)}"
    return f"ETA {clock_time(progress.eta)} ({clock_time(least)} to {clock_time(most)})"


def plain_line(progress: RunProgress, limiter: Snapshot, budget: Budget | None = None) -> str:
    """A run at one moment, in one line."""
    parts = [
        f"{_out_of(progress)} done",
        _rate(progress, limiter),
        f"{progress.in_flight} in flight",
        *_state(progress, limiter),
        _tokens(progress, budget),
        _money(progress, budget),
        f"{progress.rate_limited:,} refused",
        f"{progress.retries:,} retried",
        f"{progress.failed:,} failed",
    ]
    if progress.bad_lines:
        parts.append(counted(progress.bad_lines, "bad line"))
    return ", ".join([*parts, _eta(progress)])


def live_view(progress: RunProgress, limiter: Snapshot, budget: Budget | None = None) -> Group:
    """A run at one moment, for a terminal."""
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, justify="right")
    total = None if progress.total is None else max(1, progress.total)
    moved = progress.completed + progress.bad_lines
    bar.add_row(
        ProgressBar(total=total, completed=moved, pulse=total is None, animation_time=progress.elapsed),
        f"{_out_of(progress)}  {clock_time(progress.elapsed)}  {_eta(progress)}",
    )
    numbers = Text(no_wrap=True, overflow="ellipsis")
    numbers.append(_rate(progress, limiter), "bold")
    numbers.append(
        f"  {progress.in_flight} in flight  {progress.rate_limited:,} refused  {progress.retries:,} retried  "
    )
    numbers.append(f"{progress.failed:,} failed", "red" if progress.failed else "")
    if progress.bad_lines:
        numbers.append(f"  {counted(progress.bad_lines, 'bad line')}", "red")
    for part in _state(progress, limiter):
        numbers.append(f"  {part}", "yellow" if part.startswith((_PAUSED, _OPEN)) else "")
    money = Text(
        f"{_tokens(progress, budget)} ({progress.input_tokens:,} input + {progress.output_tokens:,} output)  "
        f"{_money(progress, budget)}",
        no_wrap=True,
        overflow="ellipsis",
    )
    return Group(bar, numbers, money)


def summary(progress: RunProgress) -> str:
    """A run when it is over, in one line."""
    rate = (progress.completed - progress.completed_before) / progress.elapsed if progress.elapsed > 0 else 0.0
    bad = f", {counted(progress.bad_lines, 'bad line')}" if progress.bad_lines else ""
    copied = f" ({progress.deduplicated:,} copied from identical ones)" if progress.deduplicated else ""
    earlier = f" ({progress.completed_before:,} in earlier sessions)" if progress.completed_before else ""
    return (
        f"{progress.answered:,} answered{copied}, {progress.failed:,} failed{bad}{earlier} "
        f"in {progress.elapsed:.1f} s ({rate:.1f} requests/s); "
        f"{progress.input_tokens:,} input + {progress.output_tokens:,} output tokens, {_money(progress)}; "
        f"{progress.rate_limited:,} refused, {progress.retries:,} retried."
    )


def note(console: Console, text: str) -> None:
    """Prints a line that stays; it goes above a live view on the same console."""
    console.print(escape(printable(text)), highlight=False, soft_wrap=True)


class Display:
    """Shows a run while its block lasts; one task of its own draws.

    Args:
        console: Where; whether it is a terminal decides how.
        progress: The run as it stands now.
        limiter: What the client is doing now.
        budget: What the run may spend.
        live: Draw on a terminal; plain lines otherwise.
    """

    def __init__(
        self,
        console: Console,
        progress: Callable[[], RunProgress],
        limiter: Callable[[], Snapshot],
        *,
        live: bool,
        budget: Budget | None = None,
    ) -> None:
        self._console = console
        self._progress = progress
        self._limiter = limiter
        self._budget = budget
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
        wait = _REFRESH
        if self._live is None:
            await asyncio.sleep(_FIRST_LINE)
            wait = _LINE_EVERY
        while True:
            if not self._shown():
                return
            await asyncio.sleep(wait)

    def _shown(self) -> bool:
        """Shows the run as it stands. False if that fails: a run goes on without its display."""
        if is_behind(self._console.file):
            return True
        try:
            if self._live is None:
                note(self._console, plain_line(self._progress(), self._limiter(), self._budget))
            else:
                self._live.update(live_view(self._progress(), self._limiter(), self._budget), refresh=True)
        except Exception:
            _log.exception("The progress display failed; the run continues without it.")
            return False
        return True
