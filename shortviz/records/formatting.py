"""Numbers as people read them, each kind written by one function: errors, shares, sizes, counts; fields in words."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LARGEST_EXPONENT = 700
"""Of e, that a float holds."""
UNKNOWN = "-"
"""Stands where a number is not known. ASCII, for the command line prints it in any locale."""


def with_error(value: float | None, error: float | None = None, *, sign: bool = False) -> str:
    """Return `0.123 ± 0.020`: two digits of the error, and as many decimals of the value; `+0.488 ± 0.033` with `sign`.

    Without a known error (None, NaN, or 0, which no sample has) three digits of the value; `-` without a value.
    """
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "not finite"
    known = error is not None and math.isfinite(error) and error > 0
    places = decimals(error, 2) if known and error is not None else decimals(value, 3)
    form = ".3g" if abs(value) >= 1e9 else f"z,.{places}f"
    return f"{value:{'+' * sign}{form}}" + (f" ± {error:{form}}" if known else "")


def times(increase: float | None, error: float | None = None) -> str:
    """Return what a cut does to the perplexity, `× 1.54 (+0.430 ± 0.020 nats)`, from the paired increase in NLL.

    That factor stays the same where texts differ in how hard they are; the perplexities themselves do not.
    """
    if increase is None or math.isnan(increase):
        return UNKNOWN
    nats = f"{with_error(increase, error, sign=True)} nats"
    return nats if increase >= _LARGEST_EXPONENT else f"{factor(increase, error)} ({nats})"


def factor(increase: float | None, error: float | None = None) -> str:
    """Return `× 1.54`, by how much an increase of the NLL multiplies the perplexity; its decimals are the error's."""
    if increase is None or math.isnan(increase):
        return UNKNOWN
    if increase >= _LARGEST_EXPONENT:
        return "not finite"
    value = math.exp(increase)
    known = error is not None and math.isfinite(error) and error > 0
    places = max(decimals(value * error, 1), 1) if known and error is not None else decimals(value, 3)
    return f"× {value:{'.3g' if value >= 1e9 else f',.{places}f'}}"


def decimals(value: float, digits: int) -> int:
    """Return the decimal places that show so many significant digits of a value."""
    return digits - 1 if value == 0 else min(max(0, digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2])), 12)


def percent(share: float | None, error: float | None = None, *, sign: bool = False) -> str:
    """Return `45.0 ± 5.0 %`; `100.0 %` alone where there is no error, or where all or none are right.

    The binomial formula says 0 there, which nobody should read as certainty.
    """
    if share is None or math.isnan(share):
        return UNKNOWN
    if error is not None and math.isfinite(error) and error > 0:
        return f"{with_error(100 * share, 100 * error, sign=sign)} %"
    return f"{100 * share:{'+' * sign}z.1f} %"


def counted(number: int, noun: str) -> str:
    """Return `1 window`, `1,024 windows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def count(value: float) -> str:
    """Return `14.2 M`, `950`, `1.2 B`: for parameters, where the first digits are what matters."""
    for least, scale, suffix in ((1e9, 1e9, " B"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if abs(value) >= least:
            return f"{value / scale:,.1f}{suffix}"
    return f"{value:,.0f}"


def layers_text(layers: Sequence[int]) -> str:
    """Return layers as `parse_layers` reads them and people do, e.g. `3, 7-8`; `none` where there are none."""
    return ", ".join(block_text(start, n) for start, n in runs(layers)) or "none"


def runs(layers: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, number) of every maximal run of consecutive layers."""
    found: list[tuple[int, int]] = []
    for layer in sorted(layers):
        first, n = found[-1] if found else (layer, 0)
        if layer == first + n:
            found[-1:] = [(first, n + 1)]
        else:
            found.append((layer, 1))
    return found


def block_text(start: int, n: int) -> str:
    """Return `21` or `21-28`, the layers of a block."""
    return str(start) if n == 1 else f"{start}-{start + n - 1}"


def layer_words(start: int, n: int) -> str:
    """Return `layer 21` or `layers 21-28`."""
    return f"layer{'s' * (n > 1)} {block_text(start, n)}"


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


def one_line(text: str, most: int = 80) -> str:
    """Return text from outside as it may stand in a message: printable, and not endless."""
    kept = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return kept if len(kept) <= most else kept[: most - 3] + "..."


# What a field means, said once: its option's help on the command line, its widget's, its line in the docs.


@dataclass(frozen=True, slots=True)
class Help:
    """Metadata of a request's field: `steps: Annotated[int, Help("Updates.")]`."""

    text: str
    option: str = ""
    """How the option is spelled where it is not `--name`."""
    metavar: str = ""


def spelled(name: str) -> str:
    """Return how a field is written on the command line: `--batch-size` for `batch_size`."""
    return "--" + name.replace("_", "-")


_FIELDS = re.compile(r"`((?:eval_|task_)?(?:key|subset|split)|question|choices|label)`")


def fields_spelled(sentence: str, spell: Callable[[str], str] = spelled) -> str:
    """Return a sentence with the fields of a text or of questions, which it names in backticks, spelled."""
    return _FIELDS.sub(lambda found: spell(found[1]), sentence)
