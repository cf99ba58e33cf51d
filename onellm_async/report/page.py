"""A report as one HTML file: nothing is loaded from anywhere when it is looked at.

Everything that comes from the run is escaped, and only the page's own two scripts may run (its content security policy
names their hashes): an error that holds HTML is shown, never obeyed.
"""

import base64
import hashlib
import json
from datetime import tzinfo
from pathlib import Path

from attrs import frozen
from jinja2 import Environment, StrictUndefined

from onellm_async import __version__
from onellm_async.chat import JSON
from onellm_async.report.charts import charts
from onellm_async.report.drawing import Chart
from onellm_async.report.figures import figures, outcome_sentences, standing_sentence
from onellm_async.report.model import Report, Verdict
from onellm_async.report.saving import GENERATOR
from onellm_async.report.tables import listings
from onellm_async.report.wording import moment, percent

__all__ = ["render"]

_HERE = Path(__file__).parent
_DIGITS = 5
"""Significant digits of what is drawn: finer than any screen."""


def render(report: Report, *, zone: tzinfo) -> str:
    """The page.

    Args:
        report: The run.
        zone: Time zone of the times on the page.

    Returns:
        HTML, to be written as UTF-8.
    """
    drawn = charts(report, zone)
    script, plot_script = _text("template/page.js"), _text("vendor/uPlot.iife.min.js")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = page.from_string(_text("template/page.html")).render(
        title=f"{report.name}: {report.standing}",
        name=report.name,
        subtitle=report.subtitle,
        standing=report.standing.value,
        standing_sentence=standing_sentence(report, zone),
        outcomes=outcome_sentences(report),
        figures=figures(report),
        verdict=None if report.verdict is None else _shown(report.verdict),
        charts=drawn,
        lists=listings(report, zone),
        made_at=moment(report.made_at, zone),
        version=__version__,
        generator=GENERATOR,
        charts_json=_json_for_script([_numbers(chart) for chart in drawn]),
        style=_text("template/page.css"),
        plot_style=_text("vendor/uPlot.min.css"),
        script=script,
        plot_script=plot_script,
        plot_licence=_text("vendor/uPlot.LICENSE"),
        script_hashes=" ".join(_hash(source) for source in (plot_script, script)),
    )
    return text.encode("utf-8", "replace").decode()  # lone surrogates are JSON, but not UTF-8


def _text(name: str) -> str:
    return (_HERE / name).read_text("utf-8").strip()


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@frozen
class _ShownShare:
    name: str
    percent: str
    weight: str


@frozen
class _ShownVerdict:
    sentence: str
    spoken: str
    shares: tuple[_ShownShare, ...]


def _shown(verdict: Verdict) -> _ShownVerdict:
    shares = tuple(
        _ShownShare(share.name, percent(share.share), f"{share.share:.4f}")
        for share in verdict.shares
        if share.share > 0
    )
    return _ShownVerdict(verdict.sentence, ", ".join(f"{share.name} {share.percent}" for share in shares), shares)


def _numbers(chart: Chart) -> JSON:
    """What the script draws."""
    return {
        "key": chart.key,
        "x": [_rounded(x) for x in chart.x],
        "x_kind": chart.x_kind,
        "curves": [
            {
                "label": curve.label,
                "colour": curve.colour,
                "style": curve.style,
                "axis": curve.axis,
                "values": [_rounded(value) for value in curve.values],
            }
            for curve in chart.curves
        ],
        "marks": [{"x": _rounded(mark.x), "label": mark.label} for mark in chart.marks],
        "ticks": list(chart.ticks),
        "left": chart.left,
        "left_unit": chart.left_unit,
        "right": chart.right,
    }


def _rounded(value: float | None) -> float | None:
    if value is None or isinstance(value, int):
        return value
    return int(value) if value.is_integer() else float(f"{value:.{_DIGITS}g}")


def _json_for_script(value: JSON) -> str:
    """JSON that may stand in a script element: no ``<`` can end it or begin a comment."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
