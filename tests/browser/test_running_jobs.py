"""A measurement that runs on: reload, a second tab, cancel from there, and a page that answers meanwhile."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.paths import ROOT
from tests.support.visitor import (
    SLOW_MS,
    colour_by_angles,
    load_demo,
    no_failure,
    rows_done,
    start_measuring,
    type_number,
    wait_for_block,
)

pytestmark = [pytest.mark.browser, pytest.mark.demo, pytest.mark.timeout(1500)]
ROWS, LENGTH = 164, 1024
STILL = {
    "the map": ".js-plotly-plot",
    "the map's views": "[aria-label=View]",
    "its downloads": ".st-key-figure_button",
    "the toolbar": "[aria-label=Scale]",
    "the inspector's heading": "h4",
    "the prompt": "[aria-label^=Prompt]",
    "the buttons": ".st-key-to_export",
}
"""What must stay where it is while a measurement streams."""
STEADY = 0.9
"""Share of the time in one place. On a busy machine a frame may fall between two messages of one run of the script."""
WATCH = """still => {
    window.places = Object.fromEntries(Object.keys(still).map(name => [name, {}]));  // milliseconds in each place
    window.shifted = 0;  // the cumulative layout shift: the worst of the spans without a pause of 1 s, of 5 s at most
    let span = null;
    window.drawn = 0;
    window.above = {};  // what stood above the map when it was first seen in a place: tells what pushed it
    new PerformanceObserver(list => list.getEntries().filter(shift => !shift.hadRecentInput).forEach(shift => {
        const at = shift.startTime;
        if (!span || at - span.last > 1000 || at - span.first > 5000) span = {first: at, sum: 0};
        span.last = at;
        span.sum += shift.value;
        window.shifted = Math.max(window.shifted, span.sum);
    })).observe({type: "layout-shift"});
    let last = null, before = performance.now();
    const look = () => {
        const now = performance.now(), passed = now - before;
        before = now;
        if (document.querySelector("[data-testid=stSkeleton]")) {
            // Streamlit 1.67 fetches the code of a kind of element when a page first shows one, and holds its place.
            requestAnimationFrame(look);
            return;
        }
        for (const [name, selector] of Object.entries(still)) {
            const element = document.querySelector(selector);
            const box = element && element.getBoundingClientRect();
            if (!box || !box.width) continue;  // a chart that is being replaced; below, 4 px are no move
            const place = [box.x, box.y, box.width, box.height].map(at => Math.round(at / 4)).join(" ");
            window.places[name][place] = (window.places[name][place] || 0) + passed;
            if (name === "the map" && !(place in window.above)) {
                const column = element.closest("[data-testid=stColumn]");
                window.above[place] = column ? column.innerText.split("\\n").slice(0, 3).join(" | ") : "";
            }
            if (name === "the map" && element !== last) { last = element; window.drawn += 1; }
        }
        requestAnimationFrame(look);
    };
    look();
}"""


@pytest.fixture(scope="module")
def server(start_app: Callable[[Path], AppServer]) -> AppServer:
    return start_app(ROOT / "app.py")


def test_a_job_outlives_a_reload_and_is_stopped_from_another_tab(
    new_visitor: Callable[[], BrowserContext], server: AppServer
) -> None:
    visitor = new_visitor()
    page = visitor.new_page()
    load_demo(page, server, rows=ROWS, length=LENGTH)
    start_measuring(page)
    before = rows_done(page, ROWS)
    assert "job=" in page.url

    type_number(page, "n", 4)
    for start in (4, 9, 14):  # the page answers while the job runs
        type_number(page, "start", start)
        wait_for_block(page, start, 4)

    page.reload()
    assert rows_done(page, ROWS) >= before
    no_failure(page)

    other = new_visitor().new_page()
    other.goto(page.url)
    assert rows_done(other, ROWS) >= before
    page.close()
    stop = other.get_by_test_id("stMainBlockContainer").get_by_role("button", name="Stop", exact=True)
    expect(stop).to_be_enabled(timeout=PATIENCE_MS)
    stop.click()
    expect(other.get_by_text(f"of {ROWS} rows of built-in python-reference")).to_be_visible(timeout=SLOW_MS)
    expect(stop).to_have_count(0, timeout=PATIENCE_MS)
    no_failure(other)
    assert "Traceback" not in server.printed


def test_nothing_jumps_while_a_measurement_streams(
    new_visitor: Callable[[], BrowserContext], server: AppServer
) -> None:
    page = new_visitor().new_page()
    load_demo(page, server, rows=ROWS, length=256)
    type_number(page, "start", 17)
    type_number(page, "n", 2)
    wait_for_block(page, 17, 2)
    expect(page.get_by_text(re.compile("tokens scored.* steady"))).to_be_visible(timeout=SLOW_MS)
    colour_by_angles(page)
    expect(page.get_by_role("radio", name="vs measured")).to_be_visible(timeout=PATIENCE_MS)  # of what is predicted
    page.evaluate(WATCH, STILL)
    page.get_by_role("button", name="Measure", exact=True).click()
    page.wait_for_function("window.drawn >= 5", timeout=SLOW_MS)
    assert rows_done(page, ROWS) > 0
    page.get_by_test_id("stMainBlockContainer").get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text(f"of {ROWS} rows of built-in python-reference")).to_be_visible(timeout=SLOW_MS)
    places, shifted = page.evaluate("[window.places, window.shifted]")
    print(f"cumulative layout shift from Measure to the end: {shifted:.4f}")
    assert [name for name, seen in places.items() if not seen] in ([], ["its downloads"])  # those wait for a kept map
    moved = {name: seen for name, seen in places.items() if seen and max(seen.values()) < STEADY * sum(seen.values())}
    assert moved == {}, page.evaluate("window.above")
    assert shifted < 0.1  # what web.dev calls good
