"""The token strip in the inspector and the searches beside the lists, on the real demo model."""

import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.map_mouse import choose_cell, wait_for_map
from tests.support.paths import ROOT
from tests.support.visitor import SLOW_MS, load_demo, no_failure, start_measuring, wait_for_block

pytestmark = [pytest.mark.browser, pytest.mark.demo, pytest.mark.timeout(1800)]
WATCH = """name => {
    const shown = () => [...document.querySelectorAll('*')].map(e => e.shadowRoot?.querySelector('[role=listbox]'))
        .some(e => e?.getAttribute('aria-label') === name);
    const metrics = () => [...document.querySelectorAll('[data-testid=stMetricValue]')].map(e => e.innerText).join();
    const before = metrics();  // the numbers of the block before stand there until the page is drawn anew
    window.at = {};
    const clock = setInterval(() => {
        if (/[0-9]/.test(metrics()) && metrics() !== before) window.at.numbers ??= performance.now();
        if (shown()) window.at.strip ??= performance.now();
        if (window.at.numbers && window.at.strip) clearInterval(clock);
    }, 20);
}"""


@pytest.fixture(scope="module")
def server(start_app: Callable[[Path], AppServer]) -> AppServer:
    return start_app(ROOT / "app.py")


def serious(page: Page) -> list[str]:
    page.wait_for_timeout(1000)
    found = Axe().run(page, context={"exclude": [[".svg-container"], [".token"], ["stBaseButton-header"]]}).response
    return [
        f"{each['id']}: {node['html'][:200]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
        if "stBaseButton-header" not in node["html"]
    ]


def test_the_strip_comes_with_the_numbers_and_is_read_by_mouse_keys_and_finger(page: Page, server: AppServer) -> None:
    page.set_default_timeout(SLOW_MS)
    load_demo(page, server, rows=6, length=64)
    start_measuring(page)  # a run of its own, without the losses of the bundled one: numbers are measured
    expect(page.get_by_text("Averaged over 6 rows")).to_be_visible(timeout=SLOW_MS)
    wait_for_map(page)
    after = []
    for start, n in ((20, 3), (5, 2), (16, 4)):
        page.evaluate(WATCH, f"Tokens without layers {start}-{start + n - 1} (start {start}, n {n})")
        choose_cell(page, 30, start, n)
        wait_for_block(page, start, n)
        page.wait_for_function("window.at.numbers && window.at.strip", timeout=SLOW_MS)
        after.append(page.evaluate("(window.at.strip - window.at.numbers) / 1000"))
    print(f"from the numbers to the strip: {', '.join(f'{each:.2f}' for each in after)} s")
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others' work takes its share of the time
    assert statistics.median(after) < 0.5 * busy, (after, busy)

    strip = page.get_by_role("listbox", name="Tokens without layers 16-19 (start 16, n 4)")
    tokens = strip.get_by_role("option")
    expect(tokens.nth(1)).to_have_accessible_name(re.compile(r"^\S+, loss (rises|falls) by \d+\.\d\d nats$"))
    chosen = strip.get_by_role("option", selected=True)
    tokens.nth(12).hover()
    expect(tokens.nth(12)).to_have_attribute("aria-selected", "true")
    says = page.locator(".says")
    assert says.locator("code").count() == 10
    assert len(re.findall(r"\d %", says.inner_text())) == 10
    tokens.nth(12).click()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(13)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(tokens.nth(13)).to_have_attribute("aria-selected", "false")
    below = chosen.bounding_box()
    above = tokens.nth(13).bounding_box()
    assert below is not None
    assert above is not None
    assert below["y"] > above["y"]
    page.keyboard.press("Home")
    expect(tokens.first).to_be_focused()
    no_failure(page)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert serious(page) == [], scheme
    page.set_viewport_size({"width": 390, "height": 844})
    tokens.nth(30).scroll_into_view_if_needed()
    tokens.nth(30).click()
    expect(tokens.nth(30)).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_search_is_started_followed_and_stopped_on_the_page(page: Page, server: AppServer) -> None:
    page.set_default_timeout(SLOW_MS)
    load_demo(page, server, rows=5, length=64)  # a text of its own: the other test has measured that of 6 rows
    page.get_by_role("radio", name=re.compile("^Best per n")).check(force=True)
    page.get_by_role("button", name="Search further").click()
    box = page.get_by_role("spinbutton", name="Largest n")
    box.fill("1")
    box.press("Enter")
    expect(page.get_by_text("30 blocks: 60 to 960 evaluations of a window.")).to_be_visible(timeout=PATIENCE_MS)
    command = page.locator("code").filter(has_text=re.compile("^shortviz map --search demo .*--max-n 1$"))
    expect(command).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Search", exact=True).click()
    page.keyboard.press("Escape")
    stop = page.locator(".st-key-stop_search_search button")  # not that of Streamlit, which has the same name
    expect(stop).to_be_visible(timeout=SLOW_MS)
    page.get_by_role("radio", name="searched by loss").check(force=True, timeout=SLOW_MS)  # after the first window
    stop.click()
    expect(stop).to_have_count(0, timeout=SLOW_MS)
    expect(page.get_by_text(re.compile(r"evaluations, \d.* of measuring every block"))).to_be_visible(timeout=SLOW_MS)
    no_failure(page)
