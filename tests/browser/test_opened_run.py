"""A run opened by its link, on the real demo model: it is the one that is measured on and repaired in."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from shortviz.records.model import ModelRef
from shortviz.records.text import TextSpec
from shortviz.runs.run import example_run, load_run, save_run
from shortviz.service.execute import execute
from shortviz.service.requests import MeasureRequest
from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.paths import ROOT
from tests.support.visitor import SLOW_MS, no_failure

pytestmark = [pytest.mark.browser, pytest.mark.demo, pytest.mark.timeout(2400)]
ROWS = 4


@pytest.fixture
def server(start_app: Callable[[Path], AppServer]) -> AppServer:
    """A server with one run: named, of German passages, with the losses of one of the bundled runs."""
    found = start_app(ROOT / "app.py")
    text = TextSpec(kind="builtin", value="passages/german", limit=ROWS, max_length=64)
    run = execute(MeasureRequest(model=ModelRef(id="demo"), text=text))
    slow = replace(run.distances, seconds=1e6)
    losses = example_run("example-passages").losses
    assert losses is not None
    few = replace(losses.text, options="--builtin python-reference --limit 3")
    save_run(
        replace(run, name="German first", distances=slow, losses=replace(losses, text=few)), found.runs_dir / "mine"
    )
    return found


def test_a_run_opened_by_its_link_is_measured_on_its_own_text_and_repaired_in(page: Page, server: AppServer) -> None:
    page.goto(f"{server.url}/map?run=mine&start=12&n=4")
    expect(page.locator(".js-plotly-plot")).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_text("German first").first).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Load demo").click()
    expect(page.get_by_text(re.compile("demo · 30 layers · float32"))).to_be_visible(timeout=SLOW_MS)
    its = page.get_by_text(re.compile(r"python-reference, \d+ windows of 256 tokens"))
    expect(its).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("combobox", name=re.compile("Colour by")).click()
    page.get_by_role("option", name="angular, last token").click()
    expect(page.get_by_text(f"passages/german, {ROWS} rows, ")).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Measure", exact=True).click()
    expect(page.get_by_text(re.compile("measured in (?!277 h)"))).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_text(f"Averaged over {ROWS} rows of built-in passages/german")).to_be_visible(timeout=SLOW_MS)
    assert "run=mine" in page.url
    page.get_by_role("button", name="Repair", exact=True).click()
    # It waits for the chosen block's own evaluation.
    expect(page.get_by_text(re.compile(r"Repaired × .* won back"))).to_be_visible(timeout=3 * SLOW_MS)
    no_failure(page)
    expect(page.get_by_text("German first").first).to_be_visible(timeout=PATIENCE_MS)
    found = load_run(server.runs_dir / "mine")
    assert found.name == "German first"
    assert found.distances is not None
    assert found.distances.seconds < 1e6
    assert [ledger.text.options for ledger in found.ledgers] == ["--builtin python-reference --limit 3"]
    assert [file.parent.name for file in server.runs_dir.glob("*/run.json")] == ["mine"]
    assert "Traceback" not in server.printed
