"""A measurement that runs on: reload, a second tab, cancel from there, and a page that answers meanwhile."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.browser.app_server import PATIENCE_MS, ROOT, AppServer
from tests.browser.visitor import (
    SLOW_MS,
    load_demo,
    no_failure,
    rows_done,
    start_measuring,
    type_number,
    wait_for_block,
)

pytestmark = [pytest.mark.browser, pytest.mark.demo, pytest.mark.timeout(1500)]
ROWS, LENGTH = 164, 1024


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

    for start in (4, 9, 14):  # the page answers while the job runs
        type_number(page, "start", start)
        wait_for_block(page, start, 3)

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
    expect(stop).to_be_disabled(timeout=PATIENCE_MS)
    no_failure(other)
    assert "Traceback" not in server.printed
