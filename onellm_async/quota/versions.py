"""Boards that another version of the package wrote. Pure.

A board is never replaced because it cannot be read: its participants would not know of each other. The newer version
converts it; the older one leaves it alone and sends at its fair share, beside the board.
"""

from collections.abc import Mapping
from random import Random

from onellm_async.chat import JSON
from onellm_async.limits.quota import Declaration
from onellm_async.quota.board import Board
from onellm_async.quota.control_image import ControlImageError
from onellm_async.validation import truncated_repr
from onellm_async.version import __version__

__all__ = ["NewerBoardError", "read_board", "write_board"]

FORMAT = 1
"""Of boards that this version writes. A board without the field has format 1."""


class NewerBoardError(Exception):
    """A newer version of the package keeps the board.

    Attributes:
        rows: Participants on it, as far as they can be read.
    """

    def __init__(self, message: str, rows: int = 1) -> None:
        super().__init__(message)
        self.rows: int = rows


def write_board(board: Board) -> dict[str, JSON]:
    """The board as JSON, with the version that wrote it."""
    image = board.dump()
    image["version"] = __version__
    return image


def read_board(image: Mapping[str, JSON], declaration: Declaration, now: float, random: Random) -> Board:
    """The board in `image`; if an older version wrote it and it cannot be read, a converted one.

    Args:
        image: What `write_board` returned, in this or another version.
        declaration: The limits of the visitor.
        now: Board time.
        random: Source of jitter.

    Raises:
        NewerBoardError: If a newer version wrote it and it cannot be read.
    """
    version = str(image.get("version", ""))
    newer = f"It is kept by onellm-async {truncated_repr(version)}, a newer version than {__version__}."
    rows = image.get("rows")
    count = len(rows) if isinstance(rows, dict) else 1
    image_format = image.get("format", FORMAT)
    if not isinstance(image_format, int | float) or image_format > FORMAT:
        raise NewerBoardError(newer, count)
    try:
        return Board.load(image, random)
    except (ControlImageError, LookupError, TypeError, ValueError) as error:
        if _number(version) > _number(__version__):
            raise NewerBoardError(newer, count) from error
        return Board.convert(image, declaration, now, random)


def _number(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError:
        return ()
