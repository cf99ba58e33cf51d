"""What a user should know about an input beside its bad lines, each once per run. Pure."""

from collections.abc import Iterable, Mapping

_MAX_NAMES = 8


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
            f"{name}=… (--{name.replace('_', '-')}) replaces the {name} of {_lines(count)}."
            for name, count in self._replaced.items()
        ]
        if self._unused:
            found.append(
                f"Ignored in all lines: {_listed(self._unused)}. keep=… (--keep) carries fields into the output."
            )
        if self._passed_on:
            found.append(f"Sent as they are, although the API does not document them: {_listed(self._passed_on)}.")
        found += [
            f"{name} is no unique id: {_lines(count)} with an earlier value have no custom_id."
            for name, count in self._ids.items()
        ]
        return found


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count:,} lines"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MAX_NAMES} more" if len(every) > _MAX_NAMES else ""
    return ", ".join(every[:_MAX_NAMES]) + more
