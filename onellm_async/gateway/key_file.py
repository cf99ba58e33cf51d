"""The file of the inbound keys: read again when it changes, replaced as a whole."""

import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from onellm_async.errors import ConfigurationError
from onellm_async.files import describe_os_error, sync_directory, sync_file
from onellm_async.gateway.keys import InboundKey, parse_keys

if sys.platform == "win32":  # pragma: no cover
    fcntl = None
else:
    try:
        import fcntl
    except ImportError:  # a system without file locks
        fcntl = None  # type: ignore[assignment]

_log = logging.getLogger("onellm_async")
_LONGEST = 4 * 1024 * 1024
_CHECK_INTERVAL = 1.0
"""Seconds between two looks at the file."""


class KeyFile:
    """The inbound keys of a running gateway.

    Args:
        path: The file.
        clock: Seconds that only go forward.

    Raises:
        ConfigurationError: If it cannot be used.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._version = _version(path)
        self._keys = load_keys(path)
        self._checked_at = clock()

    @property
    def keys(self) -> Mapping[str, InboundKey]:
        """The keys by hash. A file that has become unusable leaves them as they were."""
        now = self._clock()
        if now - self._checked_at >= _CHECK_INTERVAL:
            self._checked_at = now
            self._reload()
        return self._keys

    def _reload(self) -> None:
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = load_keys(self._path)
        except ConfigurationError as error:
            _log.warning("The keys stay as they were. %s", error)
        else:
            _log.info("%s has %d keys now.", self._path, len(self._keys))


def load_keys(path: Path) -> Mapping[str, InboundKey]:
    """The keys of a file, by hash.

    Raises:
        ConfigurationError: If it cannot be read, has an unusable key, or others may write it.
    """
    try:
        return parse_keys(read_text(path))
    except ConfigurationError as error:
        if error.message.startswith(str(path)):
            raise
        raise ConfigurationError(f"{path}: {error.message}", advice=error.advice) from None


def read_text(path: Path, *, missing: str | None = None) -> str:
    """The content of a key file.

    Args:
        path: The file.
        missing: Content of a file that does not exist; None raises the error.

    Raises:
        ConfigurationError: If it cannot be read, is too long, or others may write it.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigurationError(f"{path} is not a regular file.")
            if os.name == "posix" and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigurationError(
                    f"{path} can be written by other users, who could add keys.", advice=f"Run: chmod 600 {path}"
                )
            content = file.read(_LONGEST + 1)
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise ConfigurationError(
            f"{path} does not exist.", advice=f"Add a key: onellm-async gateway keys add NAME --keys {path}"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {describe_os_error(error)}.") from None
    if len(content) > _LONGEST:
        raise ConfigurationError(f"{path} is longer than {_LONGEST} bytes.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8.") from None


@contextmanager
def lock_keys(path: Path) -> Iterator[None]:
    """Keeps other programs from changing a key file within the block.

    Raises:
        ConfigurationError: If its directory cannot be used.
    """
    if fcntl is None:  # pragma: no cover - a system without file locks
        yield
        return
    try:
        directory = os.open(path.resolve().parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {describe_os_error(error)}.") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def replace_text(path: Path, text: str) -> None:
    """Replaces a key file as a whole, readable and writable by its owner alone.

    Raises:
        ConfigurationError: If it cannot be written.
    """
    parse_keys(text)
    target = path.resolve()  # a link stays one
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode())
                file.flush()
                sync_file(file.fileno())
            fresh.replace(target)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        sync_directory(target.parent)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {describe_os_error(error)}.") from None


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


NO_KEYS: Mapping[str, InboundKey] = MappingProxyType({})
