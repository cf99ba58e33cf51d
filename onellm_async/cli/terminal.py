"""Text for people: one line each, without control characters that others could put into it."""

import re
import sys
from io import TextIOWrapper

__all__ = ["complain", "printable", "put", "say"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` without control characters (a terminal would obey them), line breaks and tabs excepted."""
    return _CONTROL.sub("�", text)


def say(text: str) -> None:
    """Prints a line on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Prints an error on standard error."""
    say(f"onellm-async: {text}")


def put(text: str) -> None:
    """Prints a result on standard output: as it is into a pipe or file, made harmless on a terminal."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a lone surrogate must not lose a paid answer
    print(printable(text) if sys.stdout.isatty() else text, flush=True)
