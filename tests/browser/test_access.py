"""Every page by axe-core, light and dark, and what the eye and the thumb need: a phone's width, a deep model's map."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from shortviz.runs.run import save_run
from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.map_mouse import choose_cell, wait_for_map
from tests.support.paths import ROOT
from tests.support.records import fixture_run
from tests.support.visitor import no_failure, to_page, wait_for_block

pytestmark = pytest.mark.browser

# What Streamlit 1.67 draws and gives us no say in: (rule, what the element's HTML has in it, why).
EXCEPTIONS = (
    ("color-contrast", 'class="token', "the colours of highlighted code are Streamlit's own, 2.6 to 2.8 to 1"),
    ("color-contrast", 'data-testid="stBaseButton-header"', "Streamlit's Stop button, there while a script runs"),
)
DEEP = 80


@pytest.fixture(scope="module")
def server(start_app: Callable[[Path], AppServer], tmp_path_factory: pytest.TempPathFactory) -> AppServer:
    started = start_app(ROOT / "app.py")
    # Numbers by formula: for what is drawn and clicked, never for what it says.
    save_run(fixture_run(DEEP), started.runs_dir / f"by-formula-{DEEP}")
    return started


def serious(page: Page) -> list[str]:
    """What axe-core finds serious or worse on the page as it is now, the named exceptions left out."""
    context = {"exclude": [[".svg-container"]]}  # pictures: their finding is the alternative text of what is around
    found: list[dict[str, Any]] = Axe().run(page, context=context).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not any(violation["id"] == rule and words in node["html"] for rule, words, _ in EXCEPTIONS)
    ]


def settled(page: Page, words: str) -> None:
    expect(page.get_by_text(words).first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=PATIENCE_MS)


PAGES = {
    "shortviz": "Which layers of a language model can go?",
    "Learn": "A layer adds to the stream",
    "Model": "Calibration text",
    "Map": "Removes layer",
    "Heal": "Heal",
    "Export": "What is written: weights as safetensors",
    "Runs": "Chosen runs",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_violation(page: Page, server: AppServer, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(server.url)
    wrong = []
    for name, words in PAGES.items():
        to_page(page, name)
        settled(page, words)
        wrong += [f"{name}: {each}" for each in serious(page)]
        no_failure(page)
    assert wrong == []


def test_the_check_itself_sees_a_serious_violation(page: Page) -> None:
    page.set_content('<html lang="en"><title>x</title><main><h1>x</h1><p style="color:#ccc">faint</p></main></html>')
    assert [found.split(":")[0] for found in serious(page)] == ["color-contrast"]


def test_the_lessons_and_the_map_fit_a_phone(page: Page, server: AppServer) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for address, words in (("/?step=Limits", "What does not come back"), ("/map?start=12&n=4", "Removes layers 12-15")):
        page.goto(server.url + address)
        settled(page, words)
        page.locator(".js-plotly-plot .main-svg").first.wait_for(state="attached")
        wide = page.evaluate("Math.max(...[...document.querySelectorAll('.stMain *')].map(e => e.scrollWidth))")
        chart = page.locator(".js-plotly-plot").first.bounding_box()
        heading = page.get_by_role("heading", name=words).bounding_box()
        assert chart is not None
        assert heading is not None
        assert chart["x"] >= 0
        assert chart["x"] + chart["width"] <= 390
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, wide
        options = page.get_by_test_id("stMain").get_by_role("radio")
        expect(options.first).to_be_visible(timeout=PATIENCE_MS)
        for option in options.all():
            box = option.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= 390, f"{option.inner_text()} is cut off"
    assert heading["y"] >= chart["y"] + chart["height"], "the inspector is below the map"
    assert serious(page) == []


def test_a_deep_map_is_clicked_rightly_and_drawn_again_at_once(page: Page, server: AppServer) -> None:
    layers = DEEP
    page.goto(f"{server.url}/map?run=by-formula-{layers}")
    wait_for_map(page)
    seconds = []
    for start, n in ((layers // 2, layers // 5), (3, layers - 10), (layers - 2, 1)):
        begun = time.perf_counter()
        choose_cell(page, layers, start, n)
        seconds.append(time.perf_counter() - begun)
        wait_for_block(page, start, n)
    no_failure(page)
    print(f"{layers} layers: {statistics.median(seconds):.2f} s from the click to the outline")
    assert statistics.median(seconds) < 0.4, seconds
