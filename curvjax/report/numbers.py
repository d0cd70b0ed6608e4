"""Numbers as a reader wants them: rounded to what they can carry, with units."""

import math

MINUS, TIMES, UNKNOWN = "\u2212", "\u00d7", "\u2013"

Real = int | float  # a record may write 2.0 as 2

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def significant(value: Real | None, digits: int = 3) -> str:
    """`value` to so many significant digits: 0.0123, 4.56, 1,230, 1.20×10⁻⁷."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    exponent = int(power)
    if not -4 <= exponent < 7:
        return f"{mantissa}{TIMES}10{str(exponent).translate(_RAISED)}".replace("-", MINUS)
    rounded = float(f"{mantissa}e{power}")
    return f"{rounded:,.{max(digits - 1 - exponent, 0)}f}".replace("-", MINUS)


def fixed(value: Real | None, places: int = 2) -> str:
    """`value` to so many decimal places, for columns that are compared."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.{places}f}".replace("-", MINUS)


def signed(value: Real | None, places: int = 4) -> str:
    """`value` with its sign, for differences."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:+,.{places}f}".replace("-", MINUS)


def count(value: Real | None) -> str:
    """A whole number with separators."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{round(value):,}".replace("-", MINUS)


def amount(value: Real | None) -> str:
    """A number that is mostly whole, with separators; otherwise five significant digits."""
    return count(value) if value is not None and float(value).is_integer() else significant(value, 5)


def percent(share: Real | None, digits: int = 2) -> str:
    """A share between 0 and 1 as a percentage of `digits` significant digits."""
    return UNKNOWN if share is None or not math.isfinite(share) else significant(100 * share, digits) + "%"


def setting(share: Real) -> str:
    """A chosen share as a percentage, with the digits it was given: 2%, 12.5%."""
    return f"{100 * share:g}%"


def plus_minus(value: Real | None, error: Real | None, places: int = 3) -> str:
    """`value ± error`; the error is left out where it is unknown."""
    shown = fixed(value, places)
    return shown if error is None or shown == UNKNOWN else f"{shown} ± {fixed(error, places)}"


def signed_plus_minus(value: Real | None, error: Real | None, places: int = 3) -> str:
    """A difference as `+value ± error`; the error is left out where it is unknown."""
    shown = signed(value, places)
    return shown if error is None or shown == UNKNOWN else f"{shown} ± {fixed(error, places)}"


def duration(seconds: Real | None) -> str:
    """Seconds as `0.42 s`, `12.3 s`, `4 min 05 s` or `1 h 02 min`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 59.95:  # what would round to 60.0 s is a minute
        return f"{significant(seconds, 3)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: Real | None) -> str:
    """Bytes in GiB, MiB below one GiB, or KiB below one MiB."""
    if size is None or not math.isfinite(size):
        return UNKNOWN
    if size < 2**20:
        return f"{size / 2**10:,.0f} KiB"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
