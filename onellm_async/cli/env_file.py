"""Files of environment variables, ``KEY=VALUE`` a line. Pure, except for the reading."""

import re
from collections.abc import Iterator
from pathlib import Path

from onellm_async.errors import ConfigurationError

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'\s*(?:#.*)?")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def read_env_file(path: str) -> dict[str, str]:
    """The variables in a file.

    Raises:
        ConfigurationError: If it cannot be read, or a line is no ``KEY=VALUE``. It never shows a value.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"--env-file {path} cannot be read: {reason}.") from None
    return dict(_variables(path, text))


def _variables(path: str, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ConfigurationError(f"{path}:{number} is not KEY=VALUE.")
        name, value = found.groups()
        if value[:1] not in {"'", '"'}:
            yield name, re.split(r"(?:^|\s)#", value, maxsplit=1)[0].rstrip()
        elif single := _SINGLE.fullmatch(value):
            yield name, single[1]
        elif double := _DOUBLE.fullmatch(value):
            yield name, _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[1]), double[1])
        else:
            raise ConfigurationError(f"{path}:{number}: the quotes around the value of {name} do not match.")
