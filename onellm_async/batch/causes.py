"""Why prompts failed, and what is unusual about answers: few kinds, to be counted and told. Pure."""

import re
from collections.abc import Iterable, Mapping

from onellm_async.chat import JSON, finish_kind
from onellm_async.wire import parse_json

__all__ = ["CauseCounts", "cause_key", "cause_of", "flaw_of", "outcome_lines", "shortened"]

_MAX_TEXT = 300
"""Characters of a text that are told."""
_MAX_CAUSES = 1000
"""Causes that are told apart: where each failure is another one, memory stays bounded."""
_CAUSES_TOLD = 3
"""Causes that are told at the end; the others are counted together."""
_VARYING = re.compile(
    r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b"  # a UUID
    r"|\b(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{16,}\b"  # another id
    r"|\b[0-9a-f]{16,}\b"
    r"|(?<![\w.'\"`/-])\d+(?:[.,:]\d+)*(?![\w'\"`-])",  # a number of its own, not the 5 of GPT-5
    re.IGNORECASE,
)
"""What differs between failures of one cause: the numbers of requests and tokens, ids, times."""
_STATUS = re.compile(r"\d{3} ")

_USUAL = b'"finish_reason":"stop"'
_EMPTY = b'"content":""'


def shortened(text: str) -> str:
    """`text` on one line, and no longer than can be told."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TEXT else f"{line[: _MAX_TEXT - 1]}…"


def cause_of(result: bytes) -> str:
    """What a failure says, of its JSON in the journal."""
    try:
        failure = parse_json(result)
        return shortened(str(failure["message"] or failure["type"]))
    except (ValueError, TypeError, KeyError):
        return "An error that cannot be read."


def cause_key(text: str) -> str:
    """The same for all failures of one cause: `text` without what differs between them.

    Example:
        >>> cause_key("400 Prompt 17 has 9,012 tokens, and GPT-5 takes 8192.")
        '400 Prompt # has # tokens, and GPT-5 takes #.'
    """
    status = _STATUS.match(text)
    start = status.end() if status else 0
    return text[:start] + _VARYING.sub("#", text[start:])


def flaw_of(result: bytes) -> str | None:
    """What is unusual about an answer, of its JSON in the journal: it was cut off, filtered or is empty; else None."""
    if _USUAL in result and _EMPTY not in result:
        return None
    try:
        answer = parse_json(result)
    except ValueError:
        return None
    reason = str(answer.get("finish_reason") or "")
    if not answer.get("content") and not _holds_more(answer):
        return f"empty ({reason})" if reason else "empty"
    kind = finish_kind(reason)
    if kind == "length":
        return "cut off at --max-tokens"
    return f"filtered ({reason})" if kind == "content_filter" else None


def _holds_more(answer: Mapping[str, JSON]) -> bool:
    """Whether an answer without text holds something else that was asked for, such as calls of tools."""
    extra = answer.get("extra")
    places = (answer, extra) if isinstance(extra, Mapping) else (answer,)
    return any(place.get(name) for place in places for name in ("tool_calls", "function_call", "audio", "images"))


class CauseCounts:
    """Failures by cause, in the order of their number.

    Args:
        counted: Texts and how often each came.
    """

    def __init__(self, counted: Iterable[tuple[str, int]] = ()) -> None:
        self._counts: dict[str, tuple[str, int]] = {}
        for text, number in counted:
            self.add(text, number)

    def add(self, text: str, number: int = 1) -> bool:
        """Counts a failure. Returns whether it is the first of its cause."""
        key = cause_key(text)
        if key not in self._counts and len(self._counts) >= _MAX_CAUSES:
            key = text = "Other errors."
        first, before = self._counts.get(key, (text, 0))
        self._counts[key] = first, before + number
        return not before

    def __len__(self) -> int:
        return len(self._counts)

    def ranked(self) -> list[tuple[str, int]]:
        """The text of the first failure of each cause, and how many there are; see `rank`."""
        return rank(self._counts.values())


def rank(counted: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The most frequent first, equal numbers by text: a run says the same however its answers happened to come in."""
    return sorted(counted, key=lambda each: (-each[1], each[0]))


def outcome_lines(failures: Mapping[str, int], notable: Mapping[str, int]) -> list[str]:
    """Why prompts failed, and which answers want a look; nothing where there are none.

    Args:
        failures: What failures say, and how many there are, the most frequent first.
        notable: What is unusual about answers, and how many there are.

    Example:
        >>> outcome_lines({"422 Unknown model.": 11}, {"cut off at --max-tokens": 10})
        ['11 failed: 11 × 422 Unknown model.', 'Answers to check: 10 cut off at --max-tokens.']
    """
    lines = [f"{number:,} × {cause}" for cause, number in list(failures.items())[:_CAUSES_TOLD]]
    others = sum(failures.values()) - sum(list(failures.values())[:_CAUSES_TOLD])
    if others:
        lines.append(f"{others:,} × other errors.")
    if lines:
        lines = [f"{sum(failures.values()):,} failed: {lines[0]}", *(f"  {line}" for line in lines[1:])]
    if notable:
        lines.append(f"Answers to check: {', '.join(f'{number:,} {flaw}' for flaw, number in rank(notable.items()))}.")
    return lines
