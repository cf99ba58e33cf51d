"""Numbers as people read them, with their units."""

from datetime import datetime, tzinfo
from math import floor, log10

from onellm_async.formatting import format_duration as duration

__all__ = ["clock", "count", "duration", "moment", "number", "percent", "seconds"]


def count(value: float) -> str:
    """``1,234``; what is not whole gets one digit."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def number(value: float) -> str:
    """Three significant digits: ``0.0123``, ``1.23``, ``12.3``, ``1,234``."""
    if not value:
        return "0"
    digits = max(0, 2 - floor(log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float) -> str:
    """A share, 0 to 1, as ``97.1 %``; a hundred only where it is a whole."""
    text = f"{share * 100:.1f}"
    if text == "100.0" and share < 1:
        text = "99.9"
    return f"{text.removesuffix('.0')} %"


def seconds(value: float) -> str:
    """A short time with three digits: ``12 ms``, ``1.23 s``, ``75.2 s``; from two minutes on as `duration`."""
    if value >= 120:
        return duration(value)
    if value < 0.9995:
        return f"{value * 1000:.0f} ms" if value >= 0.01 else f"{number(value * 1000)} ms"
    return f"{number(value)} s"


def moment(at: float, zone: tzinfo) -> str:
    """Unix seconds as ``2026-03-01 09:30:05 UTC``."""
    return f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M:%S %Z}"


def clock(at: float, zone: tzinfo) -> str:
    """Unix seconds as the time of day."""
    return f"{datetime.fromtimestamp(at, zone):%H:%M:%S}"
