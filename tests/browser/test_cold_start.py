"""A link to an inner page as the very first request that a server gets."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.paths import ROOT

pytestmark = pytest.mark.browser


def test_a_link_to_an_inner_page_works_as_the_first_request_of_a_server(
    page: Page, start_app: Callable[[Path], AppServer]
) -> None:
    server = start_app(ROOT / "app.py")
    page.goto(f"{server.url}/export?start=12&n=4")
    expect(page.get_by_role("heading", name="Removes layers 12-15 (start 12, n 4)")).to_be_visible(timeout=PATIENCE_MS)
    for name in ("Learn", "Map", "Model", "Export", "Runs"):
        link = page.get_by_role("navigation").get_by_role("link", name=name, exact=True)
        expect(link).to_be_visible(timeout=PATIENCE_MS)


def test_learn_is_found_under_its_name_too(page: Page, start_app: Callable[[Path], AppServer]) -> None:
    server = start_app(ROOT / "app.py")
    for address, title in (("/learn", "A layer adds to the stream"), ("/learn?step=Limits", "What does not come back")):
        page.goto(server.url + address)
        expect(page.get_by_role("heading", name=title)).to_be_visible(timeout=PATIENCE_MS)
        expect(page.get_by_text("Page not found")).to_have_count(0)
    page.goto(f"{server.url}/no-such-page")
    expect(page.get_by_text("Page not found")).to_be_visible(timeout=PATIENCE_MS)
