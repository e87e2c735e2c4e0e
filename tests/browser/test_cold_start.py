"""A link to an inner page as the very first request that a server gets."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.app_server import PATIENCE_MS, ROOT, AppServer

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
