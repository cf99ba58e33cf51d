"""The file that holds a board for all processes of one host: an exclusive lock and two images of the board.

A transaction locks, reads the newest complete image, and writes the next one over the older. The kernel frees the lock
when its owner dies. A process that is killed while it writes spoils the older image only; the last complete one stands.

- The lock is ``flock`` with a descriptor of its own for each participant. A lock of ``lockf`` is lost when *any*
  descriptor of the file is closed, and two clients of one process would not exclude each other.
- After a fork, parent and child share the descriptor, so the lock excludes neither: the child opens the file anew.
- The file is never synchronized to the disk. The page cache survives every death but that of the host, and after that
  an old image is as good as none.
- The magic never changes. An image of a newer format is left alone; see `NewerBoardError`.

Behind the images there may be a third block: what older versions of the package, which cannot read the image any more,
send beside the board. So the newer ones can account for it.
"""

import importlib.util
import os
import stat
import struct
import sys
import time
import zlib
from pathlib import Path

from attrs import frozen

from onellm_async.quota.versions import FORMAT, NewerBoardError

HAS_FILE_LOCKS = importlib.util.find_spec("fcntl") is not None
"""Whether the platform has the locks that a board on a file needs."""

if sys.platform != "win32" and HAS_FILE_LOCKS:
    import fcntl

__all__ = ["BoardFileError", "HostFile", "Image", "LockBusyError", "current_boot_id", "read_unlocked"]

MAGIC = b"OLLMQUOT"
HEADER = struct.Struct("<8sI16sdQII")
"""Magic, format, boot id, wall clock of the write, sequence number, length and CRC-32 of the image."""
HALF = 65536
"""Bytes of each image, header included. 64 rows need 20 kB."""
GUESTS_AT = 2 * HALF
GUESTS_SIZE = 8192
TRIES = 4
"""Attempts to lock before `LockBusyError`. A transaction takes 20 to 200 µs; for longer waits there are timers."""
SAFE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class LockBusyError(Exception):
    """Another process holds the lock. Try again in 1 to 2 ms, by a timer: the event loop must not wait."""


class BoardFileError(Exception):
    """The file cannot be used as a board; the message tells why."""


@frozen
class Image:
    """A complete image.

    Attributes:
        boot_id: Of the boot in which it was written.
        written_at: Wall clock of the write.
        sequence: Its number.
        format: Of the payload.
        checksum: CRC-32 of the payload.
        payload: JSON; None if it equals the payload of the checksum that the reader named.
    """

    boot_id: bytes
    written_at: float
    sequence: int
    format: int
    checksum: int
    payload: bytes | None


