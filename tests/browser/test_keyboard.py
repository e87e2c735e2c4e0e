"""The whole path by the keyboard alone: no mouse from the first screen to a proved checkpoint."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.map_mouse import PANE, wait_for_map, wait_for_outline
from tests.support.paths import ROOT
from tests.support.visitor import SHORT, SLOW_MS, no_failure, wait_for_block

pytestmark = [pytest.mark.browser, pytest.mark.demo, pytest.mark.timeout(1500)]

MOST_TABS = 120
"""More stops than any page has: who needs more goes round in circles."""


@pytest.fixture(scope="module")
def server(start_app: Callable[[Path], AppServer]) -> AppServer:
    return start_app(ROOT / "app.py")


def tab_to(page: Page, goal: Locator) -> None:
    """Press Tab until this has the focus, and check that the eye can see where the focus is."""
    expect(goal).to_be_visible(timeout=PATIENCE_MS)
    passed = []
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        if goal.evaluate("element => element.matches(':focus')"):
            assert goal.evaluate("element => element.matches(':focus-visible')")
            return
        passed.append(
            page.evaluate("(document.activeElement.ariaLabel || document.activeElement.innerText).slice(0, 40)")
        )
    raise AssertionError(f"Tab does not come to {goal}; it stops at {passed}")


def to_page(page: Page, name: str) -> None:
    tab_to(page, page.get_by_role("navigation").get_by_role("link", name=name, exact=True))
    page.keyboard.press("Enter")


def test_from_the_first_screen_to_a_proved_checkpoint_by_keys_alone(
    page: Page, server: AppServer, tmp_path: Path
) -> None:
    page.goto(f"{server.url}/map?eval={SHORT}")  # an address that names a text opens on the map
    wait_for_map(page)
    to_page(page, "shortviz")
    bracket = page.locator(".stack .bracket")
    tab_to(page, bracket)
    page.keyboard.press("ArrowDown")
    start = int(bracket.get_attribute("aria-valuenow") or "")
    n = int(page.locator(".stack .end.top").get_attribute("aria-valuenow") or "")
    tab_to(page, page.locator(".stack .open"))
    page.keyboard.press("Enter")
    wait_for_map(page)
    wait_for_block(page, start, n)

    tab_to(page, page.locator(PANE))
    for key in ("ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    start, n = start - 1, n - 1
    wait_for_outline(page, start, n)
    wait_for_block(page, start, n)

    tab_to(page, page.get_by_role("button", name="Load demo"))
    page.keyboard.press("Enter")
    expect(page.get_by_text(re.compile("demo · 30 layers · float32"))).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_text(re.compile(r"tokens scored of .* · steady"))).to_be_visible(timeout=SLOW_MS)
    no_failure(page)

    to_page(page, "Export")
    wait_for_block(page, start, n)
    folder = tmp_path / "by-keys"
    tab_to(page, page.get_by_role("textbox", name="Folder, new or empty"))
    page.keyboard.press("Control+A")
    page.keyboard.type(str(folder))
    page.keyboard.press("Enter")
    expect(page.get_by_text(f"Writes to {folder}.")).to_be_visible(timeout=PATIENCE_MS)
    tab_to(page, page.get_by_role("button", name="Export", exact=True))
    page.keyboard.press("Space")
    expect(page.get_by_text(re.compile("Done in .* Largest logit difference"))).to_be_visible(timeout=SLOW_MS)
    no_failure(page)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 30 - n
    assert "Traceback" not in server.printed
