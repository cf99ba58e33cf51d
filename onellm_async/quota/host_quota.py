"""`HostQuota`: one board for all processes of a host, in a file. No server, no dependency."""

import asyncio
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from attrs import evolve, frozen

from onellm_async.chat import JSON
from onellm_async.errors import ConfigurationError
from onellm_async.limits.quota import Declaration, Demand, Grant
from onellm_async.quota.board import Board
from onellm_async.quota.host_file import (
    HAS_FILE_LOCKS,
    BoardFileError,
    HostFile,
    Image,
    LockBusyError,
    current_boot_id,
    read_unlocked,
)
from onellm_async.quota.names import ParticipantName
from onellm_async.quota.versions import NewerBoardError, read_board, write_board
from onellm_async.wire import dump_json, parse_json

__all__ = ["HostMember", "HostQuota"]

_log = logging.getLogger("onellm_async")

DIRECTORY_VARIABLE = "ONELLM_QUOTA_DIR"
PATIENCE = 0.3
"""Seconds of waiting for the lock before a visit fails. A transaction takes 20 to 200 µs."""
RETRY_LOCK = 0.001, 0.002
"""Seconds between two attempts to lock, drawn from this range."""
LEAVE_PATIENCE = 0.5
"""Seconds that a client which closes tries to remove its row."""
BOOT_CLOCK_SLACK = 60.0
"""Seconds by which the wall clock may have been corrected since the host was started."""
GUEST_LEASE = 60.0
"""Seconds after its last report when a participant of an older version is forgotten."""
MAX_CLOCK_MOVES = 3
"""Times in a row that the clock runs back between two visits of a member before it says so: its container has a
clock of its own."""


@frozen
class HostQuota:
    """One quota for all processes of this host that use the same key: ``quota="host"``.

    The board is a small file under a lock. It is found by URL and key, of which it holds only a hash.

    Args:
        directory: Where the file is; None: ``ONELLM_QUOTA_DIR``, else ``onellm-async-UID`` in the temporary directory.
            Processes of several users, or of containers, need a directory that they share.

    Example:
        ::

            client = AsyncOneLLM(quota=HostQuota("/run/my-service"))
    """

    directory: str | os.PathLike[str] | None = None

    @property
    def kind(self) -> str:
        """``"host"``."""
        return "host"

    @property
    def place(self) -> str:
        """The directory."""
        return str(self._directory())

    def check(self) -> None:
        """Makes the directory if necessary.

        Raises:
            ConfigurationError: If it cannot be used.
        """
        if not HAS_FILE_LOCKS:
            raise ConfigurationError(
                "quota='host' needs file locks, which this platform (for example Windows) does not have.",
                advice="Use a quota in Redis: quota='redis://HOST:PORT'.",
            )
        self._usable_directory()

    def join(self, name: str, declaration: Declaration, random: Random) -> "HostMember":
        """Access for one client."""
        self.check()
        return HostMember(self.path(name), declaration, random, mode=0o600 if self._is_private() else 0o660)

    def path(self, name: str) -> Path:
        """The file of the board `name`."""
        return self._directory() / f"{name}.board"

    def read(self, name: str) -> Mapping[str, JSON] | None:
        """The board `name` as it is now, without visiting it; None if there is none.

        Raises:
            ConfigurationError: If the file cannot be read.
        """
        path = self.path(name)
        try:
            image = read_unlocked(path)
        except (OSError, BoardFileError, NewerBoardError) as error:
            raise ConfigurationError(f"{path} cannot be read: {_reason(error)}") from None
        if image is None or image.payload is None:
            return None
        board: Mapping[str, JSON] = parse_json(image.payload)
        return {**board, "now": time.monotonic()}

    def _named(self) -> Path | None:
        directory = self.directory if self.directory is not None else os.environ.get(DIRECTORY_VARIABLE)
        return Path(directory) if directory else None

    def _is_private(self) -> bool:
        named = self._named()
        return named is None or _is_world_writable(named)

    def _directory(self) -> Path:
        named = self._named()
        if named is not None and not _is_world_writable(named):
            return named
        user = os.getuid() if sys.platform != "win32" else "user"
        return (named or Path(tempfile.gettempdir())) / f"onellm-async-{user}"

    def _usable_directory(self) -> None:
        path, advice = self._directory(), f"Set {DIRECTORY_VARIABLE} to a directory that this user can write."
        try:
            path.mkdir(mode=0o700, parents=self._named() is not None, exist_ok=True)
            status = path.lstat()
        except OSError as error:
            text = f"The quota cannot use the directory {path}: {_reason(error)}"
            raise ConfigurationError(text, advice=advice) from None
        if not stat.S_ISDIR(status.st_mode):
            raise ConfigurationError(f"The quota cannot use {path}: it is not a directory.", advice=advice)
        if self._is_private() and sys.platform != "win32":
            if status.st_uid != os.getuid():
                raise ConfigurationError(
                    f"The quota cannot use {path}: it belongs to another user (id {status.st_uid}).", advice=advice
                )
            if status.st_mode & 0o077:
                raise ConfigurationError(
                    f"The quota cannot use {path}: other users may use it (mode {stat.S_IMODE(status.st_mode):o}).",
                    advice=f"Run chmod 700 {path}, or set {DIRECTORY_VARIABLE}.",
                )
        if not os.access(path, os.W_OK | os.X_OK):
            raise ConfigurationError(f"The quota cannot use {path}: it is not writable.", advice=advice)


