"""Numbers as tables print them, with their intervals."""

from collections.abc import Callable

from infvit.tables.interval import Estimate

NOTHING = "–"
"""Printed where there is no value."""


def percent(fraction: float) -> str:
    """A fraction in percent with two decimals: "93.40"."""
    return f"{100 * fraction:.2f}"


def signed(number: float, decimals: int = 2) -> str:
    """A difference with its sign, a proper minus included: "+1.25", "−0.40"."""
    return f"{number:+.{decimals}f}".replace("-", "−")


def three_digits(value: float, like: float | None = None) -> str:
    """Three significant digits, or all digits before the point: "0.123", "1.23", "12.3", "1,234".

    The number of decimals is that of `like` where it is given, so that a mean and its interval have equally many.
    """
    size = abs(value if like is None else like)
    return f"{value:,.{3 if size < 0.995 else 2 if size < 9.995 else 1 if size < 99.95 else 0}f}"


def ratio(value: float) -> str:
    """A ratio with two decimals; an extreme end of an interval as a power of ten."""
    return f"{value:.2f}" if 0.005 <= value < 1000 else f"{value:.0e}"


def p_value(p: float) -> str:
    """A p-value with three decimals."""
    return f"{p:.3f}" if p >= 0.0005 else "<0.001"


def gigabytes(size: float | None) -> str:
    """Bytes in GB (10^9) with two decimals."""
    return NOTHING if size is None else f"{size / 1e9:.2f}"


def amount(number: float | None) -> str:
    """A count in three digits with its SI prefix: "53.5M"."""
    if number is None:
        return NOTHING
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # From 999.5 on, three digits round up into the next prefix.
        if number >= 0.9995 * size:
            return three_digits(number / size) + prefix
    return f"{number:g}"


def duration(seconds: float | None) -> str:
    """A time in its two largest units: "3 min 12 s"."""
    if seconds is None:
        return NOTHING
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def plus_minus(
    estimate: Estimate, form: Callable[[float], str] = percent, mean: Callable[[float], str] | None = None
) -> str:
    """A mean with the half-width of its interval: "93.40 ± 1.25"; "93.40 ± –" where one seed has no interval.

    `form` formats both numbers, or with `mean` the half-width alone.
    """
    if estimate.mean is None:
        return NOTHING
    half = NOTHING if estimate.half_width is None else form(estimate.half_width)
    return f"{(mean or form)(estimate.mean)} ± {half}"


def rate(estimate: Estimate) -> str:
    """Images per second with the half-width of the interval."""
    return plus_minus(estimate, lambda value: three_digits(value, estimate.mean))


def in_range(middle: float, low: float | None, high: float | None, form: Callable[[float], str], unit: str = "") -> str:
    """A number with the two ends of its range or interval: "1.16x (1.10 – 1.22)"."""
    ends = "" if low is None or high is None else f" ({form(low)} – {form(high)})"
    return f"{form(middle)}{unit}{ends}"