class HostFile:
    """One participant's access to the file.

    Args:
        path: Of the file. Its directory must exist.
        mode: Permissions of a new file.

    Attributes:
        was_used: Whether the file had been written before it was locked. If it holds no image then, a board was lost.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self._path = path
        self._mode = mode
        self._descriptor, self._owner = -1, 0
        self._size = 0
        self._written: Image | None = None
        self.was_used: bool = False

    def lock(self) -> None:
        """Acquires the lock, opening the file if necessary. A file that was removed is replaced by a new one.

        Raises:
            LockBusyError: If another process holds the lock.
            BoardFileError: If the path is no regular file.
            OSError: If the system refuses.
        """
        for attempt in range(TRIES):
            if attempt:
                time.sleep(0)
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            status = os.fstat(descriptor)
            if status.st_nlink:
                self._size = status.st_size
                self.was_used = status.st_size > 0
                if status.st_size < GUESTS_AT:
                    self._allocate()
                return
            self.close()  # the file was removed: continue with its successor, or there are two boards
        raise LockBusyError(f"{self._path} was locked by another process.")

    def _open(self) -> int:
        if self._descriptor >= 0 and self._owner != os.getpid():
            self.close()  # after a fork the lock is shared with the parent
        if self._descriptor < 0:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | SAFE, self._mode)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise BoardFileError(f"{self._path} is not a regular file.")
            self._descriptor, self._owner = descriptor, os.getpid()
        return self._descriptor

    def _allocate(self) -> None:
        """Reserves the space of both images, so that a disk that fills up later does not stop the board."""
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, GUESTS_AT)
            else:
                os.ftruncate(self._descriptor, GUESTS_AT)
        except BaseException:
            self.unlock()
            raise
        self._size = GUESTS_AT

    def unlock(self) -> None:
        """Releases the lock."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def read(self, known: int = 0) -> Image | None:
        """The newest complete image; None if there is none. To be called with the lock.

        Args:
            known: Checksum of a payload that the reader has already, and that need not be read.

        Raises:
            NewerBoardError: If the newest is of a format that this version does not know.
        """
        written = self._written
        if written is not None and written.checksum == known:
            # The next one would stand in place of the one before. Writing begins with the head.
            older = _read_head(self._descriptor, (1 - (written.sequence & 1)) * HALF)
            if older is not None and older[4] == written.sequence - 1:
                return written
        return newest_image(self._descriptor, str(self._path), known)

    def write(self, payload: bytes, sequence: int, boot_id: bytes) -> int:
        """Writes an image over the older one and returns its checksum. To be called with the lock.

        Args:
            payload: JSON.
            sequence: Number of the image, one more than that of the newest.
            boot_id: Of this boot.

        Raises:
            BoardFileError: If the payload is too large.
            OSError: If the system cannot write it.
        """
        checksum = zlib.crc32(payload)
        self._written = None
        self._write_block(_block(payload, sequence, boot_id, HALF, checksum), (sequence & 1) * HALF)
        self._written = Image(boot_id, time.time(), sequence, FORMAT, checksum, None)
        return checksum

    def _write_block(self, block: bytes, offset: int) -> None:
        if os.pwrite(self._descriptor, block, offset) != len(block):
            raise BoardFileError(f"{self._path} could not be written completely.")

    def read_guests(self) -> bytes | None:
        """What older versions report, as JSON; None if there are none. To be called with the lock."""
        if self._size <= GUESTS_AT:
            return None
        found = _read_block(self._descriptor, GUESTS_AT)
        return None if found is None else found.payload

    def write_guests(self, payload: bytes, boot_id: bytes) -> None:
        """Writes what older versions report. To be called with the lock."""
        block = _block(payload, 0, boot_id, GUESTS_SIZE, zlib.crc32(payload))
        self._write_block(block.ljust(GUESTS_SIZE, b"\0"), GUESTS_AT)

    def close(self) -> None:
        """Closes the file. It is opened anew when it is locked again."""
        self._written = None  # the path may be another file by then
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def read_unlocked(path: Path) -> Image | None:
    """The newest complete image, read beside the participants; None if there is no board.

    Raises:
        NewerBoardError: If it is of a format that this version does not know.
        OSError: If the system refuses.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | SAFE)
    except FileNotFoundError:
        return None
    try:
        return newest_image(descriptor, str(path))
    finally:
        os.close(descriptor)


def newest_image(descriptor: int, place: str, known: int = 0) -> Image | None:
    """The newest complete image in an open file; see `HostFile.read`."""
    first, second = _read_head(descriptor, 0), _read_head(descriptor, HALF)
    newest_first = ((second, HALF), (first, 0))
    if first is not None and (second is None or first[4] > second[4]):
        newest_first = ((first, 0), (second, HALF))
    for head, offset in newest_first:
        if head is None or not head[5]:  # no more than a beginning was written
            continue
        _, image_format, boot_id, written_at, sequence, length, checksum = head
        payload = None
        if not known or checksum != known:
            payload = os.pread(descriptor, length, offset + HEADER.size) if length <= HALF - HEADER.size else b""
            if len(payload) != length or zlib.crc32(payload) != checksum:
                continue
        if image_format > FORMAT:
            raise NewerBoardError(f"{place} is kept by a newer version of onellm-async (format {image_format}).")
        return Image(boot_id, written_at, sequence, image_format, checksum, payload)
    return None


def _read_head(descriptor: int, offset: int) -> tuple[bytes, int, bytes, float, int, int, int] | None:
    start = os.pread(descriptor, HEADER.size, offset)
    if len(start) < HEADER.size:
        return None
    head = HEADER.unpack(start)
    return head if head[0] == MAGIC else None


def _read_block(descriptor: int, offset: int) -> Image | None:
    head = _read_head(descriptor, offset)
    if head is None:
        return None
    _, image_format, boot_id, written_at, sequence, length, checksum = head
    payload = os.pread(descriptor, min(length, HALF), offset + HEADER.size)
    return (
        Image(boot_id, written_at, sequence, image_format, checksum, payload)
        if zlib.crc32(payload) == checksum
        else None
    )


def _block(payload: bytes, sequence: int, boot_id: bytes, size: int, checksum: int) -> bytes:
    if HEADER.size + len(payload) > size:
        raise BoardFileError(f"The board needs {len(payload):,} bytes, more than its file has.")
    return HEADER.pack(MAGIC, FORMAT, boot_id, time.time(), sequence, len(payload), checksum) + payload


def current_boot_id() -> bytes:
    """Identity of this boot of the host; zeros where the system does not tell. Containers of a kernel have the same."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return bytes.fromhex(text.strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return bytes(16)
