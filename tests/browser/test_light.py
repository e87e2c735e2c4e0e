"""A lesson in a real browser: the terms of its formula and the lines of its figure light each other up."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.paths import ROOT

pytestmark = pytest.mark.browser
LINES = ".js-plotly-plot .scatterlayer .trace"


@pytest.fixture(scope="module")
def server(start_app) -> AppServer:
    return start_app(Path(ROOT / "app.py"))


def opacities(page: Page) -> list[str]:
    """Return how each line of the figure is shown, by its index."""
    shown: list[str] = page.eval_on_selector_all(
        LINES,
        "all => all.sort((a, b) => a.__data__[0].trace.index - b.__data__[0].trace.index).map(e => e.style.opacity)",
    )
    return shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_term_of_the_formula_lights_its_line_and_a_line_its_terms(page: Page, server: AppServer, scheme) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{server.url}/learn?step=Stream")
    expect(page.locator(LINES)).to_have_count(2, timeout=PATIENCE_MS)
    glyphs = page.locator(".katex-html [style*='color']")
    expect(glyphs.first).to_be_visible(timeout=PATIENCE_MS)
    state, added = glyphs.filter(has_text="x").first, glyphs.filter(has_text="f").first
    page.wait_for_timeout(1000)
    assert opacities(page) == ["1", "1"]
    state.hover()
    assert opacities(page) == ["0.2", "1"]  # the diamonds are the first trace, the state's line the second
    added.hover()
    assert opacities(page) == ["1", "0.2"]
    page.get_by_role("heading", name="A layer adds to the stream").hover()
    assert opacities(page) == ["1", "1"]

    point = page.locator(LINES).nth(1).locator("path.point").nth(15).bounding_box()
    assert point is not None
    for by in (3, 0):  # the first move over the figure is what is listened to from then on
        page.mouse.move(point["x"] + point["width"] / 2 + by, point["y"] + point["height"] / 2)
        page.wait_for_timeout(300)
    dimmed = [glyph.evaluate("e => e.style.opacity") for glyph in (state, added)]
    assert sorted(dimmed) == ["", "0.3"]
    assert opacities(page).count("0.2") == 1
