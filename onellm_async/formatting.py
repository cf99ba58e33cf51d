"""Figures as text, with their units: messages, the command line and the report show one figure in one form. Pure."""

from decimal import Decimal
from math import floor, isfinite, log10

__all__ = ["format_duration", "format_usd"]


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
