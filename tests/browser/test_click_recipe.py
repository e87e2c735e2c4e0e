"""The map's click recipe by itself, in a real Chromium."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.map_mouse import (
    TOOLTIP,
    cell_point,
    choose_cell,
    click_cell,
    random_cells,
    wait_for_map,
    wait_for_outline,
)
from tests.support.paths import ROOT

pytestmark = pytest.mark.browser
SCRIPT = ROOT / "tests" / "support" / "recipe_app.py"


@pytest.fixture(scope="module")
def server(start_app: Callable[[Path], AppServer]) -> AppServer:
    return start_app(SCRIPT)


@pytest.mark.parametrize("layers", [30, 4])
def test_clicks_off_the_centre_of_a_cell_all_choose_that_cell(page: Page, server: AppServer, layers: int) -> None:
    page.goto(f"{server.url}/?layers={layers}")
    wait_for_map(page)
    for start, n, off in random_cells(layers, 20 if layers == 30 else 8, seed=layers):
        choose_cell(page, layers, start, n, off)
        expect(page.get_by_text(f"chosen start {start} n {n}", exact=True)).to_be_visible(timeout=PATIENCE_MS)


def test_the_tooltip_names_the_layers_under_the_mouse(page: Page, server: AppServer) -> None:
    page.goto(server.url)
    wait_for_map(page)
    x, y = cell_point(page, 30, 21, 8)
    page.mouse.move(x - 2, y)
    page.mouse.move(x, y)
    tip = page.locator(TOOLTIP)
    expect(tip).to_contain_text("Removes layers 21-28 (start 21, n 8)", timeout=PATIENCE_MS)
    expect(tip).to_contain_text("28.3 M parameters (21.1 %)")
    expect(tip).to_contain_text("over 64 rows of text")


def test_a_click_while_the_map_is_redrawn_is_never_taken_for_another_cell(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/?live=1")
    wait_for_map(page)
    chosen = (0, 1)
    for start, n, off in random_cells(30, 5, seed=5):
        for _ in range(10):  # a click that falls into a redraw is lost: a person clicks again
            click_cell(page, 30, start, n, off)
            try:
                page.get_by_text(f"chosen start {start} n {n}", exact=True).wait_for(timeout=3_000)
                break
            except Error:
                expect(page.get_by_text(f"chosen start {chosen[0]} n {chosen[1]}", exact=True)).to_be_visible()
        else:
            raise AssertionError(f"ten clicks on start {start}, n {n} were all lost")
        chosen = (start, n)
        wait_for_outline(page, start, n)
