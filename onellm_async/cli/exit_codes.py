"""What the command line's exit codes mean, and which one an error gets."""

from enum import IntEnum

from onellm_async.errors import (
    AuthenticationError,
    BatchError,
    ConfigurationError,
    InsufficientBalanceError,
    InvalidRequestError,
)

__all__ = ["EXIT_CODES_HELP", "ExitCode", "exit_code_of"]


class ExitCode(IntEnum):
    """The exit codes of every command.

    The two signal codes are 128 plus the signal's number, as shells report it.
    """

    OK = 0
    """Everything was answered."""
    FAILED = 1
    """Some prompts failed or some input lines were bad; all others were answered."""
    USAGE = 2
    """Flags, input, output or configuration cannot be used."""
    STOPPED = 3
    """Stopped early by what meets every prompt: a wrong key or address, a spent balance, a full disk."""
    BUDGET = 4
    """Stopped early because the next prompt could pass the budget."""
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
  3    stopped early by what meets every prompt: wrong key or address, spent
       balance, output that cannot be written any more
  4    stopped early because the next prompt could pass the budget
  130  interrupted (Ctrl-C), 143 terminated: what was sent is written
  141  the program reading the output has gone

The key is read from the environment variable ONELLM_API_KEY and from nowhere
else: a flag would show it to everybody who can list processes."""


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of a command that `error` ended."""
    if isinstance(error, AuthenticationError | InsufficientBalanceError):
        return ExitCode.STOPPED
    if isinstance(error, ConfigurationError | InvalidRequestError | BatchError):
        return ExitCode.USAGE
    return ExitCode.FAILED
