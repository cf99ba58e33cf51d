"""Bytes of any input → UTF-8 text in pieces: unpacked, decoded, with line feeds. What is no text is refused. Pure.

A file that holds something else would be garbage, line after line, and every line of it paid for.
"""

import codecs
import io
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import PurePath

from onellm_async.errors import BatchError

_PIECE = 256 * 1024
_MAGIC_BYTES = 8
_TAR = (257, b"ustar")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PACKED_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")

_UNPACK = "Unpack it into a pipe: {command} | onellm-async run - --format {format}"
_SHEET = "Save the sheet as CSV (UTF-8)."
_TEXT = "Save its text as UTF-8, one prompt a line, or as JSON lines."
_ZIP = "Save a workbook's sheet as CSV; unpack an archive: unzip -p {path} | onellm-async run - --format {format}"
_DAMAGED = "The file is damaged; fetch it again."
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the file begins that stands for a large one in a Git repository."""
_LFS = "a pointer of Git LFS"
_PULL = "Fetch the file that it stands for: git lfs pull"
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"BZh", "compressed with bzip2", _UNPACK.replace("{command}", "bunzip2 -c {path}")),
    (b"\xfd7zXZ\x00", "compressed with xz", _UNPACK.replace("{command}", "xz -dc {path}")),
    (b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK.replace("{command}", "lz4 -dc {path}")),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK.replace("{command}", "7z x -so {path}")),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK.replace("{command}", "unrar p -inul {path}")),
    (b"PK\x03\x04", "a ZIP archive or a workbook", _ZIP),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a workbook or document of an old office format", _SHEET),
    (b"%PDF", "PDF", _TEXT),
    (b"{\\rtf", "RTF", _TEXT),
    (b"SQLite format 3\x00", "a SQLite database", "Export the table as CSV: sqlite3 -header -csv {path} 'select …'"),
    (b"PAR1", "Parquet", "Say so with input_format='parquet', and give it as a file."),
    (b"ARROW1\x00\x00", "Arrow", "Say so with input_format='arrow', and give it as a file."),
    (b"ORC", "ORC", "Convert it to Parquet."),
    (b"Obj\x01", "Avro", "Convert it to Parquet or JSON lines."),
    (b"\x89PNG", "an image", _TEXT),
    (b"\xff\xd8\xff", "an image", _TEXT),
    (b"GIF8", "an image", _TEXT),
    (b"\x7fELF", "a program", _TEXT),
    (b"\x80\x04\x95", "a Python pickle", "Write it as JSON lines or Parquet."),
    (LFS_POINTER, _LFS, _PULL),
    (b"\x93NUMPY", "a NumPy array", "Write it as CSV or Parquet."),
    (b"\x89HDF", "HDF5", "Write it as CSV or Parquet."),
)  # fmt: skip
"""How a file begins, what it is, and what its owner can do."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks; those of UTF-32 begin like those of UTF-16."""


def inner_name(name: str) -> str:
    """`name` without the ending of a packed file that is unpacked here.

    Example:
        >>> inner_name("questions.csv.gz"), inner_name("questions.csv")
        ('questions.csv', 'questions.csv')
    """
    return name[: -len(PurePath(name).suffix)] if PurePath(name).suffix.lower() in _PACKED_SUFFIXES else name


