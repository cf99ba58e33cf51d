"""Bars for those tables that people would rather look at than read; one SVG each, beside the report."""

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Section

_INK, _BAR = "#6b7280", "#3b82f6"
"""Readable on white and on black."""
_FIGURE = re.compile(r"-?[\d,]+(?:\.\d+)?")


def draw(sections: Sequence[Section], folder: Path) -> dict[str, str]:
    """Draws the sections that name a column to chart, where matplotlib is installed.

    Returns:
        File names by the titles of their sections.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return {}
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "onellm-async", "svg.fonttype": "none"}
    folder.mkdir(exist_ok=True)
    drawn = {}
    for section in sections:
        if section.charted is not None:
            name = re.sub(r"\W+", "-", section.title.lower()) + ".svg"
            _bars(section, section.header.index(section.charted), folder / name)
            drawn[section.title] = f"{folder.name}/{name}"
    return drawn


def _bars(section: Section, column: int, path: Path) -> None:
    from matplotlib.figure import Figure

    bars = [(row[0], float(found[0].replace(",", ""))) for row in section.rows if (found := _FIGURE.match(row[column]))]
    figure = Figure(figsize=(8, 0.6 + 0.34 * len(bars)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh([name for name, _ in bars], [value for _, value in bars], color=_BAR, height=0.62)
    axes.bar_label(drawn, [f"{value:,.10g}" for _, value in bars], padding=4, color=_INK, fontsize=9)
    axes.invert_yaxis()
    axes.set_title(f"{section.title}: {section.header[column]}", loc="left", color=_INK, fontsize=11)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
    axes.set_xticks([])
    axes.margins(x=0.12)
    axes.spines[:].set_visible(False)
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
