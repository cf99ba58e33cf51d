"""What `run` prints: progress, live on a terminal and as plain lines elsewhere; messages; how the run ended."""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onellm_async.batch.budget import Budget
from onellm_async.batch.causes import outcome_lines, shortened
from onellm_async.batch.config import RunOptions
from onellm_async.batch.estimate import RunEstimate
from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.inputs.notes import Complaints
from onellm_async.batch.journal.record import RunCounts
from onellm_async.batch.progress import RunProgress
from onellm_async.batch.run_report import RunReport, money_at_risk
from onellm_async.cli.flag_words import arguments_in_flags, in_flags, told_in_flags
from onellm_async.cli.standard_streams import is_behind
from onellm_async.cli.terminal import is_quiet, print_error, printable, say
from onellm_async.client import AsyncOneLLM
from onellm_async.daemon_thread import in_daemon_thread
from onellm_async.errors import BudgetExceededError
from onellm_async.formatting import format_rate, format_usd, pluralize
from onellm_async.limits.bottleneck import BOTTLENECK_LABELS
from onellm_async.limits.snapshot import Snapshot

_log = logging.getLogger("onellm_async")
_FIRST_LINE = 1.0
_LINE_EVERY = 5.0
_REFRESH = 0.125
"""Seconds: the first plain line, the next ones, a terminal's frames."""
_LONGEST_CLAUSE = 120
"""Characters of an error within a line of figures."""
_PAUSED, _OPEN = "paused", "circuit open"
_GAP = "  "
_SHORTEST_BAR = 10
"""Columns of a terminal."""


