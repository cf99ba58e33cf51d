"""A report as one HTML file that loads nothing, written atomically.

Everything that comes from the run is escaped, and only the page's own two scripts may run (its content security policy
names their hashes): an error that holds HTML is shown, never obeyed.
"""

import base64
import hashlib
import json
import os
import stat
from datetime import tzinfo
from pathlib import Path

from attrs import frozen
from jinja2 import Environment, StrictUndefined

from onellm_async import __version__
from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.files import describe_os_error
from onellm_async.formatting import format_percent, format_time
from onellm_async.limits.bottleneck import BOTTLENECK_LABELS
from onellm_async.limits.bottleneck_analysis import BottleneckAnalysis
from onellm_async.report.charts import Chart, make_charts
from onellm_async.report.model import Report
from onellm_async.report.tables import make_tables
from onellm_async.report.tiles import describe_outcomes, describe_status, make_tiles

_HERE = Path(__file__).parent
_DIGITS = 5
"""Significant digits of what is drawn: finer than any screen."""
GENERATOR = "onellm-async report"
"""Names the origin of a page, within it."""
_HEAD = 2048
"""Bytes of a page within which its origin stands."""
_MIN_SHARE = 0.001
"""Shares below a tenth of a percent are too small to be seen."""


def render_page(report: Report, *, zone: tzinfo) -> str:
    """The page.

    Args:
        report: The run.
        zone: Time zone of the times on the page.

    Returns:
        HTML, to be written as UTF-8.
    """
    drawn = make_charts(report, zone)
    script, plot_script = _text("template/page.js"), _text("vendor/uPlot.iife.min.js")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = page.from_string(_text("template/page.html")).render(
        title=f"{report.name}: {report.status}",
        name=report.name,
        subtitle=report.subtitle,
        status=report.status.value,
        status_sentence=describe_status(report, zone),
        outcomes=describe_outcomes(report),
        tiles=make_tiles(report),
        bottlenecks=None if report.bottlenecks is None else _show_bottlenecks(report.bottlenecks),
        charts=drawn,
        sections=make_tables(report, zone),
        created_at=format_time(report.created_at, zone),
        version=__version__,
        generator=GENERATOR,
        charts_json=_json_for_script([_numbers(chart) for chart in drawn]),
        style=_text("template/page.css"),
        plot_style=_text("vendor/uPlot.min.css"),
        script=script,
        plot_script=plot_script,
        plot_license=_text("vendor/uPlot.LICENSE"),
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
class _ShownBottlenecks:
    sentence: str
    spoken: str
    shares: tuple[_ShownShare, ...]


def _show_bottlenecks(analysis: BottleneckAnalysis) -> _ShownBottlenecks:
    shares = tuple(
        _ShownShare(BOTTLENECK_LABELS[bottleneck], format_percent(share), f"{share:.4f}")
        for bottleneck, share in analysis.shares.items()
        if share >= _MIN_SHARE
    )
    spoken = ", ".join(f"{share.name} {share.percent}" for share in shares)
    return _ShownBottlenecks(analysis.summary, spoken, shares)


def _numbers(chart: Chart) -> JSON:
    """The numbers that the script draws."""
    return {
        "key": chart.key,
        "x": [_rounded(x) for x in chart.x],
        "x_kind": chart.x_kind,
        "curves": [
            {
                "label": curve.label,
                "color": curve.color,
                "style": curve.style,
                "axis": curve.axis,
                "values": [_rounded(value) for value in curve.values],
            }
            for curve in chart.curves
        ],
        "markers": [{"x": _rounded(marker.x), "label": marker.label} for marker in chart.markers],
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


def report_path(journal: Path) -> Path:
    """The default path of a report: ``NAME.report.html`` beside ``NAME.journal``, or beside the directory ``NAME``."""
    return journal.with_name(journal.name.removesuffix(".journal") + ".report.html")


def save_report(page: str, path: Path) -> None:
    """Writes a page beside its path and moves it there. It replaces an earlier report, and follows no symbolic link.

    Args:
        page: HTML.
        path: Of the file.

    Raises:
        BatchError: If another file than a report is there, or it cannot be written.
    """
    _check_replaceable(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, flags, 0o666), "wb") as file:  # noqa: PTH123  # of a descriptor
            file.write(page.encode())
        fresh.replace(path)
    except OSError as error:
        raise BatchError(
            f"{path} cannot be written: {describe_os_error(error)}.", advice="Name another file with -o."
        ) from None
    finally:
        if path.name:
            fresh.unlink(missing_ok=True)


def _check_replaceable(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                if GENERATOR.encode() in file.read(_HEAD):
                    return
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise BatchError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None
    raise BatchError(f"{path} exists and is not a report.", advice="Name another file with -o.")
