"""Where the cells of the map are on the screen, and a mouse that goes there."""

import random

from playwright.sync_api import Error, Page, TimeoutError

DRAG_AREA = ".js-plotly-plot .nsewdrag"
TOOLTIP = ".hoverlayer .hovertext"
ATTEMPTS = 60
CLICKS = 3
TAKEN_MS = 20_000
"""Patience with one click. Sound ones take up to 3 s where four other programs compete for the two cores."""


def wait_for_map(page: Page) -> None:
    """Return when Plotly has drawn the map and its invisible hit targets."""
    page.locator(".js-plotly-plot .modebar").first.wait_for(state="attached")
    page.locator(".js-plotly-plot .scatterlayer .trace path.point").first.wait_for(state="attached")


def cell_point(
    page: Page, layers: int, start: int, n: int, off: tuple[float, float] = (0.0, 0.0)
) -> tuple[float, float]:
    """Return the screen position of a cell; `off` is in cells from its centre, right and up."""
    box = page.locator(DRAG_AREA).first.bounding_box()
    if box is None:
        raise Error("The map is being replaced.")
    x = box["x"] + (start + 0.5 + off[0]) / layers * box["width"]
    y = box["y"] + box["height"] - (n - 0.5 + off[1]) / layers * box["height"]
    return x, y


def point_at(page: Page, layers: int, start: int, n: int, off: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """Point at a cell until its tooltip shows, and return where that is.

    A hand is never quite still, so neither is this one: a chart that is redrawn answers the next move, not the last.
    """
    tip = page.locator(TOOLTIP).filter(has_text=f"(start {start}, n {n})")
    for attempt in range(ATTEMPTS):
        try:
            x, y = cell_point(page, layers, start, n, off)
            page.mouse.move(x + attempt % 2, y)
            tip.wait_for(timeout=1_000)
        except Error:  # not there yet, or replaced under our hands
            continue
        return x + attempt % 2, y
    raise AssertionError(f"Start {start}, n {n} was not under the mouse; the tooltip was {_tooltip(page)!r}.")


def click_cell(page: Page, layers: int, start: int, n: int, off: tuple[float, float] = (0.0, 0.0)) -> None:
    """Click a cell once its tooltip shows: Plotly clicks what it last hovered, and hovers 20 times a second."""
    x, y = point_at(page, layers, start, n, off)
    page.mouse.click(x, y)


def choose_cell(page: Page, layers: int, start: int, n: int, off: tuple[float, float] = (0.0, 0.0)) -> None:
    """Click a cell and wait for its outline, and click again where nothing comes of it, as a person would.

    Between the tooltip and the click a busy machine may draw the chart anew, and the new one did not see the mouse go
    down. A click that is taken for another cell never gives this outline.
    """
    for _ in range(CLICKS - 1):
        click_cell(page, layers, start, n, off)
        try:
            wait_for_outline(page, start, n, patience_ms=TAKEN_MS)
        except TimeoutError:
            continue
        return
    click_cell(page, layers, start, n, off)
    wait_for_outline(page, start, n)


def wait_for_outline(page: Page, start: int, n: int, patience_ms: float | None = None) -> None:
    """Return when the map has been drawn again with the outline around this cell."""
    page.wait_for_function(
        """([x, y]) => {
            const plot = document.querySelector(".js-plotly-plot");
            const shape = plot && plot.layout && (plot.layout.shapes || [])[0];
            return shape && shape.x0 === x && shape.y0 === y && plot.querySelector(".scatterlayer path.point");
        }""",
        arg=[start - 0.5, n - 0.5],
        timeout=patience_ms,
    )


def _tooltip(page: Page) -> str:
    return " ".join(page.locator(TOOLTIP).all_inner_texts())


def random_cells(layers: int, count: int, seed: int) -> list[tuple[int, int, tuple[float, float]]]:
    """Return (start, n, offset) of different blocks, each hit up to 0.4 cells off its centre."""
    draw = random.Random(seed)
    blocks = draw.sample([(start, n) for n in range(1, layers) for start in range(layers - n + 1)], count)
    return [(start, n, (draw.uniform(-0.4, 0.4), draw.uniform(-0.4, 0.4))) for start, n in blocks]
