"""draw_diagram of the seed's calls: the triangular map as a figure and in a file. A .png needs no browser."""

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageDraw, ImageFont
from plotly.colors import sample_colorscale

from shortviz.errors import ShortvizError
from shortviz.records import Floats

SCALE = "Viridis_r"
"""Yellow is low = redundant."""
WITH_CHROME = (".svg", ".pdf", ".jpg", ".jpeg", ".webp")


def draw_diagram(
    results: Floats, output_file_path: str | Path, title: str | None = None, normalized: bool = True
) -> go.Figure:
    """Return the triangular map as a figure, after writing it to a file: .png, .html or .json.

    The other image files (WITH_CHROME) need the package kaleido and a Chrome or Chromium. `normalized` rescales
    each row to 0-1 over all its cells; a row of one cell or of equal cells is drawn neutral, as 0.5.
    Raises ShortvizError where the file cannot be written.
    """
    shown = triangle(results, normalized)
    hover = "start %{x}, n %{y}: %{z:.4f}<extra></extra>"
    figure = go.Figure(go.Heatmap(z=shown, y0=1, dy=1, colorscale=SCALE, hovertemplate=hover))
    axis: dict[str, Any] = {"showgrid": False, "zeroline": False}
    figure.update_layout(
        title={"text": title},
        template="plotly_white",
        xaxis={**axis, "title": {"text": "start layer"}},
        yaxis={**axis, "title": {"text": "block size n"}},
    )
    _write(figure, shown, Path(output_file_path), title or "")
    return figure


def triangle(results: Floats, normalized: bool) -> Floats:
    """Return the array with NaN outside the triangle, each row rescaled to 0-1 where asked."""
    size = results.shape[0]
    shown = np.full((size, size), np.nan)
    for n in range(1, size + 1):
        row = results[n - 1, : size - n + 1]
        span = row.max() - row.min()
        rescaled = (row - row.min()) / span if span > 0 else np.full(len(row), 0.5)
        shown[n - 1, : len(row)] = rescaled if normalized else row
    return shown


def _write(figure: go.Figure, shown: Floats, path: Path, title: str) -> None:
    kind = path.suffix.lower()
    if kind not in (".png", ".html", ".json", *WITH_CHROME):
        raise ShortvizError(f"{path.name!r} is no name for a diagram; choose one that ends in .png or .html.")
    try:
        if kind == ".png":
            _picture(shown, title).save(path)
        elif kind == ".html":
            figure.write_html(path)
        elif kind == ".json":
            figure.write_json(path)
        else:
            figure.write_image(path)
    except OSError as error:
        raise ShortvizError(f"The diagram cannot be written to {path} ({error.strerror or error}).") from error
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ShortvizError(
            f"A {kind} diagram needs the package kaleido and a Chrome ({reason}); choose a name that ends in .png."
        ) from error


def _picture(shown: Floats, title: str) -> Image.Image:
    """Return the map drawn with Pillow, n upward as in the paper's figures."""
    size = shown.shape[0]
    cell = max(8, 600 // size)
    left, top, width, bottom = 70, 50, cell * size, 60
    image = Image.new("RGB", (left + width + 120, top + width + bottom), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    for n, start in np.argwhere(~np.isnan(shown)):
        x, y = left + start * cell, top + width - (n + 1) * cell
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=_colour(float(shown[n, start]), low, high))
    every = max(1, size // 10)
    for i in range(0, size, every):
        middle = i * cell + cell / 2
        draw.text((left + middle, top + width + 6), str(i), fill="black", font=font, anchor="mt")
        draw.text((left - 8, top + width - middle), str(i + 1), fill="black", font=font, anchor="rm")
    draw.text((left + width / 2, top + width + 32), "start layer", fill="black", font=font, anchor="mt")
    draw.text((left, top - 8), f"block size n   {title}".rstrip(), fill="black", font=font, anchor="ls")
    for step in range(width):
        value = high - (high - low) * step / width
        y = top + step
        draw.line((left + width + 24, y, left + width + 40, y), fill=_colour(value, low, high))
    for value, y in ((high, top), (low, top + width)):
        draw.text((left + width + 46, y), f"{value:.3g}", fill="black", font=font, anchor="lm")
    return image


def _colour(value: float, low: float, high: float) -> tuple[int, int, int]:
    share = (value - low) / (high - low) if high > low else 0.0
    red, green, blue = sample_colorscale(SCALE, [share], colortype="tuple")[0]
    return round(red * 255), round(green * 255), round(blue * 255)
