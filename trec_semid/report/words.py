"""Numbers as a reader wants them: the same text in the page and in the Markdown."""

import textwrap
from collections.abc import Sequence

NONE = "–"
MINUS = "−"


def figure(value: float | None, decimals: int = 4) -> str:
    """Return a metric's value; a dash where it is not defined."""
    return NONE if value is None else f"{value:.{decimals}f}".replace("-", MINUS)


def signed(value: float, decimals: int = 4) -> str:
    """Return a difference with its sign."""
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, *, with_sign: bool = False) -> str:
    """Return the ends of an interval."""
    if low is None or high is None:
        return NONE
    ends = (signed(low), signed(high)) if with_sign else (figure(low), figure(high))
    return f"{ends[0]} to {ends[1]}"


def p_value(p: float, replicates: int) -> str:
    """Return a p value; the least that so many draws can give is a bound."""
    least = 2 / (replicates + 1)
    return f"≤ {max(least, 0.001):.3f}" if p <= least * 1.001 or p < 0.001 else f"{p:.3f}"


def corrected_p_value(p_holm: float, p: float, replicates: int) -> str:
    """Return a corrected p value; it is a bound where the p value is one."""
    is_bound = p_value(p, replicates).startswith("≤") and p_holm < 1
    return f"≤ {max(p_holm, 0.001):.3f}" if is_bound else f"{p_holm:.3f}"


def count(value: float) -> str:
    """Return a number of things with thousands apart."""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """Return a large number in few letters, e.g. 12k or 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS)


def share(part: float, whole: float) -> str:
    """Return a part as per cent."""
    return f"{100 * part / whole:.1f} %" if whole else NONE


def things(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun, e.g. '1 arm' or '3 arms'."""
    return f"{count(number)} {singular if number == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """Return a wall time."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def shortened(text: str, width: int = 60) -> str:
    """Return a text of at most so many letters, cut between words."""
    return textwrap.shorten(text, width, placeholder=" …")


def listing(names: Sequence[str]) -> str:
    """Return names as in a sentence."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
