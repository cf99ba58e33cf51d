"""The command line: ``onellm-async chat | run | status | …``, a file for each command or for a few of a kind."""

import sys
from collections.abc import Sequence

__all__ = ["main"]

_NEEDED = {"cyclopts", "rich"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: What stands behind the program's name; None takes it from the process.

    Returns:
        The exit code, see `onellm_async.cli.exit_codes`.
    """
    from onellm_async.cli.standard_streams import guarded_streams

    try:
        with guarded_streams():
            return _run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # before or after a command could answer it
        return 130


def _run(arguments: list[str]) -> int:
    try:
        # The two libraries of the extra import some of their own parts only when they are used.
        from onellm_async.cli.app import run_app

        return run_app(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        print(
            f"onellm-async: the command line needs {missing}, which is not installed. "
            "Install it with: pip install 'onellm-async[cli]'",
            file=sys.stderr,
        )
        return 2
