"""Repeated, interleaved measurements and what is said of them: the median and the spread."""

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from benchmarks.peers import Contender

Found: TypeAlias = Mapping[str, Any]
"""What one measurement found; or ``absent`` or ``broken`` and why."""


def interleaved(
    contenders: Sequence[Contender], repetitions: int, measure: Callable[[Contender], Found]
) -> list[tuple[Contender, list[Found]]]:
    """Measures each contender once, then each again, …, so that a change of the machine's mood meets all of them.

    A contender that is absent, failed or was given up is not tried again.
    """
    table: list[tuple[Contender, list[Found]]] = [(contender, []) for contender in contenders]
    for repetition in range(repetitions):
        for contender, found in table:
            if found and found[-1].keys() & {"absent", "broken", "given_up"}:
                continue
            found.append(measure(contender))
            shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in found[-1].items()}
            print(f"[{repetition + 1}/{repetitions}] {contender.name}: {shown}", file=sys.stderr, flush=True)
    return table


def shortfall(found: Sequence[Found]) -> str | None:
    """What to say of a contender without figures; None when it has them."""
    last = found[-1]
    if "absent" in last:
        return "not installed"
    return f"failed: {last['broken']}" if "broken" in last else None


def spread(values: Iterable[float], digits: int = 0) -> str:
    """The median with minimum and maximum, or one figure where all are shown alike."""
    listed = list(values)
    median, least, most = (f"{value:,.{digits}f}" for value in (statistics.median(listed), min(listed), max(listed)))
    return median if least == most else f"{median} ({least} to {most})"
