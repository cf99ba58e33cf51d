"""``onellm-async pause | resume | retune | stop``: a run that another terminal is at work on."""

import time
from typing import TYPE_CHECKING, Annotated

from attrs import asdict, frozen
from cyclopts import App, Group, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.options import Concurrency
from onellm_async.cli.terminal import say
from onellm_async.errors import BatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onellm_async.chat import JSON

__all__ = ["pause_command", "resume_command", "retune_command", "stop_command"]

_LINES = {
    "pause": "onellm-async pause answers.jsonl",
    "resume": "onellm-async resume answers.jsonl",
    "retune": "onellm-async retune answers.jsonl --rpm 120 --concurrency 96",
    "stop": "onellm-async stop answers.jsonl",
}
_NOTE = """\
The run looks once a second. An interrupted run is not resumed by `resume`, but
by its own `onellm-async run` command, given once more.
"""
_EXAMPLES = {
    name: "\n  ".join(["Examples:", line, *(other for other in _LINES.values() if other != line)]) + f"\n\n{_NOTE}"
    for name, line in _LINES.items()
}
"""For the help of each of the commands: its own one first."""

_LONGEST_REPLY = 5.0
_POLL = 0.05
"""Seconds: within which a run replies that looks once a second, and between two looks for the reply."""

RunPath = Annotated[str, Parameter(name="RUN", help="Output of the run, or its journal.")]


@Parameter(name="*", group=Group.create_ordered("Limits"))
@frozen
class NewLimitFlags:
    """What is to change; what is not given stays."""

    rpm: Annotated[float | None, Parameter(help="Requests per minute.")] = None
    rate: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="COUNT/DURATION or window:COUNT/DURATION, as of `run`; repeatable. In place of all rates so far.",
        ),
    ] = ()
    burst: Annotated[int | None, Parameter(help="Requests the service takes at once after a pause.")] = None
    tpm: Annotated[float | None, Parameter(help="Tokens per minute.")] = None
    concurrency: Annotated[
        Concurrency | None, Parameter(help="Maximum number of requests in flight; `auto` finds it out.")
    ] = None


def pause(run: RunPath, /) -> int:
    """Runs ``onellm-async pause``.

    Args:
        run: Output of the run, or its journal.
    """
    return _ask(run, "pause", None, "It pauses; `onellm-async resume` lets it go on.")


def resume(run: RunPath, /) -> int:
    """Runs ``onellm-async resume``.

    Args:
        run: Output of the run, or its journal.
    """
    return _ask(run, "resume", None, "It goes on.")


def stop(run: RunPath, /) -> int:
    """Runs ``onellm-async stop``.

    Args:
        run: Output of the run, or its journal.
    """
    return _ask(run, "stop", None, "It ends; its `run` command, given again, goes on from there.")


def retune(run: RunPath, /, *, limits: NewLimitFlags = NewLimitFlags()) -> int:
    """Runs ``onellm-async retune``.

    Args:
        run: Output of the run, or its journal.
        limits: What is to change.
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
        raise BatchError("Nothing is to change.", advice="Give --rpm, --rate, --burst, --tpm or --concurrency.")
    change_limits(Limits(), changes)  # refused here, where the user reads it
    return _ask(run, "retune", changes, f"Limits updated: {_in_words(changes)}.")


pause_command: App = command(pause, _EXAMPLES["pause"])
resume_command: App = command(resume, _EXAMPLES["resume"])
retune_command: App = command(retune, _EXAMPLES["retune"])
stop_command: App = command(stop, _EXAMPLES["stop"])


def _ask(run: str, name: str, argument: "JSON", done: str) -> int:
    from onellm_async.batch import Command, send_command

    number = send_command(run, Command(name, argument))
    if name == "retune":
        reply = _reply(run, number)
        if reply is None:
            done = "The run has not replied yet."
        elif reply:
            raise BatchError(f"The run refused it: {reply}", advice="Its limits stay as they are.")
    say(done)
    return ExitCode.OK


def _reply(run: str, number: int) -> str | None:
    """What the run says to command `number`: why it refused it, or nothing; None if it did not reply in time."""
    from onellm_async.batch.journal.commands import reply_to

    deadline = time.monotonic() + _LONGEST_REPLY
    while (reply := reply_to(run, number)) is None and time.monotonic() < deadline:
        time.sleep(_POLL)
    return reply


_WORDS = {
    "requests_per_minute": "{} requests per minute",
    "rates": "{}",
    "burst": "burst of {}",
    "tokens_per_minute": "{} tokens per minute",
    "max_concurrency": "at most {} in flight",
}


def _in_words(changes: "Mapping[str, object]") -> str:
    return ", ".join(
        "in flight as many as the service accepts" if value == "auto" else _WORDS[name].format(_shown(value))
        for name, value in changes.items()
    )


def _shown(value: object) -> str:
    if isinstance(value, int | float):
        return f"{value:,.0f}" if value == int(value) else f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)
