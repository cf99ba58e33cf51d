"""Draws the picture of the goodput beside other clients, from the table in ``benchmarks/RESULTS.md``.

``python docs/goodput.py`` writes ``docs/_static/goodput.svg``. No figure is written here: a new measurement changes the
picture, and a test compares the two.
"""

import re
from html import escape
from pathlib import Path

from attrs import frozen

RESULTS = Path(__file__).parents[1] / "benchmarks" / "RESULTS.md"
PICTURE = Path(__file__).with_name("_static") / "goodput.svg"
SECTION = "Goodput under a rate limit"
WIDTH, ROW, TOP, LEFT = 460, 44, 64, 4  # narrow, so that a phone shows it at a readable size
SCALE = 225
"""Width of a goodput of 1."""

# The variables are those of the page that holds the picture. Alone, it follows the system.
STYLE = """
.goodput { --ink: var(--color-foreground-primary, #1f2328); --soft: var(--color-foreground-secondary, #59636e);
  --own: #2563eb; --peer: #8b95a5; --bad: #b42318; font: 14px system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
@media (prefers-color-scheme: dark) { svg.goodput { --ink: var(--color-foreground-primary, #e6edf3);
  --soft: var(--color-foreground-secondary, #9aa4af) } }
.goodput text { fill: var(--ink) }
.goodput text.soft, .goodput tspan.soft { fill: var(--soft); font-size: 12.5px }
.goodput .own { fill: var(--own) } .goodput .peer { fill: var(--peer) } .goodput .bad { fill: var(--bad) }
.goodput .all { fill: var(--soft); opacity: .15 } .goodput .name { font-weight: 600 }
"""


@frozen
class Row:
    """A client.

    Attributes:
        name: Its name and settings.
        goodput: The figure as it was measured, such as ``0.547 (0.490 to 0.691)``.
        failed: Prompts that failed.
        rate_limited: Requests that got a 429.
    """

    name: str
    goodput: str
    failed: str
    rate_limited: str

    @property
    def share(self) -> float:
        """Length of its bar, from 0 to 1."""
        found = re.search(r"[\d.]+", self.goodput)
        return float(found.group()) if found is not None else 0.0

    @property
    def note(self) -> str:
        """What stands behind the bar."""
        failed, rate_limited = (cell.partition(" (")[0] for cell in (self.failed, self.rate_limited))
        failures = failed if "unanswered" in failed else f"{failed} failed"
        return f"{rate_limited} 429s" + (f", {failures}" if failed != "0" else "")


def measured(results: str) -> tuple[str, list[Row]]:
    """The date and the rows of the table."""
    date = re.search(r"Measured on (\S+)", results)
    section = results.partition(f"## {SECTION}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    if date is None or "2,000 prompts" not in section or not cells:
        raise ValueError(f"{RESULTS.name} has no table of the goodput of 2,000 prompts.")
    return date.group(1), [Row(*row) for row in cells[2:]]


def picture(results: str) -> str:
    """The SVG."""
    date, rows = measured(results)
    bottom = TOP + ROW * len(rows)
    lines = [
        (
            f'<svg class="goodput" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 44}" role="img"'
            ' aria-labelledby="goodput-title">'
        ),
        f"<style>{STYLE}</style>",
        '<title id="goodput-title">Share of the rate limit that each client used, with 429s and failures</title>',
        f'<text class="name" x="{LEFT}" y="20">How much of the rate limit 2,000 prompts used</text>',
        (
            f'<text class="soft" x="{LEFT}" y="40">Best possible time ÷ time taken. The limit: 200 per second,'
            " burst 40.</text>"
        ),
    ]
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        kind = "own" if row.name.startswith("onellm-async") else "bad" if row.failed != "0" else "peer"
        goodput = escape(row.goodput.partition(" (")[0])
        lines += [
            f'<text class="{"name" if kind == "own" else "other"}" x="{LEFT}" y="{y + 12}">{escape(row.name)}</text>',
            f'<rect class="all" x="{LEFT}" y="{y + 18}" width="{SCALE}" height="14" rx="2"/>',
            (
                f'<rect class="{kind}" x="{LEFT}" y="{y + 18}" width="{max(2.0, row.share * SCALE):.1f}" height="14"'
                ' rx="2"/>'
            ),
            (
                f'<text x="{LEFT + SCALE + 8}" y="{y + 30}">{goodput}'
                f'<tspan class="soft" dx="8">{escape(row.note)}</tspan></text>'
            ),
        ]
    lines += [
        (
            f'<text class="soft" x="{LEFT}" y="{bottom + 18}">Red: prompts failed. A client that gives up is done'
            " sooner.</text>"
        ),
        (
            f'<text class="soft" x="{LEFT}" y="{bottom + 36}">Medians of 5 on one machine, {date}:'
            " benchmarks/RESULTS.md</text>"
        ),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(RESULTS.read_text("utf-8")), "utf-8")
