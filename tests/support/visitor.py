"""What a person does on the pages, in the words that are on them."""

import re

from playwright.sync_api import Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.map_mouse import wait_for_map

NOT_MEASURED = "Distances of this model on this text are not measured yet: press Measure."
SLOW_MS = 300_000
"""For what computes: loading, measuring, exporting on two busy cores."""


def wait_for_block(page: Page, start: int, n: int) -> None:
    """Return when the inspector speaks of this block."""
    layers = f"layer {start}" if n == 1 else f"layers {start}-{start + n - 1}"
    words = page.get_by_role("heading", name=f"Removes {layers} (start {start}, n {n})")
    expect(words).to_be_visible(timeout=PATIENCE_MS)


def no_failure(page: Page) -> None:
    """Check that nothing on the page is an exception or an error message."""
    expect(page.get_by_test_id("stException")).to_have_count(0)
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


def type_number(page: Page, label: str, value: int) -> None:
    box = page.get_by_role("spinbutton", name=label)
    box.fill(str(value))
    box.press("Enter")


def to_page(page: Page, name: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()


SHORT = "builtin%3Apassages%2Fprose%3Flimit%3D2"
"""An evaluation text, as links name it, of a few windows: the usual 32 of two models take a core a minute."""


def load_demo(page: Page, server: AppServer, *, rows: int, length: int) -> None:
    """Choose text sizes on the Model page, load the demo model there, and go to the map; cuts are scored on `SHORT`."""
    page.goto(f"{server.url}/map?eval={SHORT}")
    wait_for_map(page)
    to_page(page, "Model")
    type_number(page, "Rows, at most", rows)
    type_number(page, "Tokens a row", length)
    expect(page.get_by_text(re.compile(rf"\b{rows} rows, [\d,]+ tokens"))).to_be_visible(timeout=PATIENCE_MS)
    button = page.get_by_role("button", name=re.compile("^(Load|Use this model)$"))
    expect(button).to_be_enabled(timeout=SLOW_MS)
    button.click()
    expect(page.get_by_text(re.compile("demo · 30 layers · float32"))).to_be_visible(timeout=SLOW_MS)
    to_page(page, "Map")
    expect(page.get_by_text(NOT_MEASURED)).to_be_visible(timeout=PATIENCE_MS)  # the bundled map is of another text


def colour_by_angles(page: Page) -> None:
    """Choose the angles: what the map is coloured by is what Measure measures."""
    page.get_by_role("combobox", name=re.compile("Colour by")).click()
    page.get_by_role("option", name="angular, last token").click()
    expect(page.get_by_text(NOT_MEASURED)).to_be_visible(timeout=PATIENCE_MS)


def start_measuring(page: Page) -> None:
    """Measure the distances."""
    colour_by_angles(page)
    page.get_by_role("button", name="Measure", exact=True).click()


def rows_done(page: Page, rows: int) -> int:
    """Wait for the progress of a measurement and return the rows that it says are done."""
    words = page.get_by_text(re.compile(rf"\d+ of {rows:,} rows"))
    expect(words.first).to_be_visible(timeout=SLOW_MS)
    found = re.search(rf"([\d,]+) of {rows:,} rows", words.first.inner_text())
    assert found is not None
    return int(found[1].replace(",", ""))
