"""Numbers and names as people read them: always with a unit, an error where there is one, and never as markup."""

import math
import re

from shortviz.words import duration, size

__all__ = ["count", "decimals", "duration", "plain", "share", "size", "with_error"]

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~:$&])")


def plain(text: str) -> str:
    """Return text that Markdown shows exactly as it is: names, paths and messages come from outside."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def with_error(value: float, error: float) -> str:
    """Return `0.148 ± 0.002`: as many decimals as the error allows; without an error, 3 significant digits."""
    if not math.isfinite(value):
        return "not finite" if not math.isnan(value) else "–"
    if not math.isfinite(error) or error <= 0:
        return f"{value:,.{decimals(value)}f}"
    places = decimals(error, 2 if f"{error:e}"[0] == "1" else 1)
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def decimals(value: float, digits: int = 3) -> int:
    """Return the decimal places that show `digits` significant digits of a value."""
    if value == 0 or not math.isfinite(value):
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def count(value: float) -> str:
    """Return `14.2 M`, `950`, `1.2 B`."""
    for least, suffix in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= least:
            scale = 1e3 if suffix == " k" else least
            return f"{value / scale:,.1f}{suffix}"
    return f"{value:,.0f}"


def share(part: float) -> str:
    """Return `61 %`, with a decimal below 10 %."""
    return f"{100 * part:.1f} %" if 0 < abs(part) < 0.1 else f"{100 * part:.0f} %"
