"""What a command is made of, beside the line about it in `onellm_async.cli.app`."""

from collections.abc import Callable

from cyclopts import App

from onellm_async.cli.exit_codes import EXIT_CODES_HELP

__all__ = ["command"]


def command(function: Callable[..., int], examples: str) -> App:
    """A function as a command of the same name.

    Args:
        function: What runs; its parameters are the flags.
        examples: What stands at the end of its help, before the exit codes.
    """
    made: App = App(name=function.__name__, help_epilogue=f"{examples}\n{EXIT_CODES_HELP}")
    made.default(function)
    return made
