"""The browser's Back button leads where a person came from, in one press, and a reload stays where they are."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.map_mouse import wait_for_map
from tests.support.paths import ROOT
from tests.support.visitor import no_failure

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(start_app: Callable[[Path], AppServer]) -> AppServer:
    return start_app(ROOT / "app.py")


def lesson(page: Page, title: str) -> None:
    expect(page.get_by_role("heading", name=title)).to_be_visible(timeout=PATIENCE_MS)
    no_failure(page)


def test_back_goes_through_the_lessons_to_the_first(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/learn")
    lesson(page, "1. A layer adds to the stream")
    page.get_by_role("button", name="Next: Angle").click()
    lesson(page, "2. How far a block turns a state")
    page.go_back()
    lesson(page, "1. A layer adds to the stream")
    page.go_forward()
    lesson(page, "2. How far a block turns a state")
    assert page.url.endswith("/learn?step=Angle")


def test_one_press_leads_from_the_map_to_the_lesson_that_was_left_and_a_reload_stays_there(
    page: Page, server: AppServer
) -> None:
    page.goto(f"{server.url}/?step=Angle")
    lesson(page, "2. How far a block turns a state")
    page.get_by_role("button", name="Open this block on the map").click()
    wait_for_map(page)
    expect(page).to_have_url(re.compile(r"/map\?run=example&start=12&n=4$"), timeout=PATIENCE_MS)
    page.go_back()
    lesson(page, "2. How far a block turns a state")
    expect(page).to_have_url(re.compile("step=Angle"), timeout=PATIENCE_MS)
    page.reload()
    lesson(page, "2. How far a block turns a state")


@pytest.mark.parametrize("button", ["Heal", "Export"])
def test_one_press_leads_back_to_the_map(button: str, page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/map?start=12&n=4")
    wait_for_map(page)
    page.get_by_test_id("stMain").get_by_role("button", name=button, exact=True).click()
    expect(page).to_have_url(re.compile(rf"/{button.lower()}\?start=12&n=4$"), timeout=PATIENCE_MS)
    page.go_back()
    wait_for_map(page)
    assert page.url.endswith("/map?start=12&n=4")
    no_failure(page)
