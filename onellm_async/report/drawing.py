"""What is drawn, as values: plots, their curves and marks, and the table that says the same in numbers."""

from attrs import field, frozen

__all__ = ["Chart", "Curve", "Mark", "Table"]


@frozen(kw_only=True)
class Table:
    """Numbers in words: the first column names the row.

    Attributes:
        caption: What it is.
        headings: Of the columns, with units.
        rows: As many cells as there are headings, each.
        words: Columns, from 0, that hold words and are set flush left; all others hold numbers.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})


@frozen(kw_only=True)
class Curve:
    """A line or area of a plot.

    Attributes:
        label: Its name.
        values: One for each x; None where there is nothing to draw.
        colour: Name of a colour of the page, such as ``blue``.
        style: ``steps`` is filled below, ``line`` is stepped and not filled, ``slope`` goes straight from point to
            point, ``limit`` is dashed.
        axis: ``left`` or ``right``.
    """

    label: str
    values: tuple[float | None, ...]
    colour: str
    style: str = "steps"
    axis: str = "left"


@frozen
class Mark:
    """A dashed line across a plot, at x."""

    x: float
    label: str


@frozen(kw_only=True)
class Chart:
    """A plot.

    Attributes:
        key: Its name in the page's addresses.
        title: What it shows.
        summary: The same in a sentence, for those who do not see it.
        x: Places on the x axis: seconds of work, or numbers of bins.
        x_kind: ``time`` or ``bins``.
        curves: What is drawn.
        marks: Lines across.
        ticks: Labels of the bins' edges.
        left: What the left axis counts.
        left_unit: ``count``, ``whole`` (a count without fractions) or ``usd``.
        right: What the right axis counts; None without one.
        table: The same in numbers.
    """

    key: str
    title: str
    summary: str
    x: tuple[float, ...]
    x_kind: str = "time"
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...] = ()
    ticks: tuple[str, ...] = field(factory=tuple[str, ...])
    left: str
    left_unit: str = "count"
    right: str | None = None
    table: Table
