"""What the command line's exit codes mean, and which one an error gets."""

from enum import IntEnum

from onellm_async.errors import (
    AuthenticationError,
    BatchError,
    ConfigurationError,
    InsufficientBalanceError,
    InvalidRequestError,
)

__all__ = ["EXIT_CODES_HELP", "ExitCode", "exit_code_of", "reader_left"]


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
    HANGUP = 129
    """Stopped by SIGHUP: the terminal was closed. Requests in flight were awaited and their answers written."""
    INTERRUPTED = 130
    """Stopped by SIGINT (Ctrl-C); what had been sent was awaited and written."""
    BROKEN_PIPE = 141
    """The program that read the output has gone."""
    TERMINATED = 143
    """Stopped by SIGTERM; what had been sent was awaited and written."""


EXIT_CODES_HELP = """\
Exit codes:
  0    everything was answered
  1    some prompts failed or some lines were bad; the rest was answered
  2    flags, input, output or configuration cannot be used
  3    stopped early: an error that affects every prompt (key, URL, balance,
       disk), an outage, or half of the prompts failing with the same error
  4    stopped early because the next prompt could pass the budget
  129  terminal closed (SIGHUP), 130 interrupted (Ctrl-C), 143 terminated:
       requests in flight were awaited, and their answers written
  141  the program that reads standard output has ended

The key is read from the environment variable ONELLM_API_KEY and from nowhere
else: a flag would show it to all users who can list processes."""


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
