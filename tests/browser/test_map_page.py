"""The Map page on the bundled run, in a real Chromium: nothing here needs a model."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.map_mouse import choose_cell, random_cells, wait_for_map, wait_for_outline
from tests.support.paths import ROOT
from tests.support.visitor import no_failure, wait_for_block

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(start_app: Callable[[Path], AppServer]) -> AppServer:
    return start_app(ROOT / "app.py")


def test_the_first_visit_shows_the_bundled_map_whole_in_the_window(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/map")
    wait_for_map(page)
    expect(page.get_by_text("bundled run")).to_be_visible()
    box = page.locator(".js-plotly-plot").first.bounding_box()
    assert box is not None
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 720
    assert box["x"] + box["width"] <= 1280
    alt = page.get_by_role("figure", name=re.compile("By measured NLL increase over .* the blocks that change demo"))
    expect(alt).to_be_visible()
    no_failure(page)


ROWS = (("Figure", "Data", "Code"), ("Repair", "Heal", "Export", "Copy link", "Copy as code"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("width", "height", "rows"), [(390, 844, ROWS[:1]), (1280, 720, ROWS), (1920, 1080, ROWS)], ids=str
)
def test_map_and_inspector_need_no_scrolling_and_their_buttons_stand_in_one_row_each(
    page: Page, server: AppServer, width: int, height: int, rows: tuple[tuple[str, ...], ...], scheme: str
) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{server.url}/map?start=17&n=9")
    wait_for_block(page, 17, 9)
    wait_for_outline(page, 17, 9)
    wait_for_map(page)
    main = page.get_by_test_id("stMain")
    for row in rows:
        boxes = [main.get_by_role("button", name=n, exact=True).bounding_box() for n in row]
        tops = {round(box["y"]) for box in boxes if box is not None}
        assert len(tops) == 1, f"{row} stand in several rows: {tops}"
        low = max(box["y"] + box["height"] for box in boxes if box is not None)
        assert low <= height, f"{row} is below the window"
    chart = page.locator(".js-plotly-plot").first.bounding_box()
    assert chart is not None
    assert chart["height"] >= 320
    assert chart["x"] + chart["width"] <= width
    if width > 390:  # on a phone the inspector follows below the map
        assert main.evaluate("e => e.scrollHeight") <= height


def test_twenty_clicks_on_a_30_layer_map_all_hit_the_right_cell(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/map")
    wait_for_map(page)
    for start, n, off in random_cells(30, 20, seed=20):
        choose_cell(page, 30, start, n, off)
        wait_for_block(page, start, n)
        expect(page).to_have_url(re.compile(rf"[?&]start={start}&n={n}(&|$)"), timeout=PATIENCE_MS)


def test_a_link_restores_the_chosen_block(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/map?start=12&n=4")
    wait_for_block(page, 12, 4)
    wait_for_outline(page, 12, 4)
    expect(page.get_by_role("spinbutton", name="start")).to_have_value("12")
    expect(page.get_by_role("spinbutton", name="n", exact=True)).to_have_value("4")


def test_a_link_to_a_block_that_does_not_fit_is_answered_in_words(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/map?start=28&n=9")
    wait_for_map(page)
    expect(page.get_by_text("Block start 28, n 9 does not fit")).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)


def test_typing_moves_the_outline_and_the_address(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/map?start=12&n=4")
    wait_for_outline(page, 12, 4)
    box = page.get_by_role("spinbutton", name="start")
    box.fill("5")
    box.press("Enter")
    wait_for_block(page, 5, 4)
    wait_for_outline(page, 5, 4)
    expect(page).to_have_url(re.compile(r"start=5\b"))


def test_back_and_forward_choose_the_block_that_was_chosen_before(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/map?start=12&n=4")
    wait_for_map(page)
    for start, n in ((3, 2), (20, 5)):
        choose_cell(page, 30, start, n)
        expect(page).to_have_url(re.compile(rf"start={start}&n={n}$"))
    for go, start, n in ((page.go_back, 3, 2), (page.go_back, 12, 4), (page.go_forward, 3, 2)):
        go()
        wait_for_block(page, start, n)
        wait_for_outline(page, start, n)
        expect(page).to_have_url(re.compile(rf"/map\?start={start}&n={n}$"))
    no_failure(page)


def test_two_visitors_choose_independently(new_visitor: Callable[[], BrowserContext], server: AppServer) -> None:
    first, second = new_visitor().new_page(), new_visitor().new_page()
    first.goto(f"{server.url}/map?start=3&n=2")
    second.goto(f"{server.url}/map?start=20&n=5")
    wait_for_block(first, 3, 2)
    wait_for_block(second, 20, 5)
    wait_for_map(second)
    choose_cell(second, 30, 10, 6)
    wait_for_block(second, 10, 6)
    wait_for_block(first, 3, 2)
    for page, start, n in ((first, 3, 2), (second, 10, 6)):
        expect(page).to_have_url(re.compile(rf"start={start}&n={n}$"))
        no_failure(page)


def test_the_keyboard_alone_chooses_a_block_in_the_table(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/map?start=12&n=4")
    wait_for_map(page)
    page.get_by_role("radio", name=re.compile("^Table")).check(force=True)
    grid = page.get_by_test_id("stDataFrame").locator("canvas").first
    grid.wait_for()
    grid.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(page).not_to_have_url(re.compile("start=12&n=4"), timeout=PATIENCE_MS)
    words = page.get_by_role("heading", name=re.compile(r"Removes layers? "))
    expect(words).not_to_contain_text("start 12, n 4", timeout=PATIENCE_MS)
    no_failure(page)
