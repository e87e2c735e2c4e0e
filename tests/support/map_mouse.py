"""Where the cells of the map are on the screen, and a mouse that goes there."""

import random

from playwright.sync_api import Page

PANE = ".shortviz-pane"
SAYS = f"{PANE} .shortviz-says"
CHOSEN = f"{PANE} .shortviz-chosen"


def wait_for_map(page: Page) -> None:
    """Return when Plotly has drawn the map and the pane lies over its cells."""
    page.locator(".js-plotly-plot .scatterlayer .trace path.point").first.wait_for(state="attached")
    pane = page.locator(PANE).first
    pane.wait_for(state="attached")
    before = None
    while (now := pane.bounding_box()) != before or now is None or now["width"] < 50:  # it takes the window's height
        before = now
        page.wait_for_timeout(500)


def cell_point(
    page: Page, layers: int, start: int, n: int, off: tuple[float, float] = (0.0, 0.0)
) -> tuple[float, float]:
    """Return the screen position of a cell; `off` is in cells from its centre, right and down."""
    box = page.locator(PANE).first.bounding_box()
    assert box is not None
    x = box["x"] + (start + 0.5 + off[0]) / layers * box["width"]
    y = box["y"] + (n - 0.5 + off[1]) / layers * box["height"]
    return x, y


def choose_cell(page: Page, layers: int, start: int, n: int, off: tuple[float, float] = (0.0, 0.0)) -> None:
    """Click a cell once, and wait for its outline."""
    page.mouse.click(*cell_point(page, layers, start, n, off))
    wait_for_outline(page, start, n)


def wait_for_outline(page: Page, start: int, n: int, patience_ms: float | None = None) -> None:
    """Return when this cell is outlined."""
    outline = page.locator(f'{CHOSEN}[data-start="{start}"][data-n="{n}"]')
    outline.first.wait_for(state="visible", timeout=patience_ms)


def random_cells(layers: int, count: int, seed: int) -> list[tuple[int, int, tuple[float, float]]]:
    """Return (start, n, offset) of different blocks, each hit up to 0.4 cells off its centre."""
    draw = random.Random(seed)
    blocks = draw.sample([(start, n) for n in range(1, layers) for start in range(layers - n + 1)], count)
    return [(start, n, (draw.uniform(-0.4, 0.4), draw.uniform(-0.4, 0.4))) for start, n in blocks]
