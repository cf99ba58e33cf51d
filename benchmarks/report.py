"""The report: sections with a table each, in Markdown that also reads well in a terminal."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from attrs import evolve, frozen

_PACKAGES = (
    "onellm-async",
    "aiohttp",
    "orjson",
    "openai",
    "litellm",
    "async-batch-llm",
    "aiolimiter",
    "tenacity",
    "pyrate-limiter",
    "limits",
    "redis",
    "uvloop",
)


@frozen
class Section:
    """One subject's findings.

    Attributes:
        title: What was measured.
        text: How, in a few sentences.
        header: Names of the columns; the first is text, the others are figures.
        rows: As many cells each.
        charted: The column that is drawn, too; None for none.
    """

    title: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    charted: str | None = None

    def markdown(self, chart: str | None = None) -> str:
        """Heading, text, chart and table."""
        widths = [
            max(3, *(len(row[column]) for row in (self.header, *self.rows))) for column in range(len(self.header))
        ]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [
            " | ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in (self.header, rule, *self.rows)
        ]
        table = "\n".join(f"| {line} |" for line in lines)
        shown = "" if chart is None else f"![{self.title}: {self.charted}]({chart})\n\n"
        return f"## {self.title}\n\n{self.text}\n\n{shown}{table}\n"


def markdown(sections: Sequence[Section], command: str, charts: Mapping[str, str] | None = None) -> str:
    """The whole report, with what a reader needs to know of the machine.

    Args:
        sections: What was found.
        command: That found it.
        charts: Files by the titles of their sections.
    """
    today = datetime.now(UTC).date().isoformat()
    facts = (
        f"Measured on {today} with `{command}`.",
        f"Machine: {_processor()}, {os.cpu_count()} CPUs, {platform.system()}.",
        f"{platform.python_implementation()} {platform.python_version()}; {_versions()}.",
    )
    head = "# Benchmarks\n\n" + "\\\n".join(facts) + "\n"
    return "\n".join((head, *(section.markdown((charts or {}).get(section.title)) for section in sections)))


def with_parts(report: str, sections: Sequence[Section], command: str) -> str:
    """The report with some sections measured anew, in their places; those that it does not have are added.

    Args:
        report: The report so far.
        sections: What was found.
        command: That found it.
    """
    today = datetime.now(UTC).date().isoformat()
    for section in sections:
        part = evolve(section, text=f"Measured on {today} with `{command}`. {section.text}")
        start = report.find(f"## {section.title}\n")
        if start < 0:
            report = f"{report.rstrip()}\n\n{part.markdown()}"
            continue
        end = report.find("\n## ", start + 1)
        rest = "" if end < 0 else report[end:]
        chart = re.search(r"^!\[.*\]\((.*)\)$", report[start:end] if rest else report[start:], re.MULTILINE)
        report = report[:start] + part.markdown(None if chart is None else chart[1]) + rest
    return report


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _versions() -> str:
    def shown(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return ""

    return ", ".join(filter(None, map(shown, _PACKAGES)))