def _is_world_writable(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text if text.endswith(".") else f"{text}."


class HostMember:
    """One client's access to the file of a board.

    Args:
        path: Of the file.
        declaration: The limits of the client.
        random: Source of jitter.
        mode: Permissions of a new file.
        file: The file, in tests.
    """

    def __init__(
        self,
        path: Path,
        declaration: Declaration,
        random: Random,
        *,
        mode: int = 0o600,
        file: HostFile | None = None,
    ) -> None:
        self._path = path
        self._random = random
        self._file = HostFile(path, mode) if file is None else file
        self._name = ParticipantName()
        self._boot_id = current_boot_id()
        self._declaration, self._declared_at = declaration, time.monotonic()
        self._board: Board | None = None
        self._sequence, self._checksum = 0, 0
        self._clock_moves, self._moved = 0, 0
        self._guest_total = 0
        self._timer: asyncio.TimerHandle | None = None

    def redeclare(self, declaration: Declaration) -> None:
        """Brings other limits to the board, with the next visit."""
        self._declaration, self._declared_at = declaration, time.monotonic()

    def visit(self, demand: Demand, then: Callable[[Grant], None], failed: Callable[[Exception], None]) -> None:
        """Visits the board: at once if the lock is free."""
        self._attempt(demand, time.monotonic(), then, failed)

    def _attempt(
        self, demand: Demand, since: float, then: Callable[[Grant], None], failed: Callable[[Exception], None]
    ) -> None:
        self._timer = None
        waited = time.monotonic() - since
        try:
            grant = self.transact(demand if waited < RETRY_LOCK[0] else demand.aged(waited))
        except LockBusyError as error:
            if waited >= PATIENCE:
                failed(error)
                return
            loop = asyncio.get_running_loop()
            delay = self._random.uniform(*RETRY_LOCK)
            self._timer = loop.call_later(delay, self._attempt, demand, since, then, failed)
            return
        except Exception as error:  # whatever it is, the queue must not wait for a visit that never returns
            failed(error)
            return
        then(grant)

    def transact(self, demand: Demand) -> Grant:
        """One visit, without waiting.

        Raises:
            LockBusyError: If another process holds the lock.
            BoardFileError: If the file cannot be used as a board.
            NewerBoardError: If a newer version of the package keeps it.
            ConfigurationError: If the file is that of another host.
            OSError: If the system refuses.
        """
        try:
            self._file.lock()
        except FileNotFoundError:  # the directory was removed
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file.lock()
        try:
            return self._visit_locked(demand)
        except BaseException:
            self._board, self._checksum = None, 0  # it may be half changed; the file is not
            raise
        finally:
            self._file.unlock()

    def _visit_locked(self, demand: Demand) -> Grant:
        now = time.monotonic()  # one clock for all processes of a kernel; that of an event loop may be another
        image = self._file.read(self._checksum if self._board is not None else 0)
        try:
            board = self._current_board(image, now)
        except NewerBoardError:
            self._report_as_guest(demand)
            raise
        guests = self._file.read_guests()
        if guests is not None:
            _charge_guests(board, parse_json(guests), now)
        grant = board.visit(self._name.current(), demand, now, self._declaration, now - self._declared_at)
        self._watch_clock(board)
        sequence = 1 if image is None else image.sequence + 1
        payload = dump_json(write_board(board))
        self._checksum = self._file.write(payload, sequence, self._boot_id)
        self._board, self._sequence = board, sequence
        return grant

    def _current_board(self, image: Image | None, now: float) -> Board:
        if image is None:
            return self._replacement(now)
        if image.payload is None and self._board is not None and image.sequence == self._sequence:
            return self._board
        payload = image.payload
        if payload is None:  # the checksum of another image happens to be that of the known one
            fresh = self._file.read()
            payload = b"" if fresh is None else fresh.payload
        board = read_board(parse_json(payload or b""), self._declaration, now, self._random)
        if image.boot_id != self._boot_id:
            if image.written_at > time.time() - now + BOOT_CLOCK_SLACK:
                raise ConfigurationError(
                    f"{self._path} is used by another host at the same time.",
                    advice="A quota for several hosts needs Redis: quota='redis://HOST:PORT'.",
                )
            board.restart(now)
        return board

    def _replacement(self, now: float) -> Board:
        """A board where there is none. One that was seen before was lost, and is continued as far as it is known."""
        if self._board is not None:
            board = self._board
            board.rows.clear()
            board.stop_clock(now)
            return board
        empty = self._sequence > 0 or self._file.was_used
        if empty:
            _log.warning("%s held no complete board. Its bucket starts empty.", self._path)
        return Board(self._declaration, now, self._random, age=now - self._declared_at, empty=empty)

    def _report_as_guest(self, demand: Demand) -> None:
        """Tells the newer versions what this one has sent beside the board."""
        self._guest_total += demand.sent_alone
        guests: dict[str, JSON] = {}
        known = self._file.read_guests()
        if known is not None:
            now = time.time()
            guests = {name: row for name, row in parse_json(known).items() if now - row[1] < GUEST_LEASE}
        guests[self._name.current()] = [self._guest_total, time.time()]
        self._file.write_guests(dump_json(guests), self._boot_id)

    def _watch_clock(self, board: Board) -> None:
        moves, self._clock_moves = board.clock_moves - self._clock_moves, board.clock_moves
        self._moved = self._moved + 1 if moves else 0
        if self._moved > MAX_CLOCK_MOVES:
            self._moved = 0
            raise BoardFileError(
                f"The participants of {self._path} have different clocks, as containers with a time namespace have. "
                "Use Redis: quota='redis://HOST:PORT'."
            )

    def abandon(self) -> None:
        """Closes the file. The row expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._file.close()

    async def aclose(self, demand: Demand) -> None:
        """Returns permits, removes the row and closes the file."""
        give_up_at = time.monotonic() + LEAVE_PATIENCE
        try:
            while True:
                try:
                    self.transact(evolve(demand, leaving=True))
                except LockBusyError:
                    if time.monotonic() > give_up_at:
                        return
                    await asyncio.sleep(self._random.uniform(*RETRY_LOCK))
                else:
                    return
        except Exception:
            _log.debug("%s could not be left; the row expires.", self._path, exc_info=True)
        finally:
            self.abandon()


def _charge_guests(board: Board, guests: Mapping[str, JSON], now: float) -> None:
    board.charge_guests({name: int(row[0]) for name, row in guests.items()}, now)
