"""Sizes, times and errors as people read them: for the command line, messages, cards and the app."""

import math


def size(num_bytes: float) -> str:
    """Return `541 MB`, `6.0 KB`, `1.2 GB` (powers of 1000)."""
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


def nth(index: int) -> str:
    """Return how people count what has an index from 0: `1st` for 0, `12th` for 11."""
    number = index + 1
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


def percent(share: float, error: float | None, between: str = "+-") -> str:
    """Return `45.0 +- 5.0 %`; `100.0 %` alone where there is no error, or where all or none are right.

    The binomial formula says 0 there, which nobody should read as certainty.
    """
    spread = "" if error is None or math.isnan(error) or error == 0 else f" {between} {100 * error:.1f}"
    return f"{100 * share:.1f}{spread} %"


def plus_minus(value: float, error: float | None, form: str) -> str:
    """Return `69.1 +- 1.9`, both in `form`; `69.1` alone where one sample gives no error."""
    if error is None or math.isnan(error):
        return format(value, form)
    return f"{value:{form}} +- {error:{form.removeprefix('+')}}"


def one_line(text: str, most: int = 80) -> str:
    """Return text from outside as it may stand in a message: printable, and not endless."""
    kept = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return kept if len(kept) <= most else kept[: most - 3] + "..."
