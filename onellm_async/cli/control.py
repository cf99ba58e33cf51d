"""``onellm-async pause | resume | retune | stop``: control a run that is active in another terminal."""

import time
from typing import TYPE_CHECKING, Annotated

from attrs import asdict, frozen
from cyclopts import App, Parameter

from onellm_async.cli import groups
from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.options import Concurrency
from onellm_async.cli.terminal import say
from onellm_async.errors import BatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onellm_async.chat import JSON

_LINES = {
    "pause": "onellm-async pause answers.jsonl",
    "resume": "onellm-async resume answers.jsonl",
    "retune": "onellm-async retune answers.jsonl --rpm 120 --concurrency 96",
    "stop": "onellm-async stop answers.jsonl",
}
_NOTE = """\
The run checks for commands once per second, and each of these waits for its
reply. `resume` continues a paused run.
Resume an interrupted run with its own `onellm-async run` command.
"""
_EXAMPLES = {
    name: "\n  ".join(["Examples:", line, *(other for other in _LINES.values() if other != line)]) + f"\n\n{_NOTE}"
    for name, line in _LINES.items()
}
"""The epilogue of each command, its own example first."""

_CODES = {
    ExitCode.OK: "the run has the command",
    ExitCode.USAGE: "flags cannot be used, no such run is active, or it refuses",
}

_MAX_REPLY_TIME = 5.0
"""Seconds to wait for the reply of a run, which checks for commands once per second unless it is busy."""
_POLL_INTERVAL = 0.05
"""Seconds between two checks for the reply."""

RunPath = Annotated[str, Parameter(name="RUN", help="Output of the run, or its journal.")]


@Parameter(name="*", group=groups.LIMITS)
@frozen
class NewLimitFlags:
    """The limits to change. All others stay."""

    rpm: Annotated[float | None, Parameter(help="Requests per minute.")] = None
    rate: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="Rate limit as for `run`; repeatable. It replaces all rates so far.",
        ),
    ] = ()
    burst: Annotated[int | None, Parameter(help="Requests that the service accepts at once after a pause.")] = None
    tpm: Annotated[float | None, Parameter(help="Tokens per minute.")] = None
    concurrency: Annotated[
        Concurrency | None, Parameter(help="Maximum number of requests in flight; `auto` discovers it.")
    ] = None


def pause(run: RunPath, /) -> int:
    """Runs ``onellm-async pause``.

    Args:
        run: Output of the run, or its journal.
    """
    return _send(run, "pause", None, f"Paused. Continue with `onellm-async resume {run}`.")


def resume(run: RunPath, /) -> int:
    """Runs ``onellm-async resume``.

    Args:
        run: Output of the run, or its journal.
    """
    return _send(run, "resume", None, "Resumed.")


def stop(run: RunPath, /) -> int:
    """Runs ``onellm-async stop``.

    Args:
        run: Output of the run, or its journal.
    """
    return _send(run, "stop", None, "Stopping. Requests in flight finish. Run its `run` command again to resume.")


def retune(run: RunPath, /, *, limits: NewLimitFlags = NewLimitFlags()) -> int:
    """Runs ``onellm-async retune``.

    Args:
        run: Output of the run, or its journal.
        limits: The limits to change.
    """
    from onellm_async.limits.policy import Limits, change_limits

    names = {
        "rpm": "requests_per_minute",
        "tpm": "tokens_per_minute",
        "concurrency": "max_concurrency",
        "rate": "rates",
    }
    given = {name: value for name, value in asdict(limits).items() if value not in {None, ()}}
    changes = {names.get(name, name): list(value) if name == "rate" else value for name, value in given.items()}
    if not changes:
        raise BatchError("No limit to change is given.", advice="Give --rpm, --rate, --burst, --tpm or --concurrency.")
    change_limits(Limits(), changes)  # a bad value is refused here, where the user reads the message
    return _send(run, "retune", changes, f"Limits updated: {_in_words(changes)}.")


pause_command: App = command(pause, _EXAMPLES["pause"], _CODES)
resume_command: App = command(resume, _EXAMPLES["resume"], _CODES)
retune_command: App = command(retune, _EXAMPLES["retune"], _CODES)
stop_command: App = command(stop, _EXAMPLES["stop"], _CODES)


def _send(run: str, name: str, argument: "JSON", done: str) -> int:
    from onellm_async.batch import Command, send_command

    number = send_command(run, Command(name, argument))
    reply = _reply(run, number)
    if reply:
        raise BatchError(f"The run rejected the new limits: {reply}", advice="Its limits are unchanged.")
    if reply is not None:
        say(done)
    elif _is_active(run):
        say(f"Sent. The run has not replied yet; `onellm-async status {run}` shows its state.")
    elif name == "stop":
        say("The run had ended before.")
    else:
        raise BatchError("The run ended before it read the command.")
    return ExitCode.OK


def _reply(run: str, number: int) -> str | None:
    """Why the run rejected command `number`, or an empty text; None if it ended before, or did not reply in time."""
    from onellm_async.batch.journal.commands import reply_to

    deadline = time.monotonic() + _MAX_REPLY_TIME
    while (reply := reply_to(run, number)) is None and time.monotonic() < deadline:
        if not _is_active(run):
            return reply_to(run, number)  # it may have read the command last
        time.sleep(_POLL_INTERVAL)
    return reply


def _is_active(run: str) -> bool:
    from onellm_async.batch.journal.file import journal_path
    from onellm_async.batch.journal.lock import lock_owner

    return lock_owner(journal_path(run)) is not None


_WORDS = {
    "requests_per_minute": "{} request{} per minute",
    "rates": "{}",
    "burst": "a burst of {}",
    "tokens_per_minute": "{} token{} per minute",
    "max_concurrency": "at most {} in flight",
}


def _in_words(changes: "Mapping[str, object]") -> str:
    return ", ".join(
        "in flight as many as the service accepts"
        if value == "auto"
        else _WORDS[name].format(_shown(value), "" if value == 1 else "s")
        for name, value in changes.items()
    )


def _shown(value: object) -> str:
    if isinstance(value, int | float):
        return f"{value:,.0f}" if value == int(value) else f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)
