"""What the command line's exit codes mean, and which one an error gets."""

from collections.abc import Mapping
from enum import IntEnum

from onellm_async.errors import (
    AuthenticationError,
    BatchError,
    ConfigurationError,
    InsufficientBalanceError,
    InvalidRequestError,
)

__all__ = ["EXIT_CODES_HELP", "ExitCode", "exit_code_of", "exit_codes_help", "reader_left"]


class ExitCode(IntEnum):
    """The exit codes of every command.

    The codes of signals are 128 plus the signal's number, as shells report it.
    """

    OK = 0
    """Everything was answered."""
    FAILED = 1
    """Some prompts failed or some input lines were bad; all others were answered."""
    USAGE = 2
    """Flags, input, output or configuration cannot be used."""
    STOPPED = 3
    """Stopped early: an error that affects every prompt (key, URL, balance, disk), an outage, half of them failed."""
    BUDGET = 4
    """Stopped early because the next prompt could pass the budget."""
    TIME_OVER = 5
    """Stopped early because the time of --max-time was over."""
    HANGUP = 129
    """Stopped by SIGHUP: the terminal was closed. Requests in flight were awaited and their answers written."""
    INTERRUPTED = 130
    """Stopped by SIGINT (Ctrl-C); what had been sent was awaited and written."""
    BROKEN_PIPE = 141
    """The program that read the output has gone."""
    TERMINATED = 143
    """Stopped by SIGTERM; what had been sent was awaited and written."""


_KEY_HELP = """\
The key is read from the environment variable ONELLM_API_KEY, or from the file
of --env-file. There is no flag for it, as all users can list processes."""

EXIT_CODES_HELP = f"""\
Exit codes:
  0    everything was answered
  1    some prompts failed or some lines were bad; the rest was answered
  2    flags, input, output or configuration cannot be used
  3    stopped early: an error that affects every prompt (key, URL, balance,
       disk), an outage, half of the prompts failing with the same error, or
       most answers not conforming to the schema
  4    stopped early because the next prompt could pass the budget
  5    stopped early because the time of --max-time was over
  129  terminal closed (SIGHUP), 130 interrupted (Ctrl-C), 143 terminated:
       requests in flight were awaited, and their answers written
  141  the program that reads standard output has ended

{_KEY_HELP}"""
"""Of commands that send the prompts of a file."""

_OF_EVERY_COMMAND = {
    ExitCode.USAGE: "flags, files or configuration cannot be used",
    ExitCode.STOPPED: "the result cannot be written, as to a full disk",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
    ExitCode.BROKEN_PIPE: "the program that reads standard output has ended",
}


def exit_codes_help(own: Mapping[ExitCode, str]) -> str:
    """What the codes of one command mean, for the end of its help.

    Args:
        own: Meanings that are its own, in place of or beside those that every command has.
    """
    codes = sorted((_OF_EVERY_COMMAND | dict(own)).items())
    lines = [f"  {code.value:<4} {meaning}" for code, meaning in codes]
    return "\n".join(["Exit codes:", *lines, "", _KEY_HELP])


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of a command that `error` ended."""
    if reader_left(error):
        return ExitCode.BROKEN_PIPE
    if isinstance(error, BatchError) and isinstance(error.__cause__, OSError):  # a full disk behind a stream
        return ExitCode.STOPPED
    if isinstance(error, AuthenticationError | InsufficientBalanceError):
        return ExitCode.STOPPED
    if isinstance(error, ConfigurationError | InvalidRequestError | BatchError):
        return ExitCode.USAGE
    return ExitCode.FAILED


def reader_left(error: BaseException) -> bool:
    """Whether a stream could not be written because the program that read it has ended."""
    return isinstance(error, BatchError) and isinstance(error.__cause__, BrokenPipeError)
