"""What all commands that connect have in common: their environment, and how much they say."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from attrs import frozen
from cyclopts import Parameter

from onellm_async.cli import groups, terminal
from onellm_async.cli.env_file import read_env_file
from onellm_async.errors import ConfigurationError

_log = logging.getLogger("onellm_async")


@Parameter(name="*", group=groups.GENERAL)
@frozen
class GeneralFlags:
    """The environment of a command, and how much it says."""

    env_file: Annotated[
        str | None,
        Parameter(
            help="File with environment variables such as ONELLM_API_KEY, KEY=VALUE a line. Variables that are set "
            "already take precedence."
        ),
    ] = None
    quiet: Annotated[
        bool, Parameter(negative="", show_default=False, help="Print only results and errors, no progress.")
    ] = False
    verbose: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="Log each request, retry and 429 on standard error."),
    ] = False

    def __attrs_post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise ConfigurationError("--quiet and --verbose exclude each other.")

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Sets environment and logging for a block.

        Raises:
            ConfigurationError: If the file cannot be used.
        """
        found = {} if self.env_file is None else read_env_file(self.env_file)
        before = dict(os.environ)
        os.environ.update({name: value for name, value in found.items() if not before.get(name)})
        level, handler = _log.level, _handler() if self.verbose else None
        if handler is not None:
            _log.addHandler(handler)
            _log.setLevel(logging.DEBUG)
        elif self.quiet:
            _log.setLevel(logging.ERROR)
        terminal.set_quiet(self.quiet)
        try:
            yield
        finally:
            terminal.set_quiet(False)
            _log.setLevel(level)
            if handler is not None:
                _log.removeHandler(handler)
            for name in found:
                if name in before:
                    os.environ[name] = before[name]
                else:
                    os.environ.pop(name, None)


GENERAL = GeneralFlags()
"""Nothing but defaults."""


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler


class _Printable(logging.Formatter):
    """Texts of the service must not reach a terminal as they are."""

    def format(self, record: logging.LogRecord) -> str:
        return terminal.printable(super().format(record))
