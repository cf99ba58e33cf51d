"""Figures as text, with their units: messages, the command line and the report show one figure in one form. Pure."""

from datetime import datetime, tzinfo
from decimal import Decimal
from math import floor, isfinite, log10

_NOISE = 1.1
"""How far answers per second exceed a limit of requests without a burst: those of some moments come together."""


def format_usd(amount: float, *, exact: bool = False) -> str:
    """An amount of USD.

    Cents from one dollar on; below a dollar two significant digits, and at least cents. Only nothing is ``$0.00``.

    Args:
        amount: USD.
        exact: Write out every digit. For a number that the user chose, such as a cap.

    Example:
        >>> format_usd(1234.5), format_usd(0.0042), format_usd(0.0), format_usd(0.125, exact=True)
        ('$1,234.50', '$0.0042', '$0.00', '$0.125')
    """
    if not isfinite(amount):
        return f"${amount}"
    sign, size = ("-" if amount < 0 else ""), abs(amount)
    if exact:
        text = f"{Decimal(repr(size)):,f}"
    elif size >= 1 or not size:
        text = f"{size:,.2f}"
    else:
        text = f"{size:.{max(2, 1 - floor(log10(size)))}f}"
    whole, _, digits = text.partition(".")
    return f"{sign}${whole}.{digits[:2].ljust(2, '0')}{digits[2:].rstrip('0')}"


def format_duration(seconds: float) -> str:
    """A time in the two units that matter.

    Args:
        seconds: The time.

    Example:
        >>> [format_duration(seconds) for seconds in (0.25, 45, 125, 900, 11_229, 187_200)]
        ['0.2 s', '45 s', '2 min 5 s', '15 min', '3 h 7 min', '2 d 4 h']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    first = next(place for place, (amount, _) in enumerate(units) if amount)
    return " ".join(f"{amount} {unit}" for amount, unit in units[first : first + 2] if amount)


def format_seconds(seconds: float) -> str:
    """A short time with three digits. From two minutes on the same as `format_duration`.

    Args:
        seconds: The time.

    Example:
        >>> [format_seconds(seconds) for seconds in (0.0004, 0.012, 1.234, 75.25, 1800)]
        ['0.4 ms', '12 ms', '1.23 s', '75.2 s', '30 min']
    """
    if seconds >= 120:
        return format_duration(seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{format_number(seconds * 1000)} ms"
    return f"{format_number(seconds)} s"


def format_count(value: float) -> str:
    """A count. One that is not whole, such as a mean, has one digit after the point.

    Example:
        >>> format_count(1234), format_count(2.25)
        ('1,234', '2.2')
    """
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def format_number(value: float) -> str:
    """A number with three significant digits.

    Example:
        >>> [format_number(value) for value in (0, 0.01234, 1.2345, 1234.5)]
        ['0', '0.0123', '1.23', '1,234']
    """
    if not value:
        return "0"
    digits = max(0, 2 - floor(log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_percent(share: float) -> str:
    """A share, 0 to 1, as a percentage. Only the whole is a hundred percent.

    Example:
        >>> format_percent(0.971), format_percent(0.99999), format_percent(1)
        ('97.1 %', '99.9 %', '100 %')
    """
    text = f"{share * 100:.1f}"
    if text == "100.0" and share < 1:
        text = "99.9"
    return f"{text.removesuffix('.0')} %"


def format_time(at: float, zone: tzinfo) -> str:
    """A moment, in Unix seconds, as date, time and time zone.

    Example:
        >>> from datetime import UTC
        >>> format_time(1_767_258_000, UTC)
        '2026-01-01 09:00:00 UTC'
    """
    return f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M:%S %Z}"


def format_clock(at: float, zone: tzinfo) -> str:
    """A moment, in Unix seconds, as the time of day."""
    return f"{datetime.fromtimestamp(at, zone):%H:%M:%S}"


def format_rate(rate: float, limit: float | None) -> str:
    """Requests per second against what the limit allows in the long run, which a first burst may exceed.

    Args:
        rate: Achieved.
        limit: Allowed; None without a limit.

    Example:
        >>> format_rate(2.0, 2.5), format_rate(314.1, 100.0)
        ('2.0 of 2.5 requests/s', '314.1 requests/s (burst; limit 100.0)')
    """
    if limit is None:
        return f"{rate:.1f} requests/s"
    if round(rate, 1) > round(limit, 1):
        return f"{rate:.1f} requests/s ({'burst; ' if rate > limit * _NOISE else ''}limit {limit:.1f})"
    return f"{rate:.1f} of {limit:.1f} requests/s"


def pluralize(number: int, noun: str) -> str:
    """A count and its noun.

    Example:
        >>> pluralize(1, "session"), pluralize(1200, "prompt"), pluralize(2, "retry")
        ('1 session', '1,200 prompts', '2 retries')
    """
    if number != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeou" else f"{noun}s"
    return f"{number:,} {noun}"
