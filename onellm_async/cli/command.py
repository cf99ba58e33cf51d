"""What a command is made of, beside the line about it in `onellm_async.cli.app`."""

from collections.abc import Callable, Mapping

from cyclopts import App

from onellm_async.cli.exit_codes import EXIT_CODES_HELP, ExitCode, exit_codes_help

__all__ = ["command"]


def command(
    function: Callable[..., int], examples: str, codes: Mapping[ExitCode, str] | None = None, *, name: str | None = None
) -> App:
    """A function as a command.

    Args:
        function: What runs; its parameters are the flags.
        examples: What stands at the end of its help, before the exit codes.
        codes: What its exit codes mean; None for those of a run.
        name: Of the command; None for that of the function.
    """
    help_of_codes = EXIT_CODES_HELP if codes is None else exit_codes_help(codes)
    made: App = App(name=name or function.__name__, help_epilogue=f"{examples}\n{help_of_codes}")
    made.default(function)
    return made
