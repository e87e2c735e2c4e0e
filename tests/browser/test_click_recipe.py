"""The map's click recipe by itself, in a real Chromium."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.map_mouse import (
    PANE,
    SAYS,
    cell_point,
    choose_cell,
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


def test_the_words_of_the_cell_under_the_mouse_stand_beside_the_cells_never_over_them(
    page: Page, server: AppServer
) -> None:
    page.goto(server.url)
    wait_for_map(page)
    page.mouse.move(*cell_point(page, 30, 21, 8))
    says = page.locator(SAYS)
    expect(says).to_contain_text("layers 21-28", timeout=PATIENCE_MS)
    expect(says).to_contain_text("angular, last token")
    expect(says).to_contain_text(re.compile(r"rank \d+ of 23"))
    box, pane = says.bounding_box(), page.locator(PANE).bounding_box()
    assert box is not None
    assert pane is not None
    free = (box["x"] - pane["x"]) / pane["width"] + (box["y"] - pane["y"]) / pane["height"]
    assert free >= 1, "its upper left corner is in the empty half"


def test_no_click_is_lost_while_the_map_is_redrawn(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/?live=1")
    wait_for_map(page)
    for start, n, off in random_cells(30, 8, seed=5):
        page.mouse.click(*cell_point(page, 30, start, n, off))
        expect(page.get_by_text(f"chosen start {start} n {n}", exact=True)).to_be_visible(timeout=PATIENCE_MS)
        wait_for_outline(page, start, n)


def test_the_arrow_keys_choose_a_neighbour_and_its_words_are_said(page: Page, server: AppServer) -> None:
    page.goto(server.url)
    wait_for_map(page)
    choose_cell(page, 30, 21, 8)
    pane = page.get_by_role("application", name=re.compile("Map of 30 layers: arrow keys"))
    pane.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    wait_for_outline(page, 20, 9)
    expect(page.get_by_text("chosen start 20 n 9", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator(f"{SAYS}[aria-live=polite]")).to_contain_text("layers 20-28")
    for _ in range(4):  # the last block of nine begins at 21
        page.keyboard.press("ArrowRight")
    wait_for_outline(page, 21, 9)
    expect(page.locator(".js-plotly-plot .svg-container[aria-hidden=true]")).to_have_count(1)


def test_one_tap_chooses(browser: Browser, server: AppServer) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(server.url)
    wait_for_map(page)
    page.touchscreen.tap(*cell_point(page, 30, 12, 4))
    wait_for_outline(page, 12, 4)
    expect(page.get_by_text("chosen start 12 n 4", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    context.close()
