"""The token strip: a passage, each token shaded by how much its loss rises under the cut, as text and colours."""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from plotly.colors import sample_colorscale

from shortviz.figures.cells import CLIPPED, round_number
from shortviz.figures.theme import DIFFERENCE, DIFFERENCE_DARK
from shortviz.records.formatting import percent
from shortviz.records.measured import TokenLoss
from shortviz.text.tokens import HALF

_LEAST: Final = 0.5
"""Nats at the ends of the scale, at least: what hardly changes is to look so."""
_SEEN: Final = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def strip_data(found: Sequence[TokenLoss], name: str, *, dark: bool) -> dict[str, Any]:
    """Return all that the strip shows, as text and colours; `name` tells one strip from another."""
    limit = scale_end([token.rise for token in found])
    ramp = [_colour(place, dark) for place in np.linspace(-1, 1, 7)]
    rises = [0.0 if math.isnan(token.rise) else token.rise for token in found]
    return {
        "name": f"Tokens without {name}",
        "first": int(np.argmax(rises)),  # what stands below before anybody points
        "scale": [f"loss falls by {limit:g} nats", f"rises by {limit:g} or more"],
        "bar": f"linear-gradient(to right, {', '.join(ramp)})",
        "tokens": [_shown(token, following, limit, dark) for token, following in zip(found, rises, strict=True)],
    }


def scale_end(rises: Sequence[float]) -> float:
    """Return the end of the scale of colours, a round number, the same on both sides: few tokens lie beyond it."""
    sizes = np.abs([rise for rise in rises if not math.isnan(rise)])
    return max(_LEAST, round_number(float(np.quantile(sizes, CLIPPED)), up=True)) if sizes.any() else _LEAST


def shade(rise: float, end: float, *, dark: bool) -> tuple[str, str]:
    """Return the colours of a token and of its text: black or white, whichever is read more easily on it."""
    colour = _colour(rise / end, dark)
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in _rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return colour, "#000000" if luminance > 0.179 else "#ffffff"


def _colour(place: float, dark: bool) -> str:
    """Return a colour of the ramp of differences, from -1 to 1."""
    ramp = DIFFERENCE_DARK if dark else DIFFERENCE
    (found,) = sample_colorscale(ramp, [min(max((place + 1) / 2, 0.0), 1.0)], colortype="tuple")
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in found)


def _rgb(colour: str) -> list[float]:
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def _shown(token: TokenLoss, rise: float, end: float, dark: bool) -> dict[str, Any]:
    text, scored = visible(token.text), not math.isnan(token.rise)
    parts = f", {token.tokens} tokens that are one character" if token.tokens > 1 else ""
    how = (
        f"loss {'falls' if rise < 0 else 'rises'} by {abs(rise):.2f} nats"
        if scored
        else "not scored, nothing precedes it"
    )
    values = f" ({token.before:.2f} → {token.after:.2f} nats{parts})" if scored else parts
    colours = shade(rise, end, dark=dark) if scored else ("", "")
    return {
        "text": text + "\n" * token.text.endswith("\n"),
        "shade": colours[0],
        "ink": colours[1],
        "apart": token.special,
        "said": f"{text.strip() or 'space'}, {how}",
        "head": f"{text.strip() or text}: {how}{values}",
        "likely": [
            (name, [(_candidate(other), percent(share), other == token.text) for other, share in likely])
            for name, likely in (("uncut", token.uncut), ("cut", token.cut))
            if likely
        ],
    }


def _candidate(text: str) -> str:
    return "part of a character" if HALF in text else visible(text)


def visible(text: str) -> str:
    """Return text in which line breaks, tabs and characters that do not show are seen."""
    if not text.strip(" "):
        return "␣" * len(text) or "∅"
    return "".join(
        _SEEN.get(one) or (f"⟨{ord(one):04X}⟩" if unicodedata.category(one) in ("Cc", "Cf") else one) for one in text
    )