def decoded_pieces(name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The text in `pieces` as UTF-8, whose lines end with LF or CR LF.

    Args:
        name: The input's name, as shown to the user.
        pieces: Its bytes.

    Raises:
        BatchError: If it is no text, or is packed and broken.
    """
    head, pieces = _with_head(pieces, _MAGIC_BYTES)
    if head.startswith(_GZIP):
        pieces = _gunzipped(name, pieces)
        head, pieces = _with_head(pieces, _MAGIC_BYTES)
    elif head.startswith(_ZSTD):
        pieces = _unzstd(name, pieces)
        head, pieces = _with_head(pieces, _MAGIC_BYTES)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            pieces = _reencoded(name, pieces, encoding)
            break
    else:
        refuse_binary(name, head)
    return _with_line_feeds(_without_nul(name, pieces))


def refuse_binary(name: str, start: bytes) -> None:
    """Refuses an input that is known to be no text.

    Raises:
        BatchError: If `start` is how an archive, a workbook, a document or the like begins.
    """
    for magic, kind, advice in _SIGNATURES:
        if start.startswith(magic):
            raise _refusal(name, kind, _filled(advice, name))
    if start[_TAR[0] :].startswith(_TAR[1]):
        raise _refusal(name, "a tar archive", _filled(_UNPACK.replace("{command}", "tar -xOf {path}"), name))
    if start.startswith((_GZIP + b"\x08", _ZSTD)):
        raise _refusal(name, "packed twice", "Unpack it once.")


def check_lfs_pointer(name: str, start: bytes) -> None:
    """Refuses what stands for a file, in formats that are no text.

    Raises:
        BatchError: If `start` is how a pointer of Git LFS begins.
    """
    if start.startswith(LFS_POINTER):
        raise _refusal(name, _LFS, _PULL)


def _refusal(name: str, kind: str, advice: str) -> BatchError:
    return BatchError(f"{name} cannot be read: it is {kind}.", advice=advice)


def _filled(advice: str, name: str) -> str:
    path = PurePath(name)
    inner = PurePath(path.stem).suffix.lower()
    shape = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}.get(inner, "text")
    return advice.replace("{path}", name).replace("{format}", shape)


def _with_head(pieces: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, at least `size` or a whole line where there are so many, and all pieces."""
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= size or b"\n" in head:
            break
    return head, chain([head] if head else [], pieces)


def _gunzipped(name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    decoder, begun = zlib.decompressobj(31), False
    try:
        for piece in pieces:
            rest = piece
            while rest or (begun and not decoder.eof):
                begun = True
                found = decoder.decompress(rest, _PIECE)
                if found:
                    yield found
                rest = decoder.unconsumed_tail
                if decoder.eof:  # files may be joined, and padded with zeros
                    rest = decoder.unused_data.lstrip(b"\0")
                    decoder, begun = zlib.decompressobj(31), False
                elif not rest and len(found) < _PIECE:
                    break
    except zlib.error as error:
        raise BatchError(f"{name} cannot be unpacked: {error}.", advice=_DAMAGED) from None
    if begun:
        raise BatchError(f"{name} cannot be unpacked: it ends too early.", advice=_DAMAGED)


class _Pieces(io.RawIOBase):
    """Pieces as the file that a decoder reads from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = next(self._pieces, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _unzstd(name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # noqa: PLC0415  # Python 3.14
    except ImportError:
        yield from _unzstd_by_arrow(name, pieces)
        return
    try:
        with zstd.ZstdFile(_Pieces(pieces)) as stream:
            while found := stream.read1(_PIECE):
                yield found
    except (zstd.ZstdError, EOFError) as error:
        raise BatchError(f"{name} cannot be unpacked: {error}.", advice=_DAMAGED) from None


def _unzstd_by_arrow(name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra
    except ImportError:
        raise BatchError(
            f"{name} is compressed with zstd, which needs Python 3.14 or pyarrow.",
            advice=f"pip install 'onellm-async[parquet]', or: zstd -dc {name} | onellm-async run - --format …",
        ) from None
    try:
        with pa.CompressedInputStream(pa.PythonFile(_Pieces(pieces), "r"), "zstd") as stream:
            while found := stream.read(_PIECE):
                yield found
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise BatchError(f"{name} cannot be unpacked: {reason}.", advice=_DAMAGED) from None


def _reencoded(name: str, pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for piece in pieces:
            if found := decoder.decode(piece):
                yield found.encode()
        decoder.decode(b"", final=True)
    except UnicodeError:
        label = encoding.upper()[:6]
        raise BatchError(f"{name} is marked as {label} and is not.", advice="Save it as UTF-8.") from None


def _without_nul(name: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Refuses text with a NUL in its first piece; further ones make bad lines."""
    for piece in pieces:
        if b"\0" in piece:
            raise BatchError(
                f"{name} is no text: it holds a NUL at byte {piece.index(0) + 1:,}.",
                advice="UTF-16 without a byte order mark? Save it as UTF-8.",
            )
        yield piece
        break
    yield from pieces


_LONE_RETURN = re.compile(rb"\r(?=[^\n])")


def _with_line_feeds(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Makes line feeds of carriage returns where these alone end lines, as on very old systems."""
    head = b""
    for piece in pieces:
        head += piece
        if b"\n" in head or _LONE_RETURN.search(head) or len(head) > _PIECE or not head.rstrip(b"\r"):
            break
        if b"\r" not in head:
            break
    if b"\n" in head or not _LONE_RETURN.search(head):
        if head:
            yield head
        yield from pieces
        return
    for piece in chain([head], pieces):
        yield piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
