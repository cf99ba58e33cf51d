"""Text for people: one line each, without control characters that others could put into it."""

import contextlib
import errno
import re
import sys

from onellm_async.descriptors import check_writable, read_piece
from onellm_async.errors import BatchError

__all__ = ["is_quiet", "print_error", "printable", "put", "read_input", "require_output", "say", "set_quiet"]

_PIECE = 256 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` without control characters (a terminal would obey them), line breaks and tabs excepted."""
    return _CONTROL.sub("�", text)


_quiet = False


def set_quiet(quiet: bool) -> None:
    """Prints only errors from now on, or everything."""
    global _quiet  # noqa: PLW0603  # like the stream that it is about
    _quiet = quiet


def is_quiet() -> bool:
    """Whether only errors are printed on standard error."""
    return _quiet


def say(text: str) -> None:
    """Prints a line on standard error, unless the command is quiet."""
    if not _quiet:
        print(printable(text), file=sys.stderr, flush=True)


def print_error(text: str) -> None:
    """Prints an error on standard error."""
    print(printable(f"onellm-async: {text}"), file=sys.stderr, flush=True)


def put(text: str) -> None:
    """Prints a result on standard output: as it is into a pipe or file, made harmless on a terminal.

    Raises:
        BatchError: If it cannot be written, within `onellm_async.cli.main`.
    """
    print(printable(text) if sys.stdout.isatty() else text, flush=True)


def require_output() -> None:
    """Checks that standard output can be written, for commands whose result costs money.

    Raises:
        BatchError: If it is closed or full.
    """
    with contextlib.suppress(ValueError):  # a stream of Python's own has no descriptor
        check_writable(sys.stdout.fileno(), "standard output")


def read_input() -> bytes:
    """Reads standard input to its end.

    Raises:
        BatchError: If it cannot be read.
    """
    pieces: list[bytes] = []
    try:
        while piece := read_piece(0, _PIECE):
            pieces.append(piece)
    except OSError as error:
        closed = error.errno == errno.EBADF
        raise BatchError(
            "Standard input is closed." if closed else f"Standard input cannot be read: {error.strerror}.",
            advice="Give the prompt as an argument.",
        ) from None
    return b"".join(pieces)
