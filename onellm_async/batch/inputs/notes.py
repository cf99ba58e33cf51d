"""What a user should know about an input beside its bad lines, each once per run. Pure."""

import re
from collections.abc import Iterable, Mapping

from onellm_async.batch.inputs.entry import LineError

_MAX_NAMES = 8
_MAX_KINDS = 100
"""Complaints that are told apart; all others count as one."""


class InputNotes:
    """Collects what lines have in common while they are parsed."""

    def __init__(self) -> None:
        self._replaced: dict[str, int] = {}
        self._unused: dict[str, None] = {}
        self._passed_on: dict[str, None] = {}
        self._ids: dict[str, int] = {}
        self._seen: set[str] = set()

    def replaced(self, names: Iterable[str]) -> None:
        """Counts a line whose own values are replaced by arguments of these names."""
        for name in names:
            self._replaced[name] = self._replaced.get(name, 0) + 1

    def unused(self, record: Mapping[str, object], used: Iterable[str]) -> None:
        """Remembers the fields of a line that are neither sent nor kept."""
        if record.keys() <= self._seen:
            return
        self._seen.update(record)
        for name in record:
            if name not in used and record[name] is not None:
                self._unused[name] = None

    def passed_on(self, names: Iterable[str]) -> None:
        """Remembers fields of a request that are sent although the API does not document them."""
        self._passed_on.update(dict.fromkeys(names))

    def repeated_id(self, name: str) -> None:
        """Counts a line whose id in the column `name` an earlier one has, too."""
        self._ids[name] = self._ids.get(name, 0) + 1

    def sentences(self) -> list[str]:
        """All of it, a sentence each."""
        found = [
            "response_model=… (--schema) replaces the response_format"
            if name == "schema"
            else f"{name}=… (--{name.replace('_', '-')}) replaces the {name}"
            for name in self._replaced
        ]
        found = [f"{text} of {_lines(count)}." for text, count in zip(found, self._replaced.values(), strict=True)]
        if self._unused:
            found.append(
                f"Ignored in all lines: {_listed(self._unused)}. keep=… (--keep) carries fields into the output."
            )
        if self._passed_on:
            found.append(f"Sent as they are, although the API does not document them: {_listed(self._passed_on)}.")
        found += [
            f"{name} is no unique id: {_lines(count)} with an earlier value "
            f"{'has' if count == 1 else 'have'} no custom_id."
            for name, count in self._ids.items()
        ]
        return found


def _lines(count: int, which: str = "") -> str:
    return f"1 {which}line" if count == 1 else f"{count:,} {which}lines"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MAX_NAMES} more" if len(every) > _MAX_NAMES else ""
    return ", ".join(every[:_MAX_NAMES]) + more


_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


class Complaints:
    """Bad lines as they are told: the same complaint at most ten times, then a count.

    Example:
        >>> complaints = Complaints(most=1)
        >>> complaints.heard(LineError("in.jsonl", 1, "It has no field 'q'."))
        "in.jsonl:1: It has no field 'q'."
        >>> complaints.heard(LineError("in.jsonl", 2, "It has no field 'q'."))
        >>> complaints.rest()
        ["1 further line: It has no field 'q'."]
    """

    def __init__(self, most: int = 10) -> None:
        self._most = most
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}
        self._last: dict[str, int] = {}

    def heard(self, error: LineError) -> str | None:
        """What to say of a bad line; None for one that was heard before, or is one of many."""
        if error.line <= self._last.get(error.source, 0):  # read once more, as after a preflight
            return None
        self._last[error.source] = error.line
        kind = _VALUES.sub("…", error.message)
        if kind not in self._counts and len(self._counts) >= _MAX_KINDS:
            kind = "others"
        self._counts[kind] = count = self._counts.get(kind, 0) + 1
        if count <= self._most:
            return str(error)
        self._examples.setdefault(kind, error.message)
        return None

    def rest(self) -> list[str]:
        """How many lines were not told of, a sentence for each complaint."""
        return [
            f"{_lines(self._counts[kind] - self._most, 'further ')}: {message}"
            for kind, message in self._examples.items()
        ]
