"""What a board says, as a value: for ``onellm-async quota status``. Pure."""

from collections.abc import Mapping
from random import Random

from attrs import frozen

from onellm_async.chat import JSON
from onellm_async.limits.quota import LANE_NAMES, Declaration
from onellm_async.quota.board import DUE, GRACE, SEEN, SINCE, WAITING, decode_limits, is_busy, recent_grants
from onellm_async.quota.versions import read_board

__all__ = ["BoardStatus", "ParticipantStatus", "board_status"]


@frozen
class ParticipantStatus:
    """One client on a board.

    Attributes:
        name: Host, process id, number in the process, and a random part.
        waiting: Requests that could be sent now, by lane.
        oldest_wait: Seconds that it has waited for its turn; None without demand.
        granted: Requests granted in the last minute.
        share: Of all requests granted in the last minute; None when there were none.
        next_visit_in: Seconds until its next visit, negative if it is late; None without demand.
        seen_ago: Seconds since its last visit.
        is_late: Whether it missed its time, so that it is passed over.
    """

    name: str
    waiting: Mapping[str, int]
    oldest_wait: float | None
    granted: float
    share: float | None
    next_visit_in: float | None
    seen_ago: float
    is_late: bool


@frozen
class BoardStatus:
    """A board at one moment.

    Attributes:
        rate: Requests per minute of all together.
        declared_rate: As declared; None where it is discovered.
        burst: Requests that the service accepts at once after a pause; None while that is not known.
        level: Requests that could be sent at once.
        confidence: How sure the rate is, from 0 to 1.
        tokens_level: Tokens that could be used at once; None without a limit.
        retry_in: Seconds until the service accepts requests again, as it said by Retry-After; None when it did not.
        granted: Requests granted so far.
        participants: The clients, those with the most requests of the last minute first.
    """

    rate: float
    declared_rate: float | None
    burst: float | None
    level: float
    confidence: float
    tokens_level: float | None
    retry_in: float | None
    granted: int
    participants: tuple[ParticipantStatus, ...]


def board_status(image: Mapping[str, JSON]) -> BoardStatus:
    """The status in an image that a quota's ``read`` returned.

    Raises:
        NewerBoardError: If a newer version of the package keeps the board.
    """
    now = image["now"]
    limits = decode_limits(image["declared"])
    board = read_board(
        {name: value for name, value in image.items() if name != "now"},
        Declaration(limits, explicit=False),
        now,
        Random(0),
    )
    own_time, state = now + board.offset, board.control.state
    total = recent_grants(board.recent, now, 0)
    found = []
    for name, row in board.rows.items():
        granted, busy = recent_grants(row, now), is_busy(row)
        waiting = {lane: int(row[WAITING + index]) for index, lane in enumerate(LANE_NAMES)}
        since = [row[SINCE + index] for index, lane in enumerate(LANE_NAMES) if waiting[lane]]
        found.append(
            ParticipantStatus(
                name=name,
                waiting=waiting,
                oldest_wait=max(0.0, now - min(since)) if since else None,
                granted=granted,
                share=granted / total if total else None,
                next_visit_in=row[DUE] - now if busy else None,
                seen_ago=now - row[SEEN],
                is_late=busy and row[DUE] < now - GRACE,
            )
        )
    return BoardStatus(
        rate=board.control.rate * 60,
        declared_rate=limits.declared_rate,
        burst=None if state is None else state.burst,
        level=board.control.level_at(own_time),
        confidence=board.control.confidence,
        tokens_level=None if board.tokens is None else board.tokens.at(own_time),
        retry_in=board.retry_at - now if board.retry_at > now else None,
        granted=board.granted,
        participants=tuple(sorted(found, key=lambda each: (-each.granted, each.name))),
    )
