"""What a person waits for in a real browser: the first map, the demo model, the first measured perplexity of a click.

    PYTHONPATH=. python benchmarks/first_page.py [--servers 3] [--clicks 8] [--think 4] [--no-model]

Each server is a fresh process, each visit a fresh browser without a cache. Times are from the navigation, or from the
mouse's press, to the frame in which the thing is on the page (looked for in every animation frame). The clicks are made
on the bundled run without its measured map, so that every number was measured because of the click. `--think` seconds
lie between one click and the next, whether the block before it is finished or not.
Needs Playwright and a Chromium. Prints a table, then one JSON line.
"""

import argparse
import json
import os
import platform
import re
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from shortviz.files import versions
from shortviz.records.table import Table, left, right
from shortviz.runs.run import example_run, save_run
from tests.support.app_server import FLAGS, PATIENCE_MS, ROOT, AppServer, chromium_path, start_server
from tests.support.map_mouse import point_at, random_cells

MAP_IS_DRAWN = """() => !!document.querySelector('.js-plotly-plot .modebar')
    && !!document.querySelector('.js-plotly-plot .scatterlayer .trace path.point')"""
MODEL_IS_LOADED = "() => /demo · 30 layers · float32/.test(document.body.innerText)"
NUMBER_IS_SHOWN = r"""([heading, before]) => {
    if (![...document.querySelectorAll('h4')].some(e => e.innerText.includes(heading))) return false;
    const metric = [...document.querySelectorAll('[data-testid="stMetric"]')]
        .find(e => e.innerText.includes('Perplexity'));
    return !!metric && !metric.closest('[data-stale="true"]') && /\d/.test(metric.innerText)
        && metric.innerText !== before;
}"""
METRIC_NOW = """() => ([...document.querySelectorAll('[data-testid="stMetric"]')]
    .find(e => e.innerText.includes('Perplexity')) || {innerText: ''}).innerText"""


def first_map(browser: Browser, server: AppServer) -> tuple[Page, float]:
    """Return a new visitor's page and the seconds from the navigation to a drawn map."""
    page = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    started = time.perf_counter()
    page.goto(server.url, wait_until="commit")
    page.wait_for_function(MAP_IS_DRAWN)
    return page, time.perf_counter() - started


def save_distances(runs: Path) -> str:
    """Save the bundled run without anything measured as a run of its own, and return its key."""
    run = replace(example_run(), losses=None, evaluations=())
    save_run(run, runs / "distances-only")
    return "distances-only"


def load_model(page: Page) -> float:
    """Press "Load demo" and return the seconds until the status line says it is in memory."""
    button = page.get_by_role("button", name="Load demo")
    started = time.perf_counter()
    button.click()
    page.wait_for_function(MODEL_IS_LOADED, timeout=300_000)
    return time.perf_counter() - started


def click_block(page: Page, start: int, n: int, off: tuple[float, float]) -> dict[str, float]:
    """Click a cell of the map and return the seconds to its heading and to its first measured perplexity."""
    x, y = point_at(page, 30, start, n, off)
    before = page.evaluate(METRIC_NOW)
    found = {}
    started = time.perf_counter()
    page.mouse.click(x, y)
    words = f"(start {start}, n {n})"
    page.wait_for_function("w => [...document.querySelectorAll('h4')].some(e => e.innerText.includes(w))", arg=words)
    found["heading"] = time.perf_counter() - started
    page.wait_for_function(NUMBER_IS_SHOWN, arg=[words, before])
    found["perplexity"] = time.perf_counter() - started
    return found


def one_server(browser: Browser, options: argparse.Namespace, number: int) -> dict[str, list[float]]:
    """Return every time that was taken on one fresh server."""
    with tempfile.TemporaryDirectory() as runs:
        key = save_distances(Path(runs))
        started = time.perf_counter()
        server = start_server(ROOT / "app.py", Path(runs))
        found = {"server starts": [time.perf_counter() - started]}
        try:
            page, seconds = first_map(browser, server)
            found["first visit: map"] = [seconds]
            other, seconds = first_map(browser, server)
            found["next visitor: map"] = [seconds]
            other.context.close()
            if options.no_model:
                return found
            page.goto(f"{server.url}/map?run={key}")
            page.wait_for_function(MAP_IS_DRAWN)
            page.wait_for_timeout(1000 * options.read)
            found["load demo"] = [load_model(page)]
            page.wait_for_timeout(1000 * options.think)
            for at, (start, n, off) in enumerate(random_cells(30, options.clicks, seed=7 + number)):
                times = click_block(page, start, n, off)
                for name, value in times.items():
                    found.setdefault(f"click: {name}", []).append(value)
                    if at == 0:
                        found.setdefault(f"first click: {name}", []).append(value)
                page.wait_for_timeout(1000 * options.think)
            page.context.close()
        finally:
            server.stop()
        if re.search("Traceback", server.printed):
            raise RuntimeError(server.printed)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--clicks", type=int, default=8)
    parser.add_argument("--think", type=float, default=4.0, help="seconds between two clicks")
    parser.add_argument("--read", type=float, default=5.0, help="seconds on the first map before the model is loaded")
    parser.add_argument("--no-model", action="store_true", help="only the first map")
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    load = [os.getloadavg()[0]]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        for number in range(options.servers):
            for name, values in one_server(browser, options, number).items():
                times.setdefault(name, []).extend(values)
            load.append(os.getloadavg()[0])
        browser.close()
    rows = [
        [name, *(f"{of(values):.2f}" for of in (statistics.median, min, max)), str(len(values))]
        for name, values in times.items()
    ]
    print(Table(left("seconds") + right("median", "least", "most", "of"), rows).text())
    print(f"load average of the machine meanwhile: {', '.join(f'{x:.1f}' for x in load)}; {os.cpu_count()} cores")
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    facts = {"servers": options.servers, "clicks": options.clicks, "think": options.think, "load_average": load}
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), **versions()}
    print(json.dumps({"benchmark": "first_page", "seconds": medians, **facts, **machine}))


if __name__ == "__main__":
    main()
