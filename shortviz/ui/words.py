"""Numbers and names as people read them: always with a unit, an error where there is one, and never as markup."""

import math
import re

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~:$&])")


def plain(text: str) -> str:
    """Return text that Markdown shows exactly as it is: names, paths and messages come from outside."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def with_error(value: float, error: float, *, digits: int = 3) -> str:
    """Return `0.148 ± 0.002`: as many decimals as the error allows; without an error, `digits` significant digits."""
    if not math.isfinite(value):
        return "not finite" if not math.isnan(value) else "–"
    if not math.isfinite(error) or error <= 0:
        return f"{value:,.{decimals(value, digits)}f}"
    places = decimals(error, 2 if f"{error:e}"[0] == "1" else 1)
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def decimals(value: float, digits: int = 3) -> int:
    """Return the decimal places that show `digits` significant digits of a value."""
    if value == 0 or not math.isfinite(value):
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def count(value: float) -> str:
    """Return `14.2 M`, `950`, `1.2 B`."""
    for size, suffix in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            scale = 1e3 if suffix == " k" else size
            return f"{value / scale:,.1f}{suffix}"
    return f"{value:,.0f}"


def size(num_bytes: float) -> str:
    """Return `57 MB`, `6.0 KB`, `1.2 GB` (powers of 1000)."""
    value = float(num_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """Return `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def share(part: float) -> str:
    """Return `61 %`, with a decimal below 10 %."""
    return f"{100 * part:.1f} %" if 0 < abs(part) < 0.1 else f"{100 * part:.0f} %"