def clock_time(seconds: float) -> str:
    """Seconds as ``9 s``, ``2:05 min`` or ``3:07:09 h``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if not minutes:
        return f"{whole} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}:{minutes_left:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _money(progress: RunProgress, budget: Budget | None = None) -> str:
    more = f" + {progress.unpriced:,} of unknown price" if progress.unpriced else ""
    most = "" if budget is None or budget.max_cost is None else f" of {format_usd(budget.max_cost, exact=True)}"
    return f"{format_usd(progress.cost)}{most}{more}"


def _tokens(progress: RunProgress, budget: Budget | None) -> str:
    most = "" if budget is None or budget.max_tokens is None else f" of {budget.max_tokens:,}"
    return f"{progress.input_tokens + progress.output_tokens:,}{most} tokens"


def _rate(progress: RunProgress, limiter: Snapshot) -> str:
    """Achieved against possible."""
    return format_rate(progress.rate, None if limiter.rate is None else limiter.rate / 60)


def _state(progress: RunProgress, limiter: Snapshot) -> list[str]:
    """What a user would ask about when nothing seems to move."""
    queued = {lane: count for lane, count in limiter.queued.items() if count}
    if len(queued) > 1:
        parts = ["queued: " + ", ".join(f"{count:,} {lane}" for lane, count in queued.items())]
    else:
        parts = [f"{count:,} queued" for count in queued.values()]
    error = _clause(limiter.last_error or "the service fails")
    if limiter.concurrency < limiter.max_concurrency:
        parts.append(f"up to {limiter.concurrency:,} in flight")
    if limiter.limit_found is not None:
        parts.append(f"found: {limiter.limit_found}")
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
        f"{progress.rate_limited:,} rate-limited",
        pluralize(progress.retries, "retry"),
        f"{progress.failed:,} failed",
    ]
    if progress.bad_lines:
        parts.append(pluralize(progress.bad_lines, "bad line"))
    return ", ".join([*parts, _eta(progress)])


def live_view(progress: RunProgress, limiter: Snapshot, budget: Budget | None = None) -> Group:
    """A run at one moment, for a terminal."""
    total = None if progress.total is None else max(1, progress.total)
    moved = progress.completed + progress.bad_lines
    bar = ProgressBar(total=total, completed=moved, pulse=total is None, animation_time=progress.elapsed)
    numbers = [
        Text(_rate(progress, limiter), "bold"),
        Text(f"{progress.in_flight} in flight"),
        Text(f"{progress.rate_limited:,} 429s"),
        Text(pluralize(progress.retries, "retry")),
        Text(f"{progress.failed:,} failed", "red" if progress.failed else ""),
    ]
    if progress.bad_lines:
        numbers.append(Text(pluralize(progress.bad_lines, "bad line"), "red"))
    numbers += [Text(part, "yellow" if part.startswith((_PAUSED, _OPEN)) else "") for part in _state(progress, limiter)]
    money = [
        Text(_tokens(progress, budget)),
        Text(f"({progress.input_tokens:,} input + {progress.output_tokens:,} output)"),
        Text(_money(progress, budget)),
    ]
    done = [Text(_out_of(progress)), Text(clock_time(progress.elapsed)), Text(_eta(progress))]
    return Group(_BarBesideText(bar, done), _Flow(numbers), _Flow(money))


class _Flow:
    """Parts beside one another, on as many lines as they need: a narrow terminal cuts nothing off."""

    def __init__(self, parts: Sequence[Text]) -> None:
        self._parts = parts

    def lines(self, width: int) -> list[Text]:
        """The lines, of which only a part that is longer itself is longer than `width`."""
        found: list[Text] = []
        for part in self._parts:
            if found and found[-1].cell_len + len(_GAP) + part.cell_len <= width:
                found[-1].append(_GAP).append_text(part)
            else:
                found.append(Text().append_text(part))
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines(options.max_width)


class _BarBesideText:
    """A bar before a few parts of text, or below them where there is no room for both."""

    def __init__(self, bar: ProgressBar, parts: Sequence[Text]) -> None:
        self._bar = bar
        self._parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = _Flow(self._parts).lines(options.max_width)
        beside = lines if len(lines) == 1 and lines[0].cell_len + _SHORTEST_BAR < options.max_width else []
        if not beside:
            yield from lines
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(ratio=1)
        grid.add_row(self._bar, *beside)
        yield grid


def summary(progress: RunProgress) -> str:
    """A run when it is over, in one line."""
    rate = (progress.completed - progress.completed_before) / progress.elapsed if progress.elapsed > 0 else 0.0
    bad = f", {pluralize(progress.bad_lines, 'bad line')}" if progress.bad_lines else ""
    copied = f" ({progress.deduplicated:,} copied from identical ones)" if progress.deduplicated else ""
    earlier = f" ({progress.completed_before:,} in earlier sessions)" if progress.completed_before else ""
    return (
        f"{progress.answered:,} answered{copied}, {progress.failed:,} failed{bad}{earlier} "
        f"in {progress.elapsed:.1f} s ({rate:.1f} requests/s); "
        f"{progress.input_tokens:,} input + {progress.output_tokens:,} output tokens, {_money(progress)}; "
        f"{progress.rate_limited:,} rate-limited, {pluralize(progress.retries, 'retry')}."
    )


def note(console: Console, text: str) -> None:
    """Prints a line that stays; it goes above a live view on the same console."""
    console.print(escape(printable(text)), highlight=False, soft_wrap=True)


class Display:
    """Shows a run while its block lasts; one task of its own draws.

    Args:
        console: Where; whether it is a terminal decides how.
        progress: The run as it stands now; None before it begins.
        limiter: What the client is doing now.
        budget: What the run may spend.
        live: Draw on a terminal; plain lines otherwise.
    """

    def __init__(
        self,
        console: Console,
        progress: Callable[[], RunProgress | None],
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
        progress = self._progress()
        if progress is None or is_behind(self._console.file):
            return True
        try:
            if self._live is None:
                note(self._console, plain_line(progress, self._limiter(), self._budget))
            else:
                self._live.update(live_view(progress, self._limiter(), self._budget), refresh=True)
        except Exception:
            _log.exception("The progress display failed; the run continues without it.")
            return False
        return True


def nothing_left(counts: RunCounts, output: str) -> str:
    """What is said of a run that was complete before."""
    failed = " --retry-failed retries failed prompts." if counts.failed else ""
    return (
        f"Nothing is left to do: {pluralize(counts.answered, 'prompt')} answered, {counts.failed:,} failed,"
        f" {format_usd(counts.cost)} spent; the answers are in {output}.{failed} --force starts over."
    )


def tell_outcomes(report: RunReport) -> None:
    """Says why prompts failed, in all sessions, and which answers want a look."""
    for line in outcome_lines(report.failures, report.progress.notable):
        say(line)
    for model, (number, cause) in report.failed_models.items():
        say(f"All {number:,} prompts of {model} failed alike: {cause}")


def tell(report: RunReport, output: str | None) -> None:
    """Says how a session ended, and how to go on."""
    where = "" if output is None else f" Written to {output}{'' if report.input_ended else '.partial'}."
    say(summary(report.progress) + where)
    tell_outcomes(report)
    counts = report.counts
    if counts.possibly_billed or (counts.in_flight and output is not None):
        lost = pluralize(counts.possibly_billed + counts.in_flight, "attempt")
        say(f"Possibly billed without an answer: {lost}, {money_at_risk(counts)}.")
    if report.strict_error is not None:
        print_error(f"stopped at a bad line (--strict): {arguments_in_flags(str(report.strict_error))}")
    if report.stopped_by is not None:
        print_error(f"stopped early: {told_in_flags(report.stopped_by)}")
    if report.out_of_time:
        print_error("stopped early: the time of --max-time is over.")
    if report.progress.held:
        held = pluralize(report.progress.held, "prompt")
        print_error(f"held, because they may have been billed: {held}. --ambiguous retry sends them again.")
    if not report.input_ended:
        total = report.progress.total
        left = None if total is None else total - report.progress.completed - report.progress.bad_lines
        again = "" if output is None else f" {_how_to_go_on(report)}"
        if left == 0 and output is not None and not report.counts.in_flight:
            print_error(f"every prompt has its outcome, and only the output is not finished.{again}")
            return
        print_error(f"not sent yet: {'what was not read' if left is None else pluralize(left, 'prompt')}.{again}")


def _how_to_go_on(report: RunReport) -> str:
    if isinstance(report.stopped_by, BudgetExceededError):
        return "Run the same command with a higher cost cap to resume."
    if report.limit_reached:
        return "Run the same command with a higher --limit, or without it, to send them."
    return "Run the same command again to resume."


def estimate_text(estimate: RunEstimate, *, spent: float, most: float | None) -> str:
    """The estimate of the rest of a run, after its first prompts.

    Args:
        estimate: Of the prompts that are left.
        spent: USD so far.
        most: USD that the run may spend; None for no cap.
    """
    cost, seconds = estimate.cost, estimate.seconds
    text = f"Preflight: {pluralize(estimate.based_on, 'prompt')} sent, {format_usd(spent)} spent."
    text += f" The other {estimate.left:,} "
    if cost is None:
        text += "will cost an unknown amount (an answer without list price or usage)"
    else:
        text += f"will cost about {format_usd(cost.expected)} (95 %: {format_usd(cost.low)} to {format_usd(cost.high)})"
    if seconds is None:
        text += " and take unknown time: too few were answered."
    else:
        least, likely, longest = map(clock_time, (seconds.low, seconds.expected, seconds.high))
        spread = "" if least == longest else f" ({least} to {longest})"
        text += f" and take about {likely}{spread}; the {estimate.bound_by} sets the pace."
    if cost is not None and most is not None and spent + cost.high > most:
        likely_or_not = "It is likely to" if spent + cost.expected > most else "It may"
        text += f" {likely_or_not} end before that at the cost cap of {format_usd(most, exact=True)}."
    return text


class RunDisplay:
    """All that the command prints on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, quiet=is_quiet())
        self._progress: RunProgress | None = None
        self._complaints = Complaints()
        self._resumed = False

    def showing(self, client: AsyncOneLLM, options: RunOptions, *, live: bool) -> Display:
        """Shows progress while its block lasts.

        Args:
            client: What sends.
            options: Of the run.
            live: Whether the output leaves the terminal to the display.
        """
        self._progress = None
        return Display(
            self._console,
            lambda: self._progress,
            client.snapshot,
            budget=Budget(max_cost=options.get("max_cost"), max_tokens=options.get("max_tokens_total")),
            live=self._console.is_terminal
            and not _log.isEnabledFor(logging.DEBUG)
            and (live or not sys.stdout.isatty()),
        )

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        note(self._console, text)

    def show(self, progress: RunProgress) -> None:
        """Shows the run as it stands now."""
        self._progress = progress

    def message(self, text: str) -> None:
        """Prints a message of the run; after a preflight its beginning is no news."""
        resumes = text.startswith("Resuming: ")
        if not (resumes and self._resumed):
            self.note(in_flags(text))
        self._resumed = self._resumed or resumes

    def bad_line(self, error: LineError) -> None:
        """Prints a bad line, but the same complaint at most ten times."""
        if (text := self._complaints.heard(error)) is not None:
            self.note(arguments_in_flags(text))

    def tell_estimate(self, report: RunReport, max_cost: float | None) -> None:
        """Says what the rest of the run costs and takes."""
        self._resumed = True
        if report.estimate is not None:
            say(estimate_text(report.estimate, spent=report.counts.cost, most=max_cost))

    async def confirm(self, stop: asyncio.Event) -> bool:
        """Asks whether to continue, where there is a terminal to ask on; elsewhere the answer is yes.

        Args:
            stop: Set when a signal ends the run meanwhile; the answer is no then.
        """
        return await _confirm(stop)

    def tell(self, report: RunReport, output: str | None) -> None:
        """Says how the run ended."""
        for text in self._complaints.rest():
            self.note(text)
        if report.already_complete:
            self.note(nothing_left(report.counts, output or ""))
            tell_outcomes(report)
        else:
            tell(report, output)


async def _confirm(stop: asyncio.Event) -> bool:
    """Asks whether to continue, where there is a terminal to ask on; elsewhere the answer is yes.

    Args:
        stop: Set when a signal ends the run meanwhile; the answer is no then.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return not stop.is_set()
    print("Continue? [Y/n] ", end="", file=sys.stderr, flush=True)
    answering = asyncio.ensure_future(in_daemon_thread(sys.stdin.readline))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({answering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        # The end of the input gives "", and so does a terminal that is gone.
        answered = answering.done() and answering.exception() is None
        answer = answering.result().lower() if answered else ""
    finally:
        answering.cancel()
        stopping.cancel()
    return not stop.is_set() and answer.endswith("\n") and answer.strip() in {"", "y", "yes"}
